"""What callers see: events, choices, people in between, several questions, and bad input."""

from __future__ import annotations

import asyncio
import dataclasses
from types import SimpleNamespace

import pytest
from helpers import FREE, SHORT, config, generated
from transformers import GenerationConfig

from wim_kernel import (
    PROMPTS,
    Answered,
    AnswerToken,
    Chunk,
    ChunkRead,
    ContextOverflowError,
    EmptyDocumentError,
    Evidence,
    Frame,
    Margin,
    MarginRevised,
    MarginsDone,
    MarginWritten,
    Prompts,
    WimKernel,
)
from wim_kernel.run.relevance import BY_NAME
from wim_kernel.run.run import Run
from wim_kernel.run.state import PendingMargin, QuestionState
from wim_kernel.text.run_text import Text

TEXTS = [
    "The gull sat on the mast.",
    "Elsa Brandt owned the ship.",
    "Rain fell all night.",
    "The fog was thick.",
]
QUESTION = "Who owned the ship?"


@pytest.fixture(scope="module")
def kernel(tiny_model, smollm2):
    return WimKernel(tiny_model("llama"), smollm2[1])


@pytest.fixture
def reading(kernel):
    kernel.cache.clear()
    return kernel.read(TEXTS)


def by_word(word: str):
    """A relevance score of a caller's own: 0.9 for chunks with a word, else 0.1."""
    return lambda evidence: 0.9 if word in evidence.chunk.text else 0.1


# -- events -----------------------------------------------------------------------------------------------------------


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


# -- choosing margins -------------------------------------------------------------------------------------------------


@pytest.mark.invariant(5)
def test_below_the_threshold_nothing_is_written(reading):
    result = reading.ask(QUESTION, relevance=by_word("Elsa"), **FREE)
    assert [margin.kept for margin in result.margins] == [False, True, False, False]
    assert [bool(margin.text) for margin in result.margins] == [False, True, False, False]
    assert [margin.relevance for margin in result.margins] == [0.1, 0.9, 0.1, 0.1]
    assert result.usage.output_tokens == len(result.margins[1].token_ids) + len(result.token_ids)


def test_only_kept_margins_are_in_the_answers_prompt(reading, kernel):
    result = reading.ask(QUESTION, relevance=by_word("Elsa"), **SHORT)
    prompt = kernel.tokenizer.decode(reading.prompt_ids(result))
    header = PROMPTS["answer"].notes.split("\n")[2]
    assert header in prompt
    assert f"- {result.margins[1].text.strip()}" in prompt
    assert prompt.count("\n- ") == 1
    none = reading.ask(QUESTION, threshold=1, relevance=by_word("nothing"), **SHORT)
    assert header not in kernel.tokenizer.decode(reading.prompt_ids(none))


def test_top_k_keeps_the_most_relevant(reading):
    score = {"gull": 0.2, "Elsa": 0.6, "Rain": 0.4, "fog": 0.5}
    rank = lambda evidence: next(value for word, value in score.items() if word in evidence.chunk.text)  # noqa: E731
    for style in ("free", "verbatim"):
        result = reading.ask(QUESTION, relevance=rank, top_k=2, margin_style=style, **SHORT)
        assert [margin.kept for margin in result.margins] == [False, True, False, True]
        assert [bool(margin.text) for margin in result.margins] == [False, True, False, True]
    result = reading.ask(QUESTION, relevance=rank, top_k=3, threshold=0.55, **SHORT)
    assert [margin.kept for margin in result.margins] == [False, True, False, False]
    judged = reading.ask(QUESTION, relevance="second-call", top_k=1, **SHORT)
    (best,) = judged.kept
    assert best.relevance == max(margin.relevance for margin in judged.margins)


