"""Which margins are written and kept: threshold, top_k, keep, stopping early, scores by name."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from helpers import FREE, SHORT
from kernel_texts import QUESTION, TEXTS, by_word

from wim_kernel import (
    PROMPTS,
    Evidence,
    Margin,
)
from wim_kernel.run.relevance import BY_NAME
from wim_kernel.run.run import Run
from wim_kernel.run.state import PendingMargin, QuestionState


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


def test_keep_sees_margins_in_the_order_of_chunks_whichever_ends_first():
    """A graph that a callback interrupts counts on the order; a server's requests end in any."""
    batch = [PendingMargin(QuestionState(QUESTION), index) for index in range(4)]
    ending = [batch[2], None, batch[0], batch[3], None, batch[1]]
    run = SimpleNamespace(settings=SimpleNamespace(keep=lambda margin: True))
    kept = [pending and pending.index for pending in Run._in_order(run, iter(ending), batch)]
    assert kept == [None, 0, None, 1, 2, 3]
    run.settings.keep = None
    assert list(Run._in_order(run, iter(ending), batch)) == ending
