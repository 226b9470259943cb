"""Markers: the numbers in square brackets, such as ``[1]``, by which an answer cites the passages in its prompt.

A marker may come in pieces, token by token, and a model may write numbers that no passage has. `may_become` says which
beginnings can still become existing markers; `MarkerFilter` lets only whole existing ones through.
"""

from __future__ import annotations

import re
from collections.abc import Set

OPEN = re.compile(r"\[[0-9]*\Z")
"""A marker that has begun at a text's end."""
MARKER = re.compile(r"\[([0-9]+)\]")
_BEGUN = re.compile(r"\[([0-9]+)(\]?)")
_WRITTEN = re.compile(
    r" ?\[([0-9]+(?:[,;] ?[0-9]+)*)\]"
)  # models also write several numbers in one pair of brackets
_UNFINISHED = re.compile(r"(?: ?\[(?:[0-9]+(?:[,;] ?[0-9]*)*)?)* ?\Z")
_INSIDE = re.compile(r"\[[0-9,; ]*\Z")


def numbers(count: int) -> frozenset[str]:
    """The numbers of ``count`` passages, as they are written."""
    return frozenset(map(str, range(1, count + 1)))


def may_become(text: str, existing: Set[str]) -> bool:
    """Whether every marker in a text exists, and one that has begun at its end may become an existing one.

    >>> [may_become(text, {"1", "12"}) for text in ("so [1].", "so [", "so [12", "so [2]", "so [1x")]
    [True, True, True, False, False]
    """
    for found in _BEGUN.finditer(text):
        number, closed = found.groups()
        if closed:
            possible = number in existing
        else:
            possible = found.end() == len(text) and any(each.startswith(number) for each in existing)
        if not possible:
            return False
    return True


class MarkerFilter:
    """Lets a text through piece by piece, without markers that are broken or whose number does not exist.

    What may become a marker is held back until it has. ``[1, 2]`` becomes ``[1][2]``.

    Args:
        count: how many passages there are; their numbers begin with 1.

    Attributes:
        text: the text that was let through so far.
        dropped: how many numbers that do not exist were left out.

    >>> markers = MarkerFilter(2)
    >>> [markers.push(piece) for piece in ("She did ", "[", "2]", " [7", "].")]
    ['She did', '', ' [2]', '', '.']
    """

    def __init__(self, count: int) -> None:
        self.text = ""
        self.dropped = 0
        self._existing = numbers(count)
        self._held = ""

    def push(self, piece: str) -> str:
        """Take the next piece; returns what can be shown of the text now."""
        self._held += piece
        unfinished = _UNFINISHED.search(self._held)
        assert unfinished is not None, "the pattern matches the empty text"
        ready, self._held = self._held[: unfinished.start()], unfinished[0]
        return self._show(ready)

    def flush(self) -> str:
        """End the text; returns the rest of it. A marker that has begun, and was cut short, is left out."""
        rest, self._held = self._held, ""
        return self._show("" if "[" in rest else rest)

    def _show(self, ready: str) -> str:
        shown, position = len(self.text), 0
        for found in _WRITTEN.finditer(ready):
            self.text += ready[position : found.start()]
            written = re.findall("[0-9]+", found[1])
            kept = [number for number in written if number in self._existing]
            self.dropped += len(written) - len(kept)
            if kept:
                space = " " if found[0].startswith(" ") else ""
                self.text += space + "".join(f"[{number}]" for number in kept)
            elif _INSIDE.search(self.text):
                self.text += " "  # otherwise what stands around it would join into a marker
            position = found.end()
        self.text += ready[position:]
        return self.text[shown:]
