"""Several questions, summaries, prompts, and what they cost."""

from __future__ import annotations

import dataclasses

import pytest
from helpers import FREE, SHORT
from kernel_texts import QUESTION, TEXTS

from wim_kernel import (
    PROMPTS,
    Answered,
    AnswerToken,
    Frame,
    MarginWritten,
    Prompts,
    WimKernel,
)


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
