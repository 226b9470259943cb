"""Shared words: BM25 of a question and passages, as a share of the highest score that the question could get."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np
import regex

Floats = np.ndarray

_SCRIPTS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
# A run of letters and digits. Scripts without spaces between words give one character at a time.
_WORD = regex.compile(rf"[{_SCRIPTS}]|[[\p{{L}}\p{{N}}\p{{M}}]--[{_SCRIPTS}]]+", regex.V1)
_UNSPACED = regex.compile(rf"[{_SCRIPTS}]")


def words(text: str) -> list[str]:
    """The words of a text in any language, in lower case; pairs of characters in scripts without spaces.

    >>> words("Who OWNED the ship?")
    ['who', 'owned', 'the', 'ship']
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    found = [match.group() for match in _WORD.finditer(text)]
    if not _UNSPACED.search(text):
        return found
    paired = list(found)
    for index in range(len(found) - 1):
        if _UNSPACED.match(found[index]) and _UNSPACED.match(found[index + 1]):
            paired[index] += found[index + 1]
    return paired


class LexicalIndex:
    """An inverted index of passages, scored by BM25 (Robertson and Zaragoza, 2009).

    The index is written here because libraries for BM25 are made for millions of documents, and the maintained one
    imports JAX if it is installed, which reserves three quarters of a GPU's memory.

    Args:
        passages: the passages' texts.
        k1: the saturation of repeated words.
        b: the weight of length normalisation, 0 to 1.
    """

    def __init__(self, passages: Sequence[str], k1: float = 1.2, b: float = 0.75) -> None:
        documents = [Counter(words(text)) for text in passages]
        lengths = np.array([document.total() for document in documents], dtype=np.float64)
        scale = k1 * (1 - b + b * lengths / max(1e-9, lengths.mean() if len(lengths) else 1.0))
        self._count = len(documents)
        self._postings: dict[str, tuple[list[int], list[float]]] = {}
        for index, document in enumerate(documents):
            for word, count in document.items():
                where, weights = self._postings.setdefault(word, ([], []))
                where.append(index)
                weights.append(count / (count + scale[index]))

    def coverage(self, query: str) -> Floats:
        """The share of the query's words in each passage, weighted by their rarity: (passages,), 0 to 1."""
        scores, best = np.zeros(self._count), 0.0
        for word in dict.fromkeys(words(query)):
            where, weights = self._postings.get(word, ([], []))
            if where:
                rarity = self._rarity(len(where))
                scores[where] += rarity * np.array(weights)
                best += rarity
        return scores / best if best else scores

    def share(self, query: str) -> Floats:
        """The share of the query's words that each passage has, weighted by their rarity: (passages,), 0 to 1.

        Unlike `coverage` it does not ask how often a passage has a word, and words that no passage has count as
        missing: a query in other words than the passages scores low everywhere.
        """
        scores, total = np.zeros(self._count), 0.0
        for word in dict.fromkeys(words(query)):
            where, _ = self._postings.get(word, ([], []))
            scores[where] += self._rarity(len(where))
            total += self._rarity(len(where))
        return scores / total if total else scores

    def _rarity(self, passages: int) -> float:
        """The weight of a word that so many passages have."""
        return math.log(1 + (self._count - passages + 0.5) / (passages + 0.5))
