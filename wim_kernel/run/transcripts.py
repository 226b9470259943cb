"""Transcripts for traces: the model's prompts in full, with the document elided."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from wim_kernel.common.margins import Margin
from wim_kernel.engines.base import AnyEngine
from wim_kernel.run.answer_prompt import answer_prompt
from wim_kernel.run.document import EncodedDocument
from wim_kernel.run.options import Options, parse_options
from wim_kernel.run.settings import adapt_to_engine
from wim_kernel.text.prompts import Frame, fill
from wim_kernel.text.run_text import Prompt


class Transcript:
    """The prompts of one question on a reading.

    Args:
        engine: the reading's engine.
        frame: the frame around the document.
        document: the encoded document.
        question: the question; empty for a summary.
        options: the options as they are given to the kernel.

    Attributes:
        system: the system prompt.
    """

    def __init__(
        self, engine: AnyEngine, frame: Frame, document: EncodedDocument, question: str, options: Options
    ) -> None:
        self._frame = frame
        self._document = document
        self._question = question
        self._settings = parse_options(options)
        with contextlib.suppress(ValueError):  # the call itself raises for what the engine cannot do
            self._settings = adapt_to_engine(self._settings, engine, without_question=not question.strip())
        self.system = frame.system

    def margin(self, index: int) -> str:
        """The user's turn from which the margin of chunk ``index`` is written or, if it is verbatim, scored."""
        prompts, variables = self._settings.prompts, self._settings.variables
        asks = prompts.decision if self._settings.asks == "decision" else prompts.margin
        lead = fill(prompts.question, **variables, question=self._question)
        if self._settings.margin_style == "verbatim" and not self._settings.measures_boundaries:
            return self._turn(index + 1, lead)  # the branch measures attention, and asks nothing
        return self._turn(index + 1, lead + fill(asks, **variables, question=self._question))

    def answer(self, margins: Sequence[Margin], chunks_read: int | None = None) -> str:
        """The user's turn from which the answer is written.

        Args:
            margins: all margins; the kept ones are in the prompt.
            chunks_read: how many chunks stand before the prompt; by default all.
        """
        chunks = len(self._document.chunks) if chunks_read is None else chunks_read
        in_order = sorted(margins, key=lambda margin: margin.index)
        return self._turn(chunks, answer_prompt(self._question, in_order, self._settings))

    def _turn(self, chunks: int, prompt: Prompt) -> str:
        return self._frame.document + self._elided(chunks) + "".join(run.text for run in prompt)

    def _elided(self, chunks: int) -> str:
        total = len(self._document.chunks)
        counted = (
            f"{total} chunk{'s' if total > 1 else ''}" if chunks == total else f"{chunks} of {total} chunks"
        )
        return f"[document: {counted}, {self._document.tokens.tokens(chunks):,} tokens]"
