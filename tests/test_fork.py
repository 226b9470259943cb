"""After `os.fork` a child can use what it inherited, or is told in one sentence what it cannot use. Nothing hangs."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from forked import in_child

from wim_kernel import ForkError, WimKernel
from wim_kernel.common import forks
from wim_kernel.engines.local.decode.fair_lock import Account, FairLock

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]

TEXT = "The gull sat on the mast. Elsa Brandt owned the ship. The storm came at night. " * 12
FEW: dict[str, Any] = {"margin_tokens": 3, "answer_tokens": 5, "threshold": 0}
QUESTION = "Who owned the ship?"


@contextmanager
def in_another_thread(hold: Callable[[], Any]) -> Iterator[None]:
    """While another thread is within a context."""
    held, done = threading.Event(), threading.Event()

    def run() -> None:
        with hold():
            held.set()
            done.wait()

    thread = threading.Thread(target=run)
    thread.start()
    held.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()


async def streamed(reading: Any) -> str:
    return "".join([event.text async for event in reading.astream(QUESTION, **FEW) if hasattr(event, "text")])


ASKED: dict[str, Callable[[Any], str]] = {
    "ask": lambda reading: reading.ask(QUESTION, **FEW).answer,
    "aask": lambda reading: asyncio.run(reading.aask(QUESTION, **FEW)).answer,
    "astream": lambda reading: asyncio.run(streamed(reading)),
    "ask_many": lambda reading: reading.ask_many([QUESTION], **FEW)[0].answer,
}


@pytest.mark.invariant(7)
@pytest.mark.parametrize("before", ASKED)
@pytest.mark.parametrize("inside", ASKED)
def test_child_answers_as_the_parent_did(kernel: WimKernel, before: str, inside: str) -> None:
    reading = kernel.read(TEXT, chunk_tokens=64)
    expected = ASKED[before](reading)
    assert in_child(lambda: ASKED[inside](reading)) == expected
    assert ASKED[inside](reading) == expected, "the parent goes on"


def test_child_finds_what_the_parent_read(kernel: WimKernel) -> None:
    reading = kernel.read(TEXT, chunk_tokens=64)
    reading.prefill()
    assert in_child(lambda: reading.ask(QUESTION, **FEW).usage.prefill_tokens) == 0


@pytest.mark.parametrize("at", ["model", "changed", "lock", "move lock", "session", "reading"])
def test_child_does_not_wait_for_the_parents_threads(kernel: WimKernel, at: str) -> None:
    reading = kernel.read(TEXT, chunk_tokens=64)
    expected = reading.ask(QUESTION, **FEW).answer
    engine, readings = kernel.engine, kernel.cache

    @contextmanager
    def mid_stream() -> Iterator[None]:
        stream = kernel.read("Another. " + TEXT, chunk_tokens=64).stream(QUESTION, **FEW)
        next(stream)
        yield
        stream.close()

    holds: dict[str, Callable[[], Any]] = {
        "model": lambda: engine.lock,
        "changed": lambda: engine.lock.changed,
        "lock": lambda: readings.lock,
        "move lock": lambda: readings._move_lock,
        "session": lambda: engine.batcher.session(lambda: None),
        "reading": mid_stream,
    }
    with in_another_thread(holds[at]):
        assert in_child(lambda: ASKED["ask"](reading)) == expected
        assert in_child(lambda: ASKED["aask"](reading)) == expected
        assert in_child(lambda: (engine.batcher.busy, [each.in_use for each in readings.held])) == (
            False,
            [False] * in_child(lambda: len(readings)),
        )


def test_grandchild_answers_as_the_parent_did(kernel: WimKernel) -> None:
    reading = kernel.read(TEXT, chunk_tokens=64)
    expected = ASKED["aask"](reading)
    assert in_child(lambda: in_child(lambda: ASKED["aask"](reading))) == expected


@pytest.mark.parametrize("events", [1, 3, 9])
def test_stream_that_crosses_a_fork_goes_on_or_says_so(kernel: WimKernel, events: int) -> None:
    reading = kernel.read(TEXT, chunk_tokens=64)
    expected = [type(event) for event in reading.stream(QUESTION, **FEW)]
    stream = kernel.read("Fresh. " + TEXT, chunk_tokens=64).stream(QUESTION, **FEW)
    for _ in range(events):
        next(stream)

    def go_on() -> str:
        try:
            list(stream)
        except ForkError as error:
            said = str(error)
        else:
            said = "ask again"
        stream.close()
        return ASKED["ask"](reading) if "ask again" in said else said

    assert in_child(go_on) == ASKED["ask"](reading)
    assert len(list(stream)) >= len(expected) - events, "the parent's stream is as it was"


def test_accelerator_is_refused_in_the_child(kernel: WimKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = kernel.read(TEXT, chunk_tokens=64)
    reading.ask(QUESTION, **FEW)
    runner = kernel.engine.runner  # type: ignore[union-attr]

    def fail(work: Callable[[], Any]) -> str:
        with pytest.raises(ForkError) as caught:
            work()
        return str(caught.value)

    monkeypatch.setattr(runner, "device", torch.device("cuda"))
    for work in (*(lambda ask=ask: ask(reading) for ask in ASKED.values()), reading.prefill):
        assert "'spawn'" in in_child(lambda work=work: fail(work))
    monkeypatch.undo()
    assert reading.ask(QUESTION, **FEW).answer


def test_torch_threads_work_in_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        numbers = torch.arange(2**20, dtype=torch.float32)
        expected = float((numbers + numbers).sum())
        assert in_child(lambda: float((numbers + numbers).sum())) == expected
        assert in_child(torch.get_num_threads) == 2
    finally:
        torch.set_num_threads(threads)


def test_fair_lock_held_by_the_forking_thread_works_in_the_child() -> None:
    lock = FairLock()
    lock.acquire(Account())

    def child() -> bool:
        lock.release()
        return lock.acquire(Account())

    assert in_child(child)
    lock.release()


def test_server_locks_and_loop_work_in_the_child() -> None:
    pytest.importorskip("openai")
    from wim_kernel.engines.server import loop, transport
    from wim_kernel.engines.server.prefixes import ServerPrefix

    async def nothing() -> int:
        return 7

    prefix, server = ServerPrefix(), transport.Server("http://127.0.0.1:9/v1", "key", 1.0, 2)
    assert loop.wait_for(nothing()) == 7
    parents = server.client

    def child() -> bool:
        with prefix.lock:
            return loop.wait_for(nothing()) == 7 and server.client is not parents and server.running == 0

    for hold in (lambda: prefix.lock, lambda: loop._loop_lock):
        with in_another_thread(hold):
            assert in_child(child)
    assert server.client is parents


def test_requests_that_cross_a_fork_say_so() -> None:
    pytest.importorskip("openai")
    from wim_kernel.engines.server.loop import run_concurrently

    async def put(found: Callable[[int], None]) -> None:
        found(1)
        found(2)

    running = run_concurrently([put])
    next(running)

    def child() -> None:
        try:
            next(running)
        finally:
            running.close()

    with pytest.raises(ForkError, match="ask again"):
        in_child(child)
    assert list(running) == [2]


def test_generation_counts_forks() -> None:
    assert in_child(forks.generation) == forks.generation() + 1
