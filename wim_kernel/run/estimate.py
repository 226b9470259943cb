"""What a question will cost with a chat model, before it is asked."""

from __future__ import annotations

from dataclasses import dataclass

from wim_kernel.common.margins import Usage
from wim_kernel.engines.base import Branch
from wim_kernel.run.answer_prompt import answer_branch
from wim_kernel.run.margin_prompts import note_branch
from wim_kernel.run.margin_writer import first_look
from wim_kernel.run.run import Run
from wim_kernel.text.run_text import Text


@dataclass(frozen=True)
class Estimate:
    """What a question will cost, if all goes as planned.

    Attributes:
        usage: tokens by kind, and requests; replies as long as they may get, and every note kept.
        base_tokens: the input in tokens of plain input, by the provider's prices; see `Usage.base_tokens`.
        asked: the chunks that will be asked.
        chunks: how many chunks the document has.
    """

    usage: Usage
    base_tokens: float
    asked: tuple[int, ...]
    chunks: int


def estimate(run: Run) -> Estimate:
    """What the one question of a run will cost; no request is made.

    Raises:
        ValueError: for a model that is no chat model, or a relevance whose requests follow from its replies.
    """
    engine, settings, (state,) = run.engine, run.settings, run.states
    if not engine.rates:
        raise ValueError("What a question costs is estimated for chat models: see WimKernel.from_chat_model.")
    if not settings.looks_first:
        raise ValueError("What a question costs is estimated for relevance='rating' and for a callable.")
    asked = sorted(first_look(run.document, state.question, settings).asked)
    usage, branches = Usage(cache_write_tokens=0), list[Branch]()
    quotes = settings.note_rates == "quotes"
    note_tokens = settings.quote_tokens if quotes else settings.margin_config.max_new_tokens
    for index, chunk in enumerate(run.chunks):
        for _ in run.read_chunk(index):
            pass
        if index in asked:
            at = run.lease.end(index + 1)
            branches.append(note_branch(at, state.question, settings, chunk=chunk.text))
        if run.lease.ends_volume(index):
            if index + 1 == len(run.chunks):
                branches.append(_answer(run, (note_tokens or 0) * len(asked)))
            usage += engine.foresee(run.lease.prefix, branches)
            branches = []
    if quotes:  # which may be longer than a note
        longer = settings.quote_tokens - (settings.margin_config.max_new_tokens or 0)
        usage += Usage(output_tokens=longer * len(asked), cache_write_tokens=0)
    write, read = engine.prices
    base_tokens = usage.base_tokens(write=write, read=read)
    return Estimate(usage, base_tokens, tuple(asked), len(run.chunks))


def _answer(run: Run, notes: int) -> Branch:
    """The answer's branch, with so many tokens of notes in its prompt."""
    at = run.lease.end(len(run.chunks))
    branch, _ = answer_branch(run.engine, at, run.states[0].question, [], run.settings)
    return Branch(at, (*branch.prompt, Text("note" * notes)), generation=branch.generation)
