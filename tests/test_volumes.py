"""Documents longer than the window: every chunk is read in one volume, and every branch equals generate there."""

from __future__ import annotations

import warnings

import pytest
from helpers import FREE, SHORT, config, generated, spying
from hypothesis import given, settings
from hypothesis import strategies as st

from wim_kernel import Chunk, ChunkRead, ContextOverflowError, MarginWritten, WimKernel
from wim_kernel.cache.volumes import capacity, divide, longest_chunk
from wim_kernel.text.run_text import Text

WINDOW = 256
QUESTION = "Who owned the ship?"
OPTIONS = {"threshold": 0, **FREE}
SENTENCES = [
    f"The gull {word} over the harbour and sat on mast {n}. " for n, word in enumerate("abcdefghij" * 9)
]


@pytest.fixture(scope="module")
def kernel(tiny_model, smollm2) -> WimKernel:
    return WimKernel(tiny_model("llama"), smollm2[1], window=WINDOW)


@pytest.mark.invariant(5)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_volumes_hold_every_chunk_once_in_order_and_fit(sizes, room):
    volumes = divide(sizes, room)
    assert [index for volume in volumes for index in volume] == list(range(len(sizes)))
    for volume, after in zip(volumes, [*volumes[1:], None], strict=True):
        filled = sum(sizes[index] for index in volume)
        assert filled <= room or sum(sizes[index] > 0 for index in volume) == 1
        if after is not None:
            assert filled + sizes[after.start] > room  # none ends before it is full


def test_questions_of_different_lengths_share_volumes():
    assert capacity(8192, 30, 200) == capacity(8192, 30, 1000) == 8192 - 30 - 1024
    assert capacity(8192, 30, 1025) == 8192 - 30 - 2048
    assert capacity(8192, 30, 5000) == 8192 - 30 - 5000
    assert longest_chunk(8192, 30) <= capacity(8192, 30, 4096)


@pytest.mark.invariant(3)
@pytest.mark.parametrize("count", [4, 14, 30])
def test_every_branch_equals_generate_in_its_volume(kernel, count):
    kernel.cache.clear()
    reading = kernel.read(SENTENCES[:count])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes that find no room are said, and tested below
        result = reading.ask(QUESTION, **OPTIONS)
    assert result.volumes == (
        1 if count == 4 else len({m.branch.first_chunk for m in result.margins if m.branch})
    )
    assert (result.volumes > 1) is (count > 4)
    assert [margin.index for margin in result.margins] == list(range(count))
    for margin in result.margins:
        assert list(margin.token_ids) == generated(reading, margin, SHORT["margin_config"])
        assert len(reading.prompt_ids(margin)) <= WINDOW
    assert list(result.token_ids) == generated(reading, result, SHORT["answer_config"])
    assert len(reading.prompt_ids(result)) + SHORT["answer_config"].max_new_tokens <= WINDOW


@pytest.mark.invariant(1)
def test_every_token_is_read_once_and_a_second_question_reads_nothing(kernel):
    kernel.cache.clear()
    (zebra,) = kernel.engine.encode(Text(" zebra"))
    reading = kernel.read([f"{sentence} zebra" for sentence in SENTENCES[:20]])
    with spying(kernel.model) as spy:
        first = reading.ask(QUESTION, **OPTIONS)
        second = reading.ask("Which mast?", **OPTIONS)
        assert spy.count(zebra) == 20
    assert first.volumes == second.volumes > 1
    assert first.usage.prefill_tokens == reading.tokens
    assert (second.usage.prefill_tokens, second.usage.cached_tokens) == (0, reading.tokens)


def zebras(count: int) -> list[Chunk]:
    """So many tokens, in chunks of twenty of one source, with nothing between them."""
    text = " zebra" * count
    return [Chunk.of(text[at : at + 120], "zebras", at) for at in range(0, len(text), 120)]


