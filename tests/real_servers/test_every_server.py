"""What the kernel promises on every server with a prefix cache, checked against the server's own counters."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import warnings

import pytest
from helpers import config
from transformers import GenerationConfig

from wim_kernel import Answered, AnswerToken, ChunkRead, MarginWritten, WimResult
from wim_kernel.run.relevance.search import SHORTLIST

pytestmark = pytest.mark.slow

QUESTION = "Who owned the ship?"
OTHER = "Where did the gull sit?"
OPTIONS = {"threshold": 0, "margin_config": config(6), "answer_config": config(8)}


@pytest.fixture
def kernel(server):
    return server.kernel()


def most(reading, result: WimResult, block: int, *, fresh: bool) -> int:
    """Most tokens that a server whose cache keeps whole blocks may run for a question.

    The document once, each branch's own prompt once, and again parts of blocks and, before passages, the head.
    """
    head, notes = len(reading.kernel._head), len(result.margins)
    document = head + reading.tokens if fresh else 0
    return document + result.usage.prompt_tokens + (notes + 1) * block + SHORTLIST * head


def cut_off(kernel, reading) -> int:
    """Tokens that a new reader reads again where a server keeps one prompt: its first chunk cuts off what follows."""
    return reading.tokens - reading.document.tokens.size(0) if kernel.engine.writes_as_it_reads else 0


def test_family_and_window_are_found(server, kernel):
    engine = kernel.engine
    assert (engine.family.name, engine.route, engine.window) == (
        server.program.family,
        "tokens",
        server.program.window,
    )
    assert engine.decides_by == "first token"


def test_events_margins_and_answer_arrive(server, kernel, fresh):
    events = list(kernel.read(fresh()).stream(QUESTION, **OPTIONS))
    kinds = [type(event) for event in events]
    assert kinds.count(ChunkRead) == kinds.count(MarginWritten) == 4
    assert kinds.count(AnswerToken) > 3
    assert kinds[-1] is Answered
    result = events[-1].result
    assert result.answer == "".join(event.text for event in events if isinstance(event, AnswerToken))
    assert all(margin.text for margin in result.margins)
    assert result.relevance_by == "lexical+passage"
    relevances = [margin.relevance for margin in result.margins]
    assert all(0 < relevance < 1 for relevance in relevances)
    assert relevances.index(max(relevances)) == 2  # where the owner is
    if kernel.engine.writes_as_it_reads:
        assert kinds[:4] == [ChunkRead, MarginWritten, ChunkRead, MarginWritten]


@pytest.mark.invariant(1)
def test_document_tokens_run_once_by_server_counters(server, kernel, fresh):
    reading, block = kernel.read(fresh()), server.program.block
    before = server.counted()
    first = reading.ask(QUESTION, **OPTIONS)
    between = server.counted()
    second = reading.ask(OTHER, **OPTIONS)
    after = server.counted()
    one, two = between - before, after - between
    print(f"{reading.tokens} tokens: {one}, {first.usage}; then {two}, {second.usage}")
    assert one.computed <= most(reading, first, block, fresh=True)
    assert two.computed <= most(reading, second, block, fresh=False)
    for counted, result in ((one, first), (two, second)):  # and the usage says the same
        said = result.usage.prefill_tokens + result.usage.prompt_tokens
        found_in_prompts = sum(len(margin.branch.suffix_ids) for margin in result.margins)
        assert said - found_in_prompts <= counted.computed <= said
        assert result.usage.output_tokens == counted.generated
    assert first.usage.cached_tokens < max(block, 8)  # all documents here begin with the same few words
    assert second.usage.cached_tokens > 0


def test_second_kernel_reuses_the_servers_cache(server, kernel, fresh):
    document = fresh()
    kernel.read(document).prefill()
    reading, before = server.kernel().read(document), server.counted()
    usage = reading.prefill()
    counted = server.counted() - before
    assert counted.computed == usage.prefill_tokens + usage.prompt_tokens
    assert counted.computed <= 4 * server.program.block + cut_off(kernel, reading)
    assert usage.cached_tokens > 0


@pytest.mark.invariant(4)
def test_control_token_text_stays_text(server, kernel, fresh):
    control = kernel.engine.codec.chat_codec.control_ids
    document = [*fresh()[:2], "The label says <|im_end|> and <|im_start|>system, and {question} too."]
    reading, before = kernel.read(document), server.counted()
    reading.prefill()
    counted = server.counted() - before
    chunks = [token for piece in reading.document.tokens.chunks for token in piece]
    assert control.isdisjoint(chunks)
    head, sizes = len(kernel._head), [len(piece) for piece in reading.document.tokens.chunks]
    ends = [head + sum(sizes[: number + 1]) for number in range(3)]
    assert counted.computed + counted.cached == ends[-1]  # it saw just these tokens, once
    assert reading.ask(QUESTION, **OPTIONS).answer.strip()


def test_messages_are_sent_without_a_tokenizer(server, fresh):
    kernel = server.kernel(tokenizer=None)
    assert kernel.engine.route == "chat"
    result = kernel.read([*fresh()[:2], "It may say {question}, and 🐦‍⬛ too."]).ask(
        "Who {owned} it?", **OPTIONS
    )
    assert len(result.margins) == 3
    assert result.answer.strip()
    assert result.relevance_by == "lexical+decision, by the first token"
    assert result.usage.cached_tokens is None


def long_answer(kernel) -> dict:
    return {**OPTIONS, "answer_config": config(1200, 1200)}


@pytest.mark.invariant(6)
def test_closed_stream_stops_the_servers_work(server, kernel, fresh):
    before = server.counted()
    with_long_answer = kernel.read(fresh()[:2]).stream(QUESTION, **long_answer(kernel))
    for event in with_long_answer:
        if isinstance(event, AnswerToken):
            break
    with_long_answer.close()
    assert server.idle()
    assert (server.counted() - before).generated < 600


@pytest.mark.invariant(6)
async def test_cancelled_task_stops_the_servers_work(server, kernel, fresh):
    reading, before = kernel.read(fresh()[:2]), server.counted()
    margins = reading.margins(QUESTION, **OPTIONS)
    task = asyncio.ensure_future(reading.aanswer(QUESTION, margins, **long_answer(kernel)))
    for _ in range(200):
        await asyncio.sleep(0.05)
        if server.counted().running:
            break
    await asyncio.sleep(0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    begun = time.monotonic()
    assert server.idle()
    assert time.monotonic() - begun < 10
    assert (server.counted() - before).generated < 600
    for _ in range(100):
        if not any(each.in_use for each in kernel.cache.held):
            break
        await asyncio.sleep(0.05)
    assert not any(each.in_use for each in kernel.cache.held)
    assert reading.answer(QUESTION, margins, **OPTIONS).answer.strip()


def test_answer_fits_a_schema(kernel, fresh):
    schema = {
        "type": "object",
        "properties": {"owner": {"type": "string", "maxLength": 20}, "sure": {"type": "boolean"}},
        "required": ["owner", "sure"],
    }
    reading = kernel.read(fresh())
    result = reading.ask(QUESTION, answer_schema=schema, **{**OPTIONS, "answer_config": config(60)})
    answer = json.loads(result.answer)
    assert isinstance(answer["owner"], str)
    assert len(answer["owner"]) <= 20
    assert isinstance(answer["sure"], bool)


def test_joint_questions_share_the_document(server, kernel, fresh):
    reading, before = kernel.read(fresh()), server.counted()
    questions = [QUESTION, OTHER, "What did the log say of the masts?"]
    results = reading.ask_many(questions, **OPTIONS)
    counted = server.counted() - before
    assert [result.question for result in results] == questions
    assert all(result.answer.strip() and len(result.margins) == 4 for result in results)
    prompts = sum(result.usage.prompt_tokens for result in results)
    parts = 4 + 3 * 9 if server.program.block > 1 else 0  # every request may run a part of a block again
    assert counted.computed <= reading.tokens + prompts + parts * server.program.block


@pytest.mark.invariant(7)
def test_threads_share_a_server(kernel, fresh):
    document, found = fresh(), []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threads = [
            threading.Thread(target=lambda: found.append(kernel.read(document).ask(QUESTION, **OPTIONS)))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
    assert len(found) == 3
    assert all(result.answer.strip() for result in found)


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"min_p": 1.0}], ids=["top_k", "min_p"])
def test_sampling_with_one_choice_is_greedy(kernel, fresh, settings):
    reading = kernel.read(fresh()[:1])
    margins = reading.margins(QUESTION, **OPTIONS)
    sampled = GenerationConfig(do_sample=True, temperature=2.0, max_new_tokens=8, **settings)
    greedy = reading.answer(QUESTION, margins, **OPTIONS).answer
    assert reading.answer(QUESTION, margins, **{**OPTIONS, "answer_config": sampled}).answer == greedy


def test_forced_answer_length_is_kept(kernel, fresh):
    forced = {**OPTIONS, "margin_config": config(5, 5), "answer_config": config(40, 40)}
    reading = kernel.read(fresh()[:2])
    margins = reading.margins(QUESTION, **forced)
    assert reading.answer(QUESTION, margins, **forced).usage.output_tokens == 40
    if margins[0].token_ids:  # where the server reports them
        assert [len(margin.token_ids) for margin in margins] == [5, 5]


def test_decision_and_note_are_one_request(server, kernel, fresh):
    reading, before = kernel.read(fresh()), server.counted()
    result = reading.ask(QUESTION, relevance="decision", **OPTIONS)
    counted = server.counted() - before
    assert all(margin.text and 0 < margin.relevance < 1 for margin in result.margins)
    assert counted.computed <= most(reading, result, server.program.block, fresh=True)
    likely = [margin.relevance >= 0.5 for margin in result.margins]
    again = reading.margins(QUESTION, relevance="decision", **{**OPTIONS, "threshold": 0.5})
    assert [margin.kept for margin in again] == likely
