"""Margins: which branches find out a chunk's relevance and write its note, and what becomes of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from wim_kernel.answering import branch_end
from wim_kernel.batches import decode_all
from wim_kernel.chunks import Chunk, Span
from wim_kernel.engines.base import AnyEngine, Branch, Decoded, Prompt, Scores, Text
from wim_kernel.errors import OptionError
from wim_kernel.grounding import support
from wim_kernel.margins import BranchRecord, Margin
from wim_kernel.plain_data import shown
from wim_kernel.prompts import fill
from wim_kernel.quoting import by_findings, by_likelihood, quote
from wim_kernel.relevance.calibration import Calibration
from wim_kernel.relevance.findings import Findings
from wim_kernel.relevance.passages import DocumentPassages
from wim_kernel.relevance.scores import Evidence
from wim_kernel.relevance.search import EvidenceSearch
from wim_kernel.settings import Settings
from wim_kernel.volumes import VolumeLease

MOST_NOTES = 3  # of a round, in the next round's prompt


@dataclass
class Inquiry:
    """One question on its way through a reading.

    Attributes:
        question: what is asked; empty for a summary.
        position: which of the call's questions it is, from 0.
        findings: what is known of the document's passages, if they are searched.
        likelihoods: log-probability of the question at each boundary measured so far; -1 is before the first chunk.
        margins: the margins written in this call so far, by chunk.
        given: the margins that the answer stands on.
        stands_on: how many chunks were read where the answer is written.
        answer: the answer's branch, once it is at its end.
        prompt_tokens: tokens of branches' prompts so far.
        output_tokens: tokens generated so far.
        recomputed: document tokens that a server ran again for branches.
    """

    question: str
    position: int = 0
    findings: Findings | None = None
    likelihoods: dict[int, float | None] = field(default_factory=dict)
    margins: dict[int, Margin] = field(default_factory=dict)
    given: list[Margin] = field(default_factory=list)
    stands_on: int = 0
    answer: Decoded | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    recomputed: int = 0

    @property
    def in_order(self) -> list[Margin]:
        """The margins so far, in chunk order."""
        return [self.margins[index] for index in sorted(self.margins)]

    def count(self, decoded: Decoded) -> None:
        """Add a branch's tokens."""
        prompt, output = decoded.prompt_tokens, decoded.output_tokens
        self.prompt_tokens += len(decoded.suffix_ids) if prompt is None else prompt
        self.output_tokens += len(decoded.token_ids) if output is None else output
        self.recomputed += decoded.recomputed


@dataclass
class Place:
    """Where a margin belongs, and what is found out about it on the way.

    Attributes:
        inquiry: the question.
        index: the chunk; -1 for the boundary before the first, which is only measured.
        evidence: what branches found out.
        relevance: the score; None while it is not known.
        text: the note.
        spans: where verbatim sentences stand.
        token_ids: a free note's tokens.
        branch: what the model saw.
        chosen: among the best; its margin is written, whatever its relevance.
        dropped: not among the best; its margin stays empty, whatever its relevance.
    """

    inquiry: Inquiry
    index: int
    evidence: Evidence | None = None
    relevance: float | None = None
    text: str = ""
    spans: tuple[Span, ...] = ()
    token_ids: tuple[int, ...] = ()
    branch: BranchRecord | None = None
    chosen: bool = False
    dropped: bool = False


