"""Margins: the branches that measure a chunk's relevance and write its note, and the margins made of them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

from wim_kernel.common.margins import Margin
from wim_kernel.engines.base import Branch, Decoded, Gate, Scores
from wim_kernel.run.decoding import decode_all
from wim_kernel.run.document import EncodedDocument
from wim_kernel.run.evidence_finder import EvidenceFinder
from wim_kernel.run.grounding import found_share, support
from wim_kernel.run.margin_prompts import judging_branch, note_branch, question_lead, scores_boundaries
from wim_kernel.run.quoting import by_findings, by_likelihood, likely_sentences, locate_quotes, quote
from wim_kernel.run.relevance.calibration import Calibration
from wim_kernel.run.relevance.first_look import FirstLook, look
from wim_kernel.run.relevance.scores import Evidence
from wim_kernel.run.settings import Settings
from wim_kernel.run.state import PendingMargin
from wim_kernel.text.run_text import Text


def first_look(document: EncodedDocument, question: str, settings: Settings) -> FirstLook:
    """Which chunks to ask a chat model about."""
    return look(document.passages, question, decides=settings.first_look, most=settings.most_asked)


class MarginWriter:
    """Scores chunks and writes margins on branches of a reading.

    Args:
        finder: the search for evidence; its engine, lease and settings are used here, too.
    """

    def __init__(self, finder: EvidenceFinder) -> None:
        self.finder = finder
        self.engine = finder.engine
        self.lease = finder.lease
        self.chunks = finder.document.chunks
        self.settings = finder.settings
        self._token_counts: dict[str, int] = {}

    def score(self, batch: Sequence[PendingMargin]) -> Iterator[None]:
        """Set ``pending.evidence`` and ``pending.relevance``. Notes are written only if a second call judges them."""
        yield from self.finder.search(batch)
        if self.settings.looks_first:
            batch, _ = self._first_look(batch)
        if self.settings.judges_notes:
            yield from self._write_and_judge(batch)
        elif self.settings.measures_boundaries:
            for _ in self._measure(self._worth_asking(batch), write=False):
                yield None

    def write(self, batch: Sequence[PendingMargin]) -> Iterator[PendingMargin | None]:
        """Score chunks and write the notes of the relevant ones; yields each margin when its note is final."""
        settings = self.settings
        verbatim = (
            settings.margin_style == "verbatim" and not settings.rates
        )  # chat models quote in their reply
        yield from self.finder.search(batch)
        if settings.looks_first:
            batch, passed_over = self._first_look(batch)
            yield from passed_over
        if settings.judges_notes:
            judged = yield from self._write_and_judge(batch)
            yield from judged
            return
        if settings.measures_boundaries:
            asked = self._worth_asking(batch)
            yield from (pending for pending in batch if pending not in asked)
            finished = self._measure(asked, write=True)
        elif verbatim:
            yield from self._quote([pending for pending in batch if self.is_relevant(pending)])
            yield from batch
            return
        else:
            relevant = [pending for pending in batch if self.is_relevant(pending)]
            yield from (pending for pending in batch if not self.is_relevant(pending))
            finished = self._write_notes(relevant)
        to_quote = []
        for pending in finished:
            if pending is not None and verbatim and self.is_relevant(pending):
                to_quote.append(pending)
            else:
                yield pending
        yield from self._quote(to_quote)
        yield from to_quote

    def note_scored(self, batch: Sequence[PendingMargin]) -> Iterator[PendingMargin | None]:
        """Write the notes of margins that are scored already, and relevant."""
        if self.settings.margin_style == "free" or self.settings.rates:
            yield from self._write_notes(batch)
        else:
            yield from self._quote(batch)
            yield from batch

    def margin(self, pending: PendingMargin) -> Margin:
        """The margin of a finished pending margin: kept or dropped, by its relevance and by ``keep``."""
        settings, kept = self.settings, self.is_relevant(pending) and not pending.dropped
        evidence = {} if pending.evidence is None else pending.evidence.signals
        if kept and settings.margin_style == "free":
            chunk = self.chunks[pending.index].text
            grounding = {
                "support": support(pending.text, chunk, pending.state.question),
                "located": found_share(pending.text, chunk, pending.state.question),
            }
            evidence |= {name: share for name, share in grounding.items() if share is not None}
        if kept and pending.located is not None:
            evidence["located"] = pending.located
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
        elif margin.found_nowhere and not settings.keeps_all:  # shown, and not used
            margin = replace(margin, kept=False)
        return margin

    def is_relevant(self, pending: PendingMargin) -> bool:
        """Whether to write a margin's note. An unknown relevance counts as enough: the note is judged later."""
        if not self.chunks[pending.index].text.strip():
            return False
        return (
            pending.chosen
            or pending.relevance is None
            or pending.relevance >= (self.settings.threshold or 0.0)
        )

    # -- free notes, and relevance measured at boundaries -------------------------------------------------------------

    def _write_notes(self, batch: Sequence[PendingMargin]) -> Iterator[PendingMargin | None]:
        """Decode one branch for each margin, which writes its note."""
        branches = [
            (pending, replace(self._branch(pending, generate=True), scored=None)) for pending in batch
        ]
        for item in self._decode(branches):
            if item is None:
                yield None
            else:
                yield self._with_note(*item)

    def _with_note(self, pending: PendingMargin, decoded: Decoded) -> PendingMargin:
        pending.branch = self.lease.record(pending.index + 1, decoded.suffix_ids)
        pending.text, pending.token_ids = decoded.text, decoded.token_ids
        if self.settings.note_rates == "quotes":
            quoted = locate_quotes(self.chunks[pending.index], decoded.quotes)
            pending.text, pending.spans, pending.located = quoted.text, quoted.spans, quoted.located
        return pending

    def _worth_asking(self, batch: Sequence[PendingMargin]) -> list[PendingMargin]:
        """The margins that pass a first look; the relevance of the others is set."""
        asked = []
        for pending in batch:
            if self.finder.may_matter(pending):
                asked.append(pending)
            elif pending.evidence is not None and pending.relevance is None:
                pending.relevance = self.finder.relevance(pending.evidence)
        return asked

    def _first_look(self, batch: Sequence[PendingMargin]) -> tuple[list[PendingMargin], list[PendingMargin]]:
        """The margins whose chunks are asked, and the others, which stay empty; see `first_look`."""
        asked, passed_over = list[PendingMargin](), list[PendingMargin]()
        for pending in batch:
            state = pending.state
            if state.first_look is None:
                state.first_look = first_look(self.finder.document, state.question, self.settings)
            share = state.first_look.shares[pending.index]
            pending.evidence = Evidence(state.question, self.chunks[pending.index], lexical=share)
            if pending.index in state.first_look.asked:
                asked.append(pending)
            else:
                pending.relevance, pending.dropped = 0.0, True
                passed_over.append(pending)
        return asked, passed_over

    def _measure(self, batch: Sequence[PendingMargin], *, write: bool) -> Iterator[PendingMargin | None]:
        """Decode one branch for each margin: the question's likelihood, the decision, and, if relevant, the note."""
        rates = bool(self.settings.note_rates)
        generate = rates or (write and self.settings.margin_style == "free")
        pending_margins = sorted([*self._openings(batch), *batch], key=lambda pending: pending.index)

        def gate(group: Sequence[int], scores: Sequence[Scores]) -> list[bool]:
            measured = [pending_margins[number] for number in group]
            for pending, score in zip(measured, scores, strict=True):
                pending.state.likelihoods[pending.index] = score.likelihood
            for pending, score in zip(measured, scores, strict=True):
                if pending.index >= 0:
                    self._set_evidence(pending, score)
            return [generate and pending.index >= 0 and self.is_relevant(pending) for pending in measured]

        branches = [(pending, self._branch(pending, generate)) for pending in pending_margins]
        for item in self._decode(branches, gate):
            if item is None:
                yield None
            elif item[0].index >= 0:
                yield self._with_note(*item)

    def _openings(self, batch: Sequence[PendingMargin]) -> list[PendingMargin]:
        """The boundary before the first chunk, for each question whose first chunk is in the batch."""
        if not scores_boundaries(self.settings):
            return []
        first = [pending.state for pending in batch if pending.index == 0 and pending.state.question]
        return [PendingMargin(state, -1) for state in first if -1 not in state.likelihoods]

    def _set_evidence(self, pending: PendingMargin, score: Scores) -> None:
        """Set a chunk's evidence; its relevance, too, unless a second call will judge the note."""
        likelihoods = pending.state.likelihoods
        pending.evidence = replace(
            pending.evidence or Evidence(pending.state.question, self.chunks[pending.index]),
            likelihood=likelihoods[pending.index],
            likelihood_before=likelihoods.get(pending.index - 1),
            decision=score.choices[0] if score.choices else None,
            rating=score.rating,
        )
        if pending.relevance is None and not self.settings.judges_notes:
            pending.relevance = self.finder.relevance(pending.evidence)

    def _branch(self, pending: PendingMargin, generate: bool) -> Branch:
        at, question = self.lease.end(pending.index + 1), pending.state.question
        if pending.index >= 0:
            text = self.chunks[pending.index].text
            return note_branch(at, question, self.settings, generate=generate, chunk=text)
        lead, scored = question_lead(question, self.settings)
        return Branch(at, lead, scored=scored)

    # -- verbatim notes -----------------------------------------------------------------------------------------------

    def _quote(self, batch: Sequence[PendingMargin]) -> Iterator[None]:
        """Choose each chunk's sentences, without generating a token.

        Where the engine sees attention, the search has already ranked the sentences. Elsewhere one branch for each
        sentence measures the question's likelihood, which chooses better than shared words.
        """
        if self.settings.sees_attention:
            for pending in batch:
                assert pending.state.findings is not None, "verbatim margins are written after the search"
                ranked = by_findings(pending.state.findings, pending.index, self.finder.calibration)
                self._set_quote(pending, ranked)
            return
        requests = []
        for pending in batch:
            chunk, findings = self.chunks[pending.index], pending.state.findings
            calibration = self.finder.calibration if findings is not None else Calibration()
            sentences = likely_sentences(findings, chunk, pending.index, calibration)
            requests.append((chunk, sentences, *question_lead(pending.state.question, self.settings)))

        def add_usage(number: int, decoded: Decoded) -> None:
            batch[number].state.add_usage(decoded)

        rankings = yield from by_likelihood(requests, self.lease.end(0), self.finder.decode, add_usage)
        for pending, ranked in zip(batch, rankings, strict=True):
            self._set_quote(pending, ranked)

    def _set_quote(self, pending: PendingMargin, ranked: Sequence[tuple[int, int]]) -> None:
        quotation = quote(self.chunks[pending.index], ranked, self.settings.quote_tokens, self._count_tokens)
        pending.text, pending.spans = quotation.text, quotation.spans

    def _count_tokens(self, text: str) -> int:
        if text not in self._token_counts:
            self._token_counts[text] = len(self.engine.encode(Text(text)))
        return self._token_counts[text]

    # -- the second call ----------------------------------------------------------------------------------------------

    def _write_and_judge(self, batch: Sequence[PendingMargin]) -> Generator[None, None, list[PendingMargin]]:
        """Write the note of every chunk with text, and ask the model about each; returns the finished margins."""
        skipped, written = [], []
        for pending in self._measure(batch, write=True):
            if pending is None:
                yield None
            elif self.is_relevant(pending):
                written.append(pending)
            else:
                skipped.append(pending)
        if self.settings.margin_style == "verbatim":
            yield from self._quote(written)
        yield from self._judge(written)
        return [*skipped, *written]

    def _judge(self, batch: Sequence[PendingMargin]) -> Iterator[None]:
        """Ask the model whether each written note helps; sets the relevance."""
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
        self, branches: Sequence[tuple[PendingMargin, Branch]], gate: Gate | None = None
    ) -> Iterator[tuple[PendingMargin, Decoded] | None]:
        """Decode each margin's branch; yields finished branches, and None for every step.

        The gate gets indexes of ``branches``.
        """
        prompts, free_memory = [branch for _, branch in branches], self.lease.cache.evict_idle
        for step in decode_all(self.engine, self.lease.prefix, prompts, gate, free_memory):
            yield None
            for progress in step:
                if progress.done is not None:
                    pending = branches[progress.branch][0]
                    pending.state.add_usage(progress.done)
                    yield pending, progress.done
