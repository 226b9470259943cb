"""One run over a reading: when margins are due, which are kept, and what the run cost.

`wim_kernel.reading.Reading` calls the steps in the algorithm's order.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from wim_kernel.cache.prefix_cache import PrefixCache
from wim_kernel.cache.volumes import VolumeLease
from wim_kernel.common.events import ChunkRead, MarginsDone, MarginWritten
from wim_kernel.common.margins import Margin, Usage, WimResult
from wim_kernel.engines.base import AnyEngine
from wim_kernel.run.answer_prompt import used
from wim_kernel.run.answer_writer import AnswerWriter
from wim_kernel.run.citing import citations_of
from wim_kernel.run.document import EncodedDocument
from wim_kernel.run.evidence_finder import EvidenceFinder
from wim_kernel.run.margin_writer import MarginWriter
from wim_kernel.run.relevance.calibration import Calibration
from wim_kernel.run.relevance.scores import BY_NAME, Evidence
from wim_kernel.run.request import Overflow, Request, Work
from wim_kernel.run.revision import MarginReviser
from wim_kernel.run.settings import adapt_to_engine
from wim_kernel.run.state import PendingMargin, QuestionState
from wim_kernel.run.stopwatch import Stopwatch
from wim_kernel.run.window import plan_volumes


class Run:
    """One run over a reading, for one question or several.

    Args:
        cache: the kernel's prefix cache.
        document: the encoded document.
        request: the questions and settings of the call.
        overflow: what to do with a document that does not fit the window.
        calibration: a callback that returns the model's calibration.

    Attributes:
        states: the state of each question.
        chunks_read: how many chunks were read.
        pending: margins whose chunks were read and that are neither scored nor written.
        scored: with ``top_k``, margins that were scored and wait for the choice.

    Raises:
        ContextOverflowError: if the document does not fit the window and ``overflow`` forbids volumes, or if a single
            chunk does not fit.
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
        self.document = document
        self.chunks = document.chunks
        self.tokens = document.tokens
        self.settings = adapt_to_engine(
            request.settings, cache.engine, without_question=request.without_question
        )
        self.stream = request.stream
        self.states = [
            QuestionState(question, position) for position, question in enumerate(request.questions)
        ]
        self.stopwatch = Stopwatch()
        self.chunks_read = 0
        self.pending: list[PendingMargin] = []
        self.scored: list[PendingMargin] = []
        self._has_given_margins = False
        self._settled: int | None = None  # tokens that were run at the ends of volumes, if any was settled
        volumes = plan_volumes(self.engine, document.tokens, self.settings, request.questions, overflow)
        if self.settings.answer_schema is not None:
            self.engine.check_schema(self.settings.answer_schema, self.settings.answer_config)
        self.lease = VolumeLease(cache, document.tokens, volumes)
        self.finder = EvidenceFinder(self.engine, self.lease, document, self.settings, calibration)
        self.writer = MarginWriter(self.finder)
        self.reviser = MarginReviser(self.finder, self.writer, self.stopwatch)
        self._was_unread = not self.lease.has(len(self.chunks) - 1)

    def close(self) -> None:
        """Release the prefix."""
        self.lease.close()

    # -- reading ------------------------------------------------------------------------------------------------------

    def read_chunk(self, index: int, last: int | None = None) -> Work[None]:
        """Prefill a chunk, unless it is cached, and queue its margins.

        Args:
            index: the chunk.
            last: the last chunk that will be read for certain; by default the document's. Where nobody waits for
                margins, short chunks up to there are prefilled together.
        """
        count = len(self.chunks)
        stop = self.lease.volume_of(index).stop
        last = index if self._stops_at_chunks else min(stop - 1, count - 1 if last is None else last)
        yield from self.stopwatch.run("prefill", self.lease.read(index, last))
        self.chunks_read = index + 1
        cached = not self.lease.has_prefilled(index)
        if self.settings.rates:  # nothing is run here: what counts is the provider's cache
            cached = self.engine.holds(self.lease.prefix, self.lease.end(index + 1))
        yield ChunkRead(index, count, self.tokens.tokens(index + 1), self.tokens.tokens(count), cached)
        self.pending += [PendingMargin(state, index) for state in self.states]

    @property
    def _stops_at_chunks(self) -> bool:
        """Whether margins may be due behind any chunk, so that no block should reach beyond it."""
        settings = self.settings
        return (
            self.stream
            or settings.stop_when is not None
            or settings.margin_batch is not None
            or not self.engine.joins_chunks
        )

    def read_through(self, chunks: int) -> Work[None]:
        """Read the first ``chunks`` chunks; of a document in volumes, only those in the last chunk's volume."""
        for index in range(self.lease.volume_of(chunks - 1).start, chunks):
            yield from self.read_chunk(index, chunks - 1)

    def settle(self) -> Work[None]:
        """At a volume's end, run the chunks that the engine would leave to the first branch that needs them."""
        if self.lease.ends_volume(self.chunks_read - 1):
            self._settled = (self._settled or 0) + self.engine.settle(self.lease.prefix)
        yield None

    def margins_are_due(self) -> bool:
        """Whether to write the pending margins now; otherwise read on, and write more margins in one batch.

        At a volume's end they are always due. Before it they are due only if somebody waits for margins: a stream's
        consumer or a stop rule. Then the first margin is written at once and later ones in batches of the engine's
        size, and no full batch waits for a chunk that has to be prefilled.
        """
        if self.lease.ends_volume(self.chunks_read - 1):
            return True
        pending_chunks = len(self.pending) // len(self.states)
        if self.settings.margin_batch is not None:
            return pending_chunks >= self.settings.margin_batch
        if self.engine.writes_as_it_reads and not self.lease.has(self.chunks_read):
            return True
        if self.settings.stop_when is None and (not self.stream or self.lease.has(self.chunks_read)):
            return False
        return (self.chunks_read == 1 and self._was_unread) or pending_chunks >= self.engine.margin_batch

    # -- margins ------------------------------------------------------------------------------------------------------

    def score_and_note(self) -> Work[None]:
        """Score the pending chunks and write the notes of the relevant ones; with ``top_k``, only score."""
        batch, self.pending = self.pending, []
        if self.settings.top_k is None:
            return self._emit(self._in_order(self.writer.write(batch), batch))
        self.scored += batch
        return self.stopwatch.run("margins", self.writer.score(batch))

    def has_enough(self) -> Work[bool]:
        """Whether the stop rule holds for every question. Margins that are only scored are shown to it without text."""
        stop = self.settings.stop_when
        if stop is None:
            return False
        if isinstance(stop, str):
            asking = self.finder.has_enough(self.states, self.chunks_read)
            return (yield from self.stopwatch.run("margins", asking))
        shown = {id(state): list(state.in_order) for state in self.states}
        for pending in self.scored:
            shown[id(pending.state)].append(self.writer.margin(pending))
        return all([stop(margins) for margins in shown.values()])

    def revise_margins(self) -> Work[None]:
        """Score all chunks by all passages read, and replace the margins that change."""
        return self.reviser.revise(self.states)

    def search_again(self) -> Work[None]:
        """Run the further rounds that ``rounds`` asks for."""
        return self.reviser.search_again(self.states, self.chunks_read)

    def note_top_k(self) -> Work[None]:
        """With ``top_k``: write the notes of the most relevant chunks, and leave the other margins empty."""
        if self.finder.searches:
            self.finder.score_from_findings(self.scored)  # by all passages, which are known only now
        best = [pending for state in self.states for pending in self._top_k(state)]
        for pending in best:
            pending.chosen = True
        rest = [pending for pending in self.scored if not any(pending is other for other in best)]
        for pending in rest:
            pending.dropped = True
        yield from self._emit(iter(rest))
        if self.settings.notes_while_scoring:
            yield from self._emit(iter(best))
            return
        best.sort(key=lambda pending: pending.index)
        for _, group in itertools.groupby(best, key=lambda pending: self.lease.volume_of(pending.index)):
            batch = list(group)
            yield from self.stopwatch.run("prefill", self.lease.return_to(batch[-1].index + 1))
            yield from self._emit(self._in_order(self.writer.write(batch), batch))

    def _top_k(self, state: QuestionState) -> list[PendingMargin]:
        """A question's most relevant margins at or over the threshold, in chunk order."""
        threshold = self.settings.threshold or 0.0
        own = [pending for pending in self.scored if pending.state is state and not pending.dropped]
        own = [pending for pending in own if (pending.relevance or 0.0) >= threshold]
        own.sort(key=lambda pending: (-(pending.relevance or 0.0), pending.index))
        return sorted(own[: self.settings.top_k], key=lambda pending: pending.index)

    def _in_order(
        self, work: Iterator[PendingMargin | None], batch: Sequence[PendingMargin]
    ) -> Iterator[PendingMargin | None]:
        """Finished margins, in the batch's order if ``keep`` is set.

        A callback that interrupts a graph is called again when the graph goes on, and has to be called in the same
        order, whichever request of a server ends first.
        """
        if self.settings.keep is None:
            yield from work
            return
        finished, waiting = set[PendingMargin](), deque(batch)
        for pending in work:
            if pending is None:
                yield None
                continue
            finished.add(pending)
            while waiting and waiting[0] in finished:
                yield waiting.popleft()

    def _emit(self, work: Iterator[PendingMargin | None]) -> Work[None]:
        """Make a margin of each finished note, record it, and emit `MarginWritten`."""
        for pending in self.stopwatch.run("margins", work):
            if pending is None:
                yield None
                continue
            margin = self.writer.margin(pending)
            pending.state.margins[pending.index] = margin
            if self.stopwatch.first_margin is None:
                self.stopwatch.first_margin = self.stopwatch.since_start()
            yield MarginWritten(margin, pending.state.position)

    def score_all(self) -> Work[list[tuple[Evidence, float]]]:
        """Read the whole document, and return every chunk's evidence and relevance, in order; no notes are written."""
        scored: list[PendingMargin] = []
        for index in range(len(self.chunks)):
            yield from self.read_chunk(index)
            if self.lease.ends_volume(index):
                batch, self.pending = self.pending, []
                yield from self.stopwatch.run("margins", self.writer.score(batch))
                scored += batch
        if self.finder.searches and not self.settings.measures_boundaries:
            self.finder.score_from_findings(scored)
        return [
            (pending.evidence, pending.relevance or 0.0) for pending in scored if pending.evidence is not None
        ]

    @property
    def margins_by_question(self) -> tuple[tuple[Margin, ...], ...]:
        """Each question's margins so far, in chunk order: the margins written, or the margins given by the caller."""
        return tuple(
            tuple(state.answer_margins if self._has_given_margins else state.in_order)
            for state in self.states
        )

    def margins_done(self) -> MarginsDone:
        """The last event of a run without an answer."""
        (state,) = self.states
        return MarginsDone(tuple(state.in_order), self.usage(0), self.stopwatch.timings(), self.chunks_read)

    # -- the answer ---------------------------------------------------------------------------------------------------

    def use_margins(self, margins: Iterable[Margin]) -> None:
        """Answer from these margins, which the caller gave, in place of margins written in this run."""
        (state,) = self.states
        state.answer_margins = list(margins)
        self._has_given_margins = True

    def answer(self) -> Work[None]:
        """Answer every question from its margins."""
        for state in self.states:
            state.answer_margins = state.answer_margins if self._has_given_margins else state.in_order
        writer = AnswerWriter(self.engine, self.lease, self.settings, self.stopwatch)
        return writer.write(self.states, self.chunks_read)

    def results(self) -> list[WimResult]:
        """Every question's result."""
        results = []
        for position, state in enumerate(self.states):
            answer = state.answer
            assert answer is not None, "results are made after `answer`"
            results.append(
                WimResult(
                    answer=answer.text,
                    margins=tuple(state.answer_margins),
                    usage=self.usage(position),
                    timings=self.stopwatch.timings(),
                    stopped_early=self.chunks_read < len(self.chunks),
                    volumes=len(self.lease.volumes),
                    question=state.question,
                    relevance_by=self._relevance_by,
                    citations=citations_of(answer.text, used(state.answer_margins)) if state.markers else (),
                    dropped_markers=state.markers.dropped if state.markers else 0,
                    token_ids=answer.token_ids,
                    branch=self.lease.record(state.answer_boundary, answer.suffix_ids),
                )
            )
        return results

    def usage(self, position: int) -> Usage:
        """The tokens that a question cost; the first question bears the prefill."""
        state, sizes = self.states[position], [self.tokens.size(chunk) for chunk in range(self.chunks_read)]
        if self.settings.rates:  # a chat model's requests are billed one by one
            return state.billed
        ran, head = self._prefilled() if position == 0 else (0, 0)
        again, unread = max(0, state.recomputed), self._unread()
        return Usage(
            prefill_tokens=ran + again,
            cached_tokens=max(0, sum(sizes) - ran - again - unread) if self.engine.reports_cached else None,
            prompt_tokens=state.prompt_tokens + head,
            output_tokens=state.output_tokens,
        )

    def _prefilled(self) -> tuple[int, int]:
        """How many tokens were run of the document and of the head."""
        ran, head = self.lease.prefilled, self.lease.prefilled_head
        if not self.engine.reads_on_demand:
            return ran, head
        size = sum(self.tokens.size(chunk) for chunk in range(self.chunks_read))
        needed = sum(state.prefilled for state in self.states)
        ran = min(max(0, needed - head), size)
        head = needed - ran
        # A server that had more in its cache than was counted had the head first, then the document.
        had = -sum(min(0, state.recomputed) for state in self.states)
        ran, head = max(0, ran - max(0, had - head)), max(0, head - had)
        if self._settled is not None:
            more = min(self._settled, size - ran)
            ran, head = ran + more, head + self._settled - more
        return ran, head

    def _unread(self) -> int:
        """How many of the tokens of chunks read have never been run, because no branch has needed them."""
        if not self.engine.reads_on_demand or not self.chunks_read:
            return 0
        first = self.lease.volume_of(self.chunks_read - 1).start
        begin, end = self.lease.begin(first), self.lease.end(self.chunks_read)
        return max(0, end - max(begin, self.engine.tokens_read(self.lease.prefix)))

    @property
    def _relevance_by(self) -> str:
        """The name of the relevance score, for `WimResult.relevance_by`."""
        relevance = self.settings.relevance
        name = next((name for name, known in BY_NAME.items() if known == relevance), "the caller's own")
        return f"{name}, by the {self.engine.decides_by}" if self.settings.asks != "nothing" else name
