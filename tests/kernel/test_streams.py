"""What a stream yields, when margins come in it, and the async twins."""

from __future__ import annotations

import asyncio

import pytest
from helpers import FREE, SHORT
from kernel_texts import QUESTION, TEXTS, by_word

from wim_kernel import (
    Answered,
    AnswerToken,
    ChunkRead,
    Evidence,
    Margin,
    MarginRevised,
    MarginsDone,
    MarginWritten,
)


@pytest.mark.parametrize("style", ["free", "verbatim"])
def test_a_stream_tells_everything_and_ends_with_the_result(reading, style):
    events = list(reading.stream(QUESTION, threshold=0, margin_style=style, **SHORT))
    read = [event for event in events if isinstance(event, ChunkRead)]
    assert [event.index for event in read] == [0, 1, 2, 3]
    assert read[-1].tokens == read[-1].total_tokens == reading.tokens
    assert not any(event.cached for event in read)
    told = [event for event in events if isinstance(event, MarginWritten | MarginRevised)]
    assert sorted(event.margin.index for event in told if isinstance(event, MarginWritten)) == [0, 1, 2, 3]
    written = {event.margin.index: event.margin for event in told}
    answered = events[-1]
    assert isinstance(answered, Answered)
    assert tuple(written[index] for index in range(4)) == answered.result.margins
    assert "".join(event.text for event in events if isinstance(event, AnswerToken)) == answered.result.answer
    again = [event for event in reading.stream(QUESTION, **SHORT) if isinstance(event, ChunkRead)]
    assert all(event.cached for event in again)


def test_each_margin_comes_soon_after_its_chunk_in_a_stream(kernel):
    kernel.cache.clear()
    order = []
    for event in kernel.read([*TEXTS, *TEXTS]).stream(QUESTION, threshold=0, **SHORT):
        if isinstance(event, ChunkRead):
            order.append(("read", event.index))
        elif isinstance(event, MarginWritten):
            order.append(("margin", event.margin.index))
    assert order.index(("margin", 0)) < order.index(("read", 1))  # the first at once
    waits = [sum(kind == "read" for kind, _ in order[: order.index(("margin", i))]) - i - 1 for i in range(8)]
    assert max(waits) < kernel.engine.margin_batch


