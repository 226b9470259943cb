"""The attention of a forward pass over rows by the Triton kernels: of prompts, and of decode steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wim_kernel.common.errors import UnsupportedModelError
from wim_kernel.engines.local.attention.parts import AttentionParams
from wim_kernel.engines.local.attention.prompt_probe import AttentionObserver
from wim_kernel.engines.local.attention.triton_launch import (
    RowBlocks,
    branch_attention,
    prefix_splits,
)


@dataclass
class TritonContext:
    """The attention of a pass over rows, by the Triton kernels.

    Attributes:
        table: the address table, with a row (see `wim_kernel.engines.local.attention.triton_launch.table_row`) for each
            of ``layers``.
        layers: indices of the model's layers that attend, ascending.
        state: the rows' state, see `wim_kernel.engines.local.attention.triton_launch.pack_state`.
        longest: most prefix tokens that a row may see.
        past: whether rows may have own tokens from earlier passes.
        dtype: dtype of the keys and values in the buffers.
        probe: observes the attention of this pass, if given.
        keys: for the probe, the prefix's keys in each of ``layers``, (key heads, capacity, D).
        row_blocks: the rows of each prefix; None if all rows see one.
    """

    table: Tensor
    layers: Sequence[int]
    state: Tensor
    longest: int
    past: bool
    dtype: torch.dtype
    probe: AttentionObserver | None = None
    keys: Sequence[Tensor | None] = ()
    row_blocks: RowBlocks | None = None

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, params: AttentionParams
    ) -> Tensor:
        """See `ForwardContext.attend`. Stores the new keys and values in the rows' own buffers."""
        if query.dtype != self.dtype:
            raise UnsupportedModelError(
                f"The reading is {self.dtype} and the model now computes in {query.dtype}: read the document again."
            )
        index = self.layers.index(layer)
        if self.probe is not None:
            self.probe.observe(layer, query, key, self.keys[index], params)
        row = self.table[index]
        table, state = (item.to(query.device) for item in (row, self.state))
        blocks = self.row_blocks
        if blocks is not None:
            blocks = replace(blocks, bounds=blocks.bounds.to(query.device))
        splits = prefix_splits(query, key, self.longest, blocks)
        return branch_attention(
            query, key, value, params, table, state, splits, past=self.past, row_blocks=blocks
        )
