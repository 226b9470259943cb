"""The answer: the kept margins, then the question, after the last chunk read."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

from wim_kernel.common.margins import Margin
from wim_kernel.engines.base import AnyEngine, Branch
from wim_kernel.run.options import Settings
from wim_kernel.text.prompts import fill
from wim_kernel.text.run_text import Prompt, Text


def answer_branch(
    engine: AnyEngine, at: int, question: str, margins: Sequence[Margin], settings: Settings
) -> tuple[Branch, list[Margin]]:
    """The branch that answers, and the margins as they stand: those that found no room are no longer kept.

    Args:
        engine: encodes, and knows the window.
        at: the boundary to answer from, in tokens.
        question: what is asked.
        margins: all margins; the kept ones go into the prompt.
        settings: prompts and generation.
    """
    margins = list(margins)
    while True:
        branch = _branch(at, question, [margin for margin in margins if _goes_in(margin)], settings)
        over = branch_end(engine, branch) - (engine.window or float("inf"))
        kept = [index for index, margin in enumerate(margins) if _goes_in(margin)]
        if over <= 0 or not kept:
            return branch, margins
        least = min(kept, key=lambda index: margins[index].relevance)
        warnings.warn(
            f"The kept margins do not all fit the model's window: the one of chunk {margins[least].index} (relevance "
            f"{margins[least].relevance:.2f}) is left out of the answer's prompt. Keep fewer with threshold= or "
            "top_k=.",
            stacklevel=2,
        )
        margins[least] = replace(margins[least], kept=False)


def answer_prompt(question: str, margins: Sequence[Margin], settings: Settings) -> Prompt:
    """What stands behind the document where the answer is written, if all of the kept margins find room."""
    return _branch(0, question, [margin for margin in margins if _goes_in(margin)], settings).prompt


def all_fit(engine: AnyEngine, at: int, question: str, margins: Sequence[Margin], settings: Settings) -> bool:
    """Whether every kept margin finds room behind ``at``; see `answer_branch`."""
    branch = _branch(at, question, [margin for margin in margins if _goes_in(margin)], settings)
    return branch_end(engine, branch) <= (engine.window or float("inf"))


def branch_end(engine: AnyEngine, branch: Branch) -> int:
    """How many tokens of the window a branch takes at most, all that stands before it included."""
    new = branch.generation.max_new_tokens if branch.generation is not None else 0
    decided = len(engine.encode(Text(" " + branch.choices[0]))) if branch.choices else 0
    return branch.at + len(engine.suffix(branch)) + decided + (new or 0)


def _goes_in(margin: Margin) -> bool:
    return margin.kept and bool(margin.text.strip() or margin.note.strip())


def _branch(at: int, question: str, kept: Sequence[Margin], settings: Settings) -> Branch:
    prompts = settings.prompts
    listed = _listed(kept)
    notes = (
        ()
        if "{margins}" in prompts.answer or not kept
        else fill(prompts.notes, **settings.variables, question=question, margins=listed)
    )
    shape = fill(prompts.schema, schema=settings.answer_schema) if settings.answer_schema else ()
    return Branch(
        at,
        notes + fill(prompts.answer, **settings.variables, question=question, margins=listed) + shape,
        cue=prompts.answer_cue,
        generation=settings.answer_config,
        json_schema=settings.answer_schema,
    )


def _listed(margins: Sequence[Margin]) -> Prompt:
    """The notes as a list, each with the reader's remark if there is one; all of it data."""
    runs: list[Text] = []
    for position, margin in enumerate(margins):
        remark = f" (reader's remark: {margin.note.strip()})" if margin.note.strip() else ""
        runs += [Text("\n-" if position else "-", trusted=True), Text(f" {margin.text.strip()}{remark}")]
    return tuple(runs)
