"""The protocol of a backend: what attends while a prefix is extended, and what runs branches as rows behind it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from wim_kernel.engines.local.attention.parts import Terms
from wim_kernel.engines.local.prefix.store import LayerStore
from wim_kernel.engines.local.rows.base import Batch


class AttentionBackend(Protocol):
    """Computes attention over a shared prefix.

    Attributes:
        name: ``"parts"``, ``"kernels"`` or ``"cudnn"``, as the engine's option ``attention`` calls it.
        by_token: how the prefix is laid out in memory; see `LayerStore`.
    """

    name: str
    by_token: bool

    def extend(
        self,
        store: LayerStore,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        start: int,
        terms: Terms,
        kept: dict[Hashable, Tensor],
    ) -> Tensor:
        """Store a layer's keys and values of new tokens, then attend over all there are.

        Args:
            store: the layer's keys and values.
            query: (1, H, M, D), rotated.
            key: (1, K, M, D), the new tokens' alone, rotated.
            value: (1, K, M, Dv).
            start: how many tokens stand before the new ones.
            terms: scale, window and the like.
            kept: what the backend keeps from layer to layer in one forward pass; empty at first.

        Returns:
            (1, M, H, Dv).
        """

    def rows(self, layers: Mapping[int, LayerStore], lengths: Sequence[int], room: int) -> Batch:
        """Branches as rows that continue from the first ``lengths[row]`` tokens, with room for ``room`` tokens each."""
