"""Relevance: how much a chunk helps with a question, and the signals that it is computed from."""

from wim_kernel.run.relevance.scores import (
    BY_NAME,
    Decision,
    Evidence,
    EvidenceProbability,
    QuestionLikelihood,
    Rating,
    Relevance,
    RelevanceLike,
    RelevanceName,
    SecondCall,
    resolve,
)

__all__ = [
    "BY_NAME",
    "Decision",
    "Evidence",
    "EvidenceProbability",
    "QuestionLikelihood",
    "Rating",
    "Relevance",
    "RelevanceLike",
    "RelevanceName",
    "SecondCall",
    "resolve",
]