def test_keep_sees_written_margins_and_decides(reading):
    seen: list[Margin] = []

    def keep(margin: Margin) -> bool:
        seen.append(margin)
        return margin.index == 2

    result = reading.ask(QUESTION, keep=keep, **SHORT)
    assert sorted(margin.index for margin in seen) == [0, 1, 2, 3]
    assert [margin.kept for margin in result.margins] == [False, False, True, False]
    assert all(margin.text for margin in result.margins)  # written, and shown, though not kept


def test_stopping_early_leaves_the_rest_unread(kernel):
    kernel.cache.clear()
    reading = kernel.read(TEXTS)
    result = reading.ask(
        QUESTION,
        relevance=by_word("Elsa"),
        margin_batch=1,
        stop_when=lambda found: any(m.kept for m in found),
        **SHORT,
    )
    assert result.stopped_early
    assert [margin.index for margin in result.margins] == [0, 1]
    assert result.usage.prefill_tokens == reading.document.tokens.tokens(2)
    assert result.branch.prefix_tokens == reading.document.tokens.ends[2]
    whole = reading.ask(QUESTION, **SHORT)
    assert not whole.stopped_early
    assert whole.usage.cached_tokens == result.usage.prefill_tokens


def test_stopping_early_with_top_k(kernel):
    kernel.cache.clear()
    reading, seen = kernel.read([*TEXTS, *TEXTS]), []

    def enough(found: list[Margin]) -> bool:
        seen.append([(margin.index, margin.relevance) for margin in found])
        return any(margin.relevance > 0.8 for margin in found)

    result = reading.ask(
        QUESTION, relevance=by_word("Elsa"), top_k=1, margin_batch=1, stop_when=enough, **SHORT
    )
    assert seen == [[(0, 0.1)], [(0, 0.1), (1, 0.9)]]
    assert result.stopped_early
    assert [margin.kept for margin in result.margins] == [False, True]
    assert result.margins[1].text


def test_stop_when_with_many_questions_waits_for_all(kernel):
    kernel.cache.clear()
    calls = []

    def enough(found: list[Margin]) -> bool:
        calls.append(len(found))
        return len(found) >= 2

    results = kernel.read(TEXTS).ask_many(
        [QUESTION, "What fell?"], threshold=0, margin_batch=1, stop_when=enough, **SHORT
    )
    assert calls == [1, 1, 2, 2]  # every question's caller is asked every time
    assert all(result.stopped_early for result in results)


def test_stop_when_gets_margins_in_order(reading):
    calls = []
    reading.ask(
        QUESTION, threshold=0, stop_when=lambda found: calls.append([m.index for m in found]), **SHORT
    )
    assert calls[-1] == [0, 1, 2, 3]
    assert all(call == sorted(call) for call in calls)


@pytest.mark.slow
@pytest.mark.parametrize("style", ["free", "verbatim"])
@pytest.mark.parametrize("relevance", [name for name in BY_NAME if name != "rating"])  # a chat model's own
def test_every_relevance_with_every_style(reading, style, relevance):
    result = reading.ask(QUESTION, relevance=relevance, margin_style=style, threshold=0, **SHORT)
    assert [margin.index for margin in result.margins] == [0, 1, 2, 3]
    for margin in result.margins:
        assert 0 <= margin.relevance <= 1
        assert margin.kept
        if style == "verbatim":
            assert margin.text == TEXTS[margin.index]
            (span,) = margin.spans
            assert TEXTS[margin.index][span.start : span.end] == margin.text


def test_a_score_of_ones_own_gets_the_evidence(reading):
    seen: list[Evidence] = []
    reading.relevance(QUESTION, relevance=lambda evidence: seen.append(evidence) or 0.5)
    assert [evidence.chunk.text for evidence in seen] == TEXTS
    assert all(evidence.question == QUESTION for evidence in seen)
    assert [e.likelihood_before for e in seen[1:]] == pytest.approx(
        [e.likelihood for e in seen[:-1]], abs=1e-4
    )


# -- people in between ------------------------------------------------------------------------------------------------