class MarginWriter:
    """Writes margins on branches of a reading.

    Args:
        engine: decodes the branches.
        lease: the reading; places that are scored or written together are in the volume in hand.
        chunks: its chunks.
        settings: how.
        document: the document's passages.
        calibration: how the model's signals are read, if passages are searched.
    """

    def __init__(
        self,
        engine: AnyEngine,
        lease: VolumeLease,
        chunks: Sequence[Chunk],
        settings: Settings,
        document: DocumentPassages,
        calibration: Callable[[], Calibration],
    ) -> None:
        self.engine = engine
        self.lease = lease
        self.chunks = chunks
        self.settings = settings
        self._document = document
        self._calibration = calibration
        self.searches = bool(settings.signals)
        self.revises = self.searches and not settings.measures_boundaries and settings.top_k is None

    def score(self, places: Sequence[Place]) -> Iterator[None]:
        """Find out what can be known of chunks without writing: ``place.evidence`` and ``place.relevance``."""
        yield from self._search(places)
        if self.settings.measures_boundaries:
            for _ in self._measure(places, write=False):
                yield None

    def write(self, places: Sequence[Place]) -> Iterator[Place | None]:
        """Score chunks and write the notes of the relevant ones; yields each place when its note is final."""
        settings, unfinished = self.settings, []
        verbatim = settings.margin_style == "verbatim"
        yield from self._search(places)
        if settings.measures_boundaries:
            found: Iterator[Place | None] = self._measure(places, write=True)
        elif verbatim:
            yield from self._quote([place for place in places if self.passes(place)])
            yield from places
            return
        else:
            passing = [place for place in places if self.passes(place)]
            yield from (place for place in places if not self.passes(place))
            found = self._write_notes(passing)
        for place in found:
            if place is not None and self.passes(place) and (verbatim or settings.asks == "judgement"):
                unfinished.append(place)
            else:
                yield place
        if verbatim:
            yield from self._quote(unfinished)
        if settings.asks == "judgement":
            yield from self._judge(unfinished)
        yield from unfinished

    def write_found(self, places: Sequence[Place]) -> Iterator[Place | None]:
        """Write the notes of places whose relevance is known, and is enough."""
        if self.settings.margin_style == "free":
            yield from self._write_notes(places)
        else:
            yield from self._quote(places)
            yield from places

    def margin(self, place: Place) -> Margin:
        """The margin that a finished place becomes."""
        settings, kept = self.settings, self.passes(place) and not place.dropped
        evidence = {} if place.evidence is None else place.evidence.signals
        if kept and settings.margin_style == "free":
            chunk = self.chunks[place.index].text
            borne_out = support(place.text, chunk, place.inquiry.question)
            evidence |= {} if borne_out is None else {"support": borne_out}
        margin = Margin(
            index=place.index,
            text=place.text if kept else "",
            relevance=place.relevance or 0.0,
            kept=kept,
            chunk=self.chunks[place.index],
            spans=place.spans if kept else (),
            evidence=evidence,
            token_ids=place.token_ids if kept else (),
            branch=place.branch,
        )
        if margin.text and settings.keep is not None:
            margin = replace(margin, kept=bool(settings.keep(margin)))
        return margin

    def passes(self, place: Place) -> bool:
        """Whether a place's note is worth writing."""
        if _blank(self.chunks[place.index]):
            return False
        return place.chosen or place.relevance is None or place.relevance >= (self.settings.threshold or 0.0)

    # -- the search for evidence --------------------------------------------------------------------------------------

    def _search(self, places: Sequence[Place]) -> Iterator[None]:
        """Search the chunks read so far in the volume of ``places``; what is known of these, and their relevance."""
        asking = list(
            {id(place.inquiry): place.inquiry for place in places if place.inquiry.question}.values()
        )
        if self.searches and asking:
            search = self._searcher()
            for inquiry in asking:
                inquiry.findings = inquiry.findings or Findings.of(search.document, inquiry.question)
            last = max(place.index for place in places)
            chunks = range(self.lease.volume_of(last + 1).start, last + 1)
            signals = self._signals(search.calibration)
            if "attention" in signals and not search.reads_each_alone:
                begins = [self.lease.end(chunk + 1) - self.lease.size(chunk + 1) for chunk in chunks]
                yield from search.attend(asking, begins, chunks, self.lease.end(last + 1))
            if "passage" in signals or ("attention" in signals and search.reads_each_alone):
                yield from search.read_alone(asking, chunks)
        if self.searches or not self.settings.measures_boundaries:
            self.weigh(places)

    def _signals(self, calibration: Calibration) -> tuple[str, ...]:
        """The signals to find: of a model that is not calibrated the words alone, unless one other is asked for."""
        signals = self.settings.signals
        return signals if calibration.is_found or len(signals) == 1 else ("lexical",)

    def weigh(self, places: Sequence[Place]) -> None:
        """Put down what the search found for chunks, and their relevance unless it is taken from something else."""
        for place in places:
            if place.inquiry.findings is None:
                place.evidence = Evidence(place.inquiry.question, self.chunks[place.index])
            else:
                place.evidence = place.inquiry.findings.evidence(
                    place.inquiry.question, self.chunks[place.index], place.index, self._calibration()
                )
                best = place.inquiry.findings.best_of(place.index, self._calibration())
                if best in place.inquiry.findings.seen:
                    chunks, suffix_ids = place.inquiry.findings.seen[best]
                    place.branch = self.lease.record(chunks, suffix_ids)
            if not self.settings.measures_boundaries:
                place.relevance = self._relevance(place.evidence)

    def search_again(self, inquiry: Inquiry, chunks: range) -> Iterator[None]:
        """Look for evidence once more in a volume, with what was found in the question's prompt."""
        question, at = question_lead(inquiry.question, self.settings)[0], self.lease.end(chunks.stop)

        def told(notes: str) -> Branch:
            return Branch(at, (*fill(self.settings.prompts.found, note=notes), *question))

        branch = self._with_notes(_best(inquiry.in_order, MOST_NOTES), told)
        if inquiry.findings is None or branch is None or not self._calibration().is_found:
            return
        lead = branch.prompt[: -len(question)]
        search = self._searcher()
        search = replace(search, lead=lambda question: (*lead, *question_lead(question, self.settings)[0]))
        again = Inquiry(inquiry.question, findings=Findings.of(search.document, inquiry.question))
        if not search.reads_each_alone:
            begins = [self.lease.end(chunk + 1) - self.lease.size(chunk + 1) for chunk in chunks]
            yield from search.attend([again], begins, chunks, self.lease.end(chunks.stop))
        yield from search.read_alone([again], chunks)
        inquiry.findings.again = again.findings
        inquiry.findings.changed()
        inquiry.prompt_tokens += again.prompt_tokens

    def has_enough(self, inquiries: Sequence[Inquiry], chunks: int) -> Generator[None, None, bool]:
        """Whether the model says of every question that the notes kept so far answer it."""
        at, settings, branches = self.lease.end(chunks), self.settings, []
        for inquiry in inquiries:

            def asking(notes: str, question: str = inquiry.question) -> Branch:
                asks = fill(settings.prompts.enough, **settings.variables, question=question, note=notes)
                lead, cue = question_lead(question, settings)[0], settings.prompts.judgement_cue
                return Branch(at, lead + asks, cue=cue, choices=("YES", "NO"))

            branch = self._with_notes(_best(inquiry.in_order, len(inquiry.margins)), asking)
            if branch is None:
                return False
            branches.append(branch)
        says: list[bool] = []
        for item in self._run(branches):
            if item is None:
                yield None
            else:
                inquiries[item[0]].count(item[1])
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
            self._document,
            calibration.heads or self.engine.heads,
            calibration,
            lambda question: question_lead(question, self.settings)[0],
            self._run,
            self.lease.end(0),
        )

    def _run(self, branches: Sequence[Branch]) -> Iterator[tuple[int, Decoded] | None]:
        relieve = self.lease.readings.make_way
        for step in decode_all(self.engine, self.lease.prefix, branches, relieve=relieve):
            yield None
            for progress in step:
                if progress.done is not None:
                    yield progress.branch, progress.done

    # -- free notes, and relevance found out at boundaries ------------------------------------------------------------

    def _write_notes(self, places: Sequence[Place]) -> Iterator[Place | None]:
        """One branch a place, which writes its note."""
        branches = [(place, self._branch(place, generate=True)) for place in places]
        for item in self._decode(branches):
            if item is None:
                yield None
            else:
                yield self._noted(*item)

    def _noted(self, place: Place, decoded: Decoded) -> Place:
        place.branch = self.lease.record(place.index + 1, decoded.suffix_ids)
        place.text, place.token_ids = decoded.text, decoded.token_ids
        return place

    def _measure(self, places: Sequence[Place], *, write: bool) -> Iterator[Place | None]:
        """One branch a place: the question's likelihood, the decision if one is asked, and the note if it passes."""
        generate = write and self.settings.margin_style == "free"
        waiting = sorted([*self._openings(places), *places], key=lambda place: place.index)

        def gate(group: Sequence[Place], scores: Sequence[Scores]) -> list[bool]:
            for place, score in zip(group, scores, strict=True):
                place.inquiry.likelihoods[place.index] = score.likelihood
            for place, score in zip(group, scores, strict=True):
                if place.index >= 0:
                    self._weigh(place, score)
            return [generate and place.index >= 0 and self.passes(place) for place in group]

        branches = [(place, self._branch(place, generate)) for place in waiting]
        for item in self._decode(branches, gate):
            if item is None:
                yield None
            elif item[0].index >= 0:
                yield self._noted(*item)

    def _openings(self, places: Sequence[Place]) -> list[Place]:
        """The boundary before the first chunk, for questions that come to their first chunk."""
        first = [place.inquiry for place in places if place.index == 0 and place.inquiry.question]
        return [Place(inquiry, -1) for inquiry in first if -1 not in inquiry.likelihoods]

    def _weigh(self, place: Place, score: Scores) -> None:
        """Put together what is known of a chunk; its relevance too, unless that waits for the note."""
        likelihoods = place.inquiry.likelihoods
        place.evidence = replace(
            place.evidence or Evidence(place.inquiry.question, self.chunks[place.index]),
            likelihood=likelihoods[place.index],
            likelihood_before=likelihoods.get(place.index - 1),
            decision=score.choices[0] if score.choices else None,
        )
        if place.relevance is None and self.settings.asks != "judgement":
            place.relevance = self._relevance(place.evidence)

    def _relevance(self, evidence: Evidence) -> float:
        """The score, within bounds; nothing is relevant about a chunk without text."""
        if _blank(evidence.chunk):
            return 0.0
        score = self.settings.relevance(evidence)
        try:
            found = float(score)
        except (TypeError, ValueError):
            found = math.nan
        if math.isnan(found):
            raise OptionError(f"relevance has to return a number from 0 to 1, and returned {shown(score)}.")
        return min(1.0, max(0.0, found))

    def _branch(self, place: Place, generate: bool) -> Branch:
        at, question = self.lease.end(place.index + 1), place.inquiry.question
        if place.index >= 0:
            return note_branch(at, question, self.settings, generate=generate)
        lead, scored = question_lead(question, self.settings)
        return Branch(at, lead, scored=scored)

    # -- verbatim notes -----------------------------------------------------------------------------------------------

    def _quote(self, places: Sequence[Place]) -> Iterator[None]:
        """Choose each chunk's sentences by what the search found, or by a branch for each; no token is generated.

        Where attention cannot be seen, the question's likelihood chooses better than the words that it shares.
        """
        if self.settings.sees_attention:
            for place in places:
                assert place.inquiry.findings is not None, (
                    "a question is searched for where margins are verbatim"
                )
                self._take(place, by_findings(place.inquiry.findings, place.index, self._calibration()))
            return
        leads = [question_lead(place.inquiry.question, self.settings) for place in places]
        asked = [(self.chunks[place.index], *lead) for place, lead in zip(places, leads, strict=True)]

        def count(number: int, decoded: Decoded) -> None:
            places[number].inquiry.count(decoded)

        ranks = yield from by_likelihood(asked, self.lease.end(0), self._run, count)
        for place, ranked in zip(places, ranks, strict=True):
            self._take(place, ranked)

    def _take(self, place: Place, ranked: Sequence[tuple[int, int]]) -> None:
        found = quote(self.chunks[place.index], ranked, self.settings.quote_tokens, self._size)
        place.text, place.spans = found.text, found.spans

    def _size(self, text: str) -> int:
        return len(self.engine.encode(Text(text)))

    # -- the second call ----------------------------------------------------------------------------------------------

    def _judge(self, places: Sequence[Place]) -> Iterator[None]:
        """Ask of each written note whether it helps."""
        branches = []
        for place in places:
            at = self.lease.end(place.index + 1)
            branches.append(
                (place, judging_branch(at, place.inquiry.question, place.text.strip(), self.settings))
            )
        for item in self._decode(branches):
            if item is None:
                yield None
            else:
                place, decoded = item
                assert place.evidence is not None
                place.evidence = replace(place.evidence, judgement=decoded.scores.choices[0], note=place.text)
                place.relevance = self._relevance(place.evidence)

    # -- decoding -----------------------------------------------------------------------------------------------------

    def _decode(
        self, asked: Sequence[tuple[Place, Branch]], gate: PlaceGate | None = None
    ) -> Iterator[tuple[Place, Decoded] | None]:
        """Decode a branch for each place; None is a step with nothing to tell."""
        places, branches = [place for place, _ in asked], [branch for _, branch in asked]
        ask = None if gate is None else partial(_ask, gate, places)
        relieve = self.lease.readings.make_way
        for step in decode_all(self.engine, self.lease.prefix, branches, ask, relieve):
            yield None
            for progress in step:
                if progress.done is not None:
                    place = places[progress.branch]
                    place.inquiry.count(progress.done)
                    yield place, progress.done


