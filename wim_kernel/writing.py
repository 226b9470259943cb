"""Margins: which branches find out a chunk's relevance and write its note, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from wim_kernel.batches import decode_all
from wim_kernel.chunks import Chunk, Span
from wim_kernel.engines.base import AnyEngine, Branch, Decoded, Prompt, Scores, Text
from wim_kernel.margins import BranchRecord, Margin
from wim_kernel.prompts import fill
from wim_kernel.relevance import Evidence
from wim_kernel.sentences import sentence_spans
from wim_kernel.settings import Settings
from wim_kernel.volumes import VolumeLease

SENTENCES = 3  # most sentences of a verbatim margin


@dataclass
class Inquiry:
    """One question on its way through a reading.

    Attributes:
        question: what is asked; empty for a summary.
        position: which of the call's questions it is, from 0.
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
    dropped: bool = False


@dataclass
class Trial(Place):
    """A sentence on trial: would it make a verbatim margin of ``of``?"""

    of: Place | None = None
    span: tuple[int, int] = (0, 0)


class MarginWriter:
    """Writes margins on branches of a reading.

    Args:
        engine: decodes the branches.
        lease: the reading; places that are scored or written together are in the volume in hand.
        chunks: its chunks.
        settings: how.
    """

    def __init__(
        self, engine: AnyEngine, lease: VolumeLease, chunks: Sequence[Chunk], settings: Settings
    ) -> None:
        self.engine = engine
        self.lease = lease
        self.chunks = chunks
        self.settings = settings

    def score(self, places: Sequence[Place]) -> Iterator[None]:
        """Find out what can be known of chunks without writing: ``place.evidence`` and ``place.relevance``."""
        for _ in self._measure(places, write=False):
            yield None

    def write(self, places: Sequence[Place]) -> Iterator[Place | None]:
        """Score chunks and write the notes of the relevant ones; yields each place when its note is final.

        A place whose relevance is known already is written, whatever it is.
        """
        settings, unfinished = self.settings, []
        for place in self._measure(places, write=True):
            if place is not None and self._passes(place) and self._has_more_to_do:
                unfinished.append(place)
            else:
                yield place
        if settings.margin_style == "verbatim":
            yield from self._pick_sentences(unfinished)
        if settings.asks == "judgement":
            yield from self._judge(unfinished)
        yield from unfinished

    def margin(self, place: Place) -> Margin:
        """The margin that a finished place becomes."""
        settings, kept = self.settings, self._passes(place) and not place.dropped
        margin = Margin(
            index=place.index,
            text=place.text if kept else "",
            relevance=place.relevance or 0.0,
            kept=kept,
            chunk=self.chunks[place.index],
            spans=place.spans if kept else (),
            token_ids=place.token_ids if kept else (),
            branch=place.branch,
        )
        if margin.text and settings.keep is not None:
            margin = replace(margin, kept=bool(settings.keep(margin)))
        return margin

    @property
    def _has_more_to_do(self) -> bool:
        return self.settings.margin_style == "verbatim" or self.settings.asks == "judgement"

    def _passes(self, place: Place) -> bool:
        if _blank(self.chunks[place.index]):
            return False
        return place.relevance is None or place.relevance >= self.settings.threshold

    # -- relevance, and free notes ------------------------------------------------------------------------------------

    def _measure(self, places: Sequence[Place], *, write: bool) -> Iterator[Place | None]:
        """One branch a place: the question's likelihood, the decision if one is asked, and the note if it passes."""
        generate = write and self.settings.margin_style == "free"
        waiting = sorted([*self._openings(places), *places], key=lambda place: place.index)

        def gate(group: Sequence[Place], scores: Sequence[Scores]) -> list[bool]:
            chosen = [place.relevance is not None for place in group]
            for place, score in zip(group, scores, strict=True):
                place.inquiry.likelihoods[place.index] = score.likelihood
            for place, score in zip(group, scores, strict=True):
                if place.index >= 0:
                    self._weigh(place, score)
            passing = zip(group, chosen, strict=True)
            return [generate and p.index >= 0 and (known or self._passes(p)) for p, known in passing]

        branches = [(place, self._branch(place, generate)) for place in waiting]
        for item in self._decode(branches, gate):
            if item is None:
                yield None
            elif item[0].index >= 0:
                place, decoded = item
                place.branch = self.lease.record(place.index + 1, decoded.suffix_ids)
                place.text, place.token_ids = decoded.text, decoded.token_ids
                yield place

    def _openings(self, places: Sequence[Place]) -> list[Place]:
        """The boundary before the first chunk, for questions that come to their first chunk."""
        first = [place.inquiry for place in places if place.index == 0 and place.inquiry.question]
        return [Place(inquiry, -1) for inquiry in first if -1 not in inquiry.likelihoods]

    def _weigh(self, place: Place, score: Scores) -> None:
        """Put together what is known of a chunk; its relevance too, unless that waits for the note."""
        likelihoods = place.inquiry.likelihoods
        place.evidence = Evidence(
            question=place.inquiry.question,
            chunk=self.chunks[place.index],
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
        return min(1.0, max(0.0, float(self.settings.relevance(evidence))))

    def _branch(self, place: Place, generate: bool) -> Branch:
        at, question = self.lease.end(place.index + 1), place.inquiry.question
        if place.index >= 0:
            return note_branch(at, question, self.settings, generate=generate)
        lead, scored = question_lead(question, self.settings)
        return Branch(at, lead, scored=scored)

    # -- verbatim notes -----------------------------------------------------------------------------------------------

    def _pick_sentences(self, places: Sequence[Place]) -> Iterator[None]:
        """Choose each chunk's sentences by the question's likelihood after each one alone; no token is generated."""
        trials = [
            Trial(place.inquiry, place.index, of=place, span=span)
            for place in places
            for span in _sentences(self.chunks[place.index])
        ]
        likelihoods: dict[int, list[tuple[float, tuple[int, int]]]] = {id(place): [] for place in places}
        for item in self._decode([(trial, self._sentence_branch(trial, trial.span)) for trial in trials]):
            if item is None:
                yield None
            else:
                trial, decoded = item
                assert isinstance(trial, Trial)
                likelihoods[id(trial.of)].append((-(decoded.scores.likelihood or 0.0), trial.span))
        for place in places:
            self._quote(place, [span for _, span in sorted(likelihoods[id(place)])])

    def _sentence_branch(self, place: Place, span: tuple[int, int]) -> Branch:
        """The sentence as if it were the whole document, then the question."""
        lead, scored = question_lead(place.inquiry.question, self.settings)
        sentence = (Text(self.chunks[place.index].text[slice(*span)]),)
        return Branch(self.lease.end(0), sentence + lead, scored=None if scored is None else scored + 1)

    def _quote(self, place: Place, ranked: Sequence[tuple[int, int]]) -> None:
        """Make the best sentences that fit the margin's length the note, in the chunk's order."""
        chunk, room = self.chunks[place.index], self.settings.margin_config.max_new_tokens or 0
        chosen: list[tuple[int, int]] = []
        for span in ranked[:SENTENCES]:
            size = len(self.engine.encode(Text(chunk.text[slice(*span)])))
            if not chosen or size <= room:
                chosen.append(span)
                room -= size
        chosen.sort()
        place.text = " ".join(chunk.text[slice(*span)] for span in chosen)
        place.spans = tuple(source for span in chosen for source in chunk.locate(*span))

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


def _sentences(chunk: Chunk) -> list[tuple[int, int]]:
    """Spans of the sentences of a chunk's sources, without white space around them; none without a letter or digit."""
    spans = []
    for begin, text in _sourced(chunk):
        for start, end in sentence_spans(text):
            sentence = text[start:end]
            if any(char.isalnum() for char in sentence):
                left = begin + start + len(sentence) - len(sentence.lstrip())
                spans.append((left, begin + start + len(sentence.rstrip())))
    return spans


def _sourced(chunk: Chunk) -> list[tuple[int, str]]:
    """The runs of a chunk's text that come from its sources, with where they begin; what stands around them is not."""
    if not chunk.spans:
        return [(0, chunk.text)]
    runs: list[list[int]] = []
    for span in sorted(chunk.spans, key=lambda span: span.offset):
        if runs and runs[-1][1] >= span.offset:
            runs[-1][1] = max(runs[-1][1], span.offset + span.length)
        else:
            runs.append([span.offset, span.offset + span.length])
    return [(start, chunk.text[start:end]) for start, end in runs]
