"""A prefix as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """A prefix as plain data, wherever its tensors are.

    Attributes:
        tensors: keys and values, by names that the engine chose.
        state: what else the engine needs to make a prefix of them, as JSON data.
        tokens: how many tokens it holds.
    """

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]
    tokens: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())
