"""Relevance scores: how much a chunk helps with a question, from 0 to 1.

A score is a callable from a chunk's `Evidence` to a number. The scores in `BY_NAME` come with the kernel; callers may
give any other callable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from wim_kernel.common.chunk import Chunk

FIRST_LOOK = (
    0.1  # the probability of evidence, as far as shared words allow, from which the model is asked about it
)


@dataclass(frozen=True)
class Evidence:
    """The signals of one chunk for one question; None for a signal that was not measured.

    Attributes:
        question: the question; empty for a summary.
        chunk: the chunk.
        attention: log of the attention of the question's tokens on the chunk's best passage, in the retrieval heads, in
            nats, less that of the document's best passage: 0 for the best passage, negative for all others.
        lexical: share of the question's words in the passage, 0 to 1, weighted by rarity (BM25), less that of the
            document's best passage.
        passage: mean log-probability of the question's tokens given the passage alone, in nats, less that of the
            document's best passage.
        probabilities: the calibrated probability that the chunk holds evidence, by each of these signals alone, and
            by all of them as ``"combined"``.
        likelihood: mean log-probability, in nats, of the question's tokens given the text through this chunk.
        likelihood_before: mean log-probability of the question's tokens given the text before the chunk.
        decision: probability of YES against NO as the reply's first token, for scores with ``asks = "decision"``.
        judgement: probability of YES to whether the note helps, for scores with ``asks = "judgement"``.
        note: the written note, for scores with ``asks = "judgement"``.
        rating: how much the chunk helps, 0 to 1, as a chat model says in the reply that holds the note.
    """

    question: str
    chunk: Chunk
    attention: float | None = None
    lexical: float | None = None
    passage: float | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    likelihood: float | None = None
    likelihood_before: float | None = None
    decision: float | None = None
    judgement: float | None = None
    note: str = ""
    rating: float | None = None

    @property
    def signals(self) -> dict[str, float]:
        """The measured signals, by name."""
        names = (
            "attention",
            "lexical",
            "passage",
            "likelihood",
            "likelihood_before",
            "decision",
            "judgement",
            "rating",
        )
        found = {name: getattr(self, name) for name in names}
        return {name: float(value) for name, value in found.items() if value is not None}


class Relevance:
    """Base of the scores.

    Attributes:
        asks: what a branch at the chunk's end is asked: ``"nothing"``, ``"decision"`` (YES or NO as the note's first
            token, Writing in the Margins, section 3), ``"judgement"`` (a second call about the written note, as in
            the paper's published code), or ``"rating"`` (a number in the reply that holds the note).
        searches: the signals of passages that the score needs: some of ``"attention"``, ``"lexical"``, ``"passage"``.
    """

    asks: Literal["nothing", "decision", "judgement", "rating"] = "nothing"
    searches: tuple[str, ...] = ()

    def __call__(self, evidence: Evidence) -> float:
        """The chunk's relevance, 0 to 1."""
        raise NotImplementedError


@dataclass(frozen=True)
class EvidenceProbability(Relevance):
    """The calibrated probability that the chunk holds evidence for the question.

    Each passage of the chunk is compared with the document's best passage: by the attention of the question's tokens,
    by shared words, and by the question's likelihood after the passage alone. The chunk is as relevant as its best
    passage. Without a question the relevance is 1.

    Attributes:
        searches: the signals that are combined.
    """

    searches: tuple[str, ...] = ("attention", "lexical", "passage")

    @property
    def curve(self) -> str:
        """The name of the probability among `Evidence.probabilities`; signals that are not measured add nothing."""
        return self.searches[0] if len(self.searches) == 1 else "combined"

    def __call__(self, evidence: Evidence) -> float:
        """The chunk's relevance, 0 to 1."""
        return evidence.probabilities.get(self.curve, 1.0)


@dataclass(frozen=True)
class QuestionLikelihood(Relevance):
    """The rise of the question's likelihood by reading the chunk, as a probability.

    A logistic curve over the rise in the mean log-probability of the question's tokens; 1 without a question. The
    curve's two constants were fitted on 474 chunks of 50 SQuAD questions with the embedded model, with some preference
    for keeping too much. They depend neither on the document's length nor on the number of chunks.

    Attributes:
        midpoint: the rise at even odds, in nats per token.
        width: the rise that multiplies the odds by e, in nats per token.
    """

    midpoint: float = 0.45
    width: float = 0.15

    def __call__(self, evidence: Evidence) -> float:
        """The chunk's relevance, 0 to 1."""
        if evidence.likelihood is None or evidence.likelihood_before is None:
            return 1.0
        return _logistic((evidence.likelihood - evidence.likelihood_before - self.midpoint) / self.width)


@dataclass(frozen=True)
class Decision(Relevance):
    """The probability of YES against NO as the first token of the note."""

    asks = "decision"

    def __call__(self, evidence: Evidence) -> float:
        """The chunk's relevance, 0 to 1."""
        return evidence.decision or 0.0


@dataclass(frozen=True)
class LexicalDecision(Decision):
    """A decision about the chunks that pass a first look at shared words; the others are not asked about.

    A chunk that is not asked about is as relevant as its best passage can be by shared words; see
    `Findings.bounds`.
    """

    searches = ("lexical",)

    def __call__(self, evidence: Evidence) -> float:
        """The chunk's relevance, 0 to 1."""
        if evidence.decision is None:
            return min(evidence.probabilities.get("combined", 0.0), FIRST_LOOK)
        return evidence.decision


@dataclass(frozen=True)
class SecondCall(Relevance):
    """The probability of YES when the model is asked whether its own note helps."""

    asks = "judgement"

    def __call__(self, evidence: Evidence) -> float:
        """The chunk's relevance, 0 to 1."""
        return evidence.judgement or 0.0


@dataclass(frozen=True)
class Rating(Relevance):
    """The chat model's own rating of the chunk, in the reply that holds the note. A chunk that was not asked gets 0."""

    asks = "rating"

    def __call__(self, evidence: Evidence) -> float:
        """The chunk's relevance, 0 to 1."""
        return evidence.rating or 0.0


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


RelevanceName = Literal[
    "combined",
    "attention",
    "lexical",
    "passage",
    "lexical+passage",
    "likelihood",
    "decision",
    "lexical+decision",
    "second-call",
    "rating",
]
BY_NAME: dict[str, Relevance] = {
    "combined": EvidenceProbability(),
    "attention": EvidenceProbability(("attention",)),
    "lexical": EvidenceProbability(("lexical",)),
    "passage": EvidenceProbability(("passage",)),
    "lexical+passage": EvidenceProbability(("lexical", "passage")),
    "likelihood": QuestionLikelihood(),
    "decision": Decision(),
    "lexical+decision": LexicalDecision(),
    "second-call": SecondCall(),
    "rating": Rating(),
}
RelevanceLike = RelevanceName | Relevance | Callable[[Evidence], float]


def resolve(relevance: RelevanceLike) -> Callable[[Evidence], float]:
    """The score of a name; a callable is returned as it is.

    Raises:
        TypeError: for something else.
        ValueError: for an unknown name.
    """
    if not isinstance(relevance, str):
        if not callable(relevance):
            raise TypeError(f"relevance is a name or a callable, not {relevance!r}.")
        return relevance
    if relevance not in BY_NAME:
        raise ValueError(f"relevance is one of {sorted(BY_NAME)} or a callable, not {relevance!r}.")
    return BY_NAME[relevance]
