"""In the place of SGLang's compiled kernels, which it imports and does not call where it computes in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_args: Any, **_options: Any) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{name} is not here: SGLang runs in plain PyTorch.")

    return missing
