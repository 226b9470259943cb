"""Async variants: each step of the work runs in a thread, so that the event loop is free and can cancel the work."""

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
    """The blocking waits of the current step, such as HTTP requests, with a callback to interrupt each."""

    def __init__(self) -> None:
        self._stops: list[Callable[[], object]] = []
        self._interrupted = False
        self._lock = threading.Lock()

    def add(self, stop: Callable[[], object]) -> None:
        """Register a wait; interrupts it at once if the step was cancelled."""
        with self._lock:
            self._stops.append(stop)
            interrupted = self._interrupted
        if interrupted:
            _call(stop)

    def remove(self, stop: Callable[[], object]) -> None:
        """Unregister a finished wait."""
        with self._lock:
            self._stops.remove(stop)

    def interrupt(self) -> None:
        """Interrupt the current waits, and every wait that the step begins later."""
        with self._lock:
            self._interrupted = True
            stops = list(self._stops)
        for stop in stops:
            _call(stop)


def _call(stop: Callable[[], object]) -> None:
    """Interrupt a wait; an error must not keep the others from being interrupted."""
    try:
        stop()
    except Exception:
        logger.warning("A wait could not be interrupted.", exc_info=True)


_waits: ContextVar[_Waits | None] = ContextVar("waits", default=None)


@contextmanager
def stoppable(stop: Callable[[], object]) -> Iterator[None]:
    """A context for a blocking wait of a step, such as an HTTP request; ``stop`` is called if the step is cancelled.

    Args:
        stop: a callback that makes the wait raise. It may be called from any thread, and must not block.
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
    """The package's own threads, so that its work never fills up the application's default executor."""
    return ThreadPoolExecutor(max_workers=32, thread_name_prefix="wim")


forks.in_child(_threads.cache_clear)


async def in_thread(function: Callable[..., Result], *args: object) -> Result:
    """Call a function in one of the package's threads."""
    context = contextvars.copy_context()
    return await asyncio.wrap_future(_threads().submit(context.run, function, *args))


async def iterate_in_thread(generator: Generator[Item, None, object]) -> AsyncGenerator[Item, None]:
    """Iterate a generator whose steps run in threads, one after another.

    If the consumer stops or its task is cancelled, the current step finishes in its thread, which then closes the
    generator; the consumer does not wait for it. The step's blocking waits are interrupted, see `stoppable`.
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
            waits.interrupt()


def finish(work: Generator[object, None, Result]) -> Result:
    """Run a generator to its end; returns its return value."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: Result = end.value
            return result


async def afinish(work: Generator[object, None, Result]) -> Result:
    """Like `finish`, in threads. Cancelling stops the work after the current step, and requests to servers at once."""
    results: list[Result] = []

    def collect() -> Generator[object, None, None]:
        results.append((yield from work))

    async for _ in iterate_in_thread(collect()):
        pass
    return results[0]
