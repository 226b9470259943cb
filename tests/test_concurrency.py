"""Threads, tasks, closed streams, failing callbacks: each answer is right and nothing is lost or leaked."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import FREE, config, spying

from wim_kernel import AnswerToken, ChunkRead, MarginWritten, WimKernel
from wim_kernel.engines.local.decode.fair_lock import FairLock
from wim_kernel.engines.local.rows.torch_rows import TorchRows
from wim_kernel.text.run_text import Text

pytestmark = pytest.mark.slow

TEXTS = [
    "The gull sat on the mast." * 3,
    "Elsa Brandt owned the ship." * 3,
    "Rain fell all night." * 3,
    "Fog." * 9,
]
QUESTIONS = [f"Who owned ship number {i}?" for i in range(20)]


@pytest.fixture(scope="module")
def kernel(tiny_model, smollm2):
    return WimKernel(tiny_model("llama"), smollm2[1])


@pytest.fixture(scope="module")
def alone(kernel):
    """Each question's answer with nobody else there."""
    return {q: kernel.read(TEXTS).ask(q, threshold=0, **FREE) for q in QUESTIONS}


def same(result, expected):
    assert result.answer == expected.answer
    assert [margin.text for margin in result.margins] == [margin.text for margin in expected.margins]


@pytest.fixture
def batches():
    """Weak references to all branch batches made meanwhile, to see that they are freed."""
    made: list[weakref.ref] = []
    original = TorchRows.__init__

    def note(self, *args):
        original(self, *args)
        made.append(weakref.ref(self))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchRows, "__init__", note)
        yield made


def assert_idle(kernel, batches=()):
    gc.collect()
    assert not any(reading.in_use for reading in kernel.cache.held)
    assert not any(batch() is not None for batch in batches)
    with kernel.engine.lock:  # nobody holds it
        pass


@pytest.mark.invariant(7)
def test_four_threads_at_once_on_a_fresh_document(kernel, alone):
    kernel.cache.clear()
    (zebra,) = kernel.engine.encode(Text(" zebra"))
    texts = [text + " zebra" * 5 for text in TEXTS]
    expected = {q: kernel.read(texts).ask(q, threshold=0, **FREE) for q in QUESTIONS[:8]}
    kernel.cache.clear()
    with spying(kernel.model) as spy, ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda q: kernel.read(texts).ask(q, threshold=0, **FREE), QUESTIONS[:8]))
    for result, question in zip(results, QUESTIONS, strict=False):
        same(result, expected[question])
    assert spy.count(zebra) == 20  # each document token once, whoever came first
    assert sum(result.usage.prefill_tokens for result in results) == kernel.read(texts).tokens
    assert_idle(kernel)


@pytest.mark.invariant(7)
async def test_twenty_tasks_at_once_run_no_model_in_the_loops_thread(kernel, alone):
    kernel.cache.clear()
    threads: set[int] = set()
    hook = kernel.model.register_forward_pre_hook(lambda *_: threads.add(threading.get_ident()))
    reading = kernel.read(TEXTS)
    try:
        results = await asyncio.gather(*(reading.aask(q, threshold=0, **FREE) for q in QUESTIONS))
    finally:
        hook.remove()
    for result in results:
        same(result, alone[result.question])
    assert sum(result.usage.prefill_tokens for result in results) == reading.tokens
    assert threads
    assert threading.get_ident() not in threads
    assert_idle(kernel)


@pytest.mark.invariant(6)
@pytest.mark.parametrize("after", [ChunkRead, MarginWritten, AnswerToken])
def test_a_closed_stream_stops_the_work_and_frees_it(kernel, alone, batches, after):
    kernel.cache.clear()
    reading = kernel.read(TEXTS)
    stream = reading.stream(
        QUESTIONS[0],
        threshold=0,
        margin_style="free",
        margin_config=config(60, 60),
        answer_config=config(60, 60),
    )
    for event in stream:
        if isinstance(event, after):
            break
    with spying(kernel.model) as spy:
        stream.close()
        time.sleep(0.1)
        assert list(stream) == []
    assert spy.batches == []
    assert_idle(kernel, batches)
    same(reading.ask(QUESTIONS[0], threshold=0, **FREE), alone[QUESTIONS[0]])


@pytest.mark.invariant(6)
def test_a_stream_that_nobody_begins_or_ends_holds_nothing(kernel, batches):
    kernel.cache.clear()
    reading = kernel.read(TEXTS)
    reading.stream(QUESTIONS[0], **FREE)
    assert_idle(kernel)
    stream = reading.stream(QUESTIONS[0], threshold=0, **FREE)
    next(stream)
    assert any(held.in_use for held in kernel.cache.held)
    del stream
    assert_idle(kernel, batches)


