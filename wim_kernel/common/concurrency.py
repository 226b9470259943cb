"""Async twins: work goes to threads step by step, the event loop stays free, and cancelling stops the work."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TypeVar

from wim_kernel.common import forks

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
_END = object()


class _Waits:
    """What the step under way waits for elsewhere, and how each of these waits is ended."""

    def __init__(self) -> None:
        self._stops: list[Callable[[], object]] = []
        self._ended = False
        self._lock = threading.Lock()

    def add(self, stop: Callable[[], object]) -> None:
        """Begin a wait; it ends at once if nobody wants the step any more."""
        with self._lock:
            self._stops.append(stop)
            ended = self._ended
        if ended:
            _call(stop)

    def remove(self, stop: Callable[[], object]) -> None:
        """A wait is over."""
        with self._lock:
            self._stops.remove(stop)

    def end(self) -> None:
        """End the waits under way, and those that the step would still begin."""
        with self._lock:
            self._ended = True
            stops = list(self._stops)
        for stop in stops:
            _call(stop)


def _call(stop: Callable[[], object]) -> None:
    """End a wait; one that cannot be ended keeps no other from it."""
    try:
        stop()
    except Exception:
        logger.warning("A wait could not be ended.", exc_info=True)


_waits: ContextVar[_Waits | None] = ContextVar("waits", default=None)


@contextmanager
def stoppable(stop: Callable[[], object]) -> Iterator[None]:
    """For a step that waits for another machine: ``stop`` is called if nobody wants the step any more.

    It may be called from any thread, must not wait, and has to make the wait end with an exception.
    """
    waits = _waits.get()
    if waits is None:
        yield
        return
    waits.add(stop)
    try:
        yield
    finally:
        waits.remove(stop)


@cache
def _threads() -> ThreadPoolExecutor:
    """Threads of our own, so that an application's default executor is never full of our waiting."""
    return ThreadPoolExecutor(max_workers=32, thread_name_prefix="wim")


forks.in_child(_threads.cache_clear)


async def in_thread(function: Callable[..., Result], *args: object) -> Result:
    """Call a function in one of these threads."""
    context = contextvars.copy_context()
    return await asyncio.wrap_future(_threads().submit(context.run, function, *args))


async def iterate_in_thread(generator: Generator[Item, None, object]) -> AsyncGenerator[Item, None]:
    """Iterate a generator whose steps run in threads, one after another.

    When the consumer stops or its task is cancelled, the step under way comes to its end in its thread, where the
    generator is then closed; nobody waits for it. What it waits for elsewhere is stopped, see `stoppable`.
    """
    context, waits = contextvars.copy_context(), _Waits()
    context.run(_waits.set, waits)
    step: Future[object] | None = None
    try:
        while True:
            step = _threads().submit(lambda: context.run(next, generator, _END))
            item = await asyncio.wrap_future(step)
            if item is _END:
                return
            yield item  # type: ignore[misc]
    finally:
        if step is None or step.done() or step.cancel():
            generator.close()
        else:
            step.add_done_callback(lambda _: generator.close())
            waits.end()


def finish(work: Generator[object, None, Result]) -> Result:
    """Run a generator to its end and give what it returns."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: Result = end.value
            return result


async def afinish(work: Generator[object, None, Result]) -> Result:
    """The same in threads; cancelling stops the work after the step under way, and requests to servers at once."""
    results: list[Result] = []

    def collect() -> Generator[object, None, None]:
        results.append((yield from work))

    async for _ in iterate_in_thread(collect()):
        pass
    return results[0]
