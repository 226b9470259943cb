"""Runs that end early: closed streams, cancelled tasks, failing callbacks; and many at once."""

from __future__ import annotations

import asyncio

import pytest
from asking import asked
from langchain_core.documents import Document

from wim_integrations.langchain import WimRunnable
from wim_kernel import WimKernel


@pytest.mark.invariant(6)
async def test_closing_an_asynchronous_stream_stops_the_work(
    runnable: WimRunnable, documents: list[Document]
) -> None:
    stream = runnable.astream(asked(documents))
    async for chunk in stream:
        if chunk.get("margins"):
            break
    await stream.aclose()
    for _ in range(100):
        if not any(live.in_use for live in runnable.kernel.cache.held):
            break
        await asyncio.sleep(0.02)
    assert not any(live.in_use for live in runnable.kernel.cache.held)


@pytest.mark.invariant(6)
def test_closing_a_stream_stops_the_work(runnable: WimRunnable, documents: list[Document]) -> None:
    stream = runnable.stream(asked(documents))
    next(stream)
    next(stream)
    stream.close()
    assert not any(live.in_use for live in runnable.kernel.cache.held)
    assert runnable.invoke(asked(documents))["answer"]


@pytest.mark.invariant(6)
async def test_a_cancelled_task_stops_the_work(runnable: WimRunnable, documents: list[Document]) -> None:
    async def read() -> None:
        async for _ in runnable.astream(asked(documents)):
            started.set()

    started = asyncio.Event()
    task = asyncio.create_task(read())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(100):
        if not any(live.in_use for live in runnable.kernel.cache.held):
            break
        await asyncio.sleep(0.02)
    assert not any(live.in_use for live in runnable.kernel.cache.held)
    assert (await runnable.ainvoke(asked(documents)))["answer"]


@pytest.mark.invariant(6)
async def test_an_exception_in_keep_reaches_the_caller_and_nothing_is_held(
    kernel: WimKernel, documents: list[Document]
) -> None:
    def keep(margin: object) -> bool:
        raise RuntimeError("no")

    runnable = WimRunnable(kernel=kernel, threshold=0, margin_tokens=2, keep=keep)
    with pytest.raises(RuntimeError, match="no"):
        runnable.invoke(asked(documents))
    with pytest.raises(RuntimeError, match="no"):
        await runnable.ainvoke(asked(documents))
    assert not any(live.in_use for live in kernel.cache.held)


@pytest.mark.in_process
@pytest.mark.invariant(7)
async def test_twenty_tasks_at_once_get_what_each_would_alone(
    runnable: WimRunnable, documents: list[Document]
) -> None:
    given = [asked(documents, f"Who owned ship number {number}?") for number in range(20)]
    wanted = [runnable.invoke(item)["answer"] for item in given]
    runnable.kernel.cache.clear()
    found = await asyncio.gather(*(runnable.ainvoke(item) for item in given))
    assert [output["answer"] for output in found] == wanted
    assert (
        sum(output["usage"]["prefill_tokens"] for output in found)
        == found[0]["usage"]["cached_tokens"] + (found[0]["usage"]["prefill_tokens"])
    )
