"""Linear layers with weights in 8 bits, for CPUs.

A weight is a whole number from -127 to 127, times a scale of its output. Each row of inputs is a row of whole numbers
in 16 bits, times a scale of that row. Its upper and lower bytes are multiplied by the weights in one product of 8-bit
numbers, which oneDNN computes by the processor's own instructions (VNNI). All sums are exact, so a row's result depends
on that row alone, whatever the batch, and inputs lose hardly anything: what is lost is the weights' rounding. Inputs of
8 bits would cost half the products and several times the error, and rounding steps as coarse as that turn the smallest
differences between two ways to compute attention into other words.

On processors without VNNI, on other devices, and where gradients are wanted, the same numbers are multiplied in
float32, which is slower than a model that is not quantised.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from wim_kernel.engines.local.model.quantised_linear import Group, QuantisedLinear

MOST = 127
"""Largest whole number of a weight."""
MOST_INPUT = 32_512
"""Largest whole number of an input: 256 times the largest of its upper byte, which is a signed number in 8 bits."""
FEW_ROWS = 16
"""Number of rows for which weights are laid out; the layout works for any number."""
_SMALLEST = 1e-30  # in place of zero, to divide by


class Int8Linear(QuantisedLinear):
    """A linear layer with weights in 8 bits: whole numbers from -127 to 127."""

    @staticmethod
    def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
        """See `QuantisedLinear.quantised`."""
        exact = weight.float()
        scale = exact.abs().amax(1).clamp(min=_SMALLEST) / MOST
        return torch.round(exact / scale[:, None]).to(torch.int8), scale

    @staticmethod
    def grouped(layers: Sequence[Int8Linear]) -> Int8Group:
        """See `QuantisedLinear.grouped`."""
        return Int8Group(layers)


class Int8Group(Group):
    """Layers with weights in 8 bits that are given the same input."""

    def _all(self, rows: Tensor) -> Tensor:
        flat = rows.reshape(-1, rows.shape[-1]).float()
        largest = flat.abs().amax(1, keepdim=True).clamp_(min=_SMALLEST)
        numbers = (flat * (MOST_INPUT / largest)).round_()
        if rows.device.type == "cpu" and multiplies_bytes():
            sums = self._weights().product(_bytes(numbers))
            result = torch.add(sums[len(flat) :], sums[: len(flat)], alpha=256)
        else:
            weight, scale = self._joined()
            result = nn.functional.linear(numbers, weight.float()).mul_(scale)
        result = result.mul_(largest.div_(MOST_INPUT)).to(rows.dtype)
        return result.view(*rows.shape[:-1], result.shape[1])

    def _made(self, weight: Tensor, scale: Tensor) -> LaidOut:
        return LaidOut(weight, scale)


class LaidOut:
    """Weights in oneDNN's layout.

    Args:
        weight: (N, K) in int8.
        scale: factors on its rows, (N,).
    """

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        self.weight: Tensor = torch.ops.onednn.qlinear_prepack(
            weight.contiguous(), [FEW_ROWS, weight.shape[1]]
        )
        self.scale = scale.contiguous()
        self.zeros = torch.zeros(len(scale), dtype=torch.int32)

    def product(self, rows: Tensor) -> Tensor:
        """``(rows - 128) @ weight.T * scale``, from (M, K) in uint8 to (M, N) in float32; the sums are exact."""
        result: Tensor = torch.ops.onednn.qlinear_pointwise.default(
            rows, 1.0, 128, self.weight, self.scale, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return result


def _bytes(numbers: Tensor) -> Tensor:
    """The upper bytes of whole numbers (M, K), then the lower, as (2 M, K) in uint8, each 128 more than it stands for.

    A number is 256 times its upper byte, plus its lower one; both are signed.
    """
    shifted = (numbers + 128).to(torch.int16)
    upper = (shifted >> 8).add_(128)
    return torch.cat((upper.to(torch.uint8), shifted.to(torch.uint8)))  # a cast keeps the lower byte


@functools.cache
def multiplies_bytes() -> bool:
    """Whether oneDNN can multiply 8-bit numbers here by the processor's own instructions (VNNI), and does it exactly.

    Without them it adds pairs of products up in 16 bits, which is too few for numbers as large as these.
    """
    known: Callable[[], bool] | None = getattr(torch.cpu, "_is_vnni_supported", None)
    if known is None or not known():
        return False
    rows = torch.randint(0, 256, (16, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    rows[0], weight = 255, torch.full((32, 64), MOST, dtype=torch.int8)
    try:
        found = LaidOut(weight, torch.ones(32)).product(rows)
    except (AttributeError, RuntimeError):  # another build of torch
        return False
    return torch.equal(found, (rows.float() - 128) @ weight.float().t())
