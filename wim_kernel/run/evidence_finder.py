"""Evidence: the search for it in the chunks read, further rounds of the search, and whether the notes suffice."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace

from wim_kernel.cache.volumes import VolumeLease
from wim_kernel.common.errors import OptionError
from wim_kernel.common.margins import Margin
from wim_kernel.common.plain_data import shown
from wim_kernel.engines.base import AnyEngine, Branch, Decoded
from wim_kernel.run.answer_prompt import branch_end
from wim_kernel.run.decoding import decode_all
from wim_kernel.run.document import EncodedDocument
from wim_kernel.run.margin_prompts import question_lead
from wim_kernel.run.relevance.calibration import Calibration
from wim_kernel.run.relevance.findings import Findings
from wim_kernel.run.relevance.scores import FIRST_LOOK, Evidence, LexicalDecision
from wim_kernel.run.relevance.search import EvidenceSearch
from wim_kernel.run.settings import Settings
from wim_kernel.run.state import PendingMargin, QuestionState
from wim_kernel.text.prompts import fill

NOTES_PER_ROUND = 3  # most notes of a round that go into the next round's prompt


class EvidenceFinder:
    """Finds evidence on branches of a reading, and scores chunks by it.

    Args:
        engine: the engine that decodes the branches.
        lease: the lease of the reading. All chunks of one batch are in its current volume.
        document: the encoded document.
        settings: the run's settings.
        calibration: a callback that returns the model's calibration; called only if passages are searched.

    Attributes:
        searches: whether passages are searched at all.
        revises: whether relevance is computed again once the last chunk is read.
    """

    def __init__(
        self,
        engine: AnyEngine,
        lease: VolumeLease,
        document: EncodedDocument,
        settings: Settings,
        calibration: Callable[[], Calibration],
    ) -> None:
        self.engine = engine
        self.lease = lease
        self.document = document
        self.settings = settings
        self._calibration = calibration
        self.searches = bool(settings.signals)
        self.revises = self.searches and not settings.measures_boundaries and settings.top_k is None

    @property
    def calibration(self) -> Calibration:
        """The model's calibration. The first access may run the calibration, which takes up to a minute."""
        return self._calibration()

    def search(self, batch: Sequence[PendingMargin]) -> Iterator[None]:
        """Search the chunks read so far in the volume of ``batch``, and score the batch by what was found."""
        states = list(
            {id(pending.state): pending.state for pending in batch if pending.state.question}.values()
        )
        if self.searches and states:
            signals = self._signals(self.calibration)
            search = self._evidence_search(signals)
            for state in states:
                state.findings = state.findings or Findings.of(search.document, state.question)
            last = max(pending.index for pending in batch)
            chunks = range(self.lease.volume_of(last).start, last + 1)
            if not search.heads:  # then no signal depends on what was read
                chunks = range(len(self.document.chunks))
            if "attention" in signals and not search.reads_each_alone:
                begins = [self.lease.begin(chunk) for chunk in chunks]
                yield from search.attend(states, begins, chunks, self.lease.end(last + 1))
            if "passage" in signals or ("attention" in signals and search.reads_each_alone):
                yield from search.read_alone(states, chunks)
        if self.searches or not self.settings.measures_boundaries:
            self.score_from_findings(batch)

    def _signals(self, calibration: Calibration) -> tuple[str, ...]:
        """The signals to measure. Without a calibration: shared words alone, unless the caller asks for one signal."""
        signals = self.settings.signals
        return signals if calibration.is_found or len(signals) == 1 else ("lexical",)

    def score_from_findings(self, batch: Sequence[PendingMargin]) -> None:
        """Set ``pending.evidence``, and ``pending.relevance`` unless relevance is measured at boundaries."""
        for pending in batch:
            findings, chunk = pending.state.findings, self.document.chunks[pending.index]
            if findings is None:
                pending.evidence = Evidence(pending.state.question, chunk)
            else:
                pending.state.scored_at[pending.index] = findings.changes
                pending.evidence = findings.evidence(
                    pending.state.question, chunk, pending.index, self.calibration
                )
                best = findings.best_of(pending.index, self.calibration)
                if best in findings.seen:
                    boundary, suffix_ids = findings.seen[best]
                    pending.branch = self.lease.record(boundary, suffix_ids)
            if not self.settings.measures_boundaries:
                pending.relevance = self.relevance(pending.evidence)

    def may_matter(self, pending: PendingMargin) -> bool:
        """Whether to ask the model about a chunk: not if a first look at shared words makes evidence too improbable."""
        if not isinstance(self.settings.relevance, LexicalDecision) or not pending.state.question:
            return True
        assert pending.state.findings is not None, "chunks are searched before the model is asked about them"
        bound = pending.state.findings.bound_of(pending.index, self.calibration)
        return bound >= min(FIRST_LOOK, self.settings.threshold or 0.0)

    def search_again(self, state: QuestionState, chunks: range) -> Iterator[None]:
        """Search a volume once more, with the most relevant notes in the question's prompt.

        Args:
            state: the question's state.
            chunks: the volume's chunks that were read.
        """
        question, at = question_lead(state.question, self.settings)[0], self.lease.end(chunks.stop)

        def with_notes(notes: str) -> Branch:
            return Branch(at, (*fill(self.settings.prompts.found, note=notes), *question))

        branch = self._fit_notes(_most_relevant(state.in_order, NOTES_PER_ROUND), with_notes)
        if state.findings is None or branch is None or not self.calibration.is_found:
            return
        lead = branch.prompt[: -len(question)]
        search = self._evidence_search(self._signals(self.calibration))
        search = replace(search, lead=lambda question: (*lead, *question_lead(question, self.settings)[0]))
        again = QuestionState(state.question, findings=Findings.of(search.document, state.question))
        if search.heads and not search.reads_each_alone:
            begins = [self.lease.begin(chunk) for chunk in chunks]
            yield from search.attend([again], begins, chunks, self.lease.end(chunks.stop))
        yield from search.read_alone([again], chunks)
        state.findings.again = again.findings
        state.findings.changed()
        state.prompt_tokens += again.prompt_tokens

    def has_enough(self, states: Sequence[QuestionState], chunks: int) -> Generator[None, None, bool]:
        """Ask the model of every question whether the kept notes answer it; returns True if all replies are yes.

        Args:
            states: the questions' states.
            chunks: how many chunks were read.
        """
        at, settings, branches = self.lease.end(chunks), self.settings, []
        for state in states:

            def with_notes(notes: str, question: str = state.question) -> Branch:
                asks = fill(settings.prompts.enough, **settings.variables, question=question, note=notes)
                lead, cue = question_lead(question, settings)[0], settings.prompts.judgement_cue
                return Branch(at, lead + asks, cue=cue, choices=("YES", "NO"))

            branch = self._fit_notes(_most_relevant(state.in_order, len(state.margins)), with_notes)
            if branch is None:
                return False
            branches.append(branch)
        replies: list[bool] = []
        for item in self.decode(branches):
            if item is None:
                yield None
            else:
                states[item[0]].add_usage(item[1])
                replies.append(item[1].scores.choices[0] >= 0.5)
        return all(replies)

    def _fit_notes(self, margins: Sequence[Margin], make_branch: Callable[[str], Branch]) -> Branch | None:
        """A branch with as many of the most relevant margins as fit the window; None if none fits."""
        for count in range(len(margins), 0, -1):
            notes = "\n".join(f"- {margin.text.strip()}" for margin in _most_relevant(margins, count))
            branch = make_branch(notes)
            if branch_end(self.engine, branch) <= (self.engine.window or float("inf")):
                return branch
        return None

    def _evidence_search(self, signals: tuple[str, ...]) -> EvidenceSearch:
        calibration, looks_first = self.calibration, signals == ("lexical", "passage")
        sees_attention = bool(self.engine.heads) and not looks_first
        return EvidenceSearch(
            self.document.passages,
            (calibration.heads or self.engine.heads) if sees_attention else (),
            calibration,
            lambda question: question_lead(question, self.settings)[0],
            self.decode,
            self.lease.end(0),
            looks_first,
        )

    def decode(self, branches: Sequence[Branch]) -> Iterator[tuple[int, Decoded] | None]:
        """Decode branches; yields the index and result of each finished branch, and None for every step."""
        free_memory = self.lease.cache.evict_idle
        for step in decode_all(self.engine, self.lease.prefix, branches, free_memory=free_memory):
            yield None
            for progress in step:
                if progress.done is not None:
                    yield progress.branch, progress.done

    def relevance(self, evidence: Evidence) -> float:
        """The chunk's relevance, clipped to 0 to 1; 0 for a chunk without text."""
        if not evidence.chunk.text.strip():
            return 0.0
        score = self.settings.relevance(evidence)
        try:
            found = float(score)
        except (TypeError, ValueError):
            found = math.nan
        if math.isnan(found):
            raise OptionError(f"relevance has to return a number from 0 to 1, and returned {shown(score)}.")
        return min(1.0, max(0.0, found))


def _most_relevant(margins: Sequence[Margin], count: int) -> list[Margin]:
    """The most relevant kept margins, in chunk order."""
    kept = [margin for margin in margins if margin.kept and margin.text.strip()]
    kept.sort(key=lambda margin: -margin.relevance)
    return sorted(kept[:count], key=lambda margin: margin.index)
