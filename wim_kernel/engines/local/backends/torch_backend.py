"""Attention in plain PyTorch, part by part: on any device, for any model that uses the attention interface."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from torch import Tensor

from wim_kernel.engines.local.attention.parts import Terms, extend_attention
from wim_kernel.engines.local.model.runner import ModelRunner
from wim_kernel.engines.local.prefix.store import LayerStore
from wim_kernel.engines.local.rows.torch_rows import BranchBatch


class TorchBackend:
    """See `wim_kernel.engines.local.backends.base.AttentionBackend`.

    Args:
        runner: the model.
    """

    name = "parts"
    by_token = False

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner

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
        """Store a layer's new keys and values, then attend over all there are."""
        store.write(key[0], value[0], start)
        end = start + key.shape[2]
        return extend_attention(query, store.keys[:, :end], store.values[:, :end], start, terms)

    def rows(self, layers: Mapping[int, LayerStore], lengths: Sequence[int], room: int) -> BranchBatch:
        """Branches as rows beside the prefix."""
        return BranchBatch(layers, self.runner, list(lengths), room)
