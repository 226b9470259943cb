"""The branches that measure relevance, write notes, and judge notes."""

from __future__ import annotations

from wim_kernel.engines.base import Branch
from wim_kernel.run.settings import Settings
from wim_kernel.text.prompts import fill
from wim_kernel.text.run_text import Prompt


def question_lead(question: str, settings: Settings) -> tuple[Prompt, int | None]:
    """The prompt with the question, and the index of the run that is the question itself (None without a question)."""
    lead = fill(settings.prompts.question, **settings.variables, question=question)
    if not question:
        return lead, None
    return lead, next((index for index, run in enumerate(lead) if run.hole == "question"), None)


def scores_boundaries(settings: Settings) -> bool:
    """Whether branches at chunk ends measure the question's likelihood, too.

    Where attention is seen it costs nothing; elsewhere it may be a request of its own, which a decision does not need.
    """
    return settings.sees_attention or settings.asks != "decision"


def note_branch(
    at: int, question: str, settings: Settings, *, generate: bool = True, chunk: str = ""
) -> Branch:
    """The branch at a chunk's end that measures the chunk's relevance and, if ``generate``, writes its note.

    Args:
        at: the position of the chunk's end.
        question: the question.
        settings: the prompts and the generation config.
        generate: whether to write the note.
        chunk: the chunk's text, of which engines that rate are shown the beginning.
    """
    if settings.note_rates and generate:
        return _rating_branch(at, question, settings, chunk)
    prompts, decides = settings.prompts, settings.asks == "decision"
    lead, scored = question_lead(question, settings)
    if not scores_boundaries(settings):
        scored = None
    return Branch(
        at,
        lead + fill(prompts.decision if decides else prompts.margin, **settings.variables, question=question),
        cue=prompts.decision_cue if decides else prompts.margin_cue,
        scored=scored,
        choices=("YES:", "NO") if decides else (),
        generation=settings.margin_config if generate else None,
    )


def _rating_branch(at: int, question: str, settings: Settings, chunk: str) -> Branch:
    """The branch at a chunk's end whose one reply rates the chunk and holds its note or its quotations."""
    prompts, quotes = settings.prompts, settings.note_rates == "quotes"
    tokens = settings.quote_tokens if quotes else settings.margin_config.max_new_tokens or 0
    own = {"begins": _beginning(chunk), "words": str(max(8, tokens * 3 // 4))}
    prompt, _ = question_lead(question, settings)
    if not quotes:
        prompt += fill(prompts.margin, **settings.variables, question=question)
    prompt += fill(
        prompts.quotes if quotes else prompts.rating, **{**settings.variables, "question": question, **own}
    )
    return Branch(at, prompt, generation=settings.margin_config, rates=settings.note_rates)


def _beginning(chunk: str) -> str:
    """The first words of a chunk, by which a model finds it among the others."""
    return " ".join(chunk[:200].split()[:10])


def judging_branch(at: int, question: str, note: str, settings: Settings) -> Branch:
    """The branch at a chunk's end that asks whether the chunk's written note helps."""
    prompts = settings.prompts
    lead, _ = question_lead(question, settings)
    prompt = lead + fill(prompts.judgement, **settings.variables, question=question, note=note)
    return Branch(at, prompt, cue=prompts.judgement_cue, choices=("YES", "NO"))
