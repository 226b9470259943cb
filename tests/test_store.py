"""The store of readings against a simple model: whatever is read, evicted, saved, damaged, restarted: answers stay."""

from __future__ import annotations

import asyncio
import functools
import gc
import random
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers import FREE, spying
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from wim_kernel import MarginWritten, ReadingFileError, WimKernel
from wim_kernel.text.run_text import Text

pytestmark = pytest.mark.slow

OPTIONS = {"threshold": 0, **FREE}
QUESTIONS = ["Who owned the ship?", "Where was the fog?"]


def document(number: int, chunks: int = 3) -> list[str]:
    """Documents come in pairs that begin alike; they may go on at their ends."""
    begins = [f"Log {number // 2}. The gull sat on the mast.", f"Elsa owned the ship number {number // 2}."]
    return [*begins, *(f"Entry {number}.{part}: fog lay on the harbour." for part in range(chunks - 2))]


@pytest.fixture(scope="module")
def make(tiny_model, smollm2):
    def kernel(**options) -> WimKernel:
        return WimKernel(tiny_model("llama"), smollm2[1], **options)

    return kernel


@pytest.fixture(scope="module")
def expected(make):
    """What a question about a document is answered by a kernel that has read nothing else."""
    kernel = make()

    @functools.cache
    def answer(number: int, chunks: int, question: str):
        kernel.cache.clear()
        result = kernel.read(document(number, chunks)).ask(question, **OPTIONS)
        return result.token_ids, tuple(margin.token_ids for margin in result.margins)

    return answer


