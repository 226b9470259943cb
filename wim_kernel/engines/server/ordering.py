"""Runs branches one by one, the longest prefix first, and reports their progress in the caller's order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from wim_kernel.engines.base import Progress

Steps = Iterator[list[Progress]]


def sequential_order(boundaries: Sequence[int], read: int) -> list[int]:
    """The order in which a server that keeps one prompt runs branches so that it reads least.

    Args:
        boundaries: how many tokens stand before each branch.
        read: how many tokens the server has read.

    >>> sequential_order([3, 9, 1, 7], 4)
    [0, 2, 3, 1]
    """
    return sorted(
        range(len(boundaries)),
        key=lambda index: (boundaries[index] > read, abs(boundaries[index] - read)),
    )


def decode_one_by_one(decode: Callable[[int], Steps], order: Sequence[int]) -> Steps:
    """Decode branches one after another.

    Args:
        decode: decodes one branch, given its index in the caller's list.
        order: indices of all branches, in the order in which they are decoded.

    Yields:
        After each step, the progress that can be reported in the caller's order; often empty.
    """
    buffer = ReorderBuffer()
    for index in order:
        for step in decode(index):
            yield buffer.push([replace(item, branch=index) for item in step])


class ReorderBuffer:
    """Holds progress back until all branches before it, in the caller's order, are done."""

    def __init__(self) -> None:
        self._held: dict[int, list[Progress]] = {}
        self._done: set[int] = set()
        self._next = 0

    def push(self, progress: Sequence[Progress]) -> list[Progress]:
        """Add progress; returns what can be reported now."""
        for item in progress:
            self._held.setdefault(item.branch, []).append(item)
            if item.done is not None:
                self._done.add(item.branch)
        ready = self._held.pop(self._next, [])
        while self._next in self._done:
            self._next += 1
            ready += self._held.pop(self._next, [])
        return ready
