"""Documents, options and questions that are refused, and how documents are cut and joined."""

from __future__ import annotations

import pytest
from helpers import SHORT, config
from kernel_texts import QUESTION, TEXTS
from transformers import GenerationConfig

from wim_kernel import (
    Chunk,
    ContextOverflowError,
    EmptyDocumentError,
    Prompts,
    WimKernel,
)
from wim_kernel.text.run_text import Text


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


def test_the_former_name_of_the_cache_warns(kernel: WimKernel) -> None:
    with pytest.warns(DeprecationWarning, match="cache"):
        assert kernel.readings is kernel.cache
