"""The protocol of an attention backend: it extends a shared prefix, and makes rows that continue from it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from wim_kernel.engines.local.attention.parts import AttentionParams
from wim_kernel.engines.local.model.states import States
from wim_kernel.engines.local.prefix.store import LayerStore
from wim_kernel.engines.local.rows.base import BranchRows


class AttentionBackend(Protocol):
    """Computes attention over a shared prefix.

    Attributes:
        name: value of the engine's option ``attention``: ``"parts"``, ``"kernels"`` or ``"cudnn"``.
        by_token: memory layout of the prefix; see `LayerStore`.
    """

    name: str
    by_token: bool

    def supports(self, params: AttentionParams) -> bool:
        """Whether the backend computes this kind of attention."""

    def extend(
        self,
        store: LayerStore,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        start: int,
        params: AttentionParams,
        kept: dict[Hashable, Tensor],
    ) -> Tensor:
        """Store the keys and values of new tokens in one layer, and attend to the prefix and the new tokens.

        Args:
            store: keys and values of the layer.
            query: queries of the new tokens, rotated, (1, H, M, D).
            key: keys of the new tokens, rotated, (1, K, M, D).
            value: values of the new tokens, (1, K, M, Dv).
            start: number of tokens before the new ones.
            params: scale, window, softcap and sinks.
            kept: tensors that the backend reuses in later layers of the same forward pass; empty in the first.

        Returns:
            (1, M, H, Dv).
        """

    def forget(self) -> None:
        """Release what is kept of the model's weights, which are about to be replaced."""

    def rows(
        self,
        layers: Mapping[int, LayerStore],
        lengths: Sequence[int],
        room: int,
        states: States | None = None,
    ) -> BranchRows:
        """Make rows that continue from the first ``lengths[row]`` tokens, with room for ``room`` tokens each.

        Args:
            layers: keys and values of the prefix, by layer.
            lengths: number of prefix tokens that each row sees.
            room: number of tokens that each row may add.
            states: the rows' states, which become the batch's own; None if no layer keeps any.
        """
