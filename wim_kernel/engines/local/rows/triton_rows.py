"""Branches as batch rows on a GPU: prompts by the kernels, then decode steps that are captured once and replayed.

A step of a large model is a thousand launches, and launching them takes longer than running them. Captured as a CUDA
graph they are one launch. The graph finds a batch's buffers by addresses in device memory and keeps count of slots
itself, so there is one graph for each number of rows, whatever the reading; and the next step can be under way, fed
with the likeliest tokens, while the ones before it are looked at.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wim_kernel.engines.local.attention.prompt_probe import PromptProbe
from wim_kernel.engines.local.attention.triton_launch import ABSENT, pack_state, table_row
from wim_kernel.engines.local.model.runner import ModelRunner, moved, stream_of, upload
from wim_kernel.engines.local.prefix.store import LayerStore
from wim_kernel.engines.local.rows.base import Next
from wim_kernel.engines.local.rows.cuda_graphs import Graph, Graphs, KernelStep


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

    Rows are left-padded: all rows of a batch write the same slot of their own buffers at each step. A row that leaves
    keeps its buffers until the batch ends; the others find theirs by number.

    Args:
        layers: the prefix's keys and values, by layer.
        runner: the model.
        graphs: the model's decode steps as they were captured.
        lengths: how many tokens of the prefix each row sees.
        room: tokens that a row may add.
    """

    def __init__(
        self,
        layers: Mapping[int, LayerStore],
        runner: ModelRunner,
        graphs: Graphs,
        lengths: list[int],
        room: int,
    ) -> None:
        self.runner = runner
        self.graphs = graphs
        self.lengths = lengths
        self.pads = [0] * len(lengths)
        self.rows = list(range(len(lengths)))
        self.room = room
        self.used = 0
        self.layers = sorted(layers)
        self._stores = [layers[layer] for layer in self.layers]  # a prefix that grows gets others
        self._dtype = self._stores[0].keys.dtype
        self._own = [store.beside(len(lengths), room) for store in self._stores]
        self._addresses = _Addresses(self._stores, self._own)
        self._stream = stream_of(self.runner.device)
        self._graph: Graph | None = None
        self._key = object()  # what a graph knows the batch by, so as not to keep it alive
        self._ahead: Pending | None = None

    sees_attention = True

    def prompt(
        self,
        ids: Sequence[Sequence[int]],
        width: int,
        keep: Tensor,
        start: int = 0,
        probe: PromptProbe | None = None,
    ) -> Tensor:
        """Run prompts of rows ``start`` on, left-padded to ``width``; logits at slots ``keep``: (rows, keep, vocab)."""
        rows = slice(start, start + len(ids))
        self.pads[rows] = [width - len(row) for row in ids]
        self.used = width
        lengths, pads = self.lengths[rows], self.pads[rows]
        padded = torch.tensor([[0] * (width - len(row)) + list(row) for row in ids])
        before = torch.tensor(lengths)[:, None] - torch.tensor(pads)[:, None]
        positions = (before + torch.arange(width)[None]).clamp(min=0)
        state = upload(pack_state(0, lengths, pads, [0] * len(ids)), torch.int32, self.runner.device)
        table = moved(_table([self._addresses], [self.rows[rows]], len(ids)), self.runner.device)
        step = KernelStep(table, self.layers, state, max(lengths), False, self._dtype)
        if probe is not None:
            step = replace(step, probe=probe, keys=[store.keys for store in self._stores])
        logits = self.runner.forward(padded, positions, step, keep)
        if start == 0:
            self.graphs.renew()  # takes the host some milliseconds: while the device is busy
        return logits

    @torch.inference_mode()
    def step(self, tokens: list[int], *, ahead: bool = False) -> Next:
        """Append one token to every row; what may come next.

        Args:
            tokens: one for each row.
            ahead: let the step after it begin, with the likeliest tokens, before anyone looks at this one's.
        """
        now, self._ahead = self._ahead, None
        if now is None or not now.fits(self.rows, tokens):
            (now,) = _launch([(self, tokens)])
        self.used += 1
        follows = self._launch_next() if ahead and self._may_follow() else None
        if follows is not None:
            follows.fed = now.wait()
        self._ahead = follows
        return now.of(self.rows)

    @property
    def batch_key(self) -> Hashable:
        """Batches whose branches read the same buffers, in order on one stream of the device."""
        return id(self.graphs), id(self._stores[0]), self._stream

    @torch.inference_mode()
    def step_together(self, steps: Sequence[tuple[KernelBatch, list[int]]]) -> list[Next]:
        """A step of each of several batches in one pass. It counts once they `advance`.

        One that is under way for a batch, with the tokens that it takes, is what that batch gets.
        """
        found: dict[int, Pending] = {}
        for place, (batch, tokens) in enumerate(steps):
            if batch._ahead is not None and batch._ahead.fits(batch.rows, tokens):
                found[place] = batch._ahead
        rest = [place for place in range(len(steps)) if place not in found]
        if rest:
            found.update(zip(rest, _launch([steps[place] for place in rest]), strict=True))
        return [found[place].of(batch.rows) for place, (batch, _) in enumerate(steps)]

    def advance(self) -> None:
        """A step is over: the next one writes behind it."""
        self.used += 1
        self._ahead = None

    def select(self, rows: list[int]) -> None:
        """Let all but ``rows`` (ascending) leave the batch."""
        self.lengths, self.pads, self.rows = (
            [items[row] for row in rows] for items in (self.lengths, self.pads, self.rows)
        )

    @property
    def _members(self) -> Hashable:
        return self._key, tuple(self.rows)

    def _may_follow(self) -> bool:
        """Whether the graph still holds just this batch's rows, is no larger than they want, and there is room."""
        graph = self._graph
        return graph is not None and graph.loaded == (self._members,) and self.used < self.room

    def _launch_next(self) -> Pending:
        """Start the step behind the last one, with its likeliest tokens, which only the device knows yet."""
        assert self._graph is not None
        return _run(self._graph, [(self, [])])[0]


