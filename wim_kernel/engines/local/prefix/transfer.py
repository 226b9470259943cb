"""Copies between devices and the host's ordinary memory, at the speed of the bus between them.

The driver copies ordinary memory through a small buffer of its own, in one thread: 1 to 3 GB/s where the bus does
50. Here two pinned buffers take turns: while the device's copy engine works at one, the host's threads copy the other.
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

PIECE = 2**24
"""Bytes of each of a device's two buffers."""

Wait = Callable[[], None]


def fetch(sources: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous copies of tensors in the host's memory, wherever they are."""
    targets = [torch.empty(source.shape, dtype=source.dtype) for source in sources]
    bring(list(zip(sources, targets, strict=True)))
    return targets


def bring(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copy each first tensor into the second, of the same shape and type; one of them is in the host's memory.

    Raises:
        RuntimeError: if two are of different shapes or types.
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
    """The device with streams that one of two contiguous tensors is on; None where torch's own copy has to do."""
    streams = next((item.device for item in pair if item.device.type == "cuda"), None)
    return streams if all(item.is_contiguous() for item in pair) else None


@functools.cache
def _transfer(device: torch.device) -> Transfer:
    return Transfer(device)


forks.in_child(_transfer.cache_clear)


class Transfer:
    """A device's two buffers, made when they are first needed; one caller copies at a time.

    Args:
        device: the device; one without streams does the same without overlap.
        piece: bytes of a buffer.
    """

    def __init__(self, device: torch.device, piece: int = PIECE) -> None:
        self.device = device
        self.piece = piece
        self._lock = threading.Lock()
        self._buffers: list[Tensor] = []
        self._stream: torch.cuda.Stream | None = None

    @torch.inference_mode()
    def copy(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Copy contiguous tensors, each first one into the second; one of them is in the host's memory."""
        with self._lock, self._beside() as mark:
            before: list[Wait] = []  # ends the work with a buffer; of the last two pieces
            for number, (source, target) in enumerate(self._pieces(pairs)):
                if len(before) == 2:
                    before.pop(0)()
                before.append(self._pass_on(source, target, self._buffer(number, source.numel()), mark))
            for wait in before:
                wait()

    def _pass_on(self, source: Tensor, target: Tensor, buffer: Tensor, mark: Callable[[], Wait]) -> Wait:
        """Send a piece through a buffer; what is called before the buffer is used again, and at the end."""
        buffer.copy_(source, non_blocking=True)
        if source.device == self.device:
            there = mark()

            def land() -> None:
                there()
                target.copy_(buffer)

            return land
        target.copy_(buffer, non_blocking=True)
        return mark()

    def _pieces(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """All pairs, as runs of bytes that fit a buffer."""
        for pair in pairs:
            source, target = (torch.split(item.view(-1).view(torch.uint8), self.piece) for item in pair)
            yield from zip(source, target, strict=True)

    def _buffer(self, number: int, size: int) -> Tensor:
        if not self._buffers:
            pinned = self.device.type == "cuda"
            self._buffers = [torch.empty(self.piece, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)]
        return self._buffers[number % 2][:size]

    @contextmanager
    def _beside(self) -> Iterator[Callable[[], Wait]]:
        """On a stream that begins after what the current one was given so far; what marks a place on it to wait for."""
        if self.device.type != "cuda":
            yield lambda: lambda: None
            return
        if self._stream is None:  # of another pool than those on which steps are captured
            self._stream = torch.cuda.Stream(self.device, priority=-1)  # type: ignore[no-untyped-call]
        stream = self._stream
        stream.wait_stream(torch.cuda.current_stream(self.device))
        try:
            with torch.cuda.stream(stream):
                yield lambda: stream.record_event().synchronize
        finally:
            stream.synchronize()  # whatever happened: the buffers and both tensors are in use until then
