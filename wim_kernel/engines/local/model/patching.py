"""Patches ``forward`` of a model's modules, and restores it."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import PreTrainedModel


class ForwardPatch(ABC):
    """Replaces ``forward`` of some modules of a model.

    Args:
        model: the model.
        enabled: called at each forward; if it returns False, the module's own code runs.
    """

    def __init__(self, model: PreTrainedModel, enabled: Callable[[], bool]) -> None:
        self.model = model
        self.enabled = enabled
        self._patched: list[nn.Module] | None = None

    def install(self) -> None:
        """Patch the model; does nothing if it is patched."""
        if self._patched is None:
            self._patched = []
            self._patch_all()

    def uninstall(self) -> None:
        """Restore the model."""
        for module in self._patched or ():
            del module.forward
        self._patched = None

    @abstractmethod
    def _patch_all(self) -> None:
        """Call `_patch` for each module whose forward is replaced."""

    @abstractmethod
    def _forward(self, module: Any, replacement: Any, *args: Any, **kwargs: Any) -> Any:
        """The forward of a patched module: ``replacement`` if patches are enabled and it fits the arguments."""

    def _patch(self, module: nn.Module, replacement: Callable[..., Any]) -> None:
        assert self._patched is not None
        module.forward = functools.partial(self._forward, module, replacement)
        self._patched.append(module)