PlaceGate = Callable[[Sequence[Place], Sequence[Scores]], Sequence[bool]]


def _ask(
    gate: PlaceGate, places: Sequence[Place], group: Sequence[int], scores: Sequence[Scores]
) -> Sequence[bool]:
    return gate([places[index] for index in group], scores)


def _best(margins: Sequence[Margin], count: int) -> list[Margin]:
    """The most relevant kept margins, in chunk order."""
    kept = [margin for margin in margins if margin.kept and margin.text.strip()]
    kept.sort(key=lambda margin: -margin.relevance)
    return sorted(kept[:count], key=lambda margin: margin.index)


def question_lead(question: str, settings: Settings) -> tuple[Prompt, int | None]:
    """The question's lead-in, and which run of it is the question itself."""
    lead = fill(settings.prompts.question, **settings.variables, question=question)
    if not question:
        return lead, None
    return lead, next((index for index, run in enumerate(lead) if run.hole == "question"), None)


def note_branch(at: int, question: str, settings: Settings, *, generate: bool = True) -> Branch:
    """The branch that finds out a chunk's relevance and writes its free note, at the chunk's end."""
    prompts, decides = settings.prompts, settings.asks == "decision"
    lead, scored = question_lead(question, settings)
    return Branch(
        at,
        lead + fill(prompts.decision if decides else prompts.margin, **settings.variables, question=question),
        cue=prompts.decision_cue if decides else prompts.margin_cue,
        scored=scored,
        choices=("YES:", "NO") if decides else (),
        generation=settings.margin_config if generate else None,
    )


def judging_branch(at: int, question: str, note: str, settings: Settings) -> Branch:
    """The branch that asks whether a note helps, at the end of the note's chunk."""
    prompts = settings.prompts
    lead, _ = question_lead(question, settings)
    prompt = lead + fill(prompts.judgement, **settings.variables, question=question, note=note)
    return Branch(at, prompt, cue=prompts.judgement_cue, choices=("YES", "NO"))


def _blank(chunk: Chunk) -> bool:
    return not chunk.text.strip()
