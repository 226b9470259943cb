"""One run over a reading: when margins are due, which are kept, and what the run cost.

`wim_kernel.reading.Reading` puts the steps together that are here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from wim_kernel.cache.prefix_cache import PrefixCache
from wim_kernel.cache.volumes import VolumeLease
from wim_kernel.common.events import ChunkRead, MarginRevised, MarginsDone, MarginWritten
from wim_kernel.common.margins import Margin, Usage, WimResult
from wim_kernel.engines.base import AnyEngine
from wim_kernel.run.answer_writer import AnswerWriter
from wim_kernel.run.document import EncodedDocument
from wim_kernel.run.evidence_finder import EvidenceFinder
from wim_kernel.run.margin_writer import MarginWriter
from wim_kernel.run.options import fitting
from wim_kernel.run.relevance.calibration import Calibration
from wim_kernel.run.relevance.scores import BY_NAME, Evidence
from wim_kernel.run.request import Overflow, Request, Work
from wim_kernel.run.state import PendingMargin, QuestionState
from wim_kernel.run.stopwatch import Stopwatch
from wim_kernel.run.window import plan_volumes


class Run:
    """One run over a reading, for one question or several: what was read, what waits, and what it cost.

    Args:
        cache: where live prefixes are.
        document: what is read.
        request: what the caller wants.
        overflow: what becomes of a document that does not fit the window.
        calibration: how the model's signals are read.

    Raises:
        ContextOverflowError: if the document does not fit, and is not to be read in volumes, or a chunk alone does not.
    """

    def __init__(
        self,
        cache: PrefixCache,
        document: EncodedDocument,
        request: Request,
        overflow: Overflow,
        calibration: Callable[[], Calibration],
    ) -> None:
        self.engine: AnyEngine = cache.engine
        self.chunks = document.chunks
        self.tokens = document.tokens
        self.settings = fitting(request.settings, cache.engine, blank=request.blank)
        self.stream = request.stream
        self.states = [
            QuestionState(question, position) for position, question in enumerate(request.questions)
        ]
        self.watch = Stopwatch()
        self.read = 0
        self.waiting: list[PendingMargin] = []
        self.scored: list[PendingMargin] = []
        self._given = False
        volumes = plan_volumes(self.engine, document.tokens, self.settings, request.questions, overflow)
        if self.settings.answer_schema is not None:
            self.engine.check_schema(self.settings.answer_schema, self.settings.answer_config)
        self.lease = VolumeLease(cache, document.tokens, volumes)
        self.finder = EvidenceFinder(self.engine, self.lease, document, self.settings, calibration)
        self.writer = MarginWriter(self.finder)
        self._fresh = not self.lease.has(len(self.chunks) - 1)

    def close(self) -> None:
        """Give the cache back."""
        self.lease.close()

    # -- reading ------------------------------------------------------------------------------------------------------

    def read_chunk(self, index: int) -> Work[None]:
        """Read a chunk; its margins wait to be written."""
        ran, count = self.lease.prefilled[index], len(self.chunks)
        yield from self.watch.run("prefill", self.lease.read(index))
        self.read = index + 1
        cached = self.lease.prefilled[index] == ran
        yield ChunkRead(index, count, self.tokens.tokens(index + 1), self.tokens.tokens(count), cached)
        self.waiting += [PendingMargin(state, index) for state in self.states]

    def read_through(self, chunks: int) -> Work[None]:
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
        waiting = len(self.waiting) // len(self.states)
        if self.settings.margin_batch is not None:
            return waiting >= self.settings.margin_batch
        if self.engine.writes_as_it_reads and not self.lease.has(self.read):
            return True
        if self.settings.stop_when is None and (not self.stream or self.lease.has(self.read)):
            return False
        return (self.read == 1 and self._fresh) or waiting >= self.engine.margin_batch

    # -- margins ------------------------------------------------------------------------------------------------------

    def write_margins(self) -> Work[None]:
        """Write the margins that wait; with ``top_k``, only find out what can be known of them yet."""
        waiting, self.waiting = self.waiting, []
        if self.settings.top_k is None:
            yield from self._tell(self.writer.write(waiting))
            return
        self.scored += waiting
        work = self.writer.write(waiting) if self.settings.judges_notes else self.writer.score(waiting)
        for _ in self.watch.run("margins", work):
            yield None

    def write_best(self) -> Work[None]:
        """With ``top_k``, once nothing more is read: write the best, and leave the others empty."""
        if self.finder.searches:
            self.finder.weigh(self.scored)  # now that all passages are known
        best = [pending for state in self.states for pending in self._best(state)]
        for pending in best:
            pending.chosen = True
        rest = [pending for pending in self.scored if not any(pending is other for other in best)]
        for pending in rest:
            pending.dropped = True
        yield from self._tell(iter(rest))
        if self.settings.judges_notes:
            yield from self._tell(iter(best))
            return
        best.sort(key=lambda pending: pending.index)
        for _, batch in itertools.groupby(best, key=lambda pending: self.lease.volume_of(pending.index)):
            together = list(batch)
            yield from self.watch.run("prefill", self.lease.return_to(together[-1].index + 1))
            yield from self._tell(self.writer.write(together))

    def revise(self) -> Work[None]:
        """Once nothing more is read: weigh all chunks by all that is known now, and change the margins that change.

        A margin that is no longer relevant enough loses its note; one that now is gets one. What was told last of each
        margin is what it is in the end.
        """
        if not self.finder.revises:
            return
        batch = [
            PendingMargin(state, index)
            for state in self.states
            for index, margin in sorted(state.margins.items())
        ]
        self.finder.weigh(batch)
        waiting, verbatim = [], self.settings.margin_style == "verbatim"
        for pending in batch:
            before = pending.state.margins[pending.index]
            had_note = bool(before.text) or before.kept
            if self.writer.passes(pending) and (verbatim or not had_note):
                waiting.append(pending)  # what is quoted may be another, too, and costs no decoding
            elif had_note and self.writer.passes(pending):
                now = self.writer.margin(pending)
                margin = replace(
                    before, relevance=now.relevance, evidence={**before.evidence, **now.evidence}
                )
                yield from self._retell(margin, pending.state)
            else:
                yield from self._retell(self.writer.margin(pending), pending.state)
        for _, some in itertools.groupby(waiting, key=lambda pending: self.lease.volume_of(pending.index)):
            together = list(some)
            if self.settings.margin_style == "free":
                yield from self.watch.run("prefill", self.lease.return_to(together[-1].index + 1))
            for done in self.watch.run("margins", self.writer.write_found(together)):
                if done is None:
                    yield None
                    continue
                before = done.state.margins[done.index]
                if done.text == before.text:  # what the caller said of the note stands
                    evidence = {} if done.evidence is None else done.evidence.signals
                    relevance = done.relevance or 0.0
                    yield from self._retell(
                        replace(before, relevance=relevance, evidence=evidence), done.state
                    )
                else:
                    yield from self._retell(self.writer.margin(done), done.state)

    def _retell(self, margin: Margin, state: QuestionState) -> Work[None]:
        """Put a margin in the place of the one before it, and tell of it if it is another."""
        before = state.margins[margin.index]
        state.margins[margin.index] = margin
        if (margin, dict(margin.evidence)) != (before, dict(before.evidence)):
            yield MarginRevised(margin, state.position)

    def look_again(self) -> Work[None]:
        """Further rounds: look for evidence once more in the volume in hand, with what was found in the prompt."""
        if not self.finder.searches:
            return
        chunks = range(self.lease.volume_of(self.read - 1).start, self.read)
        for _ in range(1, self.settings.rounds):
            yield from self.watch.run("prefill", self.lease.return_to(self.read))
            for state in self.states:
                yield from self.watch.run("margins", self.finder.search_again(state, chunks))
            yield from self.revise()

    def _tell(self, work: Iterator[PendingMargin | None]) -> Work[None]:
        """Turn finished notes into margins."""
        for pending in self.watch.run("margins", work):
            if pending is None:
                yield None
                continue
            margin = self.writer.margin(pending)
            pending.state.margins[pending.index] = margin
            if self.watch.first_margin is None:
                self.watch.first_margin = self.watch.since_start()
            yield MarginWritten(margin, pending.state.position)

    def _best(self, state: QuestionState) -> list[PendingMargin]:
        mine = [pending for pending in self.scored if pending.state is state]
        mine = [pending for pending in mine if (pending.relevance or 0.0) >= (self.settings.threshold or 0.0)]
        mine.sort(key=lambda pending: (-(pending.relevance or 0.0), pending.index))
        return sorted(mine[: self.settings.top_k], key=lambda pending: pending.index)

    def has_enough(self) -> Work[bool]:
        """Whether every question's caller says that enough was read. Margins not yet written show their relevance."""
        stop = self.settings.stop_when
        if stop is None:
            return False
        if isinstance(stop, str):
            return (yield from self.watch.run("margins", self.finder.has_enough(self.states, self.read)))
        shown = {id(state): list(state.in_order) for state in self.states}
        for pending in self.scored:
            shown[id(pending.state)].append(self.writer.margin(pending))
        return all([stop(margins) for margins in shown.values()])

    def take(self, margins: Iterable[Margin]) -> None:
        """Margins that were written before, as a person left them."""
        (state,) = self.states
        state.given = list(margins)
        self._given = True

    def score(self) -> Work[list[tuple[Evidence, float]]]:
        """What is known of every chunk, in order, and its relevance; nothing is written."""
        scored: list[PendingMargin] = []
        for index in range(len(self.chunks)):
            yield from self.read_chunk(index)
            if self.lease.ends_volume(index):
                waiting, self.waiting = self.waiting, []
                yield from self.watch.run("margins", self.writer.score(waiting))
                scored += waiting
        if self.finder.searches and not self.settings.measures_boundaries:
            self.finder.weigh(scored)
        return [
            (pending.evidence, pending.relevance or 0.0) for pending in scored if pending.evidence is not None
        ]

    @property
    def written(self) -> tuple[tuple[Margin, ...], ...]:
        """Each question's margins so far, in chunk order: those written, or those that were handed in."""
        return tuple(tuple(each.given if self._given else each.in_order) for each in self.states)

    def noted(self) -> MarginsDone:
        """What the margins of a call without answers came to."""
        (state,) = self.states
        return MarginsDone(tuple(state.in_order), self.usage(0), self.watch.timings(), self.read)

    # -- the answer ---------------------------------------------------------------------------------------------------

    def write_answers(self) -> Work[None]:
        """Answer every question from its margins, or from those that were handed in."""
        for state in self.states:
            state.given = state.given if self._given else state.in_order
        writer = AnswerWriter(self.engine, self.lease, self.settings, self.watch)
        yield from writer.write(self.states, self.read)

    def results(self) -> list[WimResult]:
        """What every question came to."""
        results = []
        for position, state in enumerate(self.states):
            answer = state.answer
            assert answer is not None, "answers are written before results are asked for"
            results.append(
                WimResult(
                    answer=answer.text,
                    margins=tuple(state.given),
                    usage=self.usage(position),
                    timings=self.watch.timings(),
                    stopped_early=self.read < len(self.chunks),
                    volumes=len(self.lease.volumes),
                    question=state.question,
                    relevance_by=self._relevance_by,
                    token_ids=answer.token_ids,
                    branch=self.lease.record(state.stands_on, answer.suffix_ids),
                )
            )
        return results

    def usage(self, position: int) -> Usage:
        """What a question cost; prefill is put down to the first."""
        state, first = self.states[position], position == 0
        head, prefilled = self.lease.prefilled_head, sum(self.lease.prefilled)
        sizes = [self.tokens.size(chunk) for chunk in range(self.read)]
        found = [max(0, size - ran) for size, ran in zip(sizes, self.lease.prefilled, strict=False)]
        cached = max(0, (sum(found) if first else sum(sizes)) - state.recomputed)
        return Usage(
            prefill_tokens=(prefilled if first else 0) + state.recomputed,
            cached_tokens=cached if self.engine.reports_cached else None,
            prompt_tokens=state.prompt_tokens + (head if first else 0),
            output_tokens=state.output_tokens,
        )

    @property
    def _relevance_by(self) -> str:
        """What relevance was taken from."""
        relevance = self.settings.relevance
        name = next((name for name, known in BY_NAME.items() if known == relevance), "the caller's own")
        return f"{name}, by the {self.engine.decides_by}" if self.settings.asks != "nothing" else name