def test_store_agrees_with_a_simple_model(make, expected):
    size = make().engine.prefix_bytes(100)

    class Store(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.folder = tempfile.TemporaryDirectory()
            self.path = Path(self.folder.name)
            self.saved: dict[Path, tuple[int, int]] = {}
            self.whole: set[Path] = set()
            self.start()

        def start(self) -> None:
            self.kernel = make(
                budget_bytes=2 * size,
                host_budget_bytes=2 * size,
                cache_dir=self.path / "cache",
                disk_budget_bytes=3 * size,
            )

        def check(self, reading, number: int, chunks: int, question: str):
            result = reading.ask(question, **OPTIONS)
            found = result.token_ids, tuple(margin.token_ids for margin in result.margins)
            assert found == expected(number, chunks, question)
            assert result.usage.prefill_tokens + result.usage.cached_tokens == reading.tokens
            return result

        @rule(number=st.integers(0, 5), chunks=st.integers(2, 4), question=st.sampled_from(QUESTIONS))
        def ask(self, number, chunks, question):
            self.check(self.kernel.read(document(number, chunks)), number, chunks, question)

        @rule(number=st.integers(0, 5), question=st.sampled_from(QUESTIONS))
        def ask_again_reads_nothing(self, number, question):
            reading = self.kernel.read(document(number))
            reading.prefill()
            assert self.check(reading, number, 3, question).usage.prefill_tokens == 0

        @rule(number=st.integers(0, 5), chunks=st.integers(2, 4))
        def stop_in_the_middle(self, number, chunks):
            stream = self.kernel.read(document(number, chunks)).stream(QUESTIONS[0], **OPTIONS)
            next(stream)
            stream.close()

        @rule(number=st.integers(0, 5))
        def close(self, number):
            self.kernel.read(document(number)).close()

        @rule()
        def clear(self):
            self.kernel.cache.clear()

        @rule()
        def flush(self):
            self.kernel.cache.flush()

        @rule()
        def restart(self):
            self.start()

        @rule(number=st.integers(0, 5), chunks=st.integers(2, 4))
        def save(self, number, chunks):
            path = self.path / f"{number}-{chunks}"
            self.kernel.read(document(number, chunks)).save(path)
            self.saved[path] = (number, chunks)
            self.whole.add(path)

        @precondition(lambda self: self.saved)
        @rule(data=st.data(), question=st.sampled_from(QUESTIONS))
        def load(self, data, question):
            path = data.draw(st.sampled_from(sorted(self.saved)))
            if path in self.whole:
                self.check(self.kernel.load(path), *self.saved[path], question)
                return
            with pytest.raises(ReadingFileError):
                self.kernel.load(path)

        @precondition(lambda self: self.saved)
        @rule(data=st.data())
        def damage_a_saved_one(self, data):
            path = data.draw(st.sampled_from(sorted(self.saved)))
            self._damage(path, data.draw(st.floats(0.2, 0.99)))
            self.whole.discard(path)

        @rule(data=st.data())
        def damage_the_cache(self, data):
            files = sorted((self.path / "cache").glob("*.safetensors"))
            if files:
                self._damage(data.draw(st.sampled_from(files)), data.draw(st.floats(0.2, 0.99)))

        def _damage(self, path: Path, where: float) -> None:
            content = bytearray(path.read_bytes())
            place = int(where * len(content))
            content[place : place + 16] = bytes(byte ^ 0x55 for byte in content[place : place + 16])
            path.write_bytes(bytes(content))

        @invariant()
        def budgets_hold_while_nobody_reads(self):
            readings = self.kernel.cache
            assert not any(item.in_use for item in readings.held)
            assert readings.nbytes <= readings.budget.engine
            assert readings.host_nbytes <= readings.budget.host
            assert readings.budget.folder is not None
            assert readings.budget.folder.nbytes <= readings.budget.folder.budget_bytes

        def teardown(self):
            self.folder.cleanup()

    Store.TestCase.settings = settings(
        max_examples=8,
        stateful_step_count=20,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    test = Store.TestCase()
    test.runTest()


def live_tensors() -> tuple[int, int]:
    """How many tensors there are, and the bytes of what they are made of."""
    gc.collect()
    storages, count = {}, 0
    for item in gc.get_objects():
        if issubclass(type(item), torch.Tensor) and item.layout is torch.strided:
            count += 1
            storages[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
    return count, sum(storages.values())


class Interrupted(Exception):
    """Raised by a caller's own callback."""


@pytest.mark.invariant(7)
def test_store_serves_200_concurrent_questions(make, expected):
    """16 threads and 50 tasks over 12 documents that share beginnings, some of which give up or fail on the way."""
    size = make().engine.prefix_bytes(110)
    kernel = make(budget_bytes=5 * size, host_budget_bytes=40 * size)
    jobs = [(number % 6, 2 + number % 3, QUESTIONS[number % 2]) for number in range(200)]
    for job in sorted(set(jobs)):
        expected(*job)
    (harbour,) = kernel.engine.encode(Text(" harbour"))  # only documents hold it
    wrong: list[object] = []
    dice, guard = random.Random(7), threading.Lock()

    def luck() -> float:
        with guard:
            return dice.random()

    def fails(_margins) -> bool:
        raise Interrupted

    def by_thread(job) -> None:
        number, chunks, question = job
        reading, chance = kernel.read(document(number, chunks)), luck()
        if chance < 0.1:
            with pytest.raises(Interrupted):
                reading.ask(question, stop_when=fails, **OPTIONS)
        elif chance < 0.2:
            stream = reading.stream(question, **OPTIONS)
            next(event for event in stream if isinstance(event, MarginWritten))
            stream.close()
        else:
            result = reading.ask(question, **OPTIONS)
            found = result.token_ids, tuple(margin.token_ids for margin in result.margins)
            if found != expected(*job):
                wrong.append(job)

    async def by_task(job) -> None:
        number, chunks, question = job
        task = asyncio.create_task(kernel.read(document(number, chunks)).aask(question, **OPTIONS))
        if luck() < 0.15:
            await asyncio.sleep(0.05 * luck())
            task.cancel()
        try:
            result = await task
        except asyncio.CancelledError:
            return
        found = result.token_ids, tuple(margin.token_ids for margin in result.margins)
        if found != expected(*job):
            wrong.append(job)

    async def tasks() -> None:
        await asyncio.gather(*(by_task(job) for job in jobs[:50]))

    held, read = [], []
    for _ in range(3):
        with spying(kernel.model) as spy, ThreadPoolExecutor(17) as pool:
            for done in [
                *[pool.submit(by_thread, job) for job in jobs[50:]],
                pool.submit(asyncio.run, tasks()),
            ]:
                done.result(timeout=600)
        assert wrong == []
        assert not any(item.in_use for item in kernel.cache.held)
        assert kernel.cache.nbytes <= kernel.cache.budget.engine
        read.append(spy.count(harbour))
        spy.batches.clear()
        held.append(live_tensors())
    # The documents hold the word nine times in all. What makes way comes back from the host, so that after the first
    # round nothing is read again but what somebody gave up before its chunk was whole.
    assert read[1] <= 9
    assert read[2] <= 9
    # Nothing grows from round to round, though one tensor a question would be two hundred. What the process takes from
    # the system is the allocator's affair.
    assert held[2][0] - held[1][0] < 100
    assert held[2][1] - held[1][1] < size
    assert len(kernel.cache) <= len(set(jobs))
    assert kernel.cache.host_nbytes <= kernel.cache.budget.host
    kernel.cache.clear()
    assert kernel.cache.nbytes == kernel.cache.host_nbytes == 0
    assert live_tensors()[1] <= held[2][1]
