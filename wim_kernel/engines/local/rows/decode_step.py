"""Decode steps over inputs at fixed addresses, one for each size of batch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wim_kernel.engines.local.attention.triton_launch import RowBlocks
from wim_kernel.engines.local.model.runner import ModelRunner, to_device, upload
from wim_kernel.engines.local.rows.captured import CAPTURE_PREFIX, CapturedPass
from wim_kernel.engines.local.rows.triton_context import TritonContext


@dataclass(frozen=True)
class StepSize:
    """The size of a decode step; each number is a power of two, so that there are few graphs.

    Attributes:
        rows: number of rows.
        prefixes: number of prefixes that they see.
        most_rows: most rows on one prefix.
    """

    rows: int
    prefixes: int
    most_rows: int

    @classmethod
    def of(cls, rows: Sequence[int]) -> StepSize:
        """The size of a step that holds so many rows on each prefix."""
        return cls(_power(sum(rows)), _power(len(rows)), _power(max(rows)))


def _power(number: int) -> int:
    """The smallest power of two that is at least ``number``."""
    return 1 << (number - 1).bit_length()


class DecodeStep(CapturedPass):
    """A decode step for a number of rows and prefixes; inputs and outputs at fixed addresses, captured if possible.

    Each run appends a token to every row, writes the argmax of the logits to its own input and advances to the next
    slot, so that the next run needs no input from the host.

    Args:
        runner: the model.
        size: number of rows and prefixes.
        layers: indices of the model's layers that attend, ascending.
        dtype: dtype of keys and values.
        pool: memory pool of all captured graphs; None to run the model's code at each step instead.
    """

    def __init__(
        self, runner: ModelRunner, size: StepSize, layers: Sequence[int], dtype: torch.dtype, pool: Any
    ) -> None:
        device, rows, several = runner.device, size.rows, size.prefixes if size.prefixes > 1 else 0
        self.runner = runner
        self.size = size
        # base, lengths, pads and slots (see `pack_state`), the tokens to append, the bounds of `RowBlocks`
        super().__init__(pool, torch.zeros(1 + 4 * rows + 2 * several, dtype=torch.int32, device=device))
        self.tokens = self.state[1 + 3 * rows : 1 + 4 * rows]
        self.table = torch.zeros(len(layers), 2 + 2 * rows + 2 * several, dtype=torch.int64, device=device)
        self.loaded_for: Hashable = None  # rows of batches to whose buffers the table points
        bounds = self.state[1 + 4 * rows :].view(several, 2)
        row_blocks = RowBlocks(bounds, size.most_rows) if several else None
        self._context = TritonContext(
            self.table, layers, self.state, CAPTURE_PREFIX, True, dtype, row_blocks=row_blocks
        )
        self._logits: Tensor | None = None

    def load(self, members: Hashable, table: Callable[[], Tensor], numbers: Sequence[int]) -> None:
        """Point the step at rows of batches.

        Args:
            members: identity of the rows and batches.
            table: makes the address table; called only if the step is loaded for other members.
            numbers: the rows' state, followed by the tokens to append and, for several prefixes, the bounds of their
                blocks of rows.
        """
        if self.loaded_for != members:
            self.table.copy_(to_device(table(), self.table.device))
        self.loaded_for = members
        self.state.copy_(upload(numbers, torch.int32, self.state.device))

    def run(self) -> Tensor:
        """Run the step; returns logits (rows, vocabulary). The next run overwrites them, and ``tokens`` too."""
        self._run()
        assert self._logits is not None
        return self._logits

    def _forward(self) -> None:
        rows, state = self.size.rows, self.state
        lengths, pads, slots = state[1 : 1 + 3 * rows].view(3, rows)
        positions = (lengths - pads + slots).clamp(min=0).long()
        ids = self.tokens.long()
        logits = self.runner.forward(ids[:, None], positions[:, None], self._context, keep=1)[:, -1]
        if self._logits is None:
            self._logits = torch.empty_like(logits)
        self._logits.copy_(logits)
        self.tokens.copy_(logits.argmax(-1))
        slots += 1
