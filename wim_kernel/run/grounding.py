"""Grounding: how much of a note in the model's own words is supported by its chunk."""

from __future__ import annotations

from functools import lru_cache

from wim_kernel.run.relevance.lexical import words
from wim_kernel.text.locating import Locator, Place
from wim_kernel.text.sentences import sentence_spans

SHORTEST = 16
"""Characters; a shorter sentence stands in many passages by chance, so that finding it proves nothing."""
REWORDED = 0.25
"""The least support of a sentence that says in other words what its chunk says.

Of true sentences about something else 92% have less in a chunk of 500 tokens, and of rewordings of a chunk's facts 1%
(sentences and questions of SQuAD and HotpotQA).
"""
_SHORTEST_WORD = 4  # characters; shorter words are mostly grammar, unless they have a digit


def support(note: str, text: str, question: str = "") -> float | None:
    """The share of a note's content words that occur in a text, 0 to 1; None for a note without content words.

    Content words are words with a digit, and words of at least four characters, except those of the question. An
    invented note has a support near 0, a copied note has 1.

    >>> support("Mrs Fenn paid 400 pounds", "In 1820 Mrs Fenn bought her for 400 pounds.")
    0.75
    """
    content = [word for word in _words(note, question) if _tells(word)]
    return _share(content, text) if content else None


@lru_cache(maxsize=256)  # a margin is made again whenever its relevance changes
def found_share(note: str, text: str, question: str = "") -> float | None:
    """The share of a note's sentences that were found in a text, 0 to 1; None if that cannot be told.

    A sentence was found if the text has it word for word or nearly (see `wim_kernel.text.locating`), or says it in
    other words: with a `support` of at least a quarter. Sentences without content words do not count, nor do those in
    another language than the text, most of whose short words the text does not have either.
    """
    found = [
        True if place is not None else _is_reworded(sentence, text, question)
        for sentence, place in places_of(note, _locator(text))
    ]
    known = [each for each in found if each is not None]
    return sum(known) / len(known) if known else None


def places_of(note: str, locator: Locator) -> list[tuple[str, Place | None]]:
    """A note as one quotation if the text has it whole; otherwise its sentences, but for very short ones.

    Each comes with its place, or with None if the text does not have it.
    """
    note = note.strip()
    whole = locator.locate(note) if note else None
    if whole is not None:
        return [(note, whole)]
    sentences = (note[start:end].strip() for start, end in sentence_spans(note))
    return [(sentence, locator.locate(sentence)) for sentence in sentences if len(sentence) >= SHORTEST]


def _is_reworded(sentence: str, text: str, question: str) -> bool | None:
    """Whether a text says in other words what a sentence says; None if that cannot be told."""
    supported = support(sentence, text, question)
    if supported is None or supported >= REWORDED:
        return None if supported is None else True
    grammar = [word for word in _words(sentence, question) if not _tells(word)]
    return False if grammar and _share(grammar, text) >= 0.5 else None


def _words(note: str, question: str) -> list[str]:
    """A note's words, each once, without those of the question."""
    in_question = set(words(question))
    return [word for word in dict.fromkeys(words(note)) if word not in in_question]


def _tells(word: str) -> bool:
    return len(word) >= _SHORTEST_WORD or any(map(str.isdigit, word))


def _share(of: list[str], text: str) -> float:
    in_text = _vocabulary(text)
    return sum(word in in_text for word in of) / len(of)


# The chunks of a document are looked up for every question. To prepare a long one takes longer than to look it up.
@lru_cache(maxsize=256)
def _locator(text: str) -> Locator:
    return Locator(text)


@lru_cache(maxsize=256)
def _vocabulary(text: str) -> frozenset[str]:
    return frozenset(words(text))
