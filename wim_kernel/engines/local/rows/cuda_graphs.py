"""Decode steps captured as CUDA graphs: one graph for each number of rows, whatever the prefix.

A replay reads the addresses of a batch's buffers and the slots to write from device memory, and moves the slots on
itself, so that one graph serves every batch of its size.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wim_kernel.engines.local.model.patching import ForwardPatch
from wim_kernel.engines.local.model.runner import ModelRunner, to_device, upload
from wim_kernel.engines.local.rows.triton_context import TritonContext

logger = logging.getLogger(__name__)

_capturing = threading.Lock()  # one capture at a time in a process
CAPTURE_PREFIX = 2**20
"""Prefix length for which a captured step is split into runs; it is correct for every length."""


class DecodeStep:
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
        self.runner = runner
        self.rows = rows
        device = runner.device
        # base, lengths, pads and slots (see `pack_state`), then the tokens to append
        self.state = torch.zeros(1 + 4 * rows, dtype=torch.int32, device=device)
        self.tokens = self.state[1 + 3 * rows :]
        self.table = torch.zeros(len(layers), 2 + 2 * rows, dtype=torch.int64, device=device)
        self.loaded_for: Hashable = None  # rows of batches to whose buffers the table points
        self._context = TritonContext(self.table, layers, self.state, CAPTURE_PREFIX, True, dtype)
        self._logits: Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._pool = pool
        self.capture_failed = False

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
        if self._pool is not None and self._graph is None:
            self._capture()

    def run(self) -> Tensor:
        """Run the step; returns logits (rows, vocabulary). The next run overwrites them, and ``tokens`` too."""
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
        logits = self.runner.forward(ids[:, None], positions[:, None], self._context, keep=1)[:, -1]
        if self._logits is None:
            self._logits = torch.empty_like(logits)
        self._logits.copy_(logits)
        self.tokens.copy_(logits.argmax(-1))
        slots += 1

    def _capture(self) -> None:
        """Capture the step, after a warm-up run that compiles and loads kernels; restores the state afterwards."""
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
            # the model's code synchronises with the device, as some mixtures of experts do
            logger.info("Decode steps of this model cannot be captured, and run launch by launch: %s", error)
            torch.cuda.synchronize(device)
            self._pool, self.capture_failed = None, True
        self.state.copy_(before)


class DecodeSteps:
    """The decode steps of one model, by number of rows.

    Args:
        runner: the model.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self._steps: dict[Hashable, DecodeStep] = {}
        self._fingerprint: int | None = None
        self._pool: Any = None

    def refresh(self) -> None:
        """Drop all graphs if the model has changed since their capture: addresses of weights, attributes, hooks."""
        model = self.runner.model
        tensors = itertools.chain(model.parameters(), model.buffers())
        now = hash((tuple(item.data_ptr() for item in tensors), *map(_module_state, model.modules())))
        if now != self._fingerprint:
            self._steps.clear()
            self._fingerprint = now
            self._pool = torch.cuda.graph_pool_handle() if self._can_capture() else None

    def get(self, rows: int, layers: Sequence[int], dtype: torch.dtype) -> DecodeStep:
        """The step for ``rows`` rows or a few more.

        Args:
            rows: number of rows that it must hold.
            layers: indices of the model's layers that attend, ascending.
            dtype: dtype of keys and values.
        """
        size = graph_size(rows)
        key = (size, dtype, torch.is_autocast_enabled(), *layers)
        if key not in self._steps:
            if any(graph.capture_failed for graph in self._steps.values()):
                self._pool = None  # do not try to capture this model again
            self._steps[key] = DecodeStep(self.runner, size, layers, dtype, self._pool)
        return self._steps[key]

    def _can_capture(self) -> bool:
        """Whether the model is on one CUDA device and has no hooks or foreign forwards, which a replay would skip."""
        model = self.runner.model
        devices = {parameter.device for parameter in model.parameters()}
        hooked = any(
            module._forward_hooks or module._forward_pre_hooks or _foreign_forward(module) is not None
            for module in model.modules()
        )
        return devices == {self.runner.device} and self.runner.device.type == "cuda" and not hooked


def graph_size(rows: int) -> int:
    """The smallest power of two that is at least ``rows``."""
    return 1 << (rows - 1).bit_length()


def _module_state(module: nn.Module) -> Hashable:
    """The state of a module on which its code may branch: plain attributes, hooks, a forward of its own."""
    plain = tuple((name, _plain_value(value)) for name, value in vars(module).items())
    return plain, len(module._forward_hooks), len(module._forward_pre_hooks), _foreign_forward(module)


def _plain_value(value: Any) -> Hashable:
    """A value as hashable plain data; None if it is something else."""
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain_value, value))
    if isinstance(value, dict):
        return tuple((str(key), _plain_value(item)) for key, item in value.items())
    return None


def _foreign_forward(module: nn.Module) -> int | None:
    """The id of a forward that other code has put on a module, if any: a replay might skip what it does."""
    own = vars(module).get("forward")
    patch = getattr(getattr(own, "func", None), "__self__", None) if isinstance(own, partial) else None
    return None if own is None or isinstance(patch, ForwardPatch) else id(own)
