"""The first look: which chunks are worth a request, by the words that they share with the question.

It reads no model. Where the question's words are not in the document it finds nothing, and every chunk is asked. Here
is the look for chat models; that for servers, which compares passages by BM25, is `Findings.bounds`. Both trust shared
words as far as `trust` says.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from wim_kernel.run.relevance.passages import DocumentPassages

FOUND = 0.5
"""The share of the question's words, weighted by rarity, that the best passage has to have for full trust."""
NEAR = 0.5
"""A chunk is asked if its best passage has at least this part of what the document's best passage has.

On the 84 packaged questions, of which a quarter is in other words than the text, over all their 124 passages in 8
chunks: the look decides about 43% of the questions and asks 36% of the chunks then; over all questions 97% of the
chunks with evidence are asked. With one passage a chunk it decides about 17%, and 99% are asked."""


def trust(shares: Iterable[float]) -> float:
    """How far shared words tell where the evidence is, 0 to 1; 1 once a passage has `FOUND` of the question's words.

    Args:
        shares: the share of the question's words that each passage has. Words that no passage has count as missing: a
            question in other words than the text is not to be judged by the one word that both happen to have.
    """
    return min(1.0, float(max(shares, default=0.0)) / FOUND)


@dataclass(frozen=True)
class FirstLook:
    """What shared words say of a document's chunks.

    Attributes:
        shares: for each chunk, the share of the question's words in its best passage, 0 to 1, weighted by rarity.
        asked: the chunks to ask.
    """

    shares: tuple[float, ...]
    asked: frozenset[int]


def look(
    document: DocumentPassages, question: str, *, decides: bool = True, most: int | None = None
) -> FirstLook:
    """Look which chunks share words with a question.

    Args:
        document: the passages of the document.
        question: the question.
        decides: whether the look decides. Otherwise all chunks with text are asked.
        most: most chunks to ask: those that share most words.
    """
    known = document.index.share(question)
    shares = [float(max((known[index] for index in own), default=0.0)) for own in document.of_chunk]
    asked = [chunk for chunk, own in enumerate(document.of_chunk) if len(own)]
    if decides and trust(shares) == 1.0:
        asked = [chunk for chunk in asked if shares[chunk] >= NEAR * max(shares)]
    if most is not None:
        asked = sorted(asked, key=lambda chunk: -shares[chunk])[: max(0, most)]
    return FirstLook(tuple(shares), frozenset(asked))
