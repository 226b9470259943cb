"""One call on a reading: its questions, its lease of the cache, its settings and what it cost.

The steps here are what `wim_kernel.kernel.Reading` puts together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from wim_kernel.cache.prefix_cache import PrefixCache
from wim_kernel.cache.volumes import VolumeLease, capacity, divide
from wim_kernel.common.errors import ContextOverflowError
from wim_kernel.common.events import AnswerToken, ChunkRead, Event, MarginRevised, MarginsDone, MarginWritten
from wim_kernel.common.margins import Margin, Usage, WimResult
from wim_kernel.engines.base import AnyEngine
from wim_kernel.run.answer_prompt import all_fit, answer_branch, branch_end
from wim_kernel.run.decoding import decode_all
from wim_kernel.run.document import EncodedDocument
from wim_kernel.run.margin_writer import Inquiry, MarginWriter, Place, judging_branch, note_branch
from wim_kernel.run.options import Options, Settings, fitting, settle
from wim_kernel.run.relevance.calibration import Calibration
from wim_kernel.run.relevance.scores import BY_NAME, Evidence, QuestionLikelihood
from wim_kernel.run.stopwatch import Stopwatch

Result = TypeVar("Result")
Overflow = Literal["volumes", "error"]
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
        blank: whether there is no question to look for.
    """

    questions: tuple[str, ...]
    settings: Settings
    stream: bool = False
    blank: bool = False


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
    searches = getattr(settings.relevance, "searches", ())
    if (
        blank
        and settings.top_k is not None
        and (searches or isinstance(settings.relevance, QuestionLikelihood))
    ):
        raise ValueError(
            "top_k ranks by the question, and there is none: use relevance='decision' or a callable."
        )
    return Asked(tuple(questions), settings, stream, blank)