class _Addresses:
    """Where a batch's keys and values lie, layer by layer: what its rows of the kernels' table are made of."""

    def __init__(self, stores: Sequence[LayerStore], own: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.prefix = torch.tensor([table_row(store.keys, store.values, [], []) for store in stores])
        self._own = torch.tensor([[item.data_ptr() for item in pair] for pair in own])
        self._row_bytes = torch.tensor([[item[0].nbytes for item in pair] for pair in own])

    def own(self, kind: int, rows: Sequence[int]) -> Tensor:
        """Addresses of rows' own keys (``kind`` 0) or values (1): (layers, rows)."""
        return self._own[:, kind, None] + self._row_bytes[:, kind, None] * torch.tensor(rows)


def _table(addresses: Sequence[_Addresses], rows: Sequence[Sequence[int]], size: int) -> Tensor:
    """The kernels' table for rows of batches on one prefix, and for absent ones up to ``size``; on the host."""
    absent = torch.zeros(len(addresses[0].prefix), size - sum(map(len, rows)), dtype=torch.int64)
    own = [
        [*(each.own(kind, some) for each, some in zip(addresses, rows, strict=True)), absent]
        for kind in (0, 1)
    ]
    return torch.cat([addresses[0].prefix, *own[0], *own[1]], 1)


def _launch(steps: Sequence[tuple[KernelBatch, list[int]]]) -> list[Pending]:
    """Start a step of batches on one prefix: all their rows in one pass."""
    batches = [batch for batch, _ in steps]
    first, count = batches[0], sum(len(batch.rows) for batch in batches)
    graph = first.graphs.of(count, first.layers, first._dtype)
    absent = graph.rows - count

    def table() -> Tensor:
        rows = [batch.rows for batch in batches]
        return _table([batch._addresses for batch in batches], rows, graph.rows)

    state = pack_state(
        0,
        [*(length for batch in batches for length in batch.lengths), *[0] * absent],
        [*(pad for batch in batches for pad in batch.pads), *[ABSENT] * absent],
        [*(batch.used for batch in batches for _ in batch.rows), *[0] * absent],
    )
    tokens = [token for _, new in steps for token in new]
    graph.load(tuple(batch._members for batch in batches), table, [*state, *tokens, *[0] * absent])
    for batch in batches:
        batch._graph = graph
    return _run(graph, steps)


def _run(graph: Graph, steps: Sequence[tuple[KernelBatch, list[int]]]) -> list[Pending]:
    """Start a graph's next step; what it comes to for each of the batches whose rows it holds."""
    counts = [len(batch.rows) for batch, _ in steps]
    logits = graph.run()[: sum(counts)].clone()
    found, ready = graph.tokens[: sum(counts)], None
    likeliest = torch.empty(len(found), dtype=found.dtype, device="cpu", pin_memory=found.is_cuda)
    likeliest.copy_(found, non_blocking=True)
    if found.is_cuda:
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        ready.record(torch.cuda.current_stream(found.device))
    parts = zip(steps, torch.split(logits, counts), torch.split(likeliest, counts), strict=True)
    return [Pending(list(batch.rows), tokens, some, ids, ready) for (batch, tokens), some, ids in parts]