def test_window_is_filled_to_the_last_token(kernel):
    with pytest.raises(ContextOverflowError) as caught:
        kernel.read(zebras(WINDOW - len(kernel._head) - 1), overflow="error").ask(QUESTION, **OPTIONS)
    for over in (-1, 0, 1):
        kernel.cache.clear()
        reading = kernel.read(zebras(caught.value.fits + over))
        assert reading.tokens == caught.value.fits + over
        result = reading.ask(QUESTION, **{**OPTIONS, "threshold": 1})
        assert result.volumes == (2 if over > 0 else 1)
        assert list(result.token_ids) == generated(reading, result, SHORT["answer_config"])
        assert "".join(margin.chunk.text for margin in result.margins) == " zebra" * reading.tokens


def test_document_of_a_hundred_windows_is_read(kernel):
    text = "".join(f"The gull sat on mast {n}. " for n in range(3200))
    reading = kernel.read(text, chunk_tokens=80)
    assert reading.tokens > 100 * WINDOW
    brief = {"margin_style": "free", "margin_config": config(1), "answer_config": config(2)}
    result = reading.ask(QUESTION, top_k=3, **brief)
    assert result.volumes > 100
    assert len(result.kept) == 3
    assert "".join(margin.chunk.text for margin in result.margins) == text


def test_events_count_through_the_whole_document(kernel):
    kernel.cache.clear()
    reading = kernel.read(SENTENCES[:12])
    events = list(reading.stream(QUESTION, **OPTIONS))
    read = [event for event in events if isinstance(event, ChunkRead)]
    assert [event.index for event in read] == list(range(12))
    assert read[-1].tokens == read[-1].total_tokens == reading.tokens
    assert [e.margin.index for e in events if isinstance(e, MarginWritten)] == list(range(12))


def test_the_best_of_all_volumes_are_written_in_theirs(kernel):
    kernel.cache.clear()
    reading = kernel.read(SENTENCES[:20])
    scores = reading.relevance(QUESTION, **SHORT)
    result = reading.ask(QUESTION, top_k=4, **FREE)
    best = sorted(range(20), key=lambda index: (-scores[index], index))[:4]
    assert [margin.index for margin in result.kept] == sorted(best)
    for margin in result.kept:
        assert list(margin.token_ids) == generated(reading, margin, SHORT["margin_config"])


@pytest.mark.invariant(5)
def test_notes_without_room_are_left_out_by_relevance_with_a_warning(kernel):
    kernel.cache.clear()
    long = {"margin_style": "free", "margin_config": config(30, 30), "answer_config": config(8)}
    with pytest.warns(UserWarning, match="is left out of the answer's prompt"):
        result = kernel.read(SENTENCES[:16]).ask(QUESTION, threshold=0, **long)
    left_out = [margin for margin in result.margins if not margin.kept]
    assert left_out
    assert max(m.relevance for m in left_out) <= min(m.relevance for m in result.kept)
    assert all(margin.text for margin in left_out)  # nothing is lost


def test_a_person_answers_from_margins_of_all_volumes(kernel):
    kernel.cache.clear()
    reading = kernel.read(SENTENCES[:12])
    margins = reading.margins(QUESTION, **OPTIONS)
    with spying(kernel.model) as spy:
        result = reading.answer(QUESTION, margins[:3], **SHORT)
        assert spy.tokens < 300  # the last volume is still there
    assert [margin.index for margin in result.margins] == [0, 1, 2]
    assert list(result.token_ids) == generated(reading, result, SHORT["answer_config"])


def test_stopping_early_leaves_later_volumes_unread(kernel):
    kernel.cache.clear()
    reading = kernel.read(SENTENCES[:20])
    result = reading.ask(QUESTION, stop_after=2, **OPTIONS)
    assert result.stopped_early
    assert result.usage.prefill_tokens < reading.tokens


