"""What fits the model's window: a document's volumes, with room for prompts and notes behind each volume."""

from __future__ import annotations

from collections.abc import Sequence

from wim_kernel.cache.volumes import capacity, divide
from wim_kernel.common.errors import ContextOverflowError
from wim_kernel.engines.base import AnyEngine
from wim_kernel.engines.document import TokenizedDocument
from wim_kernel.run.answer_prompt import answer_branch, branch_end
from wim_kernel.run.margin_prompts import judging_branch, note_branch
from wim_kernel.run.request import Overflow
from wim_kernel.run.settings import Settings


def plan_volumes(
    engine: AnyEngine,
    document: TokenizedDocument,
    settings: Settings,
    questions: Sequence[str],
    overflow: Overflow,
) -> list[range]:
    """The chunks of each volume, so that the longest branch fits the window behind every volume.

    Raises:
        ContextOverflowError: if the document does not fit the window and ``overflow`` forbids volumes, or if a single
            chunk does not fit.
    """
    window, count = engine.window, len(document)
    if window is None:
        return [range(count)]
    tokens, head = document.tokens(count), len(document.head)
    need = longest_branch_tokens(engine, settings, questions)
    fits = window - head - need
    if tokens <= fits:
        return [range(count)]
    room = min(fits, capacity(window, head, need))
    if room < 1:
        advice = "Ask a shorter question or for fewer new tokens, or use a model with a longer window."
        raise ContextOverflowError("The question, with its prompts,", head + need, window - 1, advice)
    sizes = list(map(len, document.chunks))
    longest = max(sizes)
    if overflow == "volumes" and longest <= room:
        return divide(sizes, room)
    what, size = ("The document", tokens) if overflow == "error" else ("A chunk", longest)
    advice = "Read a shorter document" if overflow == "error" else "Split it, with chunk_tokens="
    raise ContextOverflowError(
        what,
        size,
        fits if overflow == "error" else room,
        f"The model's window is {window} tokens and the question's prompts take {need}. {advice}, ask for fewer "
        "new tokens, or use a model with a longer window.",
    )


def longest_branch_tokens(engine: AnyEngine, settings: Settings, questions: Sequence[str]) -> int:
    """The most tokens that a branch takes behind a volume, without the kept notes, which are not known yet."""
    need = 0
    for question in questions:
        answer, _ = answer_branch(engine, 0, question, [], settings)
        branches = [answer, note_branch(0, question, settings)]
        if settings.judges_notes:
            branches.append(judging_branch(0, question, "", settings))
        need = max(need, *(branch_end(engine, branch) for branch in branches))
    if settings.judges_notes:
        need += settings.margin_config.max_new_tokens or 0
    return need
