"""The event loop for all requests of this process, and the engine's threads waiting for it."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from wim_kernel.common import forks
from wim_kernel.common.concurrency import stoppable

Item = TypeVar("Item")
_END = object()

_loop: asyncio.AbstractEventLoop | None = None
_loop_lock = threading.Lock()
_parents_objects: list[object] = []
"""Loops and clients of the parent process. Their collection here would close connections that the parent still uses."""
_THREAD = "wim-requests"


def background() -> asyncio.AbstractEventLoop:
    """The event loop for all requests of this process, in a thread of its own."""
    global _loop
    with _loop_lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name=_THREAD, daemon=True).start()
        return _loop


def keep_from_parent(item: object) -> None:
    """Keep an object of the parent process from being collected in this one."""
    _parents_objects.append(item)


def _renew_after_fork() -> None:
    global _loop, _loop_lock
    keep_from_parent(_loop)
    _loop, _loop_lock = None, threading.Lock()


forks.in_child(_renew_after_fork)


def wait_for(work: Coroutine[Any, Any, Item]) -> Item:
    """Run a coroutine on the background loop and wait for its result; an interrupt cancels it."""
    future = asyncio.run_coroutine_threadsafe(work, background())
    try:
        with stoppable(future.cancel):
            return future.result()
    finally:
        future.cancel()


Emit = Callable[[Item], None]


def run_concurrently(work: Sequence[Callable[[Emit[Item]], Coroutine[Any, Any, None]]]) -> Iterator[Item]:
    """Run coroutines concurrently and yield the items that they emit, as they come.

    Closing the generator cancels the coroutines and waits until they have ended.

    Args:
        work: functions that make a coroutine, given the function by which it emits items.

    Raises:
        Exception: the first exception of a coroutine; the others are cancelled.
    """
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()
    loop = background()
    running: list[asyncio.Task[None]] = []

    async def run() -> None:
        tasks = [asyncio.ensure_future(each(found.put)) for each in work]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def begin() -> None:
        running.append(loop.create_task(run()))
        running[0].add_done_callback(lambda _: found.put(_END))  # even if it is cancelled before it begins

    def stop() -> None:
        loop.call_soon_threadsafe(lambda: running[0].cancel())

    loop.call_soon_threadsafe(begin)
    ended, born = False, forks.generation()
    try:
        with stoppable(stop):
            while (item := found.get()) is not _END:
                yield item
                forks.check_same_process(born)
        ended = True
        if running[0].cancelled():
            raise CancelledError("The requests were stopped.")
        running[0].result()
    finally:
        if not ended and born == forks.generation():
            stop()
            if threading.current_thread().name != _THREAD:  # collected there, it would wait for itself
                while found.get() is not _END:
                    pass
