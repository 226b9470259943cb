"""Finds quotations in a text: exactly on normalised characters, and otherwise nearly, with RapidFuzz."""

from __future__ import annotations

import unicodedata
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import regex

CLOSE_ENOUGH = 88.0
"""The least similarity of a quotation and a passage, 0 to 100, at which the passage counts as quoted."""
SHORTEST_FUZZY = 16
"""Shorter quotations are found exactly or not at all: few characters resemble many passages, in characters."""
_SAME = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛´`ʼ", "'"),
        **dict.fromkeys("“”„‟«»", '"'),
        **dict.fromkeys("‐‑‒–—―−", "-"),
        # Invisible characters, and the strokes and vowel signs that Arabic may be written with or without.
        **dict.fromkeys("\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u0640\u0670", None),
        **dict.fromkeys(map(chr, range(0x064B, 0x0653)), None),
    }
)
_ASCII = str.maketrans(
    {character: character.translate(_SAME).casefold() for character in map(chr, range(128))}
)
# Scripts without spaces between words: a line break within them is no space, and each character is a word.
_NO_SPACES = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(rf"[{_NO_SPACES}]|[\p{{L}}\p{{M}}\p{{N}}--[{_NO_SPACES}]]+", regex.V1)
_WIDE = regex.compile(rf"[{_NO_SPACES}\u3000-\u303f\uff00-\uffef]")
_DIVIDED = regex.compile(r"(?<=\p{L})[-\u2010\u00ad][^\S\n]*\n\s*(?=\p{Ll})")
_SPACE = regex.compile(r"\s+")
_TRIMMED = "\"'“”„«»…"
_AROUND = 12  # words before and behind what RapidFuzz found at which the quotation may begin or end


NOT_FOUND = "[not in the text]"
"""Stands behind a quotation by a model that the text does not have."""


@dataclass(frozen=True)
class Place:
    """Where a quotation stands.

    Attributes:
        start: its first character in the text.
        end: one past its last.
        how: ``"exact"`` if only white space, quotation marks, dashes, hyphenation, ligatures, case and Arabic vowel
            signs differ, otherwise ``"fuzzy"``.
    """

    start: int
    end: int
    how: Literal["exact", "fuzzy"]


def locate(quote: str, text: str) -> Place | None:
    r"""Find a quotation in a text; None if the text does not have it. For several quotations, use a `Locator`.

    >>> locate("the  ship’s owner", "She was the ship's\nowner.")
    Place(start=8, end=24, how='exact')
    """
    return Locator(text).locate(quote)


class Locator:
    """Finds quotations in one text, which is prepared once.

    Args:
        text: the text.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._plain, self._places = _normalised(text)

    def locate(self, quote: str) -> Place | None:
        """Where a quotation stands; None if the text does not have it."""
        wanted, _ = _normalised(quote.strip().strip(_TRIMMED).removesuffix("...").strip())
        wanted = wanted.strip()
        if not wanted:
            return None
        at = self._whole(wanted)
        if at >= 0:
            return self._place(at, at + len(wanted), "exact")
        return self._near(wanted) if len(wanted) >= SHORTEST_FUZZY else None

    def _whole(self, wanted: str) -> int:
        """Where the text has these characters: as whole words if it can be, otherwise anywhere; -1 if nowhere."""
        first, at = -1, self._plain.find(wanted)
        while at >= 0:
            stop = at + len(wanted)
            if not (self._cuts(at) or self._cuts(stop)):
                return at
            if first < 0 and not self._splits(at) and not self._splits(stop):
                first = at
            at = self._plain.find(wanted, at + 1)
        return first

    def _splits(self, position: int) -> bool:
        """Whether a position is within one character of the text, such as between a letter and its accent."""
        return 0 < position < len(self._places) and self._places[position] == self._places[position - 1]

    def _cuts(self, position: int) -> bool:
        """Whether a position is within a word."""
        word = bisect_right(self._starts, position - 1) - 1
        return word >= 0 and self._starts[word] < position < self._ends[word]

    def _near(self, wanted: str) -> Place | None:
        """The passage that resembles a quotation most, from word to word; None without RapidFuzz or a close one."""
        try:
            from rapidfuzz import fuzz
        except ImportError:  # the extra `hosted` brings it
            return None
        found = fuzz.partial_ratio_alignment(wanted, self._plain, score_cutoff=CLOSE_ENOUGH)
        if found is None or found.dest_end <= found.dest_start:
            return None
        start, end = self._settled(wanted, found.dest_start, found.dest_end, fuzz.ratio)
        if end < len(self._plain) and self._plain[end] in ".!?。！？؟":
            end += 1
        return self._place(start, end, "fuzzy")

    def _settled(self, wanted: str, start: int, end: int, ratio: Any) -> tuple[int, int]:
        """The run of whole words around ``start`` and ``end`` that resembles a quotation most.

        RapidFuzz's window is never longer than the quotation, and begins and ends anywhere.
        """
        first = bisect_right(self._starts, start)
        last = bisect_left(self._ends, end)
        starts = self._starts[max(0, first - _AROUND) : first + _AROUND] or [start]
        ends = self._ends[max(0, last - _AROUND) : last + _AROUND] or [end]
        plain = self._plain
        for _ in range(2):  # each end with the other one as it is
            end = max(
                (each for each in ends if each > start),
                key=lambda each: (ratio(wanted, plain[start:each]), -each),
                default=end,
            )
            start = max(
                (each for each in starts if each < end),
                key=lambda each: (ratio(wanted, plain[each:end]), each),
                default=start,
            )
        return start, end

    def _place(self, start: int, end: int, how: Literal["exact", "fuzzy"]) -> Place:
        stop = self._places[end - 1] + 1
        while stop < len(self.text) and not self.text[stop].isspace() and not _folded(self.text[stop]):
            stop += 1  # marks that are not compared belong to the letter before them
        return Place(self._places[start], stop, how)

    @cached_property
    def _words(self) -> list[tuple[int, int]]:
        return [word.span() for word in _WORD.finditer(self._plain)]

    @cached_property
    def _starts(self) -> list[int]:
        return [start for start, _ in self._words]

    @cached_property
    def _ends(self) -> list[int]:
        return [end for _, end in self._words]


def _normalised(text: str) -> tuple[str, list[int]]:
    """A text as it is compared, and for each of its characters the position in the text that it comes from.

    White space becomes one space, or none between characters of scripts without spaces; a word divided by a hyphen at a
    line's end becomes one word; letters are decomposed and folded, so that ligatures are letters.
    """
    divided = {match.start(): match.end() for match in _DIVIDED.finditer(text)}
    parts: list[str] = []
    places: list[int] = []
    position = 0
    folded_ascii = text.translate(_ASCII)  # each character stays one
    for start, end, space in _gaps(text, divided):
        run = folded_ascii[position:start]
        if run.isascii():
            parts.append(run)
            places.extend(range(position, start))
        else:
            for place, character in enumerate(run, position):
                folded = _folded(character)
                parts.append(folded)
                places.extend([place] * len(folded))
        if space and places:
            parts.append(" ")
            places.append(start)
        position = end
    return "".join(parts).rstrip(), places


def _gaps(text: str, divided: dict[int, int]) -> list[tuple[int, int, bool]]:
    """White space and hyphens at line ends, in order: first character, one past the last, and whether it is a space."""
    found = [(start, end, False) for start, end in divided.items()]
    covered = {place for start, end in divided.items() for place in range(start, end)}
    for match in _SPACE.finditer(text):
        start, end = match.span()
        if start in covered:
            continue
        wide = start > 0 and end < len(text) and _WIDE.match(text[start - 1]) and _WIDE.match(text[end])
        found.append((start, end, not wide))
    return [*sorted(found), (len(text), len(text), False)]


@lru_cache(maxsize=4096)
def _folded(character: str) -> str:
    """A character as it is compared: letters without case, ligatures as letters, marks of one kind alike."""
    return unicodedata.normalize("NFKD", character.translate(_SAME)).translate(_SAME).casefold()
