"""Any number of branches, as many together as the engine likes, and fewer where its memory does not suffice."""

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
    relieve: Callable[[], object] = lambda: None,
) -> Iterator[list[Progress]]:
    """Decode branches in groups; yields after every step.

    Args:
        engine: decodes.
        prefix: what the branches continue.
        branches: in any number.
        gate: asked once for each group.
        relieve: called to free memory before a group is tried again, at half its size.

    Raises:
        DeviceMemoryError: if there is no memory for one branch alone, or it ended after text was told.
    """
    waiting, size = list(range(len(branches))), engine.max_branches
    while waiting:
        group, told, done = waiting[:size], set[int](), set[int]()
        asked = None if gate is None else partial(_ask_group, gate, group)
        try:
            for step in engine.decode(prefix, [branches[place] for place in group], asked):
                found = [replace(item, branch=group[item.branch]) for item in step]
                told.update(item.branch for item in found if item.text)
                done.update(item.branch for item in found if item.done is not None)
                yield found
        except DeviceMemoryError as error:
            if len(group) == 1 or told - done:
                raise
            size = len(group) // 2
            logger.warning("%s Going on with %d branches at a time.", error, size)
            relieve()
        waiting = [place for place in waiting if place not in done]


def _ask_group(
    gate: Gate, group: Sequence[int], indices: Sequence[int], scores: Sequence[Scores]
) -> Sequence[bool]:
    """Ask the gate about branches of a group, by their indices among all branches."""
    return gate([group[index] for index in indices], scores)