def test_edited_margins_reach_the_answers_prompt(reading, kernel):
    margins = reading.margins(QUESTION, threshold=0, **SHORT)
    margins[0] = margins[0].edited("Elsa was seen aboard.")
    margins[1] = dataclasses.replace(margins[1], note="this is the one")
    del margins[2]
    margins[2] = dataclasses.replace(margins[2], kept=False)
    result = reading.answer(QUESTION, margins, **SHORT)
    prompt = kernel.tokenizer.decode(reading.prompt_ids(result))
    assert "\n- Elsa was seen aboard.\n- " in prompt
    assert "(reader's remark: this is the one)" in prompt
    assert prompt.count("\n- ") == 2
    assert result.margins == tuple(margins)
    assert result.usage.prefill_tokens == 0
    assert list(result.token_ids) == generated(reading, result, SHORT["answer_config"])


def test_margins_made_by_hand_and_from_dict_are_used(reading, kernel):
    saved = [margin.to_dict() for margin in reading.margins(QUESTION, threshold=0, **SHORT)]
    kernel.cache.clear()
    fresh = kernel.read(TEXTS)
    mine = Margin(index=3, text="I know the owner: Elsa.", relevance=1.0, kept=True, chunk=fresh.chunks[3])
    result = fresh.answer(QUESTION, [*(Margin.from_dict(margin) for margin in saved), mine], **SHORT)
    assert result.usage.prefill_tokens == fresh.tokens
    assert "I know the owner: Elsa." in kernel.tokenizer.decode(fresh.prompt_ids(result))
    with pytest.raises(ValueError, match="No branch of this reading"):
        fresh.prompt_ids(mine)


def test_answer_after_stopping_early_follows_the_chunks_read(kernel):
    kernel.cache.clear()
    reading = kernel.read(TEXTS)
    margins = reading.margins(
        QUESTION, threshold=0, margin_batch=1, stop_when=lambda found: len(found) == 2, **SHORT
    )
    assert len(margins) == 2
    result = reading.answer(QUESTION, margins, **SHORT)
    assert result.stopped_early
    assert result.usage.prefill_tokens == 0


# -- several questions, other tasks -----------------------------------------------------------------------------------


@pytest.mark.invariant(3)
@pytest.mark.parametrize("style", ["free", "verbatim"])
def test_many_questions_answer_as_each_alone(reading, kernel, style):
    questions = [QUESTION, "What fell all night?", "Where did the gull sit, and why there of all places?"]
    together = reading.ask_many(questions, threshold=0, margin_style=style, **SHORT)
    for question, result in zip(questions, together, strict=True):
        alone = reading.ask(question, threshold=0, margin_style=style, **SHORT)
        assert result.question == question
        assert result.answer == alone.answer
        assert [m.text for m in result.margins] == [m.text for m in alone.margins]
        assert [m.relevance for m in result.margins] == pytest.approx(
            [m.relevance for m in alone.margins], abs=1e-4
        )
    assert sum(result.usage.prefill_tokens for result in together) == reading.tokens
    assert reading.ask_many([]) == []
    with pytest.raises(TypeError, match="list"):
        reading.ask_many("Who?")


def test_usage_and_timings_add_up(reading):
    for result in (reading.ask(QUESTION, threshold=0, **FREE), reading.ask("Why?", **SHORT)):
        usage, timings = result.usage, result.timings
        assert usage.prefill_tokens + usage.cached_tokens == reading.tokens
        assert usage.output_tokens == len(result.token_ids) + sum(len(m.token_ids) for m in result.margins)
        assert usage.prompt_tokens > 0
        parts = timings.prefill + timings.margins + timings.answer + timings.other
        assert parts == pytest.approx(timings.total, abs=1e-6)
        assert 0 < timings.first_margin < timings.first_token < timings.total


def test_a_summary_shares_the_reading(reading):
    asked = reading.ask(QUESTION, **SHORT)
    summary = reading.ask(task="summarise", **SHORT)
    assert summary.usage.cached_tokens == asked.usage.prefill_tokens == reading.tokens
    assert [margin.relevance for margin in summary.margins] == [1.0] * 4
    assert all(margin.kept for margin in summary.margins)


