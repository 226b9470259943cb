"""A stream's events in a notebook: margins appear while the document is read, then the answer, word by word."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing
from typing import Any

from wim_kernel.common.events import (
    Answered,
    AnswerToken,
    ChunkRead,
    Event,
    MarginRevised,
    MarginsDone,
    MarginWritten,
)
from wim_kernel.common.margins import Margin, Timings, Usage, WimResult
from wim_kernel.common.result_page import live_fragment

PAUSE = 0.1
"""Seconds between two updates of a display at least, so that quick events do not fill a notebook's connection."""


def show(events: Generator[Event, None, None]) -> WimResult:
    """Show a stream in a notebook while it runs, and return its result.

    Kept notes appear as cards while the document is read, then the answer as it is written. Interrupting the cell
    closes the stream, which stops the work. For a page with the document, let the result be a cell's value. In a script
    only a line at the end is printed.

    Args:
        events: one question's stream: ``reading.stream(...)``, ``reading.stream_answer(...)`` or
            ``reading.stream_margins(...)``, whose result has margins and an empty answer.

    Raises:
        ImportError: without IPython, which notebooks have.
        ValueError: for a stream of several questions, or one that was closed.

    Example:
        >>> result = show(reading.stream("Who owned the ship?"))  # doctest: +SKIP
    """
    display = _LiveDisplay()
    with closing(events), display:
        for event in events:
            display.add(event)
    return display.result()


async def ashow(events: AsyncGenerator[Event, None]) -> WimResult:
    """See `show`, for ``reading.astream(...)`` and its like."""
    display = _LiveDisplay()
    async with aclosing(events):
        with display:
            async for event in events:
                display.add(event)
    return display.result()


class _LiveDisplay:
    """One output of a notebook, which is replaced as events come."""

    def __init__(self) -> None:
        try:
            from IPython.core.interactiveshell import InteractiveShell
            from IPython.display import display, update_display
        except ImportError as error:
            raise ImportError(
                "show is for notebooks and needs IPython, which they have. In a terminal use `wim ask`, or print the "
                "events of reading.stream()."
            ) from error
        self._is_notebook = InteractiveShell.initialized()
        self._display: Any = display
        self._update_display: Any = update_display
        self._id = f"wim-live-{uuid.uuid4().hex[:12]}"
        self._progress = "Reading"
        self._margins: dict[int, Margin] = {}
        self._answer = ""
        self._result: WimResult | None = None
        self._shown = float("-inf")

    def __enter__(self) -> None:
        if self._is_notebook:
            self._display(self._bundle(), raw=True, display_id=self._id)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._progress = f"Stopped: {self._progress[:1].lower()}{self._progress[1:]}"
        elif self._result is not None:
            self._progress = f"Done in {self._result.timings.total:.1f} s"
        self._update()
        if not self._is_notebook:
            print(self._bundle()["text/plain"])

    def add(self, event: Event) -> None:
        """Take in an event, and show it unless the display was updated just now.

        Raises:
            ValueError: for an event of a second question.
        """
        if getattr(event, "question", 0):
            raise ValueError("show is for one question: give it the stream of each question by itself.")
        match event:
            case ChunkRead(index, chunks, tokens, total_tokens):
                self._progress = f"Read chunk {index + 1} of {chunks}, {tokens:,} of {total_tokens:,} tokens"
            case MarginWritten(margin) | MarginRevised(margin):
                self._margins[margin.index] = margin
            case AnswerToken(text):
                self._progress, self._answer = "Answering", self._answer + text
            case MarginsDone(margins, usage, timings):
                self._result = WimResult("", margins, usage, timings)
            case Answered(result):
                self._result = result
        if time.monotonic() - self._shown >= PAUSE:
            self._update()

    def result(self) -> WimResult:
        """The finished result.

        Raises:
            ValueError: if the stream ended without one.
        """
        if self._result is None:
            raise ValueError("The stream has no result: it was closed, or read to its end before.")
        return self._result

    def _update(self) -> None:
        if self._is_notebook:
            self._update_display(self._bundle(), raw=True, display_id=self._id)
        self._shown = time.monotonic()

    def _bundle(self) -> dict[str, Any]:
        """The output, as HTML and for programs without it."""
        margins = tuple(margin for _, margin in sorted(self._margins.items()))
        known = self._result or WimResult(self._answer, margins, Usage(), Timings())
        notes = sum(margin.is_used for margin in known.margins)
        progress = f"{self._progress}. Notes: {notes}."
        return {
            "text/html": live_fragment(known, progress, self._id),
            "text/plain": f"{progress} {known.answer}".strip(),
        }
