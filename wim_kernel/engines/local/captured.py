"""Branches as batch rows on a GPU: prompts by the kernels, then decode steps that are captured once and replayed.

A step of a large model is a thousand launches, and launching them takes longer than running them. Captured as a CUDA
graph they are one launch. The graph finds a batch's buffers by addresses in device memory and keeps count of slots
itself, so there is one graph for each number of rows, whatever the reading; and the next step can be under way, fed
with the likeliest tokens, while the ones before it are looked at.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wim_kernel.engines.local.attention import Terms
from wim_kernel.engines.local.branch_attention import (
    ABSENT,
    COLUMNS,
    branch_attention,
    pack_state,
    prefix_splits,
)
from wim_kernel.engines.local.fusions import Fusions
from wim_kernel.engines.local.products import Products
from wim_kernel.engines.local.runner import ModelRunner, upload
from wim_kernel.engines.local.sampling import Next
from wim_kernel.errors import UnsupportedModelError

if TYPE_CHECKING:
    from wim_kernel.engines.local.shared import SharedPrefix

logger = logging.getLogger(__name__)

_capturing = threading.Lock()  # one capture at a time in a process
LONG = 2**20  # of prefix: as captured, a step is cut up for a long one


@dataclass
class KernelStep:
    """What attention needs while rows of a batch run.

    Attributes:
        table: rows of `wim_kernel.engines.local.branch_attention.table_row`, by position.
        places: which layer has which row of the table.
        state: see `wim_kernel.engines.local.branch_attention.pack_state`.
        longest: most tokens of prefix that a row may see.
        past: whether rows may have own tokens already.
        dtype: of keys and values in the buffers.
    """

    table: Tensor
    places: dict[int, int]
    state: Tensor
    longest: int
    past: bool
    dtype: torch.dtype

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """Attend to the visible prefix and the rows' own tokens; stores the new ones."""
        if query.dtype != self.dtype:
            raise UnsupportedModelError(
                f"The reading is {self.dtype} and the model now computes in {query.dtype}: read the document again."
            )
        table, state = (item.to(query.device) for item in (self.table[self.places[layer]], self.state))
        splits = prefix_splits(query, key, self.longest)
        return branch_attention(query, key, value, terms, table, state, splits, past=self.past)


class Graph:
    """One decode step for a number of rows, with inputs and outputs at fixed places.

    Each run appends a token to every row, puts the likeliest next ones in its own input and moves on by a slot.

    Args:
        runner: the model.
        rows: how many.
        layers: the model's layers that attend, in order.
        dtype: of keys and values.
        pool: memory that all captured graphs share; None to go through the model's code at each run.
    """

    def __init__(
        self, runner: ModelRunner, rows: int, layers: Sequence[int], dtype: torch.dtype, pool: Any
    ) -> None:
        self.runner = runner
        self.rows = rows
        device = runner.device
        self.state = torch.zeros(
            2 + 4 * rows, dtype=torch.int32, device=device
        )  # the tokens to append at its end
        self.tokens = self.state[2 + 3 * rows :]
        self.table = torch.zeros(len(layers), COLUMNS, dtype=torch.int64, device=device)
        self.places = {layer: place for place, layer in enumerate(layers)}
        self.loaded: object = None  # for whom
        self._step = KernelStep(self.table, self.places, self.state, LONG, True, dtype)
        self._logits: Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._pool = pool
        self.refused = False  # it could not be captured

    def load(self, batch: object, table: Tensor, numbers: Sequence[int]) -> None:
        """Point the step at a batch: its table, its state and the tokens to append."""
        if self.loaded is not batch:
            self.table.copy_(table)
        self.loaded = batch
        self.state.copy_(upload(numbers, torch.int32, self.state.device))
        if self._pool is not None and self._graph is None:
            self._capture()

    def run(self) -> Tensor:
        """Run the step; logits (rows, vocabulary), which the next run writes over, as it does ``tokens``."""
        if self._graph is None:
            self._forward()
        else:
            self._graph.replay()
        assert self._logits is not None
        return self._logits

    def _forward(self) -> None:
        rows, state = self.rows, self.state
        lengths, pads = state[2 : 2 + rows], state[2 + rows : 2 + 2 * rows]
        positions = (lengths - pads + state[0]).clamp(min=0).long()
        ids = self.tokens.long()
        logits = self.runner.forward(ids[:, None], positions[:, None], self._step, keep=1)[:, -1]
        if self._logits is None:
            self._logits = torch.empty_like(logits)
        self._logits.copy_(logits)
        self.tokens.copy_(logits.argmax(-1))
        state[0] += 1

    def _capture(self) -> None:
        """Capture the step, after a run that loads kernels; what these did to the state is undone."""
        device, graph, before = self.state.device, torch.cuda.CUDAGraph(), self.state.clone()
        try:
            with _capturing, torch.cuda.device(device):
                side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
                side.wait_stream(torch.cuda.current_stream(device))
                with torch.cuda.stream(side):
                    self._forward()
                torch.cuda.current_stream(device).wait_stream(side)
                with torch.cuda.graph(graph, self._pool, side, capture_error_mode="thread_local"):
                    self._forward()
            self._graph = graph
        except torch.OutOfMemoryError:
            raise
        except (
            RuntimeError
        ) as error:  # code that waits for the device on the way, as some mixtures of experts do
            logger.info("Decode steps of this model cannot be captured, and run launch by launch: %s", error)
            torch.cuda.synchronize(device)
            self._pool, self.refused = None, True
        self.state.copy_(before)