def test_margin_batch_is_obeyed(kernel):
    for size in (1, 3, 100):
        kernel.cache.clear()
        reads, seen = 0, {}
        for event in kernel.read(TEXTS * 2).stream(QUESTION, threshold=0, margin_batch=size, **SHORT):
            if isinstance(event, ChunkRead):
                reads += 1
            elif isinstance(event, MarginWritten):
                seen[event.margin.index] = reads
        assert seen == {i: min(8, (i // size + 1) * size) for i in range(8)}


@pytest.fixture
def blocks(kernel, monkeypatch):
    """The number of tokens of each block that the kernel's engine prefills."""
    ran, extend = [], kernel.engine.extend

    def counting(*args):
        found = extend(*args)
        ran.append(len(found))
        return found

    monkeypatch.setattr(kernel.engine, "extend", counting)
    return ran


def test_short_chunks_are_prefilled_together_where_nobody_waits_for_margins(kernel, reading, blocks):
    result = reading.ask(QUESTION, **SHORT)
    assert blocks == [reading.document.tokens.total]
    assert result.usage.prefill_tokens == reading.tokens
    assert reading.ask(QUESTION, **SHORT).usage.prefill_tokens == 0
    kernel.cache.clear()
    list(kernel.read(TEXTS).stream(QUESTION, **SHORT))
    assert len(blocks) == 1 + len(TEXTS)


def test_chunks_behind_those_asked_for_are_not_prefilled(kernel, blocks):
    kernel.cache.clear()
    reading = kernel.read(TEXTS)
    result = reading.answer(QUESTION, [], chunks_read=2, answer_config=SHORT["answer_config"])
    assert sum(blocks) == reading.document.tokens.ends[2]
    assert result.usage.prefill_tokens == reading.tokens_through(2)
    more = reading.ask(QUESTION, stop_after=3, threshold=0, **SHORT)
    assert sum(blocks) == reading.document.tokens.ends[3]
    assert more.usage.prefill_tokens == reading.tokens_through(3) - reading.tokens_through(2)


def test_diverging_readings_share_their_common_chunks(kernel, blocks):
    kernel.cache.clear()
    first = kernel.read(TEXTS).ask(QUESTION, **SHORT)
    other = kernel.read([*TEXTS[:2], "The harbour was empty.", TEXTS[3]])
    assert other.ask(QUESTION, **SHORT).usage.prefill_tokens == other.tokens - other.tokens_through(2)
    again = kernel.read(TEXTS).ask(QUESTION, **SHORT)
    assert again.usage.prefill_tokens == 0
    assert again.answer == first.answer


@pytest.mark.parametrize("relevance", ["combined", "attention", "lexical", "likelihood"])
@pytest.mark.parametrize("style", ["free", "verbatim"])
def test_streaming_and_asking_give_the_same_result(reading, kernel, style, relevance):
    options = {"threshold": 0, "relevance": relevance, "margin_style": style, **SHORT}
    streamed = list(reading.stream(QUESTION, **options))[-1].result
    kernel.cache.clear()
    asked = kernel.read(TEXTS).ask(QUESTION, **options)
    assert streamed.answer == asked.answer
    assert [m.text for m in streamed.margins] == [m.text for m in asked.margins]
    assert [m.relevance for m in streamed.margins] == pytest.approx(
        [m.relevance for m in asked.margins], abs=1e-4
    )


def test_events_and_results_are_plain_data(reading):
    import json

    events = list(reading.stream(QUESTION, relevance=by_word("Elsa"), **SHORT))
    plain = json.loads(json.dumps([event.to_dict() for event in events]))
    assert plain[-1]["event"] == "answered"
    margins = plain[-1]["result"]["margins"]
    assert [Margin.from_dict(margin).to_dict() for margin in margins] == margins
    assert margins[1]["chunk"]["spans"][0]["source_id"] == "1"


async def test_async_twins_give_the_same(reading):
    asked = await reading.aask(QUESTION, threshold=0, **SHORT)
    assert asked.answer == reading.ask(QUESTION, threshold=0, **SHORT).answer
    events = [event async for event in reading.astream(QUESTION, threshold=0, **SHORT)]
    assert events[-1].result.answer == asked.answer
    margins = await reading.amargins(QUESTION, threshold=0, **SHORT)
    assert [m.text for m in margins] == [m.text for m in asked.margins]
    assert (await reading.aanswer(QUESTION, margins, **SHORT)).answer == asked.answer
    assert [r.answer for r in await reading.aask_many([QUESTION], threshold=0, **SHORT)] == [asked.answer]
    assert (await reading.aprefill()).cached_tokens == reading.tokens
    assert (await reading.kernel.aask(QUESTION, TEXTS, threshold=0, **SHORT)).answer == asked.answer


async def test_async_errors_reach_the_caller(reading):
    def fails(_: Evidence) -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await reading.aask(QUESTION, relevance=fails, **SHORT)
    assert (await reading.aask(QUESTION, **SHORT)).answer is not None
    assert asyncio.get_running_loop().is_running()


def test_margins_alone_end_with_what_they_cost(kernel):
    kernel.cache.clear()
    reading = kernel.read(TEXTS)
    *before, last = reading.stream_margins("Who?", threshold=0, **FREE)
    assert isinstance(last, MarginsDone)
    written = [event.margin for event in before if isinstance(event, MarginWritten)]
    assert list(last.margins) == sorted(written, key=lambda margin: margin.index)
    assert last.usage.prefill_tokens == reading.tokens
    assert last.usage.output_tokens == sum(len(margin.token_ids) for margin in last.margins)
    assert last.chunks_read == len(TEXTS)
