"""Words that a question shares with passages: BM25, as a share of the best score that the question could get."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import bm25s
import numpy as np
import regex

# A run of letters and digits; scripts without spaces between words give one character at a time.
_SCRIPTS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(rf"[{_SCRIPTS}]|[[\p{{L}}\p{{N}}\p{{M}}]--[{_SCRIPTS}]]+", regex.V1)
_UNSPACED = regex.compile(rf"[{_SCRIPTS}]")


def words(text: str) -> list[str]:
    """The words of a text in any language, in small letters; pairs of characters where a script has no spaces.

    >>> words("Who OWNED the ship?")
    ['who', 'owned', 'the', 'ship']
    """
    found = [match.group() for match in _WORD.finditer(text.casefold())]
    if not _UNSPACED.search(text):
        return found
    paired = list(found)
    for index in range(len(found) - 1):
        if _UNSPACED.match(found[index]) and _UNSPACED.match(found[index + 1]):
            paired[index] += found[index + 1]
    return paired


class LexicalIndex:
    """Passages, indexed by their words.

    Args:
        passages: their texts.
    """

    def __init__(self, passages: Sequence[str]) -> None:
        self._count = len(passages)
        documents = [words(text) for text in passages]
        self._frequency = Counter(word for document in documents for word in set(document))
        self._index: bm25s.BM25 | None = None
        if self._frequency:
            self._index = bm25s.BM25()
            self._index.index(documents, show_progress=False)

    def coverage(self, query: str) -> np.ndarray:
        """How much of the question's words each passage has, weighted by how rare they are: (passages,), 0 to 1."""
        asked = [word for word in dict.fromkeys(words(query)) if word in self._frequency]
        if self._index is None or not asked:
            return np.zeros(self._count)
        best = sum(
            math.log(1 + (self._count - self._frequency[word] + 0.5) / (self._frequency[word] + 0.5))
            for word in asked
        )
        return np.asarray(self._index.get_scores(asked), dtype=np.float64) / best