def test_volumes_that_had_to_make_way_are_read_again(tiny_model, smollm2):
    kernel = WimKernel(tiny_model("llama"), smollm2[1], window=WINDOW)
    small = WimKernel(
        tiny_model("llama"), smollm2[1], window=WINDOW, budget_bytes=kernel.engine.prefix_bytes(WINDOW)
    )
    results = [each.read(SENTENCES[:20]).ask(QUESTION, top_k=4, **FREE) for each in (kernel, small)]
    assert results[0].token_ids == results[1].token_ids
    assert results[1].usage.prefill_tokens > results[0].usage.prefill_tokens
    assert small.cache.nbytes <= small.cache.budget.engine


def test_a_chunk_that_fills_more_than_half_a_window_is_split(kernel):
    long = "The gull sat on the mast. " * 60
    reading = kernel.read([long, "Elsa owned it."])
    assert len(reading.chunks) > 2
    assert "".join(chunk.text for chunk in reading.chunks[:-1]) == long
    assert reading.ask(QUESTION, **{**OPTIONS, "threshold": 0.99}).volumes > 1
    with pytest.raises(ContextOverflowError, match="The document has"):
        kernel.read([long, "Elsa owned it."], overflow="error")


@pytest.mark.invariant(5)
def test_a_question_that_leaves_no_room_is_an_error(kernel):
    with pytest.raises(ContextOverflowError):
        kernel.read(SENTENCES[:20]).ask("Who " * 300, **OPTIONS)


# -- which volume the answer stands behind ----------------------------------------------------------------------------


def most_relevant(index: int):
    """A relevance that likes one chunk best."""
    return lambda evidence: 0.9 if evidence.chunk.text == SENTENCES[index] else 0.6


@pytest.mark.parametrize("index", [0, 13, 29])
def test_the_answer_may_stand_behind_the_most_relevant_volume(kernel, index):
    kernel.cache.clear()
    reading = kernel.read(SENTENCES[:30])
    options = {**OPTIONS, "relevance": most_relevant(index), "keep": lambda margin: margin.relevance > 0.8}
    result = reading.ask(QUESTION, **options)
    last = reading.ask(QUESTION, answer_volume="last", **options)
    (kept,) = (margin for margin in result.margins if margin.kept)
    assert kept.index == index
    assert result.branch.first_chunk == kept.branch.first_chunk
    assert last.branch.first_chunk == last.margins[-1].branch.first_chunk
    for written in (result, last):
        assert list(written.token_ids) == generated(reading, written, SHORT["answer_config"])
    again = reading.answer(QUESTION, result.margins, **SHORT)
    assert again.token_ids == result.token_ids
    assert again.branch.first_chunk == result.branch.first_chunk


def test_questions_asked_together_may_stand_behind_different_volumes(kernel):
    kernel.cache.clear()
    reading = kernel.read(SENTENCES[:30])

    def relevance(evidence):
        likes = SENTENCES[2] if "gull" in evidence.question else SENTENCES[28]
        return 0.9 if evidence.chunk.text == likes else 0.1

    questions = ["Where was the gull?", "Where was it at last?", "And the gull?"]
    options = {**FREE, "relevance": relevance}
    together = reading.ask_many(questions, **options)
    assert [result.question for result in together] == questions
    assert [result.branch.first_chunk == 0 for result in together] == [True, False, True]
    for question, result in zip(questions, together, strict=True):
        assert reading.ask(question, **options).token_ids == result.token_ids
    tokens = [event.question for event in reading.stream_many(questions, **options) if hasattr(event, "text")]
    assert set(tokens) == {0, 1, 2}
    nothing = reading.ask(QUESTION, **{**options, "relevance": lambda evidence: 0.0})
    assert nothing.branch.first_chunk == nothing.margins[-1].branch.first_chunk


def test_invalid_answer_volume_is_refused(kernel):
    with pytest.raises(ValueError, match="answer_volume is one of"):
        kernel.read(SENTENCES[:3]).ask(QUESTION, answer_volume="first")
