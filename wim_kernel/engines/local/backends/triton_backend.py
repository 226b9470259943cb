"""Attention by two Triton kernels, with cuDNN for long runs, and decode steps captured as CUDA graphs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from wim_kernel.engines.local.attention.parts import Terms
from wim_kernel.engines.local.attention.triton_launch import branch_attention, pack_state, prefix_splits
from wim_kernel.engines.local.backends.cudnn import CuDNN
from wim_kernel.engines.local.model.runner import ModelRunner, upload
from wim_kernel.engines.local.prefix.store import LayerStore
from wim_kernel.engines.local.rows.base import Batch
from wim_kernel.engines.local.rows.cuda_graphs import Graphs
from wim_kernel.engines.local.rows.torch_rows import BranchBatch
from wim_kernel.engines.local.rows.triton_rows import KernelBatch


class TritonBackend:
    """See `wim_kernel.engines.local.backends.base.AttentionBackend`. The model's small operations are fused as well.

    Args:
        runner: the model.
        cudnn: what long runs of a chunk's attention are left to.
    """

    by_token = True

    def __init__(self, runner: ModelRunner, cudnn: CuDNN) -> None:
        self.name = "cudnn" if cudnn.use == "always" else "kernels"
        self.runner = runner
        self.cudnn = cudnn
        self.graphs = Graphs(runner)
        runner.fuse()

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
        """Store a layer's new keys and values, then attend over all there are, long runs by cuDNN."""
        tokens, elsewhere = self.cudnn.partials(query, key, value, (store.keys, store.values), start, terms)
        if elsewhere.inner is not None:
            store.write(key[0], value[0], start)
        state = (tokens, query.device)
        if state not in kept:
            kept[state] = upload(pack_state(tokens, [start], [start], [start]), torch.int32, query.device)
        return branch_attention(
            query,
            key,
            value,
            terms,
            store.table,
            kept[state],
            prefix_splits(query, key, start - tokens),
            past=False,
            elsewhere=elsewhere,
        )

    def rows(self, layers: Mapping[int, LayerStore], lengths: Sequence[int], room: int) -> Batch:
        """Branches as rows by the kernels; behind an empty prefix, which has no buffers yet, in plain PyTorch."""
        if not layers:
            return BranchBatch(layers, self.runner, list(lengths), room)
        return KernelBatch(layers, self.runner, self.graphs, list(lengths), room)
