"""The backend for GPUs: Triton kernels, cuDNN for long runs of a chunk, and decode steps captured as CUDA graphs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from wim_kernel.engines.local.attention.parts import AttentionParams
from wim_kernel.engines.local.attention.triton_launch import branch_attention, pack_state, prefix_splits
from wim_kernel.engines.local.backends.cudnn import CuDNN
from wim_kernel.engines.local.model.runner import ModelRunner, upload
from wim_kernel.engines.local.model.states import States
from wim_kernel.engines.local.prefix.store import LayerStore
from wim_kernel.engines.local.rows.base import BranchRows
from wim_kernel.engines.local.rows.cuda_graphs import CapturedPasses
from wim_kernel.engines.local.rows.torch_rows import TorchRows
from wim_kernel.engines.local.rows.triton_rows import TritonRows


class TritonBackend:
    """See `wim_kernel.engines.local.backends.base.AttentionBackend`. Also fuses the model's small operations.

    Args:
        runner: the model.
        cudnn: computes parts of a chunk's attention.
    """

    by_token = True

    def __init__(self, runner: ModelRunner, cudnn: CuDNN) -> None:
        self.name = "cudnn" if cudnn.use == "always" else "kernels"
        self.runner = runner
        self.cudnn = cudnn
        self.passes = CapturedPasses(runner)
        runner.fuse()

    def supports(self, params: AttentionParams) -> bool:
        """Whether visibility is causal with an optional window, which the kernels compute themselves."""
        return type(params) is AttentionParams

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
        """See `AttentionBackend.extend`. The kernel stores the new keys and values, unless cuDNN computes that part."""
        tokens, partials = self.cudnn.partials(query, key, value, (store.keys, store.values), start, params)
        if partials.causal is not None:
            store.write(key[0], value[0], start)
        state = (tokens, query.device)
        if state not in kept:
            kept[state] = upload(pack_state(tokens, [start], [start], [start]), torch.int32, query.device)
        return branch_attention(
            query,
            key,
            value,
            params,
            store.table,
            kept[state],
            prefix_splits(query, key, start - tokens),
            past=False,
            partials=partials,
        )

    def forget(self) -> None:
        """See `AttentionBackend.forget`."""
        self.passes.drop()

    def rows(
        self,
        layers: Mapping[int, LayerStore],
        lengths: Sequence[int],
        room: int,
        states: States | None = None,
    ) -> BranchRows:
        """See `AttentionBackend.rows`. Rows with states, or on a prefix without buffers, run in plain PyTorch."""
        if not layers or states is not None:
            return TorchRows(layers, self.runner, list(lengths), room, states)
        return TritonRows(layers, self.runner, self.passes, list(lengths), room)
