"""Decode steps over inputs at fixed addresses, one for each number of rows."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from wim_kernel.engines.local.model.runner import ModelRunner, to_device, upload
from wim_kernel.engines.local.rows.captured import CAPTURE_PREFIX, CapturedPass
from wim_kernel.engines.local.rows.triton_context import TritonContext


class DecodeStep(CapturedPass):
    """One decode step for a number of rows, with inputs and outputs at fixed addresses, captured if possible.

    Each run appends a token to every row, writes the argmax of the logits to its own input and advances to the next
    slot, so that the next run needs no input from the host.

    Args:
        runner: the model.
        rows: number of rows.
        layers: indices of the model's layers that attend, ascending.
        dtype: dtype of keys and values.
        pool: memory pool of all captured graphs; None to run the model's code at each step instead.
    """

    def __init__(
        self, runner: ModelRunner, rows: int, layers: Sequence[int], dtype: torch.dtype, pool: Any
    ) -> None:
        device = runner.device
        self.runner = runner
        self.rows = rows
        # base, lengths, pads and slots (see `pack_state`), then the tokens to append
        super().__init__(pool, torch.zeros(1 + 4 * rows, dtype=torch.int32, device=device))
        self.tokens = self.state[1 + 3 * rows :]
        self.table = torch.zeros(len(layers), 2 + 2 * rows, dtype=torch.int64, device=device)
        self.loaded_for: Hashable = None  # rows of batches to whose buffers the table points
        self._context = TritonContext(self.table, layers, self.state, CAPTURE_PREFIX, True, dtype)
        self._logits: Tensor | None = None

    def load(self, members: Hashable, table: Callable[[], Tensor], numbers: Sequence[int]) -> None:
        """Point the step at rows of batches.

        Args:
            members: identity of the rows and batches.
            table: makes the address table; called only if the step is loaded for other members.
            numbers: the rows' state, followed by the tokens to append.
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
        rows, state = self.rows, self.state
        lengths, pads, slots = state[1 : 1 + 3 * rows].view(3, rows)
        positions = (lengths - pads + slots).clamp(min=0).long()
        ids = self.tokens.long()
        logits = self.runner.forward(ids[:, None], positions[:, None], self._context, keep=1)[:, -1]
        if self._logits is None:
            self._logits = torch.empty_like(logits)
        self._logits.copy_(logits)
        self.tokens.copy_(logits.argmax(-1))
        slots += 1
