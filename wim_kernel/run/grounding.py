"""Whether a note in the model's own words is borne out by the text that it is about."""

from __future__ import annotations

from wim_kernel.run.relevance.lexical import words

_SHORTEST = 4  # shorter words are mostly grammar; what has a digit in it always counts


def support(note: str, text: str, question: str = "") -> float | None:
    """The share of a note's telling words that stand in a text, 0 to 1; None for a note that has none.

    Names, numbers and long words tell; words of the question are nobody's finding, and do not count. A note made up
    from nothing has little support; one that was copied has all of it.

    >>> support("Mrs Fenn paid 400 pounds", "In 1820 Mrs Fenn bought her for 400 pounds.")
    0.75
    """
    asked, found = set(words(question)), set(words(text))
    telling = [
        word
        for word in dict.fromkeys(words(note))
        if word not in asked and (len(word) >= _SHORTEST or any(char.isdigit() for char in word))
    ]
    if not telling:
        return None
    return sum(word in found for word in telling) / len(telling)
