"""A person between margins and answer: edits, margins made by hand, answers from part of a document."""

from __future__ import annotations

import dataclasses

import pytest
from helpers import SHORT, generated
from kernel_texts import QUESTION, TEXTS

from wim_kernel import (
    Margin,
)


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
