"""Decode steps captured as CUDA graphs: one for each number of rows, whatever the reading.

A graph finds a batch's buffers by addresses in device memory and keeps count of slots itself.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wim_kernel.common.errors import UnsupportedModelError
from wim_kernel.engines.local.attention.parts import Terms
from wim_kernel.engines.local.attention.prompt_probe import PromptProbe
from wim_kernel.engines.local.attention.triton_launch import branch_attention, prefix_splits
from wim_kernel.engines.local.model.patching import Lender
from wim_kernel.engines.local.model.runner import ModelRunner, moved, upload

logger = logging.getLogger(__name__)

_capturing = threading.Lock()  # one capture at a time in a process
LONG = 2**20  # of prefix: as captured, a step is cut up for a long one


@dataclass
class KernelStep:
    """What attention needs while rows of a batch run.

    Attributes:
        table: a row of `wim_kernel.engines.local.attention.triton_launch.table_row` for each of ``layers``.
        layers: the model's layers that attend, in order.
        state: see `wim_kernel.engines.local.attention.triton_launch.pack_state`.
        longest: most tokens of prefix that a row may see.
        past: whether rows may have own tokens already.
        dtype: of keys and values in the buffers.
        probe: watches the pass, if anything does.
        keys: the prefix's keys in each of ``layers``, (key heads, capacity, D), for the probe.
    """

    table: Tensor
    layers: Sequence[int]
    state: Tensor
    longest: int
    past: bool
    dtype: torch.dtype
    probe: PromptProbe | None = None
    keys: Sequence[Tensor] = ()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """Attend to the visible prefix and the rows' own tokens; stores the new ones."""
        if query.dtype != self.dtype:
            raise UnsupportedModelError(
                f"The reading is {self.dtype} and the model now computes in {query.dtype}: read the document again."
            )
        place = self.layers.index(layer)
        if self.probe is not None:
            self.probe.observe(layer, query, key, self.keys[place], terms)
        row = self.table[place]
        table, state = (item.to(query.device) for item in (row, self.state))
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
        self.state = torch.zeros(1 + 4 * rows, dtype=torch.int32, device=device)  # the tokens to append last
        self.tokens = self.state[1 + 3 * rows :]
        self.table = torch.zeros(len(layers), 2 + 2 * rows, dtype=torch.int64, device=device)
        self.loaded: Hashable = None  # for which rows of which batches
        self._step = KernelStep(self.table, layers, self.state, LONG, True, dtype)
        self._logits: Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._pool = pool
        self.refused = False  # it could not be captured

    def load(self, whom: Hashable, table: Callable[[], Tensor], numbers: Sequence[int]) -> None:
        """Point the step at rows of batches: their table, if it has another, their state and the tokens to append."""
        if self.loaded != whom:
            self.table.copy_(moved(table(), self.table.device))
        self.loaded = whom
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
        lengths, pads, slots = state[1 : 1 + 3 * rows].view(3, rows)
        positions = (lengths - pads + slots).clamp(min=0).long()
        ids = self.tokens.long()
        logits = self.runner.forward(ids[:, None], positions[:, None], self._step, keep=1)[:, -1]
        if self._logits is None:
            self._logits = torch.empty_like(logits)
        self._logits.copy_(logits)
        self.tokens.copy_(logits.argmax(-1))
        slots += 1

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
        except RuntimeError as error:
            # code that waits for the device on the way, as some mixtures of experts do
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
    return None if own is None or isinstance(lender, Lender) else id(own)
