"""One call on a reading: its questions, its lease of the cache, its settings and what it cost.

The steps here are what `wim_kernel.kernel.Reading` puts together.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from wim_kernel.answering import answer_branch, branch_end
from wim_kernel.chunks import Chunk
from wim_kernel.engines.base import AnyEngine, Branch
from wim_kernel.errors import ContextOverflowError
from wim_kernel.events import AnswerToken, ChunkRead, Event, MarginsDone, MarginWritten
from wim_kernel.margins import Margin, Usage, WimResult
from wim_kernel.readings import Readings
from wim_kernel.relevance import Evidence, QuestionLikelihood
from wim_kernel.settings import Options, Settings, settle
from wim_kernel.storage import Pieces
from wim_kernel.timing import Stopwatch
from wim_kernel.writing import Inquiry, MarginWriter, Place, judging_branch, note_branch

Result = TypeVar("Result")
Tick = Event | None
"""One step of work: an event, or nothing to tell."""
Steps = Generator[Tick, None, Result]


@dataclass(frozen=True)
class Asked:
    """What a caller wants.

    Attributes:
        questions: one or more.
        settings: how to go about them.
        stream: whether somebody waits for margins as they come.
    """

    questions: tuple[str, ...]
    settings: Settings
    stream: bool = False


def asked(questions: Sequence[str], options: Options, *, stream: bool = False) -> Asked:
    """Check what a caller wants, before any work is done."""
    if isinstance(questions, str) or not all(isinstance(question, str) for question in questions):
        raise TypeError("Questions are strings; several are a list of strings.")
    settings = settle(options)
    blank = not all(question.strip() for question in questions)
    if "{question}" not in settings.prompts.question:
        blank = True  # nothing to take a likelihood of
    elif blank:
        raise ValueError('There is no question. Ask one, or use task="summarise".')
    if blank and settings.margin_style == "verbatim":
        raise ValueError(
            "Verbatim margins are chosen by the question, and there is none: use margin_style='free'."
        )
    if blank and settings.top_k is not None and isinstance(settings.relevance, QuestionLikelihood):
        raise ValueError(
            "top_k ranks by the question's likelihood, and there is no question: use another relevance."
        )
    return Asked(tuple(questions), settings, stream)


class Call:
    """The state of one call.

    Args:
        readings: where live prefixes are.
        chunks: the document.
        pieces: its tokens: the head, then the chunks.
        ask: what the caller wants.
    """

    def __init__(self, readings: Readings, chunks: Sequence[Chunk], pieces: Pieces, ask: Asked) -> None:
        self.engine: AnyEngine = readings.engine
        self.chunks = chunks
        self.pieces = pieces
        self.settings = ask.settings
        self.stream = ask.stream
        self.inquiries = [Inquiry(question, position) for position, question in enumerate(ask.questions)]
        self.watch = Stopwatch()
        self.read = 0
        self.waiting: list[Place] = []
        self.scored: list[Place] = []
        self._given = False
        self._check_room()
        if self.settings.answer_schema is not None:
            self.engine.check_schema(self.settings.answer_schema, self.settings.answer_config)
        self.lease = readings.hold(pieces)
        self.writer = MarginWriter(self.engine, self.lease, chunks, self.settings)
        self._fresh = not self.lease.has(len(chunks))

    def close(self) -> None:
        """Give the cache back."""
        self.lease.close()

    # -- reading ------------------------------------------------------------------------------------------------------

    def read_chunk(self, index: int) -> Steps[None]:
        """Read a chunk; its margins wait to be written."""
        cached = self.lease.has(index + 1)
        yield from self.watch.run("prefill", self.lease.read(index + 1))
        self.read = index + 1
        head, total = len(self.pieces[0]), self.lease.end(len(self.chunks))
        yield ChunkRead(index, len(self.chunks), self.lease.end(index + 1) - head, total - head, cached)
        self.waiting += [Place(inquiry, index) for inquiry in self.inquiries]

    def read_through(self, chunks: int) -> Steps[None]:
        """Read the first ``chunks`` chunks."""
        for index in range(chunks):
            yield from self.read_chunk(index)

    def margins_are_due(self) -> bool:
        """Whether to write what waits now, or to read on and write more margins together.

        At the document's end in any case. Before it only for somebody who waits: for a stream, or to stop early. Then
        the first margin is written at once and later ones a few together, but none waits for a chunk that takes work
        while enough others wait with it.
        """
        if self.read == len(self.chunks):
            return True
        waiting = len(self.waiting) // len(self.inquiries)
        if self.settings.margin_batch is not None:
            return waiting >= self.settings.margin_batch
        if self.settings.stop_when is None and (not self.stream or self.lease.has(self.read + 1)):
            return False
        return (self.read == 1 and self._fresh) or waiting >= self.engine.margin_batch

    # -- margins ------------------------------------------------------------------------------------------------------

    def write_margins(self) -> Steps[None]:
        """Write the margins that wait; with ``top_k``, only find out what can be known of them yet."""
        waiting, self.waiting = self.waiting, []
        if self.settings.top_k is None:
            yield from self._tell(self.writer.write(waiting))
            return
        self.scored += waiting
        work = self.writer.write(waiting) if self._after_notes else self.writer.score(waiting)
        for _ in self.watch.run("margins", work):
            yield None

    def write_best(self) -> Steps[None]:
        """With ``top_k``, once nothing more is read: write the best, and leave the others empty."""
        best = [place for inquiry in self.inquiries for place in self._best(inquiry)]
        rest = [place for place in self.scored if not any(place is other for other in best)]
        for place in rest:
            place.dropped = True
        yield from self._tell(iter(rest))
        yield from self._tell(iter(best) if self._after_notes else self.writer.write(best))

    def _tell(self, work: Iterator[Place | None]) -> Steps[None]:
        """Turn finished places into margins."""
        for place in self.watch.run("margins", work):
            if place is None:
                yield None
                continue
            margin = self.writer.margin(place)
            place.inquiry.margins[place.index] = margin
            if self.watch.first_margin is None:
                self.watch.first_margin = self.watch.since_start()
            yield MarginWritten(margin, place.inquiry.position)

    @property
    def _after_notes(self) -> bool:
        """Whether a score exists only once the note does."""
        return self.settings.asks == "judgement"

    def _best(self, inquiry: Inquiry) -> list[Place]:
        mine = [place for place in self.scored if place.inquiry is inquiry]
        mine = [place for place in mine if (place.relevance or 0.0) >= self.settings.threshold]
        mine.sort(key=lambda place: (-(place.relevance or 0.0), place.index))
        return sorted(mine[: self.settings.top_k], key=lambda place: place.index)

    def has_enough(self) -> bool:
        """Whether every question's caller says that enough was read. Margins not yet written show their relevance."""
        stop = self.settings.stop_when
        if stop is None:
            return False
        shown = {id(inquiry): list(inquiry.in_order) for inquiry in self.inquiries}
        for place in self.scored:
            shown[id(place.inquiry)].append(self.writer.margin(place))
        return all([stop(margins) for margins in shown.values()])

    def take(self, margins: Iterable[Margin]) -> None:
        """Margins that were written before, as a person left them."""
        (inquiry,) = self.inquiries
        inquiry.given = list(margins)
        self._given = True

    def score(self) -> Steps[list[tuple[Evidence, float]]]:
        """What is known of every chunk that waits, and its relevance; nothing is written."""
        yield from self.watch.run("margins", self.writer.score(self.waiting))
        return [
            (place.evidence, place.relevance or 0.0) for place in self.waiting if place.evidence is not None
        ]

    def noted(self) -> MarginsDone:
        """What the margins of a call without answers came to."""
        (inquiry,) = self.inquiries
        return MarginsDone(tuple(inquiry.in_order), self.usage(0), self.watch.timings(), self.read)

    # -- the answer ---------------------------------------------------------------------------------------------------

    def write_answers(self) -> Steps[None]:
        """One branch a question behind the last chunk read."""
        at, branches = self.lease.end(self.read), []
        for inquiry in self.inquiries:
            margins = inquiry.given if self._given else inquiry.in_order
            branch, inquiry.given = answer_branch(self.engine, at, inquiry.question, margins, self.settings)
            branches.append(branch)
        size = self.engine.max_branches
        for start in range(0, len(branches), size):
            yield from self.watch.run("answer", self._decode_answers(branches[start : start + size], start))

    def _decode_answers(self, branches: Sequence[Branch], first: int) -> Iterator[Tick]:
        for step in self.engine.decode(self.lease.prefix, branches):
            yield None
            for progress in step:
                position = first + progress.branch
                inquiry = self.inquiries[position]
                if progress.text:
                    if self.watch.first_token is None:
                        self.watch.first_token = self.watch.since_start()
                    yield AnswerToken(progress.text, position)
                if progress.done is not None:
                    inquiry.count(progress.done)
                    inquiry.answer = progress.done

    def results(self) -> list[WimResult]:
        """What every question came to."""
        results = []
        for position, inquiry in enumerate(self.inquiries):
            answer = inquiry.answer
            assert answer is not None, "answers are written before results are asked for"
            results.append(
                WimResult(
                    answer=answer.text,
                    margins=tuple(inquiry.given),
                    usage=self.usage(position),
                    timings=self.watch.timings(),
                    stopped_early=self.read < len(self.chunks),
                    question=inquiry.question,
                    token_ids=answer.token_ids,
                    branch=self.lease.record(self.read, answer.suffix_ids),
                )
            )
        return results

    def usage(self, position: int) -> Usage:
        """What a question cost; prefill is put down to the first."""
        inquiry, first = self.inquiries[position], position == 0
        head, prefilled = self.lease.prefilled[0], sum(self.lease.prefilled[1:])
        tokens = self.lease.end(self.read) - len(self.pieces[0])
        return Usage(
            prefill_tokens=prefilled if first else 0,
            cached_tokens=tokens - prefilled if first else tokens,
            prompt_tokens=inquiry.prompt_tokens + (head if first else 0),
            output_tokens=inquiry.output_tokens,
        )

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _check_room(self) -> None:
        """See that the document fits, with the longest branch behind it, before anything is computed."""
        if self.engine.window is None:
            return
        tokens, head = sum(map(len, self.pieces)), len(self.pieces[0])
        need = 0
        for inquiry in self.inquiries:
            answer, _ = answer_branch(self.engine, tokens, inquiry.question, [], self.settings)
            note = note_branch(tokens, inquiry.question, self.settings)
            branches = [answer, note]
            if self._after_notes:
                branches.append(judging_branch(tokens, inquiry.question, "", self.settings))
            need = max(need, *(branch_end(self.engine, branch) - tokens for branch in branches))
        if self._after_notes:
            need += self.settings.margin_config.max_new_tokens or 0
        fits = self.engine.window - head - need
        if tokens - head > fits:
            raise ContextOverflowError(
                "The document",
                tokens - head,
                fits,
                f"The model's window is {self.engine.window} tokens and the question's prompts take {need}. Read a "
                "shorter document, ask for fewer new tokens, or use a model with a longer window.",
            )
