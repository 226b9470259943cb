"""Work that nobody wants any more: requests to a real server end, and none is begun."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from helpers import config
from proxy import posts
from ship import OPTIONS, QUESTION, TEXTS, always

from wim_kernel import AnswerToken
from wim_kernel.common.concurrency import iterate_in_thread, stoppable

pytestmark = pytest.mark.slow

LONG_BEFORE_THE_REPLY = 30  # seconds; the proxy holds replies back for sixty


def rests(kernel) -> bool:
    """Whether nobody holds a reading, and no request is under way."""
    in_use = any(reading.in_use for reading in kernel.cache.held)
    return not in_use and all(server.running == 0 for server in kernel.engine.servers)


@pytest.mark.invariant(6)
def test_closing_a_stream_stops_requests(behind_proxy, proxy):
    kernel = behind_proxy()
    options = {**OPTIONS, "answer_config": config(400)}
    stream = kernel.read(TEXTS).stream(QUESTION, relevance=always, **options)
    for event in stream:
        if isinstance(event, AnswerToken):
            break
    before = proxy.closed_early
    stream.close()
    for _ in range(100):
        if proxy.closed_early > before:
            break
        time.sleep(0.05)
    assert proxy.closed_early == before + 1
    assert not any(reading.in_use for reading in kernel.cache.held)
    assert all(server.running == 0 for server in kernel.engine.servers)


@pytest.mark.invariant(6)
async def test_cancelling_a_task_stops_its_requests_at_once(behind_proxy, proxy):
    kernel = behind_proxy()
    proxy.spoil, proxy.delay = ["delay"], 60.0
    task = asyncio.ensure_future(kernel.read(TEXTS).aask(QUESTION, relevance=always, **OPTIONS))
    for _ in range(100):
        if posts(proxy):
            break
        await asyncio.sleep(0.05)
    before = proxy.closed_early
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, LONG_BEFORE_THE_REPLY)
    for _ in range(100):
        if rests(kernel):
            break
        await asyncio.sleep(0.05)
    assert rests(kernel)
    for _ in range(100):
        if proxy.closed_early > before:
            break
        await asyncio.sleep(0.05)
    assert proxy.closed_early == before + 1


async def test_cancelled_tasks_begin_no_request_once_another_ends(behind_proxy, proxy):
    """Two on one document: the second waits for the first to read, between two requests, when both are cancelled."""
    kernel = behind_proxy()
    proxy.spoil, proxy.delay = ["delay"] * 9, 60.0
    tasks = [asyncio.ensure_future(kernel.read(TEXTS).aprefill()) for _ in range(2)]
    for _ in range(100):
        await asyncio.sleep(0.05)
        if posts(proxy) and sum(reading.in_use for reading in kernel.cache.held):
            break
    await asyncio.sleep(0.3)  # until the second waits, too
    before = posts(proxy)
    assert before == 1
    for task in reversed(tasks):
        task.cancel()
    found = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), LONG_BEFORE_THE_REPLY)
    assert [type(each) for each in found] == [asyncio.CancelledError] * 2
    for _ in range(100):
        if rests(kernel):
            break
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.3)
    assert rests(kernel)
    assert posts(proxy) == before


async def test_cancelled_wait_does_not_block_other_waits():
    stopped, waiting = threading.Event(), threading.Event()

    def fails() -> None:
        raise OSError("It cannot be ended.")

    def steps():
        with stoppable(fails), stoppable(stopped.set):
            waiting.set()
            stopped.wait(20)
        yield

    async def work() -> None:
        async for _ in iterate_in_thread(steps()):
            pass

    task = asyncio.ensure_future(work())
    assert await asyncio.to_thread(waiting.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stopped.is_set()
