"""Margins: which branches find out a chunk's relevance and write its note, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from wim_kernel.common.margins import Margin
from wim_kernel.engines.base import Branch, Decoded, Scores
from wim_kernel.run.decoding import decode_all
from wim_kernel.run.evidence_finder import EvidenceFinder
from wim_kernel.run.grounding import support
from wim_kernel.run.margin_prompts import judging_branch, note_branch, question_lead
from wim_kernel.run.quoting import by_findings, by_likelihood, quote
from wim_kernel.run.relevance.scores import Evidence
from wim_kernel.run.state import PendingMargin
from wim_kernel.text.run_text import Text


class MarginWriter:
    """Writes margins on branches of a reading.

    Args:
        finder: finds out what chunks hold, with the engine, the lease and the settings that serve here, too.
    """

    def __init__(self, finder: EvidenceFinder) -> None:
        self.finder = finder
        self.engine = finder.engine
        self.lease = finder.lease
        self.chunks = finder.document.chunks
        self.settings = finder.settings

    def score(self, batch: Sequence[PendingMargin]) -> Iterator[None]:
        """Find out what can be known of chunks without writing: ``pending.evidence`` and ``pending.relevance``."""
        yield from self.finder.search(batch)
        if self.settings.measures_boundaries:
            for _ in self._measure(batch, write=False):
                yield None

    def write(self, batch: Sequence[PendingMargin]) -> Iterator[PendingMargin | None]:
        """Score chunks and write the notes of the relevant ones; yields each margin when its note is final."""
        settings, unfinished = self.settings, []
        verbatim = settings.margin_style == "verbatim"
        yield from self.finder.search(batch)
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
        if not self.chunks[pending.index].text.strip():
            return False
        return (
            pending.chosen
            or pending.relevance is None
            or pending.relevance >= (self.settings.threshold or 0.0)
        )

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
            pending.relevance = self.finder.relevance(pending.evidence)

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
                self._take(
                    pending, by_findings(pending.state.findings, pending.index, self.finder.calibration)
                )
            return
        leads = [question_lead(pending.state.question, self.settings) for pending in batch]
        asked = [(self.chunks[pending.index], *lead) for pending, lead in zip(batch, leads, strict=True)]

        def count(number: int, decoded: Decoded) -> None:
            batch[number].state.count(decoded)

        ranks = yield from by_likelihood(asked, self.lease.end(0), self.finder.run, count)
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
                pending.relevance = self.finder.relevance(pending.evidence)

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
