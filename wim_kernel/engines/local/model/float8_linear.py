"""Linear layers whose weights and inputs are multiplied in float8, for GPUs with matrix units for it (Hopper, Ada).

A weight is a number of 8 bits (e4m3: largest 448, steps of an eighth to a sixteenth) times a scale of its output, and
an input one times a scale of its row. So how a row is rounded depends on that row alone, whatever the batch. Elsewhere
the same numbers are multiplied in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wim_kernel.engines.local.model.float8_ops import FLOAT8, LARGEST, SMALLEST, quantise_rows, scale_results
from wim_kernel.engines.local.model.quantised_linear import Group, QuantisedLinear

FEW_ROWS = 64
"""Up to so many rows cuBLAS without scales, and a small kernel that scales its results, is faster than the product
that scales them itself: 8 us in place of 13 for 8 rows and 4,096 x 6,144 weights on an H200."""
MULTIPLE = 16
"""Sizes of layers that the matrix units take are multiples of this."""


class Float8Linear(QuantisedLinear):
    """A linear layer with weights in float8 (e4m3)."""

    @staticmethod
    def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
        """See `QuantisedLinear.quantised`."""
        exact = weight.float()
        scale = exact.abs().amax(1).clamp(min=SMALLEST) / LARGEST
        return (exact / scale[:, None]).clamp(-LARGEST, LARGEST).to(FLOAT8), scale

    @staticmethod
    def grouped(layers: Sequence[Float8Linear]) -> Float8Group:
        """See `QuantisedLinear.grouped`."""
        return Float8Group(layers)


class Float8Group(Group):
    """Layers with weights in float8 that are given the same input; their weights are moved into one tensor."""

    def _all(self, rows: Tensor) -> Tensor:
        flat = rows.reshape(-1, rows.shape[-1])
        weight, scale = self._weights()
        if not len(flat) or not multiplies_float8(flat.device):
            numbers, row_scale = _quantised_rows(flat)
            exact: Tensor = numbers.float() @ weight.float().t() * row_scale * scale
            return exact.to(rows.dtype).view(*rows.shape[:-1], len(scale))
        numbers, row_scale = quantise_rows(flat)
        if len(flat) > FEW_ROWS and rows.dtype == torch.bfloat16:
            result = torch._scaled_mm(
                numbers,
                weight.t(),
                scale_a=row_scale,
                scale_b=scale[None],
                out_dtype=rows.dtype,
                use_fast_accum=True,
            )
        else:
            one = _one(rows.device)
            sums = torch._scaled_mm(
                numbers, weight.t(), scale_a=one, scale_b=one, out_dtype=torch.float32, use_fast_accum=True
            )
            result = scale_results(sums, row_scale, scale, rows.dtype)
        return result.view(*rows.shape[:-1], len(scale))

    def _made(self, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        parts = torch.split(weight, [layer.out_features for layer in self.layers])
        scales = torch.split(scale, [layer.out_features for layer in self.layers])
        for layer, part, factors in zip(self.layers, parts, scales, strict=True):
            layer.weight.data, layer.scale.data = part, factors
        return weight, scale


@functools.cache
def _one(device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.ones((), device=device)


def fits(layer: nn.Linear) -> bool:
    """Whether the matrix units take a layer's sizes."""
    return layer.in_features % MULTIPLE == 0 and layer.out_features % MULTIPLE == 0


def multiplies_float8(device: torch.device) -> bool:
    """Whether a device has matrix units for float8."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= (8, 9)
    )


def _quantised_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    exact = rows.float()
    scale = exact.abs().amax(1, keepdim=True).clamp(min=SMALLEST) / LARGEST
    return (exact / scale).clamp(-LARGEST, LARGEST).to(FLOAT8), scale
