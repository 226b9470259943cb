"""What chunks hold for a question: the search for evidence, further rounds of it, and whether there is enough."""

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
from wim_kernel.run.options import Settings
from wim_kernel.run.relevance.calibration import Calibration
from wim_kernel.run.relevance.findings import Findings
from wim_kernel.run.relevance.scores import Evidence
from wim_kernel.run.relevance.search import EvidenceSearch
from wim_kernel.run.state import PendingMargin, QuestionState
from wim_kernel.text.prompts import fill

MOST_NOTES = 3  # of a round, in the next round's prompt


class EvidenceFinder:
    """Finds evidence on branches of a reading.

    Args:
        engine: decodes the branches.
        lease: the reading; margins that are scored together are in the current volume.
        document: what is read.
        settings: how.
        calibration: how the model's signals are read, if passages are searched.

    Attributes:
        searches: whether passages are searched at all.
        revises: whether relevance is weighed again once all is read.
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
        """How the model's signals are read; may be found out now."""
        return self._calibration()

    def search(self, batch: Sequence[PendingMargin]) -> Iterator[None]:
        """Search the chunks read so far in the volume of ``batch``; what is known of these, and their relevance."""
        asking = list(
            {id(pending.state): pending.state for pending in batch if pending.state.question}.values()
        )
        if self.searches and asking:
            search = self._searcher()
            for state in asking:
                state.findings = state.findings or Findings.of(search.document, state.question)
            last = max(pending.index for pending in batch)
            chunks = range(self.lease.volume_of(last).start, last + 1)
            signals = self._signals(search.calibration)
            if "attention" in signals and not search.reads_each_alone:
                begins = [self.lease.begin(chunk) for chunk in chunks]
                yield from search.attend(asking, begins, chunks, self.lease.end(last + 1))
            if "passage" in signals or ("attention" in signals and search.reads_each_alone):
                yield from search.read_alone(asking, chunks)
        if self.searches or not self.settings.measures_boundaries:
            self.weigh(batch)

    def _signals(self, calibration: Calibration) -> tuple[str, ...]:
        """The signals to find: of a model that is not calibrated the words alone, unless one other is asked for."""
        signals = self.settings.signals
        return signals if calibration.is_found or len(signals) == 1 else ("lexical",)

    def weigh(self, batch: Sequence[PendingMargin]) -> None:
        """Put down what the search found for chunks, and their relevance unless it is taken from something else."""
        for pending in batch:
            if pending.state.findings is None:
                pending.evidence = Evidence(pending.state.question, self.document.chunks[pending.index])
            else:
                pending.evidence = pending.state.findings.evidence(
                    pending.state.question,
                    self.document.chunks[pending.index],
                    pending.index,
                    self.calibration,
                )
                best = pending.state.findings.best_of(pending.index, self.calibration)
                if best in pending.state.findings.seen:
                    chunks, suffix_ids = pending.state.findings.seen[best]
                    pending.branch = self.lease.record(chunks, suffix_ids)
            if not self.settings.measures_boundaries:
                pending.relevance = self.relevance(pending.evidence)

    def search_again(self, state: QuestionState, chunks: range) -> Iterator[None]:
        """Look for evidence once more in a volume, with what was found in the question's prompt."""
        question, at = question_lead(state.question, self.settings)[0], self.lease.end(chunks.stop)

        def told(notes: str) -> Branch:
            return Branch(at, (*fill(self.settings.prompts.found, note=notes), *question))

        branch = self._with_notes(_best(state.in_order, MOST_NOTES), told)
        if state.findings is None or branch is None or not self.calibration.is_found:
            return
        lead = branch.prompt[: -len(question)]
        search = self._searcher()
        search = replace(search, lead=lambda question: (*lead, *question_lead(question, self.settings)[0]))
        again = QuestionState(state.question, findings=Findings.of(search.document, state.question))
        if not search.reads_each_alone:
            begins = [self.lease.begin(chunk) for chunk in chunks]
            yield from search.attend([again], begins, chunks, self.lease.end(chunks.stop))
        yield from search.read_alone([again], chunks)
        state.findings.again = again.findings
        state.findings.changed()
        state.prompt_tokens += again.prompt_tokens

    def has_enough(self, states: Sequence[QuestionState], chunks: int) -> Generator[None, None, bool]:
        """Whether the model says of every question that the notes kept so far answer it."""
        at, settings, branches = self.lease.end(chunks), self.settings, []
        for state in states:

            def asking(notes: str, question: str = state.question) -> Branch:
                asks = fill(settings.prompts.enough, **settings.variables, question=question, note=notes)
                lead, cue = question_lead(question, settings)[0], settings.prompts.judgement_cue
                return Branch(at, lead + asks, cue=cue, choices=("YES", "NO"))

            branch = self._with_notes(_best(state.in_order, len(state.margins)), asking)
            if branch is None:
                return False
            branches.append(branch)
        says: list[bool] = []
        for item in self.run(branches):
            if item is None:
                yield None
            else:
                states[item[0]].count(item[1])
                says.append(item[1].scores.choices[0] >= 0.5)
        return all(says)

    def _with_notes(self, margins: Sequence[Margin], make: Callable[[str], Branch]) -> Branch | None:
        """A branch with as many of the margins, the most relevant ones, as the window has room for; None for none."""
        for count in range(len(margins), 0, -1):
            branch = make("\n".join(f"- {margin.text.strip()}" for margin in _best(margins, count)))
            if branch_end(self.engine, branch) <= (self.engine.window or float("inf")):
                return branch
        return None

    def _searcher(self) -> EvidenceSearch:
        calibration = self.calibration
        return EvidenceSearch(
            self.document.passages,
            calibration.heads or self.engine.heads,
            calibration,
            lambda question: question_lead(question, self.settings)[0],
            self.run,
            self.lease.end(0),
        )

    def run(self, branches: Sequence[Branch]) -> Iterator[tuple[int, Decoded] | None]:
        """Decode branches; yields after every step, and the number of each branch with what it came to."""
        relieve = self.lease.cache.make_way
        for step in decode_all(self.engine, self.lease.prefix, branches, relieve=relieve):
            yield None
            for progress in step:
                if progress.done is not None:
                    yield progress.branch, progress.done

    def relevance(self, evidence: Evidence) -> float:
        """The score, within bounds; nothing is relevant about a chunk without text."""
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


def _best(margins: Sequence[Margin], count: int) -> list[Margin]:
    """The most relevant kept margins, in chunk order."""
    kept = [margin for margin in margins if margin.kept and margin.text.strip()]
    kept.sort(key=lambda margin: -margin.relevance)
    return sorted(kept[:count], key=lambda margin: margin.index)
