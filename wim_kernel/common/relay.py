"""The relay: one loop that passes events to a listener, for plain and for async callers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing
from inspect import isawaitable
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")
Calls = Generator[Any, Any, None]
"""A generator of calls to a framework: each yielded value is awaited if it is awaitable, and its result sent back."""


class Listener(Protocol):
    """Emits events to a framework."""

    def emit(self, event: Any) -> Calls | None:
        """Emit an event."""

    def fail(self, error: BaseException) -> Calls | None:
        """Report that the events ended early, by an error or because the consumer closed them."""


def relay(events: Generator[Item, None, None], listener: Listener) -> Generator[Item, None, None]:
    """Yield each event after the listener has emitted it. Closing the generator closes the events.

    An error of the events or of the listener reaches ``listener.fail``. After an error of its own the consumer closes
    the generator, and the listener gets a `GeneratorExit`.
    """
    try:
        with closing(events):
            for event in events:
                _finish(listener.emit(event))
                yield event
    except BaseException as error:
        _finish(listener.fail(error))
        raise


async def arelay(events: AsyncGenerator[Item, None], listener: Listener) -> AsyncGenerator[Item, None]:
    """Like `relay`; the listener's calls may be awaitable."""
    try:
        async with aclosing(events):
            async for event in events:
                await _afinish(listener.emit(event))
                yield event
    except BaseException as error:
        await _afinish(listener.fail(error))
        raise


def last_of(events: Generator[Item, None, None]) -> Item | None:
    """Exhaust a generator and return its last item; None without items."""
    last: Item | None = None
    with closing(events):
        for event in events:
            last = event
    return last


async def alast_of(events: AsyncGenerator[Item, None]) -> Item | None:
    """See `last_of`."""
    last: Item | None = None
    async with aclosing(events):
        async for event in events:
            last = event
    return last


def _finish(calls: Calls | None) -> None:
    value: Any = None
    try:
        while calls is not None:
            value = calls.send(value)
    except StopIteration:
        return


async def _afinish(calls: Calls | None) -> None:
    value: Any = None
    try:
        while calls is not None:
            value = calls.send(value)
            while isawaitable(value):
                try:
                    value = await value
                except BaseException as error:
                    value = calls.throw(error)
    except StopIteration:
        return
