"""A short document, a question about it, and a relevance of the caller's own."""

from __future__ import annotations

TEXTS = [
    "The gull sat on the mast.",
    "Elsa Brandt owned the ship.",
    "Rain fell all night.",
    "The fog was thick.",
]


QUESTION = "Who owned the ship?"


def by_word(word: str):
    """A relevance score of a caller's own: 0.9 for chunks with a word, else 0.1."""
    return lambda evidence: 0.9 if word in evidence.chunk.text else 0.1
