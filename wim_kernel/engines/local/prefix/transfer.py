"""Copies between a device and pageable host memory, at the speed of the bus between them.

The driver copies pageable memory through a small pinned buffer of its own, in one thread: 1 to 3 GB/s where the bus
does 50. Here two pinned buffers alternate: while the device's copy engine works on one, the host's threads copy the
other.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from wim_kernel.common import forks

BLOCK_BYTES = 2**24
"""Bytes of each of a device's two buffers."""

Wait = Callable[[], None]
"""Blocks until a copy has finished."""


def to_host(sources: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous copies of tensors in host memory, on whatever devices they are."""
    targets = [torch.empty(source.shape, dtype=source.dtype) for source in sources]
    copy_pairs(list(zip(sources, targets, strict=True)))
    return targets


def copy_pairs(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copy the first tensor of each pair into the second; one of them is in host memory.

    Raises:
        RuntimeError: if the tensors of a pair differ in shape or dtype.
    """
    for source, target in pairs:
        if source.shape != target.shape or source.dtype != target.dtype:
            raise RuntimeError(
                f"{tuple(source.shape)} of {source.dtype} into {tuple(target.shape)} of {target.dtype}"
            )
    for device, group in itertools.groupby(pairs, key=_accelerator):
        if device is None:
            for source, target in group:
                target.copy_(source)
        else:
            _transfer(device).copy(list(group))


def _accelerator(pair: tuple[Tensor, Tensor]) -> torch.device | None:
    """The CUDA device of a pair of contiguous tensors; None for other pairs, which torch's own copy handles."""
    streams = next((item.device for item in pair if item.device.type == "cuda"), None)
    return streams if all(item.is_contiguous() for item in pair) else None


@functools.cache
def _transfer(device: torch.device) -> Transfer:
    return Transfer(device)


forks.in_child(_transfer.cache_clear)


class Transfer:
    """The two pinned buffers of a device, allocated when first needed; one caller copies at a time.

    Args:
        device: the device. Without CUDA streams the copies are the same, but do not overlap.
        block_bytes: bytes of a buffer.
    """

    def __init__(self, device: torch.device, block_bytes: int = BLOCK_BYTES) -> None:
        self.device = device
        self.block_bytes = block_bytes
        self._lock = threading.Lock()
        self._buffers: list[Tensor] = []
        self._stream: torch.cuda.Stream | None = None

    @torch.inference_mode()
    def copy(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Copy the first tensor of each pair into the second; both are contiguous, and one is in host memory."""
        with self._lock, self._on_stream() as mark:
            waits: list[Wait] = []  # for the last two blocks: when the buffer is free
            for number, (source, target) in enumerate(self._blocks(pairs)):
                if len(waits) == 2:
                    waits.pop(0)()
                waits.append(self._send(source, target, self._buffer(number, source.numel()), mark))
            for wait in waits:
                wait()

    def _send(self, source: Tensor, target: Tensor, buffer: Tensor, mark: Callable[[], Wait]) -> Wait:
        """Start to copy a block through a buffer; returns what must be called before the buffer is used again."""
        buffer.copy_(source, non_blocking=True)
        if source.device == self.device:
            wait_for_buffer = mark()

            def finish() -> None:
                wait_for_buffer()
                target.copy_(buffer)

            return finish
        target.copy_(buffer, non_blocking=True)
        return mark()

    def _blocks(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """All pairs as bytes, cut into blocks that fit a buffer."""
        for pair in pairs:
            source, target = (torch.split(item.view(-1).view(torch.uint8), self.block_bytes) for item in pair)
            yield from zip(source, target, strict=True)

    def _buffer(self, number: int, size: int) -> Tensor:
        if not self._buffers:
            pinned = self.device.type == "cuda"
            self._buffers = [
                torch.empty(self.block_bytes, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)
            ]
        return self._buffers[number % 2][:size]

    @contextmanager
    def _on_stream(self) -> Iterator[Callable[[], Wait]]:
        """Work on a side stream, after all work queued on the current stream so far.

        Yields a function that records an event on the side stream and returns what waits for it.
        """
        if self.device.type != "cuda":
            yield lambda: lambda: None
            return
        if self._stream is None:  # with a priority: another stream pool than that of graph captures
            self._stream = torch.cuda.Stream(self.device, priority=-1)  # type: ignore[no-untyped-call]
        stream = self._stream
        stream.wait_stream(torch.cuda.current_stream(self.device))
        try:
            with torch.cuda.stream(stream):
                yield lambda: stream.record_event().synchronize
        finally:
            stream.synchronize()  # even after an error, the copies in flight use the buffers and both tensors
