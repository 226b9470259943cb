"""Runs requests in threads of their own, a limited number at a time, and passes on what they yield.

Frameworks' chat models are called by their plain methods, in threads: their asynchronous clients belong to the event
loop of the application, and rate limiters work in both.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from wim_kernel.common.concurrency import stoppable

Item = TypeVar("Item")


@dataclass(eq=False)
class Call(Generic[Item]):
    """A request to make.

    Attributes:
        run: makes the request; yields items as they come.
        after: the call that has to have begun before this one, since it writes the prefix that this one reads.
        begun: set at the first item, or when the call has ended.
    """

    run: Callable[[], Generator[Item, None, None]]
    after: Call[Item] | None = None
    begun: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class _Ended:
    """The end of a thread, with the error that ended it."""

    error: BaseException | None = None


_STOP = object()


def run_calls(calls: Sequence[Call[Item]], slots: threading.Semaphore, most: int) -> Iterator[Item]:
    """Make calls and yield their items, in the order in which they come.

    After an error no further call begins; those that run go on to their end, and then the error is raised. Closing the
    generator ends each call at its next item, without waiting for it.

    Args:
        calls: the calls; one that waits for another comes after it.
        slots: the requests that may run at the same time, of all callers.
        most: most threads.
    """
    found: queue.SimpleQueue[object] = queue.SimpleQueue()
    waiting, stopped, failed = deque(calls), threading.Event(), threading.Event()

    def work() -> None:
        error = None
        try:
            while waiting and not stopped.is_set() and not failed.is_set():
                try:
                    call = waiting.popleft()
                except IndexError:  # another thread was quicker
                    break
                _make(call, slots, stopped, failed, found.put)
        except BaseException as reason:
            failed.set()
            error = reason
        found.put(_Ended(error))

    threads = [
        threading.Thread(target=work, name="wim-chat", daemon=True) for _ in range(min(most, len(calls)))
    ]
    for thread in threads:
        thread.start()
    running, first_error = len(threads), None
    try:
        with stoppable(lambda: found.put(_STOP)):
            while running:
                item = found.get()
                if item is _STOP:
                    raise CancelledError("The requests were stopped.")
                if isinstance(item, _Ended):
                    running -= 1
                    first_error = first_error or item.error
                else:
                    yield item  # type: ignore[misc]
    finally:
        stopped.set()
    if first_error is not None:
        raise first_error


def _make(
    call: Call[Item],
    slots: threading.Semaphore,
    stopped: threading.Event,
    failed: threading.Event,
    emit: Callable[[Item], None],
) -> None:
    """Make one call, once the call before it has begun and there is a slot."""
    try:
        while call.after is not None and not call.after.begun.wait(0.05):
            if stopped.is_set() or failed.is_set():
                return
        while not slots.acquire(timeout=0.05):
            if stopped.is_set() or failed.is_set():
                return
        try:
            items = call.run()
            try:
                while not stopped.is_set():
                    item = next(items, None)
                    call.begun.set()
                    if item is None:
                        break
                    emit(item)
            finally:
                items.close()
        finally:
            slots.release()
    finally:
        call.begun.set()
