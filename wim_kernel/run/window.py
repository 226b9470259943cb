"""What fits the model's window: the volumes of a document, with room for prompts and notes behind each."""

from __future__ import annotations

from collections.abc import Sequence

from wim_kernel.cache.volumes import capacity, divide
from wim_kernel.common.errors import ContextOverflowError
from wim_kernel.engines.base import AnyEngine
from wim_kernel.engines.document import TokenizedDocument
from wim_kernel.run.answer_prompt import answer_branch, branch_end
from wim_kernel.run.margin_prompts import judging_branch, note_branch
from wim_kernel.run.options import Settings
from wim_kernel.run.request import Overflow


def plan_volumes(
    engine: AnyEngine,
    document: TokenizedDocument,
    settings: Settings,
    questions: Sequence[str],
    overflow: Overflow,
) -> list[range]:
    """Which chunks are read in which window, with room behind each for the longest branch.

    Raises:
        ContextOverflowError: if the document does not fit, and is not to be read in volumes, or a chunk alone does not.
    """
    window, count = engine.window, len(document)
    if window is None:
        return [range(count)]
    tokens, head = document.tokens(count), len(document.head)
    need = longest_branch(engine, settings, questions)
    fits = window - head - need
    if tokens <= fits:
        return [range(count)]
    room = min(fits, capacity(window, head, need))
    if room < 1:
        advice = "Ask a shorter question or for fewer new tokens, or use a model with a longer window."
        raise ContextOverflowError("What is asked, with its prompts,", head + need, window - 1, advice)
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


def longest_branch(engine: AnyEngine, settings: Settings, questions: Sequence[str]) -> int:
    """Tokens that the longest branch takes behind a volume, before any note is known."""
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