@pytest.mark.invariant(6)
@pytest.mark.parametrize("where", ["keep", "stop_when", "relevance"])
def test_exception_in_a_callback_leaves_the_kernel_usable(kernel, alone, batches, where):
    kernel.cache.clear()
    reading = kernel.read(TEXTS)

    def fails(_):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        reading.ask(QUESTIONS[0], **{where: fails}, **FREE)
    assert_idle(kernel, batches)
    again = reading.ask(QUESTIONS[0], threshold=0, **FREE)
    same(again, alone[QUESTIONS[0]])
    assert again.usage.cached_tokens > 0  # what was read is kept


@pytest.mark.invariant(6)
@pytest.mark.parametrize("kind", ["llama", "gemma3", "lfm2", "qwen3_next"])
def test_an_exception_of_the_model_leaves_the_reading_right(tiny_model, smollm2, kind):
    kernel = WimKernel(tiny_model(kind), smollm2[1])
    expected = kernel.read(TEXTS).ask(QUESTIONS[0], threshold=0, **FREE)
    kernel.cache.clear()
    reading = kernel.read(TEXTS)
    calls = 0

    def fails(*_):
        nonlocal calls
        calls += 1
        if calls in (3, 6, 9):
            raise RuntimeError("out of memory")

    hook = kernel.model.model.layers[1].register_forward_hook(fails)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="out of memory"):
            reading.ask(QUESTIONS[0], threshold=0, **FREE)
    hook.remove()
    assert_idle(kernel)
    same(reading.ask(QUESTIONS[0], threshold=0, **FREE), expected)


@pytest.mark.invariant(6)
async def test_a_cancelled_task_stops_within_a_step(kernel, alone, batches):
    kernel.cache.clear()
    reading = kernel.read(TEXTS)
    long = {"margin_config": config(2000, 2000), "margin_style": "free", "threshold": 0}
    task = asyncio.create_task(reading.aask(QUESTIONS[0], **long))
    while not batches:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with spying(kernel.model) as spy:
        await asyncio.sleep(0.3)
        quiet = len(spy.batches)
        assert quiet <= 1  # the step that was under way
        await asyncio.sleep(0.2)
        assert len(spy.batches) == quiet
    assert_idle(kernel, batches)
    same(await reading.aask(QUESTIONS[0], threshold=0, **FREE), alone[QUESTIONS[0]])


@pytest.mark.invariant(6)
async def test_leaving_an_async_stream_stops_the_work(kernel, alone, batches):
    kernel.cache.clear()
    reading = kernel.read(TEXTS)
    stream = reading.astream(QUESTIONS[0], threshold=0, margin_style="free", margin_config=config(500, 500))
    async for event in stream:
        if isinstance(event, ChunkRead):
            break
    await stream.aclose()
    await asyncio.sleep(0.1)
    assert_idle(kernel, batches)
    same(await reading.aask(QUESTIONS[0], threshold=0, **FREE), alone[QUESTIONS[0]])


@pytest.mark.invariant(7)
def test_a_paused_stream_does_not_hold_others_up(kernel, alone):
    kernel.cache.clear()
    reading = kernel.read(TEXTS)
    paused = reading.stream(QUESTIONS[1], threshold=0, **FREE)
    next(paused)
    with ThreadPoolExecutor(1) as thread:
        same(
            thread.submit(reading.ask, QUESTIONS[0], threshold=0, **FREE).result(timeout=60),
            alone[QUESTIONS[0]],
        )
    same(list(paused)[-1].result, alone[QUESTIONS[1]])


def test_fair_lock_serves_equal_callers_in_order_of_arrival():
    lock, order = FairLock(), []

    def wait(name):
        with lock:
            order.append(name)

    with lock:
        threads = []
        for name in range(6):
            threads.append(threading.Thread(target=wait, args=(name,)))
            threads[-1].start()
            while len(lock._waiting) <= name:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == list(range(6))
    assert lock._holder is None


def test_repeated_lock_holders_starve_nobody():
    lock, greedy_stops, served = FairLock(), threading.Event(), threading.Event()

    def greedy():
        while not greedy_stops.is_set():
            with lock:
                time.sleep(0.002)

    def patient():
        for _ in range(5):
            with lock:
                pass
        served.set()

    threads = [threading.Thread(target=work, daemon=True) for work in (greedy, patient)]
    for thread in threads:
        thread.start()
    assert served.wait(60)  # while the other goes on
    greedy_stops.set()
    for thread in threads:
        thread.join()


@pytest.mark.invariant(6)
def test_no_memory_grows_over_rounds(kernel):
    from wim_kernel.engines.local.prefix.store import LayerStore

    def stores() -> int:
        gc.collect()
        return sum(isinstance(item, LayerStore) for item in gc.get_objects())

    kernel.cache.clear()
    counts = []
    for _ in range(3):
        for question in QUESTIONS[:3]:
            kernel.read(TEXTS).ask(question, threshold=0, **FREE)
        counts.append(stores())
    assert counts[0] == counts[1] == counts[2]
    assert torch.is_grad_enabled()  # no mode of ours leaks out
