"""Readings that have to make way: moved down a level, found again, never lost while there is room, never one in use."""

from __future__ import annotations

import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import FREE, spying

from wim_kernel import Event, MemoryBudgetError, ReadingFileError, WimKernel
from wim_kernel.cache.folder import SUFFIX
from wim_kernel.text.run_text import Text

OPTIONS = {"threshold": 0, **FREE}
QUESTION = "Who owned the ship?"


def document(number: int) -> list[str]:
    return [f"Document {number}. The gull sat on the mast. ", f"Elsa Brandt owned ship number {number}. " * 2]


@pytest.fixture
def make(tiny_model, smollm2):
    """Kernels that have room for so many of these documents at each level."""
    probe = WimKernel(tiny_model("llama"), smollm2[1]).read(document(0))
    size = probe.kernel.engine.prefix_bytes(probe.tokens + len(probe.kernel._head) + 4)

    def kernel(engine: int, host: int = 0, folder=None, disk: int = 0) -> WimKernel:
        return WimKernel(
            tiny_model("llama"),
            smollm2[1],
            budget_bytes=engine * size,
            host_budget_bytes=host * size,
            cache_dir=folder,
            disk_budget_bytes=disk * (size + 20_000),
        )

    return kernel


def answers(kernel: WimKernel, numbers: list[int]) -> list[tuple[tuple[int, ...], int]]:
    """Each document's answer, and how many of its tokens were run for it."""
    found = []
    for number in numbers:
        result = kernel.read(document(number)).ask(QUESTION, **OPTIONS)
        found.append((result.token_ids, result.usage.prefill_tokens))
    return found


@pytest.mark.invariant(1)
def test_evicted_readings_are_packed_and_restored(make):
    kernel = make(engine=2, host=10)
    first = answers(kernel, [0, 1, 2, 3])
    assert [item.where for item in kernel.cache.held] == ["host", "host", "engine", "engine"]
    assert kernel.cache.nbytes <= kernel.cache.budget.engine
    again = answers(kernel, [0, 1, 2, 3])
    assert [tokens for tokens, _ in again] == [tokens for tokens, _ in first]
    assert [run for _, run in again] == [0] * 4
    assert [item.hits for item in kernel.cache.held] == [1] * 4


def test_the_host_has_a_budget_too_and_without_a_folder_the_oldest_is_read_again(make):
    kernel = make(engine=1, host=2)
    answers(kernel, [0, 1, 2, 3])
    assert kernel.cache.host_nbytes <= kernel.cache.budget.host
    assert len(kernel.cache) == 3
    (_, run), (_, other) = answers(kernel, [3, 0])
    assert run == 0
    assert other > 0


def test_readings_return_from_disk_also_after_a_restart(make, tmp_path):
    kernel = make(engine=1, host=1, folder=tmp_path, disk=10)
    first = answers(kernel, [0, 1, 2, 3])
    assert len(list(tmp_path.glob(f"*{SUFFIX}"))) == 2
    assert [run for _, run in answers(kernel, [0, 1, 2, 3])] == [0] * 4
    assert kernel.cache.flush() == 2
    restarted = make(engine=1, host=1, folder=tmp_path, disk=10)
    (gull,) = restarted.engine.encode(Text(" gull"))
    with spying(restarted.model) as spy:
        again = answers(restarted, [2, 0, 1, 3])
        assert spy.count(gull) == 0  # no document was run through the model
    assert [run for _, run in again] == [0] * 4
    assert [again[i][0] for i in (1, 2, 0, 3)] == [tokens for tokens, _ in first]


def test_a_document_that_goes_on_is_read_on_from_what_lies_on_disk(make, tmp_path):
    kernel = make(engine=3, folder=tmp_path, disk=10)
    answers(kernel, [0])
    kernel.cache.flush()
    kernel.cache.clear()
    reading = kernel.read([*document(0), "And then the fog came."])
    result = reading.ask(QUESTION, **OPTIONS)
    assert result.usage.prefill_tokens == reading.document.tokens.size(-1)
    plain = make(engine=3).read([*document(0), "And then the fog came."]).ask(QUESTION, **OPTIONS)
    assert result.token_ids == plain.token_ids


def test_the_folder_keeps_to_its_budget(make, tmp_path):
    kernel = make(engine=1, folder=tmp_path, disk=2)
    answers(kernel, [0, 1, 2, 3, 4])
    folder = kernel.cache.budget.folder
    assert folder is not None
    assert 0 < folder.nbytes <= folder.budget_bytes


def test_a_folder_that_cannot_be_written_loses_nothing_but_speed(make, tmp_path, monkeypatch, recwarn):
    def full(*_args, **_kwargs):
        raise ReadingFileError(tmp_path, "it cannot be written: the disk is full")

    kernel = make(engine=1, folder=tmp_path, disk=10)
    monkeypatch.setattr("wim_kernel.cache.disk.write", full)
    first = answers(kernel, [0, 1, 2])
    assert any("the disk is full" in str(warning.message) for warning in recwarn)
    assert [tokens for tokens, _ in answers(kernel, [0, 1, 2])] == [tokens for tokens, _ in first]


def test_one_document_that_is_too_large_is_refused(make, tmp_path):
    kernel = make(engine=1, host=9, folder=tmp_path, disk=9)
    with pytest.raises(MemoryBudgetError):
        kernel.read(document(0) * 3).prefill()


def test_moving_spares_readings_in_use(make):
    kernel = make(engine=1, host=10)
    stream = kernel.read(document(0)).stream(QUESTION, **OPTIONS)
    next(stream)
    answers(kernel, [1, 2])
    held = [item for item in kernel.cache.held if item.in_use]
    assert [item.where for item in held] == ["engine"]
    last = list(stream)[-1]
    assert last.result.token_ids == answers(make(engine=1), [0])[0][0]


@pytest.mark.invariant(7)
def test_threads_that_want_the_same_packed_reading_get_one(make):
    kernel = make(engine=2, host=10)
    (wanted, _), *_ = answers(kernel, [0, 1, 2])
    found: list[tuple[tuple[int, ...], int]] = []
    threads = [threading.Thread(target=lambda: found.extend(answers(kernel, [0]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(wanted, 0)] * 4
    tokens = kernel.read(document(0)).document.tokens
    whole = [entry.document.common_chunks(tokens) == len(tokens) for entry in kernel.cache._entries]
    assert sum(whole) == 1  # one, not four


def test_budget_counts_readings_in_transit_and_waits_for_no_live_one(make, monkeypatch):
    kernel = make(engine=2, host=10)
    answers(kernel, [0, 1, 2])  # 0 had to make way

    def begun(number: int) -> Generator[Event, None, None]:
        stream = kernel.read(document(number)).stream(QUESTION, **OPTIONS)
        next(stream)
        return stream

    one, two, unpack = begun(1), begun(2), kernel.engine.unpack
    entered, go = threading.Event(), threading.Event()

    def slowly(*args):
        entered.set()
        assert go.wait(60)
        return unpack(*args)

    monkeypatch.setattr(kernel.engine, "unpack", slowly)
    with ThreadPoolExecutor(2) as pool:
        opened = pool.submit(begun, 0)
        assert entered.wait(60)
        again = begun(2)  # while another one is moved
        closed = pool.submit(one.close)
        go.set()
        zero, _ = opened.result(60), closed.result(60)
        assert kernel.cache.nbytes <= kernel.cache.budget.engine
        assert [item.where for item in kernel.cache.held if not item.in_use] == ["host"]
        for stream in (zero, again, two):
            stream.close()
    assert kernel.cache.nbytes <= kernel.cache.budget.engine
