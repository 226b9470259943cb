"""Decoding any number of branches: in groups of the engine's size, and in smaller groups where memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from wim_kernel.common.errors import DeviceMemoryError
from wim_kernel.engines.base import AnyEngine, Branch, Gate, Prefix, Progress, Scores

logger = logging.getLogger(__name__)


def decode_all(
    engine: AnyEngine,
    prefix: Prefix,
    branches: Sequence[Branch],
    gate: Gate | None = None,
    free_memory: Callable[[], object] = lambda: None,
) -> Iterator[list[Progress]]:
    """Decode branches in groups; yields after every step. `Progress.branch` is an index of ``branches``.

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
    waiting, size = list(range(len(branches))), engine.max_branches
    while waiting:
        group, yielded, done = waiting[:size], set[int](), set[int]()
        group_gate = None if gate is None else partial(_ask_group, gate, group)
        try:
            for step in engine.decode(prefix, [branches[index] for index in group], group_gate):
                progress = [replace(item, branch=group[item.branch]) for item in step]
                yielded.update(item.branch for item in progress if item.text)
                done.update(item.branch for item in progress if item.done is not None)
                yield progress
        except DeviceMemoryError as error:
            if len(group) == 1 or yielded - done:
                raise
            size = len(group) // 2
            logger.warning("%s Going on with %d branches at a time.", error, size)
            free_memory()
        waiting = [index for index in waiting if index not in done]


def _ask_group(
    gate: Gate, group: Sequence[int], indices: Sequence[int], scores: Sequence[Scores]
) -> Sequence[bool]:
    """Ask the gate about branches of a group, by their indices among all branches."""
    return gate([group[index] for index in indices], scores)
