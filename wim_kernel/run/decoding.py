"""Decoding any number of branches: in groups of the engine's size, and in smaller groups where memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from wim_kernel.common.errors import DeviceMemoryError
from wim_kernel.engines.base import AnyEngine, Branch, Prefix, Progress, Scores

logger = logging.getLogger(__name__)

GroupGate = Callable[[Sequence[int], Sequence[Scores]], Sequence[bool]]
"""Decides which branches of one group generate, given the branches' indexes and scores."""


def decode_all(
    engine: AnyEngine,
    prefix: Prefix,
    branches: Sequence[Branch],
    gate: GroupGate | None = None,
    free_memory: Callable[[], object] = lambda: None,
) -> Iterator[list[Progress]]:
    """Decode branches in groups; yields after every step. `Progress.branch` is an index of ``branches``.

    llama.cpp keeps one prompt per slot, and a shorter prompt truncates it. An engine that decodes one branch at a time
    therefore runs the longest prefix first, and the output is buffered back into the caller's order.

    Args:
        engine: the engine that decodes.
        prefix: the prefix that the branches continue.
        branches: any number of branches.
        gate: a callback that decides, once for each group, which of its branches generate; by default all do.
        free_memory: a callback that frees memory before a group is decoded again, at half its size.

    Raises:
        DeviceMemoryError: if a single branch does not fit into memory, or if memory ran out after text of an unfinished
            branch was yielded.
    """
    waiting, size = _decoding_order(engine, branches), engine.max_branches
    in_callers_order = waiting == sorted(waiting)
    buffer = ReorderBuffer()
    while waiting:
        group, yielded, done = waiting[:size], set[int](), set[int]()
        group_gate = None if gate is None else partial(gate, group)
        try:
            for step in engine.decode(prefix, [branches[index] for index in group], group_gate):
                progress = [replace(item, branch=group[item.branch]) for item in step]
                yielded.update(item.branch for item in progress if item.text)
                done.update(item.branch for item in progress if item.done is not None)
                yield progress if in_callers_order else buffer.reorder(progress)
        except DeviceMemoryError as error:
            if len(group) == 1 or yielded - done:
                raise
            size = len(group) // 2
            logger.warning("%s Going on with %d branches at a time.", error, size)
            free_memory()
        waiting = [index for index in waiting if index not in done]


def _decoding_order(engine: AnyEngine, branches: Sequence[Branch]) -> list[int]:
    """The branches' indexes in decoding order.

    Engines that measure likelihoods keep the caller's order: a likelihood is compared with the likelihood at the
    boundary before, which has to be measured first.
    """
    indexes = list(range(len(branches)))
    if engine.max_branches > 1 or engine.measures_likelihood:
        return indexes
    return sorted(indexes, key=lambda index: -branches[index].at)


class ReorderBuffer:
    """Holds back the output of branches that were decoded early, until all branches before them are done."""

    def __init__(self) -> None:
        self._waiting: dict[int, list[Progress]] = {}
        self._done: set[int] = set()
        self._next = 0

    def reorder(self, progress: Sequence[Progress]) -> list[Progress]:
        """Buffer new output, and return the output whose turn has come."""
        for item in progress:
            self._waiting.setdefault(item.branch, []).append(item)
            if item.done is not None:
                self._done.add(item.branch)
        ready = self._waiting.pop(self._next, [])
        while self._next in self._done:
            self._next += 1
            ready += self._waiting.pop(self._next, [])
        return ready