def test_a_summary_may_have_a_question(reading):
    summary = reading.ask("What about the weather?", task="summarise", **SHORT)
    assert all(margin.kept for margin in summary.margins)
    assert "weather" in reading.kernel.tokenizer.decode(reading.prompt_ids(summary))


def test_an_answer_stands_on_its_own_questions_reading(kernel):
    kernel.cache.clear()
    reading = kernel.read(TEXTS)
    margins = reading.margins(QUESTION, threshold=0, **SHORT)
    reading.ask("What fell?", threshold=0, margin_batch=1, stop_when=lambda found: len(found) == 1, **SHORT)
    assert not reading.answer(QUESTION, margins, **SHORT).stopped_early
    kernel.cache.clear()  # evicted in between: it is read again
    again = reading.answer(QUESTION, margins, **SHORT)
    assert again.usage.prefill_tokens == reading.tokens


def test_tokens_of_another_reading_are_not_shown(reading, kernel):
    margin = reading.margins(QUESTION, threshold=0, **SHORT)[1]
    with pytest.raises(ValueError, match="No branch of this reading"):
        kernel.read(TEXTS[1:]).prompt_ids(margin)


def test_prompts_and_frame_can_be_replaced(kernel, tiny_model, smollm2):
    prompts = Prompts(
        question="\nQ: {question}",
        margin="\nNote {it} down:",
        notes="\n[{margins}]",
        answer="\nA? {question}",
    )
    own = WimKernel(tiny_model("llama"), smollm2[1], frame=Frame(system="S", document="D:", separator="|"))
    reading = own.read(["a", "b"])
    result = reading.ask("{x} {margins}?", threshold=0, prompts=prompts, **FREE)
    text = own.tokenizer.decode(reading.prompt_ids(result))
    assert text.startswith("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nD:a|b\n[-")
    assert text.endswith("]\nA? {x} {margins}?<|im_end|>\n<|im_start|>assistant\n")
    note = own.tokenizer.decode(reading.prompt_ids(result.margins[0]))
    assert "D:a\nQ: {x} {margins}?\nNote {it} down:<|im_end|>" in note


# -- async ------------------------------------------------------------------------------------------------------------


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


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", ["", [], [""], ["", " \n"], [Chunk("")]])
def test_an_empty_document_is_refused(kernel, document):
    with pytest.raises(EmptyDocumentError, match="empty"):
        kernel.read(document)


@pytest.mark.invariant(5)
@pytest.mark.parametrize(
    "options", [{"threshold": 0}, {"keep": lambda _: True}, {"relevance": lambda _: 1.0}]
)
def test_an_empty_chunk_has_a_margin_of_its_own(kernel, options):
    result = kernel.read(["", TEXTS[1], " ", ""]).ask(QUESTION, **options, **SHORT)
    assert [margin.index for margin in result.margins] == [0, 1, 2, 3]
    for index in (0, 2, 3):
        assert result.margins[index].relevance == 0
        assert result.margins[index].text == ""
        assert not result.margins[index].kept


@pytest.mark.invariant(5)
def test_a_document_longer_than_the_window_says_by_how_much(kernel):
    fits = kernel.engine.window - len(kernel._head) - 1
    (token,) = kernel.engine.encode(Text(" zebra"))
    assert token
    with pytest.raises(ContextOverflowError, match=f"has {fits + 1} tokens and {fits} fit") as error:
        kernel.read([" zebra" * (fits + 1)], overflow="error")  # one chunk larger than the window, too
    assert (error.value.tokens, error.value.fits) == (fits + 1, fits)
    almost = kernel.read([" zebra" * fits], overflow="error")
    with pytest.raises(ContextOverflowError) as error:
        almost.ask(QUESTION, **SHORT)  # the document fits, the question behind it does not
    room = error.value.fits
    exactly = kernel.read([" zebra" * room], overflow="error")
    assert exactly.ask(QUESTION, **SHORT).usage.cached_tokens is not None
    with pytest.raises(ContextOverflowError):
        kernel.read([" zebra" * (room + 1)], overflow="error").ask(QUESTION, **SHORT)
    assert list(exactly.ask(QUESTION, threshold=1, **SHORT).token_ids)


