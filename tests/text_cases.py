"""Texts for the tests of sentences and chunks, and ways to count their tokens."""

from __future__ import annotations

import re

from hypothesis import strategies as st

# Any code point at all, lone surrogates too, mixed with what sentences are made of.
BITS = [
    *".?! \n\t\0\"'“”«»()aB9é。\u0301\u200d\u2028\x85\xa0\ud800",
    "\n\n",
    "\r\n",
    "👩\u200d👩\u200d👧",
    "🇬🇷",
    *("J.", "Mr. ", "e.g. ", "It is so. ", "Why? ", "word " * 9),
]
texts = st.lists(st.sampled_from(BITS) | st.characters(), max_size=40).map("".join)

PROSE = "Dr. Roe went\nto sea. She said so. It rained, and it rained. Why? Nobody knew.\n\n"


def words(text: str) -> int:
    return len(text.split())


def subwords(text: str) -> int:
    """As tokenizers count: a space belongs to the next word, so that the parts have more than the whole."""
    return len(re.findall(r" ?\w{1,3}|\s|[^\w\s]", text))


def with_start_token(text: str) -> int:
    return subwords(text) + 1


def dearer_together(text: str) -> int:
    return int(len(text) ** 1.2)


COUNTERS = [len, words, subwords, with_start_token, dearer_together]
