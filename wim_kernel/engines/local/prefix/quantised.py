"""Keys and values of a kept prefix in 8 bits.

Keys have channels that are large in all tokens, and values have not (KIVI, arXiv 2402.02750). So each channel of the
keys has a range of its own for every `GROUP` tokens, and each token's values one for each head. A number is stored as
its place in the range, in 255 steps. The ends of a range are numbers that occur, so that restored numbers hardly change
when they are stored again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 128
"""Number of consecutive tokens of which a channel of the keys has one range."""

_STEPS = 255


@dataclass(frozen=True)
class Quantised:
    """Keys or values of a layer in 8 bits.

    Attributes:
        codes: (tokens, heads, size), the places in the ranges, in uint8.
        low: the lower ends of the ranges in float32: (groups, heads, size) of keys, (tokens, heads, 1) of values.
        step: the ranges' steps in float32, shaped like ``low``.
    """

    codes: Tensor
    low: Tensor
    step: Tensor

    def restored(self, dtype: torch.dtype) -> Tensor:
        """The numbers, (tokens, heads, size)."""
        low, step = (self._by_token(item) for item in (self.low, self.step))
        return torch.addcmul(low, self.codes.float(), step).to(dtype)

    def _by_token(self, ranges: Tensor) -> Tensor:
        count = self.codes.shape[0]
        return ranges if len(ranges) == count else ranges.repeat_interleave(GROUP, 0)[:count]

    def named(self, name: str) -> dict[str, Tensor]:
        """The parts as tensors of a packed prefix."""
        return {name: self.codes, f"{name}.low": self.low, f"{name}.step": self.step}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], name: str) -> Quantised:
        """The inverse of `named`."""
        return cls(tensors[name], tensors[f"{name}.low"], tensors[f"{name}.step"])


def quantised(keys: Tensor, values: Tensor, layer: str) -> dict[str, Tensor]:
    """Keys and values (heads, tokens, size) of a layer in 8 bits, as tensors of a packed prefix."""
    found = quantised_keys(keys.transpose(0, 1)), quantised_values(values.transpose(0, 1))
    return found[0].named(f"{layer}.keys") | found[1].named(f"{layer}.values")


def parts_of(tensors: Mapping[str, Tensor], layer: str) -> dict[str, Tensor]:
    """Those tensors of a packed prefix that belong to a layer's keys and values."""
    keys, values = (Quantised.of(tensors, f"{layer}.{name}") for name in ("keys", "values"))
    return keys.named(f"{layer}.keys") | values.named(f"{layer}.values")


def restored(tensors: Mapping[str, Tensor], layer: str, dtypes: Sequence[str]) -> list[Tensor]:
    """The inverse of `quantised`; ``dtypes`` are the names of the dtypes of keys and values."""
    return [
        Quantised.of(tensors, f"{layer}.{name}").restored(getattr(torch, dtype)).transpose(0, 1)
        for name, dtype in zip(("keys", "values"), dtypes, strict=True)
    ]


def quantised_keys(keys: Tensor) -> Quantised:
    """Quantise keys (tokens, heads, size), channel by channel."""
    groups = torch.split(keys.float(), GROUP)
    low = torch.stack([group.amin(0) for group in groups])
    high = torch.stack([group.amax(0) for group in groups])
    return _quantised(keys, low, high)


def quantised_values(values: Tensor) -> Quantised:
    """Quantise values (tokens, heads, size), token by token."""
    numbers = values.float()
    return _quantised(values, numbers.amin(-1, keepdim=True), numbers.amax(-1, keepdim=True))


def _quantised(tensor: Tensor, low: Tensor, high: Tensor) -> Quantised:
    empty = Quantised(tensor, low, ((high - low) / _STEPS).clamp(min=torch.finfo(torch.float32).tiny))
    low_by_token, step_by_token = empty._by_token(low), empty._by_token(empty.step)
    codes = ((tensor.float() - low_by_token) / step_by_token).round().clamp(0, _STEPS).to(torch.uint8)
    return Quantised(codes, low, empty.step)
