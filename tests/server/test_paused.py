"""A stream whose consumer does something else between two events: what it asks meanwhile does not wait for it."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from chat_server import chat_server
from helpers import config

from wim_kernel import MarginWritten, WimKernel, WimResult
from wim_kernel.engines.base import Branch
from wim_kernel.engines.server.branch_state import BranchState
from wim_kernel.engines.server.deciding import BranchGate
from wim_kernel.run.relevance.scores import Decision, Evidence

TEXTS = [f"Leaf {number} of the log. The gull sat on the mast." for number in range(24)]
OPTIONS: dict[str, Any] = {"margin_config": config(4), "answer_config": config(4)}
STATE = BranchState(0, Branch(0, ()), ())
caller = contextvars.ContextVar("caller", default="nobody")


@pytest.fixture
def kernels() -> Iterator[Callable[..., WimKernel]]:
    """Makes kernels on a small server."""
    with chat_server() as server:
        yield lambda **options: WimKernel.from_server(server.url, **options)


def in_time(work: Callable[[], Any]) -> Any:
    """What ``work`` returns, which has to come within half a minute."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    thread.join(30)
    assert found, "it hangs or failed"
    return found[0]


@pytest.mark.parametrize("options", [{}, {"concurrency": 1}], ids=["default", "one request"])
def test_paused_stream_lets_other_questions_run(kernels, options):
    kernel = kernels(**options)
    reading = kernel.read(TEXTS)
    reading.prefill()

    def ask_at_the_first_margin() -> list[Any]:
        asked, events = [], []
        for event in reading.stream("Who sat on the mast?", relevance="decision", **OPTIONS):
            events.append(event)
            if isinstance(event, MarginWritten) and not asked:
                asked.append(kernel.ask("Who?", ["Another text."], **OPTIONS))
        return [*asked, *events]

    first, *events = in_time(ask_at_the_first_margin)
    assert isinstance(first, WimResult)
    assert sum(isinstance(event, MarginWritten) for event in events) == len(TEXTS)


class Told(Decision):
    """A decision that says who called, and never twice at a time."""

    def __init__(self) -> None:
        self.callers: list[str] = []
        self.running = threading.Lock()

    def __call__(self, evidence: Evidence) -> float:
        assert self.running.acquire(blocking=False), "two calls at a time"
        self.callers.append(caller.get())
        self.running.release()
        return super().__call__(evidence)


def test_callable_relevance_runs_in_the_callers_context(kernels):
    kernel, told = kernels(), Told()
    caller.set("the test")
    kernel.ask("Who sat on the mast?", TEXTS, relevance=told, **OPTIONS)
    assert told.callers == ["the test"] * len(TEXTS)


def test_callable_relevance_error_is_raised(kernels):
    class Broken(Decision):
        def __call__(self, evidence: Evidence) -> float:
            raise LookupError("no score")

    with pytest.raises(LookupError, match="no score"):
        kernels().ask("Who sat on the mast?", TEXTS, relevance=Broken(), **OPTIONS)


def test_callable_relevance_stop_iteration_ends_the_call(kernels) -> None:
    class Broken(Decision):
        def __call__(self, evidence: Evidence) -> float:
            return next(iter(()))

    def asks() -> str:
        try:
            kernels().ask("Who?", TEXTS[:2], relevance=Broken(), **OPTIONS)
        except RuntimeError as error:
            return str(error)
        return "it went on"

    assert "StopIteration" in in_time(asks)


@pytest.mark.invariant(6)
@pytest.mark.parametrize("error", [None, LookupError("no score")])
async def test_cancelled_request_waits_for_its_gate(error: Exception | None) -> None:
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def gate(indices: Any, scores: Any) -> list[bool]:
        begun.set()
        assert may_end.wait(60)
        ended.set()
        if error is not None:
            raise error
        return [True]

    asked = BranchGate(gate)
    task = asyncio.ensure_future(asked.lets(STATE))
    other = asyncio.ensure_future(asked.lets(STATE))
    await asyncio.to_thread(begun.wait, 60)
    for _ in range(5):  # both the stream's end and the task group cancel it
        task.cancel()
        other.cancel()
        await asyncio.sleep(0)
    assert other.cancelled()  # it had not asked yet
    assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
