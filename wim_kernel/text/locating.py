"""Finds a quotation in a text: exactly on normalised characters, and otherwise nearly, with RapidFuzz."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Literal

CLOSE_ENOUGH = 88.0
"""The least similarity of a quotation and a passage, 0 to 100, at which the passage counts as quoted."""
SHORTEST_FUZZY = 16
"""Shorter quotations are found exactly or not at all: few characters resemble many passages, in characters."""
_SAME = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛´`ʼ", "'"),
        **dict.fromkeys("“”„‟«»", '"'),
        **dict.fromkeys("‐‑‒–—―−", "-"),
        "\u00ad": None,
        "\u200b": None,
        "\ufeff": None,
    }
)


@dataclass(frozen=True)
class Place:
    """Where a quotation stands.

    Attributes:
        start: its first character in the text.
        end: one past its last.
        how: ``"exact"`` if only white space, quotation marks, dashes, hyphenation and case differ, otherwise
            ``"fuzzy"``.
    """

    start: int
    end: int
    how: Literal["exact", "fuzzy"]


def locate(quote: str, text: str) -> Place | None:
    r"""Find a quotation in a text; None if the text does not have it.

    >>> locate("the  ship’s owner", "She was the ship's\nowner.")
    Place(start=8, end=24, how='exact')
    """
    wanted, _ = _normalised(quote.strip().strip("\"'“”„«»…").removesuffix("...").strip())
    plain, places = _normalised(text)
    if not wanted:
        return None
    at = plain.find(wanted)
    if at >= 0:
        return Place(places[at], places[at + len(wanted) - 1] + 1, "exact")
    return _near(wanted, plain, places) if len(wanted) >= SHORTEST_FUZZY else None


def _near(wanted: str, plain: str, places: list[int]) -> Place | None:
    """The passage that resembles a quotation most, from word to word; None without RapidFuzz or a close one."""
    try:
        from rapidfuzz import fuzz
    except ImportError:  # the extra `hosted` brings it
        return None
    found = fuzz.partial_ratio_alignment(wanted, plain, score_cutoff=CLOSE_ENOUGH)
    if found is None or found.dest_end <= found.dest_start:
        return None
    start, end = found.dest_start, found.dest_end
    # The window is never longer than the quotation, so that it may end within a word.
    while start and plain[start].isalnum() and plain[start - 1].isalnum():
        start -= 1
    while end < len(plain) and plain[end - 1].isalnum() and plain[end].isalnum():
        end += 1
    while start < end and plain[start] == " ":
        start += 1
    while end > start and plain[end - 1] == " ":
        end -= 1
    if end < len(plain) and plain[end] in ".!?":
        end += 1
    return Place(places[start], places[end - 1] + 1, "fuzzy")


def _normalised(text: str) -> tuple[str, list[int]]:
    """A text as it is compared, and for each of its characters the position in the text that it comes from.

    White space becomes one space, a word divided by a hyphen at a line's end one word, and letters are folded.
    """
    characters: list[str] = []
    places: list[int] = []
    position = 0
    while position < len(text):
        char = text[position]
        if char in "-\u2010" and _divides(text, position):
            position += 1
            while position < len(text) and text[position].isspace():
                position += 1
            continue
        if char.isspace():
            if characters and characters[-1] != " ":
                characters.append(" ")
                places.append(position)
        else:
            for folded in unicodedata.normalize("NFKC", char).translate(_SAME).casefold():
                characters.append(folded)
                places.append(position)
        position += 1
    return "".join(characters).rstrip(), places


def _divides(text: str, hyphen: int) -> bool:
    """Whether a hyphen divides a word at a line's end."""
    rest = text[hyphen + 1 : hyphen + 40]
    word = rest.lstrip()
    return bool(
        hyphen and text[hyphen - 1].isalpha() and "\n" in rest[: len(rest) - len(word)] and word[:1].islower()
    )
