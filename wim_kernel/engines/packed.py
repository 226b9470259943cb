"""A prefix as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """A prefix as plain data, in memory or memory-mapped from a file.

    Attributes:
        tensors: keys and values, by names of the engine's choice.
        state: JSON data that the engine needs besides the tensors.
        tokens: number of tokens.
    """

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]
    tokens: int

    @property
    def nbytes(self) -> int:
        """The size of the tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())
