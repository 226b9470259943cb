"""Forks: new locks and threads in a forked child, and clear errors for what a child cannot use.

`os.fork` copies memory and one thread. In the child, a lock that another thread held stays locked forever, thread pools
have no threads, and the forking thread's OpenMP pool has dead ones. Objects with locks, threads or connections register
here and replace them in the child.
"""

from __future__ import annotations

import ctypes
import logging
import os
import weakref
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Protocol

from wim_kernel.common.errors import ForkError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_SOFT_PAUSE = 1  # omp_pause_soft


class Survivor(Protocol):
    """An object that has to be repaired in a forked child."""

    def renew_after_fork(self) -> None:
        """Replace locks, threads and connections that belong to the parent; called in the child, before all else."""


_survivors: weakref.WeakSet[Survivor] = weakref.WeakSet()
_lost: weakref.WeakSet[object] = weakref.WeakSet()
_generation = 0


def generation() -> int:
    """How many forks separate this process from the first process that imported this module."""
    return _generation


def register(survivor: Survivor) -> None:
    """Call an object's `Survivor.renew_after_fork` in every forked child, as long as the object lives."""
    _survivors.add(survivor)


def in_child(renew: Callable[[], object]) -> None:
    """Call a function in every forked child, for the globals of a module."""
    if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
        os.register_at_fork(after_in_child=renew)


def lose(owner: object) -> None:
    """Mark an object as unusable in this process: `check` raises for it."""
    _lost.add(owner)


def check(owner: object) -> None:
    """Check that an object can be used in this process.

    Raises:
        ForkError: if the object's memory is on a device whose driver does not survive a fork.
    """
    if _generation and owner in _lost:
        raise ForkError(
            "The model is on an accelerator, which a forked process cannot use: load it after the fork, or start "
            "processes with multiprocessing's 'spawn' method."
        )


def check_device(device: torch.device) -> None:
    """Check that this process can use a device.

    Raises:
        ForkError: if the process was forked from one that had used the driver.
    """
    if device.type != "cuda":
        return
    import torch

    if getattr(torch.cuda, "_is_in_bad_fork", lambda: False)():
        raise ForkError(
            "This process was forked from one that had used CUDA, so it cannot use it: start processes with "
            "multiprocessing's 'spawn' method, or load the first model after the fork."
        )


def check_same_process(born: int) -> None:
    """Check that work which began in generation ``born`` has not crossed a fork.

    Raises:
        ForkError: if it has.
    """
    if born != _generation:
        raise ForkError(
            "This call began before the process was forked and cannot go on in the child: ask again there."
        )


def _renew_all() -> None:
    global _generation
    _generation += 1
    for survivor in list(_survivors):
        survivor.renew_after_fork()


def _release_openmp() -> None:
    """End this thread's GNU OpenMP pool; parent and child each start a new one at their next parallel loop."""
    paused = [pause(_SOFT_PAUSE) == 0 for pause in _openmp_pauses()]
    if not all(paused):
        logger.info("An OpenMP pool could not be released before a fork.")


@cache
def _openmp_pauses() -> tuple[Callable[[int], int], ...]:
    """``omp_pause_resource_all`` of each loaded GNU OpenMP; other OpenMP libraries handle forks themselves."""
    try:
        with open("/proc/self/maps") as maps:
            paths = {line.split(maxsplit=5)[5].strip() for line in maps if "libgomp" in line}
    except OSError:  # not Linux
        return ()
    found = (getattr(ctypes.CDLL(path), "omp_pause_resource_all", None) for path in sorted(paths))
    return tuple(pause for pause in found if pause is not None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_release_openmp, after_in_child=_renew_all)