class Call:
    """The state of one call.

    Args:
        cache: where live prefixes are.
        document: what is read.
        ask: what the caller wants.
        overflow: what becomes of a document that does not fit the window.
        calibration: how the model's signals are read.

    Raises:
        ContextOverflowError: if the document does not fit, and is not to be read in volumes, or a chunk alone does not.
    """

    def __init__(
        self,
        cache: PrefixCache,
        document: EncodedDocument,
        ask: Asked,
        overflow: Overflow,
        calibration: Callable[[], Calibration],
    ) -> None:
        self.engine: AnyEngine = cache.engine
        self.chunks = document.chunks
        self.tokens = document.tokens
        self.settings = fitting(ask.settings, cache.engine, blank=ask.blank)
        self.stream = ask.stream
        self.inquiries = [Inquiry(question, position) for position, question in enumerate(ask.questions)]
        self.watch = Stopwatch()
        self.read = 0
        self.waiting: list[Place] = []
        self.scored: list[Place] = []
        self._given = False
        volumes = self._volumes(overflow)
        if self.settings.answer_schema is not None:
            self.engine.check_schema(self.settings.answer_schema, self.settings.answer_config)
        self.lease = VolumeLease(cache, document.tokens, volumes)
        self.writer = MarginWriter(self.engine, self.lease, document, self.settings, calibration)
        self._fresh = not self.lease.has(len(self.chunks) - 1)

    def close(self) -> None:
        """Give the cache back."""
        self.lease.close()

    # -- reading ------------------------------------------------------------------------------------------------------

    def read_chunk(self, index: int) -> Steps[None]:
        """Read a chunk; its margins wait to be written."""
        ran, count = self.lease.prefilled[index], len(self.chunks)
        yield from self.watch.run("prefill", self.lease.read(index))
        self.read = index + 1
        cached = self.lease.prefilled[index] == ran
        yield ChunkRead(index, count, self.tokens.tokens(index + 1), self.tokens.tokens(count), cached)
        self.waiting += [Place(inquiry, index) for inquiry in self.inquiries]

    def read_through(self, chunks: int) -> Steps[None]:
        """Read the first ``chunks`` chunks, or those of them that are in the last one's volume."""
        for index in range(self.lease.volume_of(chunks - 1).start, chunks):
            yield from self.read_chunk(index)

    def margins_are_due(self) -> bool:
        """Whether to write what waits now, or to read on and write more margins together.

        At a volume's end in any case. Before it only for somebody who waits: for a stream, or to stop early. Then
        the first margin is written at once and later ones a few together, but none waits for a chunk that takes work
        while enough others wait with it.
        """
        if self.lease.ends_volume(self.read - 1):
            return True
        waiting = len(self.waiting) // len(self.inquiries)
        if self.settings.margin_batch is not None:
            return waiting >= self.settings.margin_batch
        if self.engine.writes_as_it_reads and not self.lease.has(self.read):
            return True
        if self.settings.stop_when is None and (not self.stream or self.lease.has(self.read)):
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
        if self.writer.searches:
            self.writer.weigh(self.scored)  # now that all passages are known
        best = [place for inquiry in self.inquiries for place in self._best(inquiry)]
        for place in best:
            place.chosen = True
        rest = [place for place in self.scored if not any(place is other for other in best)]
        for place in rest:
            place.dropped = True
        yield from self._tell(iter(rest))
        if self._after_notes:
            yield from self._tell(iter(best))
            return
        best.sort(key=lambda place: place.index)
        for _, places in itertools.groupby(best, key=lambda place: self.lease.volume_of(place.index)):
            together = list(places)
            yield from self.watch.run("prefill", self.lease.return_to(together[-1].index + 1))
            yield from self._tell(self.writer.write(together))

    def revise(self) -> Steps[None]:
        """Once nothing more is read: weigh all chunks by all that is known now, and change the margins that change.

        A margin that is no longer relevant enough loses its note; one that now is gets one. What was told last of each
        margin is what it is in the end.
        """
        if not self.writer.revises:
            return
        places = [
            Place(inquiry, index)
            for inquiry in self.inquiries
            for index, margin in sorted(inquiry.margins.items())
        ]
        self.writer.weigh(places)
        waiting, verbatim = [], self.settings.margin_style == "verbatim"
        for place in places:
            before = place.inquiry.margins[place.index]
            had_note = bool(before.text) or before.kept
            if self.writer.passes(place) and (verbatim or not had_note):
                waiting.append(place)  # what is quoted may be another, too, and costs no decoding
            elif had_note and self.writer.passes(place):
                now = self.writer.margin(place)
                margin = replace(
                    before, relevance=now.relevance, evidence={**before.evidence, **now.evidence}
                )
                yield from self._retell(margin, place.inquiry)
            else:
                yield from self._retell(self.writer.margin(place), place.inquiry)
        for _, some in itertools.groupby(waiting, key=lambda place: self.lease.volume_of(place.index)):
            together = list(some)
            if self.settings.margin_style == "free":
                yield from self.watch.run("prefill", self.lease.return_to(together[-1].index + 1))
            for done in self.watch.run("margins", self.writer.write_found(together)):
                if done is None:
                    yield None
                    continue
                before = done.inquiry.margins[done.index]
                if done.text == before.text:  # what the caller said of the note stands
                    evidence = {} if done.evidence is None else done.evidence.signals
                    relevance = done.relevance or 0.0
                    yield from self._retell(
                        replace(before, relevance=relevance, evidence=evidence), done.inquiry
                    )
                else:
                    yield from self._retell(self.writer.margin(done), done.inquiry)

    def _retell(self, margin: Margin, inquiry: Inquiry) -> Steps[None]:
        """Put a margin in the place of the one before it, and tell of it if it is another."""
        before = inquiry.margins[margin.index]
        inquiry.margins[margin.index] = margin
        if (margin, dict(margin.evidence)) != (before, dict(before.evidence)):
            yield MarginRevised(margin, inquiry.position)

    def look_again(self) -> Steps[None]:
        """Further rounds: look for evidence once more in the volume in hand, with what was found in the prompt."""
        if not self.writer.searches:
            return
        chunks = range(self.lease.volume_of(self.read - 1).start, self.read)
        for _ in range(1, self.settings.rounds):
            yield from self.watch.run("prefill", self.lease.return_to(self.read))
            for inquiry in self.inquiries:
                yield from self.watch.run("margins", self.writer.search_again(inquiry, chunks))
            yield from self.revise()

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
        mine = [place for place in mine if (place.relevance or 0.0) >= (self.settings.threshold or 0.0)]
        mine.sort(key=lambda place: (-(place.relevance or 0.0), place.index))
        return sorted(mine[: self.settings.top_k], key=lambda place: place.index)

    def has_enough(self) -> Steps[bool]:
        """Whether every question's caller says that enough was read. Margins not yet written show their relevance."""
        stop = self.settings.stop_when
        if stop is None:
            return False
        if isinstance(stop, str):
            return (yield from self.watch.run("margins", self.writer.has_enough(self.inquiries, self.read)))
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
        """What is known of every chunk, in order, and its relevance; nothing is written."""
        scored: list[Place] = []
        for index in range(len(self.chunks)):
            yield from self.read_chunk(index)
            if self.lease.ends_volume(index):
                waiting, self.waiting = self.waiting, []
                yield from self.watch.run("margins", self.writer.score(waiting))
                scored += waiting
        if self.writer.searches and not self.settings.measures_boundaries:
            self.writer.weigh(scored)
        return [(place.evidence, place.relevance or 0.0) for place in scored if place.evidence is not None]

    @property
    def written(self) -> tuple[tuple[Margin, ...], ...]:
        """Each question's margins so far, in chunk order: those written, or those that were handed in."""
        return tuple(tuple(each.given if self._given else each.in_order) for each in self.inquiries)

    def noted(self) -> MarginsDone:
        """What the margins of a call without answers came to."""
        (inquiry,) = self.inquiries
        return MarginsDone(tuple(inquiry.in_order), self.usage(0), self.watch.timings(), self.read)

    # -- the answer ---------------------------------------------------------------------------------------------------

    def write_answers(self) -> Steps[None]:
        """One branch a question behind the last chunk read, or behind the volume that matters most to it."""
        for inquiry in self.inquiries:
            inquiry.given = inquiry.given if self._given else inquiry.in_order
            inquiry.stands_on = self._stands_on(inquiry)
        last_first = sorted(self.inquiries, key=lambda inquiry: -inquiry.stands_on)
        for chunks, inquiries in itertools.groupby(last_first, key=lambda inquiry: inquiry.stands_on):
            yield from self.watch.run("prefill", self.lease.return_to(chunks))
            yield from self.watch.run("answer", self._decode_answers(list(inquiries)))

    def _stands_on(self, inquiry: Inquiry) -> int:
        """Behind how many chunks a question is answered. The last volume has most room, if the notes want it."""
        margins = [margin for margin in inquiry.given if margin.kept]
        if self.settings.answer_volume == "last" or not margins:
            return self.read
        best = max(margins, key=lambda margin: (margin.relevance, margin.index))
        stop = min(self.lease.volume_of(best.index).stop, self.read)
        at = self.lease.end(stop)
        return stop if all_fit(self.engine, at, inquiry.question, margins, self.settings) else self.read

    def _decode_answers(self, inquiries: Sequence[Inquiry]) -> Iterator[Tick]:
        branches, relieve = [], self.lease.cache.make_way
        for inquiry in inquiries:
            at, given = self.lease.end(inquiry.stands_on), inquiry.given
            branch, inquiry.given = answer_branch(self.engine, at, inquiry.question, given, self.settings)
            branches.append(branch)
        for step in decode_all(self.engine, self.lease.prefix, branches, relieve=relieve):
            yield None
            for progress in step:
                inquiry = inquiries[progress.branch]
                if progress.text:
                    if self.watch.first_token is None:
                        self.watch.first_token = self.watch.since_start()
                    yield AnswerToken(progress.text, inquiry.position)
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
                    volumes=len(self.lease.volumes),
                    question=inquiry.question,
                    relevance_by=self._relevance_by,
                    token_ids=answer.token_ids,
                    branch=self.lease.record(inquiry.stands_on, answer.suffix_ids),
                )
            )
        return results

    def usage(self, position: int) -> Usage:
        """What a question cost; prefill is put down to the first."""
        inquiry, first = self.inquiries[position], position == 0
        head, prefilled = self.lease.prefilled_head, sum(self.lease.prefilled)
        sizes = [self.tokens.size(chunk) for chunk in range(self.read)]
        found = [max(0, size - ran) for size, ran in zip(sizes, self.lease.prefilled, strict=False)]
        cached = max(0, (sum(found) if first else sum(sizes)) - inquiry.recomputed)
        return Usage(
            prefill_tokens=(prefilled if first else 0) + inquiry.recomputed,
            cached_tokens=cached if self.engine.says_cached else None,
            prompt_tokens=inquiry.prompt_tokens + (head if first else 0),
            output_tokens=inquiry.output_tokens,
        )

    @property
    def _relevance_by(self) -> str:
        """What relevance was taken from."""
        relevance = self.settings.relevance
        name = next((name for name, known in BY_NAME.items() if known == relevance), "the caller's own")
        return f"{name}, by the {self.engine.decides_by}" if self.settings.asks != "nothing" else name

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _volumes(self, overflow: Overflow) -> list[range]:
        """Which chunks are read in which window, with room behind each for the longest branch."""
        window, count = self.engine.window, len(self.chunks)
        if window is None:
            return [range(count)]
        tokens, head, need = self.tokens.tokens(count), len(self.tokens.head), self._need()
        fits = window - head - need
        if tokens <= fits:
            return [range(count)]
        room = min(fits, capacity(window, head, need))
        if room < 1:
            advice = "Ask a shorter question or for fewer new tokens, or use a model with a longer window."
            raise ContextOverflowError("What is asked, with its prompts,", head + need, window - 1, advice)
        sizes = list(map(len, self.tokens.chunks))
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

    def _need(self) -> int:
        """Tokens that the longest branch takes behind a volume, before any note is known."""
        need = 0
        for inquiry in self.inquiries:
            answer, _ = answer_branch(self.engine, 0, inquiry.question, [], self.settings)
            branches = [answer, note_branch(0, inquiry.question, self.settings)]
            if self._after_notes:
                branches.append(judging_branch(0, inquiry.question, "", self.settings))
            need = max(need, *(branch_end(self.engine, branch) for branch in branches))
        if self._after_notes:
            need += self.settings.margin_config.max_new_tokens or 0
        return need
