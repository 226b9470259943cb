"""A forward pass captured as a CUDA graph.

A pass of a model is hundreds of launches. Where the device needs less time for them than the host, a replay, which is
one launch, takes their place. It reads all inputs, the addresses of a batch's buffers too, from device memory at fixed
addresses, so that one graph serves every batch of its size.
"""

from __future__ import annotations

import functools
import logging
import threading
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

CAPTURE_PREFIX = 2**20
"""Prefix length for which a captured pass is split into runs; it is correct for every length."""

_capturing = threading.Lock()  # one capture at a time in a process


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which passes are captured: one, since the allocator keeps memory for each stream by itself."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class CapturedPass(ABC):
    """A forward pass over inputs at fixed addresses, captured if possible.

    Args:
        pool: memory pool of all captured graphs; None to run the model's code each time instead.
        state: the inputs that the pass itself may change, which a capture restores.

    Attributes:
        capture_failed: whether a capture was tried in vain. The pass runs the model's code then.
    """

    def __init__(self, pool: Any, state: Tensor) -> None:
        self.state = state
        self._graph: torch.cuda.CUDAGraph | None = None
        self._pool = pool
        self.capture_failed = False

    @abstractmethod
    def _forward(self) -> None:
        """Run the model's code on the inputs."""

    def _run(self) -> None:
        """Run the pass: a replay, if it was captured."""
        if self._pool is not None and self._graph is None:
            self._capture()
        if self._graph is None:
            self._forward()
        else:
            self._graph.replay()

    def _capture(self) -> None:
        """Capture the pass, after a warm-up run that compiles and loads kernels; restores the state afterwards."""
        device, graph, before = self.state.device, torch.cuda.CUDAGraph(), self.state.clone()
        try:
            with _capturing, torch.cuda.device(device):
                side = _side_stream(device)
                side.wait_stream(torch.cuda.current_stream(device))
                with torch.cuda.stream(side):
                    self._forward()
                torch.cuda.current_stream(device).wait_stream(side)
                with torch.cuda.graph(graph, self._pool, side, capture_error_mode="thread_local"):
                    self._forward()
            self._graph = graph
        except torch.OutOfMemoryError:
            torch.cuda.synchronize(device)  # what was launched may still write to the rows' buffers
            self.state.copy_(before)
            raise
        except RuntimeError as error:
            # the model's code synchronises with the device, as some mixtures of experts do
            logger.info("Passes of this model cannot be captured, and run launch by launch: %s", error)
            torch.cuda.synchronize(device)
            self._pool, self.capture_failed = None, True
        self.state.copy_(before)
