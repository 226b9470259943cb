"""How much a chunk helps with a question: scores from 0 to 1, behind one small interface.

A score is a callable that takes the `Evidence` found for a chunk and returns a number. Those of `BY_NAME` come with the
kernel; any callable of that shape is welcome.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from wim_kernel.common.chunk import Chunk


@dataclass(frozen=True)
class Evidence:
    """What is known of one chunk and one question.

    Attributes:
        question: the question; empty for a summary.
        chunk: the chunk.
        attention: attention of the question's tokens on the chunk's best passage, in the heads that look evidence up:
            its logarithm, in nats, less that of the document's best passage. 0 for the best, below 0 for the others.
        lexical: how much of the question's words the passage shares, 0 to 1, weighted by rarity (BM25), less the same
            of the document's best passage.
        passage: mean log-probability of the question's tokens given the passage alone, in nats, less that of the
            document's best passage.
        probabilities: the calibrated probability that the chunk holds evidence, by each of these signals alone, and
            by all of them as ``"combined"``.
        likelihood: mean log-probability, in nats, of the question's tokens given the text through this chunk; None
            where there is no question to take it of.
        likelihood_before: the same, given the text up to the chunk.
        decision: probability of YES against NO as the reply's first token, where the score asks for a decision.
        judgement: probability of YES when asked about the written note, where the score asks for a second call.
        note: the written note, where the score asks for a second call.
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

    @property
    def signals(self) -> dict[str, float]:
        """What was measured, by name."""
        names = (
            "attention",
            "lexical",
            "passage",
            "likelihood",
            "likelihood_before",
            "decision",
            "judgement",
        )
        found = {name: getattr(self, name) for name in names}
        return {name: float(value) for name, value in found.items() if value is not None}


class Relevance:
    """Base of the scores.

    Attributes:
        asks: what a branch behind the chunk must be asked: ``"nothing"``, ``"decision"`` (YES or NO as the note's first
            token, Writing in the Margins, section 3), or ``"judgement"`` (a second call about the written note, as the
            paper's published code does).
        searches: which signals of passages it needs: some of ``"attention"``, ``"lexical"`` and ``"passage"``.
    """

    asks: Literal["nothing", "decision", "judgement"] = "nothing"
    searches: tuple[str, ...] = ()

    def __call__(self, evidence: Evidence) -> float:
        """The chunk's relevance, 0 to 1."""
        raise NotImplementedError


@dataclass(frozen=True)
class EvidenceProbability(Relevance):
    """The calibrated probability that the chunk holds evidence for the question.

    Each of a chunk's passages is compared with the best of the document, by the attention that the question's tokens
    put on it, by the words it shares with the question, and by how likely the question is after the passage alone; the
    chunk is as relevant as its best passage. 1 where there is no question.

    Attributes:
        searches: the signals that count.
    """

    searches: tuple[str, ...] = ("attention", "lexical", "passage")

    @property
    def curve(self) -> str:
        """The name of the probability among `Evidence.probabilities`."""
        return self.searches[0] if len(self.searches) == 1 else "combined"

    def __call__(self, evidence: Evidence) -> float:
        """The chunk's relevance, 0 to 1."""
        return evidence.probabilities.get(self.curve, 1.0)


@dataclass(frozen=True)
class QuestionLikelihood(Relevance):
    """How much likelier the question became by reading the chunk.

    The rise in the mean log-probability of the question's tokens, through a logistic curve; 1 where there is no
    question. The curve's two constants were fitted once, on 474 chunks of 50 SQuAD questions and the embedded model, a
    little in favour of keeping too much; neither depends on the document's length or the number of chunks.

    Attributes:
        midpoint: the rise, in nats a token, that means even odds.
        width: how many nats a token change the odds by a factor of e.
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
class SecondCall(Relevance):
    """The probability of YES when the model is shown its own note and asked whether it helps."""

    asks = "judgement"

    def __call__(self, evidence: Evidence) -> float:
        """The chunk's relevance, 0 to 1."""
        return evidence.judgement or 0.0


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


RelevanceName = Literal[
    "combined", "attention", "lexical", "passage", "likelihood", "decision", "second-call"
]
BY_NAME: dict[str, Relevance] = {
    "combined": EvidenceProbability(),
    "attention": EvidenceProbability(("attention",)),
    "lexical": EvidenceProbability(("lexical",)),
    "passage": EvidenceProbability(("passage",)),
    "likelihood": QuestionLikelihood(),
    "decision": Decision(),
    "second-call": SecondCall(),
}
RelevanceLike = RelevanceName | Relevance | Callable[[Evidence], float]


def resolve(relevance: RelevanceLike) -> Callable[[Evidence], float]:
    """The score that a name stands for; a callable stands for itself."""
    if not isinstance(relevance, str):
        if not callable(relevance):
            raise TypeError(f"relevance is a name or a callable, not {relevance!r}.")
        return relevance
    if relevance not in BY_NAME:
        raise ValueError(f"relevance is one of {sorted(BY_NAME)} or a callable, not {relevance!r}.")
    return BY_NAME[relevance]
