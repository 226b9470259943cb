"""The relay: listeners are called with every event and every error, whether their calls are awaitable or not."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import closing
from typing import Any

import pytest

from wim_kernel.common.relay import Calls, alast_of, arelay, last_of, relay
from wim_kernel.engines.document import TokenizedDocument


class Recorder:
    """Records what it is called with; fails at one event, and cleans up behind itself."""

    def __init__(self, fails_at: int | None = None, *, awaits: bool = False) -> None:
        self.fails_at = fails_at
        self.awaits = awaits
        self.seen: list[Any] = []
        self.cleaned = 0

    def emit(self, event: int) -> Calls:
        try:
            yield self._later(event) if self.awaits else self._now(event)
            self.seen.append(event)
        finally:
            self.cleaned += 1

    def fail(self, error: BaseException) -> Calls:
        self.seen.append(type(error))
        yield None

    def _now(self, event: int) -> None:
        if event == self.fails_at:
            raise ValueError(event)

    async def _later(self, event: int) -> None:
        self._now(event)


def counting(fails_at: int | None = None) -> Generator[int, None, None]:
    for number in range(3):
        if number == fails_at:
            raise KeyError(number)
        yield number


async def acounting(fails_at: int | None = None) -> AsyncGenerator[int, None]:
    for number in counting(fails_at):
        yield number


async def as_async(events: Generator[int, None, None]) -> AsyncGenerator[int, None]:
    for event in events:
        yield event


async def test_relay_calls_the_listener_before_each_event_is_yielded() -> None:
    listener = Recorder()
    for number in relay(counting(), listener):
        assert listener.seen[-1] == number
    other = Recorder(awaits=True)
    async for number in arelay(acounting(), other):
        assert other.seen[-1] == number
    assert last_of(relay(counting(), Recorder())) == 2
    assert await alast_of(arelay(acounting(), Recorder(awaits=True))) == 2


@pytest.mark.parametrize("awaits", [False, True])
@pytest.mark.parametrize(("of_events", "of_listener", "error"), [(1, None, KeyError), (None, 1, ValueError)])
async def test_relay_reports_errors_to_the_listener(
    awaits: bool, of_events: int | None, of_listener: int | None, error: type[Exception]
) -> None:
    listener = Recorder(of_listener, awaits=awaits)
    events = (
        arelay(acounting(of_events), listener) if awaits else as_async(relay(counting(of_events), listener))
    )
    with pytest.raises(error):
        await alast_of(events)
    assert listener.seen == [0, error]
    assert listener.cleaned == (2 if of_listener is not None else 1)  # its own `finally` ran


def test_relay_that_is_closed_closes_the_events_and_says_so() -> None:
    listener, events = Recorder(), counting()
    with closing(relay(events, listener)) as relayed:
        assert next(relayed) == 0
    assert listener.seen == [0, GeneratorExit]
    assert list(events) == []


@pytest.mark.parametrize("known", [0, 1, 2])
def test_common_chunks_goes_on_from_what_is_known(known: int) -> None:
    one = TokenizedDocument((1,), ((2,), (3, 4), (5,)))
    assert one.common_chunks(TokenizedDocument((1,), ((2,), (3, 4), (6,), (7,))), known) == 2
    assert one.common_chunks(one, known) == 3
    assert one.common_chunks(TokenizedDocument((9,), one.chunks)) == -1
