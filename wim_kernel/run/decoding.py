"""Any number of branches, as many together as the engine likes, and fewer where its memory does not suffice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from wim_kernel.common.errors import DeviceMemoryError
from wim_kernel.engines.base import AnyEngine, Branch, Prefix, Progress, Scores

logger = logging.getLogger(__name__)

GroupGate = Callable[[Sequence[int], Sequence[Scores]], Sequence[bool]]
"""Given the places of branches that were measured together, and their scores, says which go on to generate."""


def decode_all(
    engine: AnyEngine,
    prefix: Prefix,
    branches: Sequence[Branch],
    gate: GroupGate | None = None,
    relieve: Callable[[], object] = lambda: None,
) -> Iterator[list[Progress]]:
    """Decode branches in groups; yields after every step.

    Where the engine takes one at a time, those of longer prefixes come first: it may keep one prompt only, of which a
    shorter one cuts the rest off. What they tell is told in the callers' order all the same.

    Args:
        engine: decodes.
        prefix: what the branches continue.
        branches: in any number.
        gate: asked once for each group.
        relieve: called to free memory before a group is tried again, at half its size.

    Raises:
        DeviceMemoryError: if there is no memory for one branch alone, or it ended after text was told.
    """
    waiting, size = _order(engine, branches), engine.max_branches
    in_callers_order = waiting == sorted(waiting)
    kept_back = KeptBack()
    while waiting:
        group, told, done = waiting[:size], set[int](), set[int]()
        asked = None if gate is None else partial(gate, group)
        try:
            for step in engine.decode(prefix, [branches[place] for place in group], asked):
                found = [replace(item, branch=group[item.branch]) for item in step]
                told.update(item.branch for item in found if item.text)
                done.update(item.branch for item in found if item.done is not None)
                yield found if in_callers_order else kept_back.pass_on(found)
        except DeviceMemoryError as error:
            if len(group) == 1 or told - done:
                raise
            size = len(group) // 2
            logger.warning("%s Going on with %d branches at a time.", error, size)
            relieve()
        waiting = [place for place in waiting if place not in done]


def _order(engine: AnyEngine, branches: Sequence[Branch]) -> list[int]:
    """In which order branches are run. A likelihood is compared with that of the boundary before, which comes first."""
    places = list(range(len(branches)))
    if engine.max_branches > 1 or engine.measures_likelihood:
        return places
    return sorted(places, key=lambda place: -branches[place].at)


class KeptBack:
    """What branches told that were run before their turn, until all before them are done."""

    def __init__(self) -> None:
        self._waiting: dict[int, list[Progress]] = {}
        self._done: set[int] = set()
        self._turn = 0

    def pass_on(self, found: Sequence[Progress]) -> list[Progress]:
        """Take what was told, and give what may be told."""
        for item in found:
            self._waiting.setdefault(item.branch, []).append(item)
            if item.done is not None:
                self._done.add(item.branch)
        told = self._waiting.pop(self._turn, [])
        while self._turn in self._done:
            self._turn += 1
            told += self._waiting.pop(self._turn, [])
        return told
