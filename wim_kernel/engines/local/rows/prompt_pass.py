"""Passes over the prompts of a batch with inputs at fixed addresses, one for each size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from wim_kernel.engines.local.attention.parts import AttentionParams
from wim_kernel.engines.local.model.runner import ModelRunner, to_device, upload
from wim_kernel.engines.local.rows.captured import CAPTURE_PREFIX, CapturedPass
from wim_kernel.engines.local.rows.triton_context import TritonContext

WIDTH_STEP = 32
KEPT_STEP = 16
SHORT_PREFIX = 2048
MOST_TOKENS = 2048
"""The largest pass, padding included, that is worth a graph: longer ones keep a device busy while the host launches."""


@dataclass(frozen=True)
class PromptSize:
    """The size of a pass over prompts.

    Attributes:
        rows: number of rows.
        width: number of slots of each row, padding included.
        kept: number of slots whose logits are returned.
        longest: most prefix tokens that a row may see: 0, `SHORT_PREFIX` or `CAPTURE_PREFIX`.
        watched: layers whose queries and keys are wanted, ascending.
    """

    rows: int
    width: int
    kept: int
    longest: int
    watched: tuple[int, ...]

    @classmethod
    def of(cls, lengths: Sequence[int], width: int, kept: int, watched: Sequence[int]) -> PromptSize:
        """The size that a pass is rounded up to; see `PromptSize` for the arguments."""
        longest = max(lengths)
        if longest:
            longest = SHORT_PREFIX if longest <= SHORT_PREFIX else CAPTURE_PREFIX
        kept = kept if kept == 1 else -(-kept // KEPT_STEP) * KEPT_STEP
        return cls(len(lengths), rounded(width), kept, longest, tuple(watched))


def rounded(width: int) -> int:
    """The width that prompts are padded to."""
    return -(-width // WIDTH_STEP) * WIDTH_STEP


@dataclass
class Watched:
    """Remembers the queries and keys of some layers of a pass, by layer.

    Attributes:
        layers: the layers.
        seen: for each layer, its queries, its keys, and its scale, window, softcap and sinks.
    """

    layers: tuple[int, ...]
    seen: dict[int, tuple[Tensor, Tensor, AttentionParams]] = field(default_factory=dict)

    def observe(
        self, layer: int, query: Tensor, key: Tensor, prefix: Tensor | None, params: AttentionParams
    ) -> None:
        """See `wim_kernel.engines.local.attention.prompt_probe.PromptProbe.observe`."""
        if layer in self.layers:
            self.seen[layer] = query, key, params


class PromptPass(CapturedPass):
    """A pass over prompts of one size.

    Args:
        runner: the model.
        size: the size.
        layers: indices of the model's layers that attend, ascending.
        dtype: dtype of keys and values.
        logits: where the logits go, (rows, kept, vocabulary).
        pool: memory pool of all captured graphs; None to run the model's code each time instead.

    Attributes:
        watched: after a run, the queries and keys of the watched layers; the next run overwrites them.
    """

    def __init__(
        self,
        runner: ModelRunner,
        size: PromptSize,
        layers: Sequence[int],
        dtype: torch.dtype,
        logits: Tensor,
        pool: Any,
    ) -> None:
        device, rows = runner.device, size.rows
        # base, lengths, pads and slots (see `pack_state`), then token ids row by row, then the slots to keep
        count = 1 + 3 * rows + rows * size.width + size.kept
        super().__init__(pool, torch.zeros(count, dtype=torch.int32, device=device))
        self.runner = runner
        self.size = size
        self.watched = Watched(size.watched)
        self._logits = logits
        self._table = torch.zeros(len(layers), 2 + 2 * rows, dtype=torch.int64, device=device)
        self._columns = torch.arange(size.width, device=device)
        self._context = TritonContext(
            self._table, layers, self.state, size.longest, False, dtype, self.watched, [None] * len(layers)
        )

    def run(self, table: Tensor, state: Sequence[int], ids: Tensor, keep: Tensor) -> Tensor:
        """Run the pass.

        Args:
            table: the address table of the rows.
            state: the rows' state.
            ids: token ids, (rows, width).
            keep: at most ``size.kept`` slots whose logits are returned, ascending.

        Returns:
            Logits (rows, len(keep), vocabulary).

        Raises:
            torch.OutOfMemoryError: if a graph, which needs memory of its own, does not fit.
        """
        spare = self.size.kept - len(keep)
        kept = [int(keep[0])] * spare + keep.tolist()
        numbers = [*state, *ids.flatten().tolist(), *kept]
        self._table.copy_(to_device(table, self._table.device))
        self.state.copy_(upload(numbers, torch.int32, self.state.device))
        self._run()
        return self._logits[:, spare:].clone()  # the next run of any pass overwrites them

    def _forward(self) -> None:
        rows, width, kept = self.size.rows, self.size.width, self.size.kept
        lengths, pads, _ = self.state[1 : 1 + 3 * rows].view(3, rows)
        positions = ((lengths - pads)[:, None] + self._columns).clamp(min=0).long()
        ids = self.state[1 + 3 * rows : -kept].view(rows, width).long()
        logits = self.runner.forward(ids, positions, self._context, self.state[-kept:].long())
        self._logits.copy_(logits)
