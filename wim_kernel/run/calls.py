"""Every way to call a reading: plain, async, and as a stream of events."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, closing
from typing import Any

from typing_extensions import Unpack

from wim_kernel.common.concurrency import afinish, finish, iterate_in_thread
from wim_kernel.common.events import Event
from wim_kernel.common.margins import Margin, WimResult
from wim_kernel.run.given_margins import MarginsLike
from wim_kernel.run.options import Options
from wim_kernel.run.relevance.scores import Evidence
from wim_kernel.run.request import Request, Work, parse_request


class ReadingCalls(ABC):
    """The methods of `wim_kernel.Reading` that ask questions; each runs one of four pieces of work."""

    @abstractmethod
    def _ask(self, request: Request) -> Work[list[WimResult]]:
        """Margins, then an answer to each question."""

    @abstractmethod
    def _ask_margins(self, request: Request) -> Work[list[Margin]]:
        """Margins alone."""

    @abstractmethod
    def _ask_from_margins(
        self, request: Request, given: MarginsLike, chunks_read: int | None
    ) -> Work[list[WimResult]]:
        """An answer from given margins."""

    @abstractmethod
    def _score(self, request: Request) -> Work[list[tuple[Evidence, float]]]:
        """Each chunk's evidence and relevance."""

    def ask(self, question: str = "", **options: Unpack[Options]) -> WimResult:
        """Answer a question.

        Args:
            question: the question; may be empty with ``task="summarise"``.
            options: see `Options`.

        Raises:
            ContextOverflowError: if the document and the question do not fit the model's window.
        """
        return finish(self._ask(parse_request([question], options)))[0]

    async def aask(self, question: str = "", **options: Unpack[Options]) -> WimResult:
        """Like `ask`, without blocking the event loop. So are all methods whose names begin with ``a``."""
        return (await afinish(self._ask(parse_request([question], options))))[0]

    def ask_many(self, questions: Sequence[str], **options: Unpack[Options]) -> list[WimResult]:
        """Answer several questions with one prefill; their branches decode in one batch. See `ask`."""
        return finish(self._ask(parse_request(questions, options))) if questions else []

    async def aask_many(self, questions: Sequence[str], **options: Unpack[Options]) -> list[WimResult]:
        """See `ask_many`."""
        return await afinish(self._ask(parse_request(questions, options))) if questions else []

    def stream(self, question: str = "", **options: Unpack[Options]) -> Generator[Event, None, None]:
        """Yield events; the last is `Answered`. Closing the generator stops the work. See `ask`."""
        return _events(self._ask(parse_request([question], options, stream=True)))

    def astream(self, question: str = "", **options: Unpack[Options]) -> AsyncGenerator[Event, None]:
        """See `stream`."""
        return _aevents(self._ask(parse_request([question], options, stream=True)))

    def stream_many(
        self, questions: Sequence[str], **options: Unpack[Options]
    ) -> Generator[Event, None, None]:
        """Like `stream`, for several questions: each event has its question's number. See `ask_many`."""
        return _events(self._ask(parse_request(questions, options, stream=True)))

    def astream_many(
        self, questions: Sequence[str], **options: Unpack[Options]
    ) -> AsyncGenerator[Event, None]:
        """See `stream_many`."""
        return _aevents(self._ask(parse_request(questions, options, stream=True)))

    def margins(self, question: str = "", **options: Unpack[Options]) -> list[Margin]:
        """Write every margin, in chunk order, and no answer: for a person to drop, edit or add to. See `ask`."""
        return finish(self._ask_margins(parse_request([question], options)))

    async def amargins(self, question: str = "", **options: Unpack[Options]) -> list[Margin]:
        """See `margins`."""
        return await afinish(self._ask_margins(parse_request([question], options)))

    def stream_margins(self, question: str = "", **options: Unpack[Options]) -> Generator[Event, None, None]:
        """Yield the events of `margins`; the last is `MarginsDone`."""
        return _events(self._ask_margins(parse_request([question], options, stream=True)))

    def astream_margins(self, question: str = "", **options: Unpack[Options]) -> AsyncGenerator[Event, None]:
        """See `stream_margins`."""
        return _aevents(self._ask_margins(parse_request([question], options, stream=True)))

    def answer(
        self,
        question: str,
        margins: MarginsLike,
        *,
        chunks_read: int | None = None,
        **options: Unpack[Options],
    ) -> WimResult:
        """Answer from given margins, of which the ``kept`` ones are used.

        Args:
            question: the question.
            margins: the margins after a person or a program has changed them: `Margin`s, dicts as `Margin.to_dict`
                writes them, or strings, which are notes of one's own.
            chunks_read: how many chunks stand before the answer. By default the number of chunks read for this
                question's margins, or all chunks if the margins were not written on this reading.
            options: see `Options`.

        Raises:
            MarginsError: for an item that is no margin, or a margin of another document.
        """
        return finish(self._ask_from_margins(parse_request([question], options), margins, chunks_read))[0]

    async def aanswer(
        self,
        question: str,
        margins: MarginsLike,
        *,
        chunks_read: int | None = None,
        **options: Unpack[Options],
    ) -> WimResult:
        """See `answer`."""
        return (
            await afinish(self._ask_from_margins(parse_request([question], options), margins, chunks_read))
        )[0]

    def stream_answer(
        self,
        question: str,
        margins: MarginsLike,
        *,
        chunks_read: int | None = None,
        **options: Unpack[Options],
    ) -> Generator[Event, None, None]:
        """Yield the events of `answer`."""
        return _events(
            self._ask_from_margins(parse_request([question], options, stream=True), margins, chunks_read)
        )

    def astream_answer(
        self,
        question: str,
        margins: MarginsLike,
        *,
        chunks_read: int | None = None,
        **options: Unpack[Options],
    ) -> AsyncGenerator[Event, None]:
        """See `stream_answer`."""
        return _aevents(
            self._ask_from_margins(parse_request([question], options, stream=True), margins, chunks_read)
        )

    def evidence(self, question: str, **options: Unpack[Options]) -> list[Evidence]:
        """Every chunk's evidence, from which relevance is computed, in order; no notes are written.

        Raises:
            ValueError: for ``relevance="second-call"``, which judges written notes.
        """
        return [evidence for evidence, _ in finish(self._score(parse_request([question], options)))]

    def relevance(self, question: str, **options: Unpack[Options]) -> list[float]:
        """Every chunk's relevance to a question, in order; no notes are written. See `evidence`."""
        return [relevance for _, relevance in finish(self._score(parse_request([question], options)))]


def _events(steps: Work[Any]) -> Generator[Event, None, None]:
    """The events among the steps. Closing the generator closes the steps."""
    with closing(steps):
        for event in steps:
            if event is not None:
                yield event


async def _aevents(steps: Work[Any]) -> AsyncGenerator[Event, None]:
    async with aclosing(iterate_in_thread(steps)) as events:
        async for event in events:
            if event is not None:
                yield event
