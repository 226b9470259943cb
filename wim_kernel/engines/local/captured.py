"""Branches as batch rows on a GPU: prompts by the kernels, then decode steps that are captured once and replayed.

A step of a large model is a thousand launches, and launching them takes longer than running them. Captured as a CUDA
graph they are one launch. The graph finds a batch's buffers by addresses in device memory and keeps count of slots
itself, so there is one graph for each number of rows, whatever the reading; and the next step can be under way, fed
with the likeliest tokens, while the ones before it are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wim_kernel.engines.local.branch_attention import ABSENT, pack_state
from wim_kernel.engines.local.graphs import Graph, KernelStep, graph_size
from wim_kernel.engines.local.runner import upload
from wim_kernel.engines.local.sampling import Next

if TYPE_CHECKING:
    from wim_kernel.engines.local.shared import SharedPrefix


@dataclass
class Pending:
    """A step that is under way.

    Attributes:
        rows: own rows of the batch's rows when they were loaded.
        fed: the token that each of them was fed.
        logits: (rows, vocabulary).
        likeliest: (rows,), on the host once ``ready``.
        ready: when they are there; None if they are.
    """

    rows: list[int]
    fed: list[int]
    logits: Tensor
    likeliest: Tensor
    ready: torch.cuda.Event | None

    def fits(self, rows: Sequence[int], tokens: Sequence[int]) -> bool:
        """Whether it is the step that appends ``tokens`` to ``rows``."""
        fed = dict(zip(self.rows, self.fed, strict=True))
        return all(fed[row] == token for row, token in zip(rows, tokens, strict=True))

    def wait(self) -> list[int]:
        """The likeliest tokens of all its rows."""
        if self.ready is not None:
            self.ready.synchronize()
        return list(self.likeliest.tolist())

    def of(self, rows: Sequence[int]) -> Next:
        """What it came to for those of its rows that are still there."""
        places, likeliest = [self.rows.index(row) for row in rows], self.wait()
        logits = self.logits if len(places) == len(self.rows) else self.logits[places]
        return Next(logits, [likeliest[place] for place in places])


class KernelBatch:
    """Branches as batch rows, by the kernels.

    Rows are left-padded: all rows write the same slot of their own buffers at each step. A row that leaves keeps its
    buffers until the batch ends; the others find theirs by number.
    """

    def __init__(self, prefix: SharedPrefix, lengths: list[int], room: int) -> None:
        self.runner = prefix.runner
        self.graphs = prefix.paths.graphs
        self.graphs.renew()
        self.lengths = lengths
        self.pads = [0] * len(lengths)
        self.rows = list(range(len(lengths)))
        self.room = room
        self.used = 0
        self.layers = sorted(prefix.layers)
        self._stores = [prefix.layers[layer] for layer in self.layers]  # a prefix that grows gets others
        self._dtype = self._stores[0].keys.dtype
        self._own = [store.beside(len(lengths), room) for store in self._stores]
        self._table = upload(
            [store.row(own, room) for store, own in zip(self._stores, self._own, strict=True)],
            torch.int64,
            self.runner.device,
        )
        self._graph: Graph | None = None
        self._key = object()  # what a graph knows the batch by, so as not to keep it alive
        self._loaded: list[int] = []
        self._ahead: Pending | None = None

    def prompt(self, ids: Sequence[Sequence[int]], width: int, keep: Tensor, start: int = 0) -> Tensor:
        """Run prompts of rows ``start`` on, left-padded to ``width``; logits at slots ``keep``: (rows, keep, vocab)."""
        rows = slice(start, start + len(ids))
        self.pads[rows] = [width - len(row) for row in ids]
        self.used = width
        lengths, pads = self.lengths[rows], self.pads[rows]
        padded = torch.tensor([[0] * (width - len(row)) + list(row) for row in ids])
        before = torch.tensor(lengths)[:, None] - torch.tensor(pads)[:, None]
        positions = (before + torch.arange(width)[None]).clamp(min=0)
        state = upload(pack_state(0, 0, lengths, pads, self.rows[rows]), torch.int32, self.runner.device)
        step = KernelStep(self._table, self.layers, state, max(lengths), False, self._dtype)
        return self.runner.forward(padded, positions, step, keep)

    @torch.inference_mode()
    def step(self, tokens: list[int], *, ahead: bool = False) -> Next:
        """Append one token to every row; what may come next.

        Args:
            tokens: one for each row.
            ahead: let the step after it begin, with the likeliest tokens, before anyone looks at this one's.
        """
        now, self._ahead = self._ahead, None
        if now is None or not now.fits(self.rows, tokens):
            now = self._launch(tokens)
        self.used += 1
        follows = self._launch(None) if ahead and self._may_follow() else None
        if follows is not None:
            follows.fed = now.wait()
        self._ahead = follows
        return now.of(self.rows)

    company = None

    def step_together(self, steps: Sequence[tuple[KernelBatch, list[int]]]) -> list[Next]:
        """Not yet."""
        raise NotImplementedError

    def took_part(self) -> None:
        """Nothing to do."""

    def select(self, rows: list[int]) -> None:
        """Let all but ``rows`` (ascending) leave the batch."""
        self.lengths, self.pads, self.rows = (
            [items[row] for row in rows] for items in (self.lengths, self.pads, self.rows)
        )

    def _may_follow(self) -> bool:
        """Whether the graph still holds this batch, is no larger than its rows want, and there is room."""
        graph = self._graph
        fits = graph is not None and graph.loaded is self._key and graph.rows == graph_size(len(self.rows))
        return fits and self.used < self.room

    def _launch(self, tokens: list[int] | None) -> Pending:
        """Start a step: with tokens, or with the likeliest ones of the step before, which only the device knows yet."""
        if tokens is not None:
            self._load(tokens)
        assert self._graph is not None
        count = len(self._loaded)
        logits = self._graph.run()[:count].clone()
        found, ready = self._graph.tokens[:count], None
        likeliest = torch.empty(count, dtype=found.dtype, device="cpu", pin_memory=found.is_cuda)
        likeliest.copy_(found, non_blocking=True)
        if found.is_cuda:
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record(torch.cuda.current_stream(found.device))
        return Pending(self._loaded, tokens or [], logits, likeliest, ready)

    def _load(self, tokens: list[int]) -> None:
        """Point the graph of our size at this batch."""
        graph = self._graph = self.graphs.of(len(self.rows), self.layers, self._dtype)
        absent = graph.rows - len(self.rows)
        self._loaded = list(self.rows)
        state = pack_state(
            self.used,
            0,
            [*self.lengths, *[0] * absent],
            [*self.pads, *[ABSENT] * absent],
            [*self.rows, *[0] * absent],
        )
        graph.load(self._key, self._table, [*state, *tokens, *[0] * absent])