@pytest.mark.invariant(5)
def test_margins_without_room_are_warned_of(kernel):
    window = kernel.engine.window
    kernel.engine.window = 200
    try:
        reading = kernel.read([*TEXTS, *TEXTS])
        ranks = iter([0.9, 0.2, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
        options = {"relevance": lambda _: next(ranks), "threshold": 0, "margin_config": config(20, 20)}
        options["margin_style"] = "free"
        with pytest.warns(UserWarning, match="chunk 1 "):
            result = reading.ask(QUESTION, answer_config=config(8), **options)
        assert not result.margins[1].kept
        assert result.margins[1].text
        assert result.margins[0].kept
        assert len(reading.prompt_ids(result)) + 8 <= 200
    finally:
        kernel.engine.window = window


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"threshold": 2}, ValueError),
        ({"top_k": 0}, ValueError),
        ({"margin_batch": 0}, ValueError),
        ({"margin_style": "loose"}, ValueError),
        ({"task": "sing"}, ValueError),
        ({"relevance": "luck"}, ValueError),
        ({"thresold": 0.2}, TypeError),
        ({"top_k": "3"}, ValueError),
        ({"prompts": Prompts(question="{question}")}, ValueError),
        ({"relevance": None}, TypeError),
        ({"answer_config": GenerationConfig(num_beams=3, max_new_tokens=4)}, ValueError),
    ],
)
def test_invalid_options_fail_at_once(reading, options, error):
    for call in (reading.ask, reading.stream, reading.margins, reading.astream):
        with pytest.raises(error):
            call(QUESTION, **options)


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("", {}),
        ("  ", {}),
        ("", {"task": "summarise", "margin_style": "verbatim"}),
        ("", {"task": "summarise", "top_k": 2}),
    ],
)
def test_invalid_questions_fail_at_once(reading, question, options):
    with pytest.raises(ValueError, match="question"):
        reading.ask(question, **options)


def test_a_second_call_judges_what_is_written_only(reading):
    with pytest.raises(ValueError, match="second call"):
        reading.relevance(QUESTION, relevance="second-call")


def test_engine_excludes_options_of_the_engine(kernel, smollm2):
    with pytest.raises(TypeError, match="engine"):
        WimKernel(engine=kernel.engine, window=100)


def test_documents_of_other_kinds_are_refused(kernel):
    for document in (17, [17], None, b"bytes"):
        with pytest.raises(TypeError):
            kernel.read(document)
    with pytest.raises(TypeError):
        WimKernel()


def test_a_long_text_is_split_at_sentence_ends_and_nothing_is_lost(kernel):
    text = " ".join(f"Sentence number {i} is about a ship." for i in range(80))
    reading = kernel.read(text, chunk_tokens=64)
    assert "".join(chunk.text for chunk in reading.chunks) == text
    assert all(chunk.text.rstrip().endswith(".") for chunk in reading.chunks)
    assert all(0 < len(piece) <= 64 for piece in reading.document.tokens.chunks)
    joined = kernel.read(reading.chunks, join_small=True, chunk_tokens=150)
    assert len(joined.chunks) < len(reading.chunks)
    assert "".join(chunk.text for chunk in joined.chunks) == text


def test_overlapping_pieces_are_read_once(kernel):
    text = "The gull sat on the mast while the fog came in. Elsa Brandt owned the ship."
    pieces = [Chunk.of(text[0:48], "log", 0), Chunk.of(text[30:], "log", 30)]
    reading = kernel.read(pieces)
    assert "".join(chunk.text for chunk in reading.chunks) == text
    assert reading.tokens < sum(kernel.count_tokens(piece.text) for piece in pieces)


