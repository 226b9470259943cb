"""Linear layers in float32 on x86 processors by oneDNN, in place of the BLAS library that torch calls.

Weights and precision are the same. For the few rows of a decode step oneDNN reads the weights faster, and fastest from
weights in its own memory layout. That layout takes a copy, so only the output layer, the widest, has one.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from wim_kernel.engines.local.model.patching import ForwardPatch

FEW_ROWS = 8
"""Number of rows for which the output layer's copy is laid out; it works for any number."""


class OneDNNLinears(ForwardPatch):
    """Patches the linear layers of a model with oneDNN's products.

    Left alone are layers on other devices, dtypes or processors, subclasses of `torch.nn.Linear`, and layers whose
    ``forward`` other code has replaced.

    Args:
        model: the model.
        enabled: called at each forward; if it returns False, the layer's own code runs.
    """

    def _patch_all(self) -> None:
        if not has_onednn():
            return
        output = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        for layer in self.model.modules():
            if type(layer) is nn.Linear and "forward" not in vars(layer) and _fits(layer.weight):
                replacement = _PackedLinear(layer) if layer is output else functools.partial(_plain, layer)
                self._patch(layer, replacement)

    def _forward(self, module: nn.Linear, replacement: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        if not self.enabled() or not _fits(rows) or not _fits(module.weight):
            return nn.Linear.forward(module, rows)
        return replacement(rows)


def _plain(layer: nn.Linear, rows: Tensor) -> Tensor:
    return product(rows, layer.weight, layer.bias)


class _PackedLinear:
    """A linear layer with a copy of its weights in oneDNN's layout; the copy is renewed when the weights change."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer
        self._version: tuple[int, int] | None = None
        self._weight: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"layer": self.layer, "_version": None, "_weight": None}  # oneDNN's layout cannot be copied

    def __call__(self, rows: Tensor) -> Tensor:
        weight = self.layer.weight
        version = weight.data_ptr(), weight._version
        if self._weight is None or self._version != version:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), FEW_ROWS)
            self._version = version
        return product(rows, self._weight, self.layer.bias)


def product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``rows @ weight.T + bias`` by oneDNN; ``weight`` (out, in), plain or in oneDNN's own layout."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise.default(rows, weight, bias, "none", [], "")
    return result


def _fits(tensor: Tensor) -> bool:
    plain = type(tensor) in (Tensor, nn.Parameter)  # quantised weights are of types of their own
    return plain and tensor.device.type == "cpu" and tensor.dtype == torch.float32


def has_onednn() -> bool:
    """Whether this process can multiply by oneDNN on an x86 processor."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(available and hasattr(torch.ops.mkldnn, "_linear_pointwise"))
