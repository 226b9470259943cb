"""Grounding: how much of a note in the model's own words is supported by its chunk."""

from __future__ import annotations

from wim_kernel.run.relevance.lexical import words

_SHORTEST = 4  # characters; shorter words are mostly grammar, unless they have a digit


def support(note: str, text: str, question: str = "") -> float | None:
    """The share of a note's content words that occur in a text, 0 to 1; None for a note without content words.

    Content words are words with a digit, and words of at least four characters, except those of the question. An
    invented note has a support near 0, a copied note has 1.

    >>> support("Mrs Fenn paid 400 pounds", "In 1820 Mrs Fenn bought her for 400 pounds.")
    0.75
    """
    in_question, in_text = set(words(question)), set(words(text))
    content = [
        word
        for word in dict.fromkeys(words(note))
        if word not in in_question and (len(word) >= _SHORTEST or any(char.isdigit() for char in word))
    ]
    if not content:
        return None
    return sum(word in in_text for word in content) / len(content)