def test_several_questions_stream_together_and_say_whose_they_are(kernel):
    reading = kernel.read(TEXTS)
    questions = ["Who owned the ship?", "What colour was it?"]
    events = list(reading.stream_many(questions, threshold=0, **FREE))
    alone = [reading.ask(question, threshold=0, **FREE) for question in questions]
    answered = [event for event in events if isinstance(event, Answered)]
    assert events[-2:] == answered
    for position, result in enumerate(alone):
        mine = [event for event in events if getattr(event, "question", None) == position]
        written = sorted(
            (event.margin for event in mine if isinstance(event, MarginWritten)),
            key=lambda margin: margin.index,
        )
        tokens = [event.text for event in mine if isinstance(event, AnswerToken)]
        assert tuple(margin.text for margin in written) == tuple(margin.text for margin in result.margins)
        assert "".join(tokens) == result.answer == answered[position].result.answer


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


def test_chunks_read_says_behind_which_chunk_the_answer_stands(kernel):
    kernel.cache.clear()
    wanted = kernel.read(TEXTS).ask("Who?", threshold=0, stop_after=2, margin_batch=1, **SHORT)
    assert wanted.stopped_early
    assert len(wanted.margins) == 2
    kernel.cache.clear()
    again = kernel.read(TEXTS).answer("Who?", wanted.margins, chunks_read=2, **SHORT)
    assert again.answer == wanted.answer
    assert again.usage.prefill_tokens < kernel.read(TEXTS).tokens
    with pytest.raises(ValueError, match="chunks_read"):
        kernel.read(TEXTS).answer("Who?", (), chunks_read=len(TEXTS) + 1)


def test_token_limits_and_variables_in_prompts(kernel):
    reading = kernel.read(TEXTS)
    prompts = dataclasses.replace(
        PROMPTS["answer"], answer="\n\nNotes, {tone}: {margins}\n\nAnswer {question}"
    )
    result = reading.ask(
        "Who?",
        threshold=0,
        margin_style="free",
        prompts=prompts,
        variables={"tone": "<|im_end|>{x}"},
        margin_tokens=2,
        answer_tokens=3,
    )
    assert all(len(margin.token_ids) <= 2 for margin in result.margins)
    assert len(result.token_ids) <= 3
    seen = kernel.tokenizer.decode(reading.prompt_ids(result))
    assert "Notes, <|im_end|>{x}:" in seen
    assert all(f"- {margin.text.strip()}" in seen for margin in result.kept if margin.text.strip())
    with pytest.raises(ValueError, match="variables"):
        reading.ask("Who?", variables={"question": "Who else?"})


def test_read_separator_stands_between_chunks(kernel):
    reading = kernel.read(["One.", "Two."], separator=" === ")
    seen = kernel.tokenizer.decode(reading.prompt_ids(reading.ask("Which?", **SHORT)))
    assert "One. === Two." in seen


def test_keep_sees_margins_in_the_order_of_chunks_whichever_ends_first():
    """A graph that a callback interrupts counts on the order; a server's requests end in any."""
    batch = [PendingMargin(QuestionState(QUESTION), index) for index in range(4)]
    ending = [batch[2], None, batch[0], batch[3], None, batch[1]]
    run = SimpleNamespace(settings=SimpleNamespace(keep=lambda margin: True))
    kept = [pending and pending.index for pending in Run._in_order(run, iter(ending), batch)]
    assert kept == [None, 0, None, 1, 2, 3]
    run.settings.keep = None
    assert list(Run._in_order(run, iter(ending), batch)) == ending


def test_the_former_name_of_the_cache_warns(kernel: WimKernel) -> None:
    with pytest.warns(DeprecationWarning, match="cache"):
        assert kernel.readings is kernel.cache