class Graphs:
    """Decode steps of one model, by number of rows.

    Args:
        runner: the model.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self._graphs: dict[Hashable, Graph] = {}
        self._taken_of: int | None = None
        self._pool: Any = None

    def renew(self) -> None:
        """Forget what was captured if the model has changed since: its weights' places, its modes, its hooks."""
        model = self.runner.model
        tensors = itertools.chain(model.parameters(), model.buffers())
        now = hash((tuple(item.data_ptr() for item in tensors), *map(_mode, model.modules())))
        if now != self._taken_of:
            self._graphs.clear()
            self._taken_of = now
            self._pool = torch.cuda.graph_pool_handle() if self._can_capture() else None

    def of(self, rows: int, layers: Sequence[int], dtype: torch.dtype) -> Graph:
        """The step for ``rows`` rows or a few more, on buffers of a type."""
        size = graph_size(rows)
        key = (size, dtype, torch.is_autocast_enabled(), *layers)
        if key not in self._graphs:
            if any(graph.refused for graph in self._graphs.values()):
                self._pool = None  # what could not be captured once is not tried again
            self._graphs[key] = Graph(self.runner, size, layers, dtype, self._pool)
        return self._graphs[key]

    def _can_capture(self) -> bool:
        """On one CUDA device, with no hooks that Python has to run."""
        model = self.runner.model
        devices = {parameter.device for parameter in model.parameters()}
        hooked = any(
            module._forward_hooks or module._forward_pre_hooks or _foreign(module) is not None
            for module in model.modules()
        )
        return devices == {self.runner.device} and self.runner.device.type == "cuda" and not hooked


def graph_size(rows: int) -> int:
    """The least power of two that holds ``rows``."""
    return 1 << (rows - 1).bit_length()


def _mode(module: nn.Module) -> Hashable:
    """What a module's code may branch on: its plain attributes and its hooks."""
    plain = tuple((name, _plain(value)) for name, value in vars(module).items())
    return plain, len(module._forward_hooks), len(module._forward_pre_hooks), _foreign(module)


def _plain(value: Any) -> Hashable:
    """A value that code may branch on, or None if it is no plain data."""
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value))
    if isinstance(value, dict):
        return tuple((str(key), _plain(item)) for key, item in value.items())
    return None


def _foreign(module: nn.Module) -> int | None:
    """Which forward somebody else has given a module of its own, if any: it may do what a graph does not repeat."""
    own = vars(module).get("forward")
    lender = getattr(getattr(own, "func", None), "__self__", None) if isinstance(own, partial) else None
    return None if own is None or isinstance(lender, (Fusions, Products)) else id(own)


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
        places = {layer: place for place, layer in enumerate(self.layers)}
        step = KernelStep(self._table, places, state, max(lengths), False, self._dtype)
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
        follows = None
        if ahead and self._may_follow():
            follows = self._launch(None)
        likeliest = now.wait()
        if follows is not None:
            follows.fed = likeliest
        self._ahead = follows
        return now.of(self.rows)

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
