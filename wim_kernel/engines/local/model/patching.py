"""Forwards lent to a model's modules, and taken back."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import PreTrainedModel


class Lender(ABC):
    """Puts forwards of its own in front of modules' own.

    Args:
        model: whose modules.
        wanted: asked at each call; if it says no, the module's own code runs.
    """

    def __init__(self, model: PreTrainedModel, wanted: Callable[[], bool]) -> None:
        self.model = model
        self.wanted = wanted
        self._lent: list[nn.Module] | None = None

    def install(self) -> None:
        """Put everything in place; does nothing if it is."""
        if self._lent is None:
            self._lent = []
            self._lend_all()

    def uninstall(self) -> None:
        """Give everything back as it was."""
        for module in self._lent or ():
            del module.forward
        self._lent = None

    @abstractmethod
    def _lend_all(self) -> None:
        """`_lend` what there is to lend."""

    @abstractmethod
    def _forward(self, module: Any, form: Any, *args: Any, **kwargs: Any) -> Any:
        """What a module does instead: ``form``, if it is wanted and fits."""

    def _lend(self, module: nn.Module, form: Callable[..., Any]) -> None:
        assert self._lent is not None
        module.forward = functools.partial(self._forward, module, form)
        self._lent.append(module)
