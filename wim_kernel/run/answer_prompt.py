"""The answer's prompt: the kept margins, then the question, behind the chunks read."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

from wim_kernel.common.margins import Margin
from wim_kernel.engines.base import AnyEngine, Branch
from wim_kernel.run.settings import Settings
from wim_kernel.text.markers import MARKER
from wim_kernel.text.prompts import fill
from wim_kernel.text.run_text import Prompt, Text


def answer_branch(
    engine: AnyEngine, at: int, question: str, margins: Sequence[Margin], settings: Settings
) -> tuple[Branch, list[Margin]]:
    """The branch that answers, and the margins; those that do not fit the window are no longer kept.

    Args:
        engine: the engine, which counts tokens and has the window.
        at: the position of the boundary to answer from, in tokens.
        question: the question.
        margins: all margins; the kept ones go into the prompt.
        settings: the prompts and the generation config.
    """
    margins = list(margins)
    while True:
        branch = _branch(at, question, used(margins), settings)
        over = branch_end(engine, branch) - (engine.window or float("inf"))
        kept = [index for index, margin in enumerate(margins) if used([margin])]
        if over <= 0 or not kept:
            return branch, margins
        least = min(kept, key=lambda index: margins[index].relevance)
        warnings.warn(
            f"The kept margins do not all fit the model's window: the margin of chunk {margins[least].index} "
            f"(relevance {margins[least].relevance:.2f}) is left out of the answer's prompt. Keep fewer with "
            "threshold= or top_k=.",
            stacklevel=2,
        )
        margins[least] = replace(margins[least], kept=False)


def answer_prompt(question: str, margins: Sequence[Margin], settings: Settings) -> Prompt:
    """The prompt behind the document from which the answer is written, with all kept margins."""
    return _branch(0, question, used(margins), settings).prompt


def used(margins: Sequence[Margin]) -> list[Margin]:
    """The margins in the answer's prompt, in the order of their numbers there, which begin with 1."""
    return [margin for margin in margins if margin.is_used]


def all_fit(engine: AnyEngine, at: int, question: str, margins: Sequence[Margin], settings: Settings) -> bool:
    """Whether every kept margin fits the window behind position ``at``; see `answer_branch`."""
    branch = _branch(at, question, used(margins), settings)
    return branch_end(engine, branch) <= (engine.window or float("inf"))


def branch_end(engine: AnyEngine, branch: Branch) -> int:
    """The position at which a branch ends at the latest, in tokens: its prefix, prompt and most new tokens."""
    new = branch.generation.max_new_tokens if branch.generation is not None else 0
    choice = len(engine.encode(Text(" " + branch.choices[0]))) if branch.choices else 0
    return branch.at + len(engine.suffix(branch)) + choice + (new or 0)


def _branch(at: int, question: str, kept: Sequence[Margin], settings: Settings) -> Branch:
    prompts = settings.prompts
    listed = _listed(kept, numbered=settings.cites)
    notes = (
        ()
        if "{margins}" in prompts.answer or not kept
        else fill(prompts.notes, **settings.variables, question=question, margins=listed)
    )
    cite = fill(prompts.cite, **settings.variables) if settings.cites and kept else ()
    answer = fill(prompts.answer, **settings.variables, question=question, margins=listed)
    shape = fill(prompts.schema, schema=settings.answer_schema) if settings.answer_schema else ()
    return Branch(
        at,
        notes + (cite + answer if notes else answer + cite) + shape,
        cue=prompts.answer_cue,
        generation=settings.answer_config,
        json_schema=settings.answer_schema,
        citable=len(kept) if settings.cites else None,
    )


def _listed(margins: Sequence[Margin], *, numbered: bool) -> Prompt:
    """The notes as a list, each with the reader's remark if it has one; notes and remarks are data, not prompt.

    Where notes are numbered, numbers in brackets within them become numbers in parentheses: a paper's own ``[2]`` would
    be copied as a reference to the second note.
    """
    runs: list[Text] = []
    for number, margin in enumerate(margins):
        remark = f" (reader's remark: {margin.note.strip()})" if margin.note.strip() else ""
        begin = ("\n" if number else "") + (f"[{number + 1}]" if numbered else "-")
        text = f" {margin.text.strip()}{remark}"
        runs += [Text(begin, trusted=True), Text(MARKER.sub(r"(\1)", text) if numbered else text)]
    return tuple(runs)
