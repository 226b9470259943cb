"""Margins: which branches find out a chunk's relevance and write its note, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial

from wim_kernel.cache.volumes import VolumeLease
from wim_kernel.common.chunk import Chunk
from wim_kernel.common.margins import Margin
from wim_kernel.engines.base import AnyEngine, Branch, Decoded, Scores
from wim_kernel.run.answer_prompt import branch_end
from wim_kernel.run.decoding import decode_all
from wim_kernel.run.document import EncodedDocument
from wim_kernel.run.grounding import support
from wim_kernel.run.margin_prompts import judging_branch, note_branch, question_lead
from wim_kernel.run.options import Settings
from wim_kernel.run.quoting import by_findings, by_likelihood, quote
from wim_kernel.run.relevance.calibration import Calibration
from wim_kernel.run.relevance.findings import Findings
from wim_kernel.run.relevance.scores import Evidence
from wim_kernel.run.relevance.search import EvidenceSearch
from wim_kernel.run.state import PendingMargin, QuestionState
from wim_kernel.text.prompts import fill
from wim_kernel.text.run_text import Text

MOST_NOTES = 3  # of a round, in the next round's prompt


class MarginWriter:
    """Writes margins on branches of a reading.

    Args:
        engine: decodes the branches.
        lease: the reading; batch that are scored or written together are in the volume in hand.
        document: what is read.
        settings: how.
        calibration: how the model's signals are read, if passages are searched.
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
        self.chunks = document.chunks
        self.settings = settings
        self._passages = document.passages
        self._calibration = calibration
        self.searches = bool(settings.signals)
        self.revises = self.searches and not settings.measures_boundaries and settings.top_k is None

    def score(self, batch: Sequence[PendingMargin]) -> Iterator[None]:
        """Find out what can be known of chunks without writing: ``pending.evidence`` and ``pending.relevance``."""
        yield from self._search(batch)
        if self.settings.measures_boundaries:
            for _ in self._measure(batch, write=False):
                yield None

    def write(self, batch: Sequence[PendingMargin]) -> Iterator[PendingMargin | None]:
        """Score chunks and write the notes of the relevant ones; yields each margin when its note is final."""
        settings, unfinished = self.settings, []
        verbatim = settings.margin_style == "verbatim"
        yield from self._search(batch)
        if settings.measures_boundaries:
            found: Iterator[PendingMargin | None] = self._measure(batch, write=True)
        elif verbatim:
            yield from self._quote([pending for pending in batch if self.passes(pending)])
            yield from batch
            return
        else:
            passing = [pending for pending in batch if self.passes(pending)]
            yield from (pending for pending in batch if not self.passes(pending))
            found = self._write_notes(passing)
        for pending in found:
            if pending is not None and self.passes(pending) and (verbatim or settings.judges_notes):
                unfinished.append(pending)
            else:
                yield pending
        if verbatim:
            yield from self._quote(unfinished)
        if settings.judges_notes:
            yield from self._judge(unfinished)
        yield from unfinished

    def write_found(self, batch: Sequence[PendingMargin]) -> Iterator[PendingMargin | None]:
        """Write the notes of margins whose relevance is known, and is enough."""
        if self.settings.margin_style == "free":
            yield from self._write_notes(batch)
        else:
            yield from self._quote(batch)
            yield from batch

    def margin(self, pending: PendingMargin) -> Margin:
        """The margin that a finished pending margin becomes."""
        settings, kept = self.settings, self.passes(pending) and not pending.dropped
        evidence = {} if pending.evidence is None else pending.evidence.signals
        if kept and settings.margin_style == "free":
            chunk = self.chunks[pending.index].text
            borne_out = support(pending.text, chunk, pending.state.question)
            evidence |= {} if borne_out is None else {"support": borne_out}
        margin = Margin(
            index=pending.index,
            text=pending.text if kept else "",
            relevance=pending.relevance or 0.0,
            kept=kept,
            chunk=self.chunks[pending.index],
            spans=pending.spans if kept else (),
            evidence=evidence,
            token_ids=pending.token_ids if kept else (),
            branch=pending.branch,
        )
        if margin.text and settings.keep is not None:
            margin = replace(margin, kept=bool(settings.keep(margin)))
        return margin

    def passes(self, pending: PendingMargin) -> bool:
        """Whether a margin's note is worth writing."""
        if _blank(self.chunks[pending.index]):
            return False
        return (
            pending.chosen
            or pending.relevance is None
            or pending.relevance >= (self.settings.threshold or 0.0)
        )

    # -- the search for evidence --------------------------------------------------------------------------------------

    def _search(self, batch: Sequence[PendingMargin]) -> Iterator[None]:
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
                begins = [self.lease.end(chunk + 1) - self.lease.document.size(chunk) for chunk in chunks]
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
                pending.evidence = Evidence(pending.state.question, self.chunks[pending.index])
            else:
                pending.evidence = pending.state.findings.evidence(
                    pending.state.question, self.chunks[pending.index], pending.index, self._calibration()
                )
                best = pending.state.findings.best_of(pending.index, self._calibration())
                if best in pending.state.findings.seen:
                    chunks, suffix_ids = pending.state.findings.seen[best]
                    pending.branch = self.lease.record(chunks, suffix_ids)
            if not self.settings.measures_boundaries:
                pending.relevance = self._relevance(pending.evidence)

    def search_again(self, state: QuestionState, chunks: range) -> Iterator[None]:
        """Look for evidence once more in a volume, with what was found in the question's prompt."""
        question, at = question_lead(state.question, self.settings)[0], self.lease.end(chunks.stop)

        def told(notes: str) -> Branch:
            return Branch(at, (*fill(self.settings.prompts.found, note=notes), *question))

        branch = self._with_notes(_best(state.in_order, MOST_NOTES), told)
        if state.findings is None or branch is None or not self._calibration().is_found:
            return
        lead = branch.prompt[: -len(question)]
        search = self._searcher()
        search = replace(search, lead=lambda question: (*lead, *question_lead(question, self.settings)[0]))
        again = QuestionState(state.question, findings=Findings.of(search.document, state.question))
        if not search.reads_each_alone:
            begins = [self.lease.end(chunk + 1) - self.lease.document.size(chunk) for chunk in chunks]
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
        for item in self._run(branches):
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
        calibration = self._calibration()
        return EvidenceSearch(
            self._passages,
            calibration.heads or self.engine.heads,
            calibration,
            lambda question: question_lead(question, self.settings)[0],
            self._run,
            self.lease.end(0),
        )

    def _run(self, branches: Sequence[Branch]) -> Iterator[tuple[int, Decoded] | None]:
        relieve = self.lease.cache.make_way
        for step in decode_all(self.engine, self.lease.prefix, branches, relieve=relieve):
            yield None
            for progress in step:
                if progress.done is not None:
                    yield progress.branch, progress.done

    # -- free notes, and relevance found out at boundaries ------------------------------------------------------------

    def _write_notes(self, batch: Sequence[PendingMargin]) -> Iterator[PendingMargin | None]:
        """One branch a margin, which writes its note."""
        branches = [(pending, self._branch(pending, generate=True)) for pending in batch]
        for item in self._decode(branches):
            if item is None:
                yield None
            else:
                yield self._noted(*item)

    def _noted(self, pending: PendingMargin, decoded: Decoded) -> PendingMargin:
        pending.branch = self.lease.record(pending.index + 1, decoded.suffix_ids)
        pending.text, pending.token_ids = decoded.text, decoded.token_ids
        return pending

    def _measure(self, batch: Sequence[PendingMargin], *, write: bool) -> Iterator[PendingMargin | None]:
        """One branch a margin: the question's likelihood, the decision if one is asked, and the note if it passes."""
        generate = write and self.settings.margin_style == "free"
        waiting = sorted([*self._openings(batch), *batch], key=lambda pending: pending.index)

        def gate(group: Sequence[PendingMargin], scores: Sequence[Scores]) -> list[bool]:
            for pending, score in zip(group, scores, strict=True):
                pending.state.likelihoods[pending.index] = score.likelihood
            for pending, score in zip(group, scores, strict=True):
                if pending.index >= 0:
                    self._weigh(pending, score)
            return [generate and pending.index >= 0 and self.passes(pending) for pending in group]

        branches = [(pending, self._branch(pending, generate)) for pending in waiting]
        for item in self._decode(branches, gate):
            if item is None:
                yield None
            elif item[0].index >= 0:
                yield self._noted(*item)

    def _openings(self, batch: Sequence[PendingMargin]) -> list[PendingMargin]:
        """The boundary before the first chunk, for questions that come to their first chunk."""
        first = [pending.state for pending in batch if pending.index == 0 and pending.state.question]
        return [PendingMargin(state, -1) for state in first if -1 not in state.likelihoods]

    def _weigh(self, pending: PendingMargin, score: Scores) -> None:
        """Put together what is known of a chunk; its relevance too, unless that waits for the note."""
        likelihoods = pending.state.likelihoods
        pending.evidence = replace(
            pending.evidence or Evidence(pending.state.question, self.chunks[pending.index]),
            likelihood=likelihoods[pending.index],
            likelihood_before=likelihoods.get(pending.index - 1),
            decision=score.choices[0] if score.choices else None,
        )
        if pending.relevance is None and not self.settings.judges_notes:
            pending.relevance = self._relevance(pending.evidence)

    def _relevance(self, evidence: Evidence) -> float:
        """The score, within bounds; nothing is relevant about a chunk without text."""
        if _blank(evidence.chunk):
            return 0.0
        return min(1.0, max(0.0, float(self.settings.relevance(evidence))))

    def _branch(self, pending: PendingMargin, generate: bool) -> Branch:
        at, question = self.lease.end(pending.index + 1), pending.state.question
        if pending.index >= 0:
            return note_branch(at, question, self.settings, generate=generate)
        lead, scored = question_lead(question, self.settings)
        return Branch(at, lead, scored=scored)

    # -- verbatim notes -----------------------------------------------------------------------------------------------

    def _quote(self, batch: Sequence[PendingMargin]) -> Iterator[None]:
        """Choose each chunk's sentences by what the search found, or by a branch for each; no token is generated.

        Where attention cannot be seen, the question's likelihood chooses better than the words that it shares.
        """
        if self.settings.sees_attention:
            for pending in batch:
                assert pending.state.findings is not None, (
                    "a question is searched for where margins are verbatim"
                )
                self._take(pending, by_findings(pending.state.findings, pending.index, self._calibration()))
            return
        leads = [question_lead(pending.state.question, self.settings) for pending in batch]
        asked = [(self.chunks[pending.index], *lead) for pending, lead in zip(batch, leads, strict=True)]

        def count(number: int, decoded: Decoded) -> None:
            batch[number].state.count(decoded)

        ranks = yield from by_likelihood(asked, self.lease.end(0), self._run, count)
        for pending, ranked in zip(batch, ranks, strict=True):
            self._take(pending, ranked)

    def _take(self, pending: PendingMargin, ranked: Sequence[tuple[int, int]]) -> None:
        found = quote(self.chunks[pending.index], ranked, self.settings.quote_tokens, self._size)
        pending.text, pending.spans = found.text, found.spans

    def _size(self, text: str) -> int:
        return len(self.engine.encode(Text(text)))

    # -- the second call ----------------------------------------------------------------------------------------------

    def _judge(self, batch: Sequence[PendingMargin]) -> Iterator[None]:
        """Ask of each written note whether it helps."""
        branches = []
        for pending in batch:
            at = self.lease.end(pending.index + 1)
            branches.append(
                (pending, judging_branch(at, pending.state.question, pending.text.strip(), self.settings))
            )
        for item in self._decode(branches):
            if item is None:
                yield None
            else:
                pending, decoded = item
                assert pending.evidence is not None
                pending.evidence = replace(
                    pending.evidence, judgement=decoded.scores.choices[0], note=pending.text
                )
                pending.relevance = self._relevance(pending.evidence)

    # -- decoding -----------------------------------------------------------------------------------------------------

    def _decode(
        self, asked: Sequence[tuple[PendingMargin, Branch]], gate: MarginGate | None = None
    ) -> Iterator[tuple[PendingMargin, Decoded] | None]:
        """Decode a branch for each margin; None is a step with nothing to tell."""
        batch, branches = [pending for pending, _ in asked], [branch for _, branch in asked]
        ask = None if gate is None else partial(_ask, gate, batch)
        relieve = self.lease.cache.make_way
        for step in decode_all(self.engine, self.lease.prefix, branches, ask, relieve):
            yield None
            for progress in step:
                if progress.done is not None:
                    pending = batch[progress.branch]
                    pending.state.count(progress.done)
                    yield pending, progress.done


MarginGate = Callable[[Sequence[PendingMargin], Sequence[Scores]], Sequence[bool]]


def _ask(
    gate: MarginGate, batch: Sequence[PendingMargin], group: Sequence[int], scores: Sequence[Scores]
) -> Sequence[bool]:
    return gate([batch[index] for index in group], scores)


def _best(margins: Sequence[Margin], count: int) -> list[Margin]:
    """The most relevant kept margins, in chunk order."""
    kept = [margin for margin in margins if margin.kept and margin.text.strip()]
    kept.sort(key=lambda margin: -margin.relevance)
    return sorted(kept[:count], key=lambda margin: margin.index)


def _blank(chunk: Chunk) -> bool:
    return not chunk.text.strip()
