"""How much a chunk helps with a question: scores from 0 to 1, behind one small interface.

A score is a callable that gets the `Evidence` the branches brought and gives a number. Three come with the kernel;
any callable of that shape is welcome.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from wim_kernel.chunks import Chunk


@dataclass(frozen=True)
class Evidence:
    """What is known of one chunk and one question.

    Attributes:
        question: the question; empty for a summary.
        chunk: the newest chunk at this boundary.
        likelihood: mean log-probability, in nats, of the question's tokens given the text through this chunk; None
            where there is no question to take it of.
        likelihood_before: the same, given the text up to the chunk.
        decision: probability of YES against NO as the reply's first token, where the score asks for a decision.
        judgement: probability of YES when asked about the written note, where the score asks for a second call.
        note: the written note, where the score asks for a second call.
    """

    question: str
    chunk: Chunk
    likelihood: float | None = None
    likelihood_before: float | None = None
    decision: float | None = None
    judgement: float | None = None
    note: str = ""


class Relevance:
    """Base of the scores. ``asks`` says what the branches must find out beyond the question's likelihood.

    Attributes:
        asks: ``"nothing"``, ``"decision"`` (YES or NO as the note's first token, Writing in the Margins, section 3), or
            ``"judgement"`` (a second call about the written note, as the paper's published code does).
    """

    asks: Literal["nothing", "decision", "judgement"] = "nothing"

    def __call__(self, evidence: Evidence) -> float:
        """The chunk's relevance, 0 to 1."""
        raise NotImplementedError


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


RelevanceName = Literal["likelihood", "decision", "second-call"]
BY_NAME: dict[str, Relevance] = {
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
