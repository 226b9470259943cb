"""Where a text is somebody's words: the quotations in it, by the quotation marks of any language.

A sentence that is taken out of the middle of a quotation has no marks of its own and would read as the narrator's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import regex

# What closes a quotation that a mark opens. Some marks open in one language and close in another.
_CLOSERS = {
    "“": "”",
    "”": "”",
    "„": "“”",
    "‟": "”",
    "«": "»",
    "»": "«»",
    "‹": "›",
    "›": "‹›",
    "「": "」",
    "『": "』",
    "〝": "〞〟",
    '"': '"',
    "‘": "’",
    "‚": "‘’",
    "'": "'",
}
# How a quotation began whose beginning is not there.
_OPENERS = {"”": "“", "“": "„", "»": "«", "«": "»", "›": "‹", "‹": "›", "」": "「", "』": "『", '"': '"'}
_APOSTROPHES = "'’‘"
_MARKS = "".join(sorted({*_CLOSERS, *"".join(_CLOSERS.values())}))
_MARK = regex.compile(rf"[{_MARKS}]|\n[^\S\n]*\n\s*")
_BEFORE_AN_OPENING = regex.compile(r"[\s`(\[{<\p{Pd}\p{Ps}\p{Pi}\p{Lo}:=“”„\"«»'‘’]")

ADDED = rf"(?:\[[{_MARKS}]+\])?"
"""A pattern of the marks that `marked` adds: in brackets, as what an editor adds to a quotation is."""


@dataclass(frozen=True)
class Quotation:
    """Somebody's words in a text.

    Attributes:
        start: where the mark stands that opens it; -1 if that is not in the text.
        end: one past the mark that closes it; if there is none, one past the text's end, or where the next paragraph
            opens it again.
        opener: the mark that opens it.
        closer: the mark that closes it.
    """

    start: int
    end: int
    opener: str
    closer: str


def quotations(text: str) -> list[Quotation]:
    """The quotations in a text, the outer ones first where they are nested.

    Speech that goes on in the next paragraph opens there again and is closed where it ends. A mark that nothing closes
    before its paragraph ends, and that does not go on so, opens nothing.
    """
    found: list[Quotation] = []
    open_: list[tuple[int, str]] = []
    is_first_paragraph = True
    for match in _MARK.finditer(text):
        at, mark = match.start(), match[0]
        if mark[0] == "\n":
            following = text[match.end() : match.end() + 1]
            open_ = [item for item in open_ if item[1] == following]
            is_first_paragraph = is_first_paragraph and not text[:at].strip()
        elif mark == '"' and '"' in (text[at - 1 : at], text[at + 1 : at + 2]):
            continue  # code, or an empty string
        elif is_first_paragraph and not open_ and not found and _closes_earlier_speech(text, at, mark):
            found.append(Quotation(-1, at + 1, _OPENERS[mark], mark))
        else:
            _take(text, at, mark, open_, found)
    end = len(text)
    for at, mark in open_:
        if mark not in _APOSTROPHES:
            found.append(Quotation(at, end + 1, mark, _CLOSERS[mark][0]))
    return sorted(found, key=lambda item: (item.start, -item.end))


def _take(text: str, at: int, mark: str, open_: list[tuple[int, str]], found: list[Quotation]) -> None:
    """What one mark does: close what is open, or open something."""
    if _may_close(text, at, mark):
        for place in range(len(open_) - 1, -1, -1):
            if mark in _CLOSERS[open_[place][1]]:
                start, opener = open_[place]
                found.append(Quotation(start, at + 1, opener, mark))
                del open_[place:]
                return
    if open_ and open_[-1][1] == mark and _opens_a_paragraph(text, at):  # the same speech, which goes on
        start, _ = open_.pop()
        found.append(Quotation(start, at, mark, _CLOSERS[mark][0]))
    if _opens(text, at, mark):
        open_.append((at, mark))


def _closes_earlier_speech(text: str, at: int, mark: str) -> bool:
    """Whether a mark closes speech that began before the text. Speech that runs on would open each later paragraph."""
    if (
        mark not in _OPENERS
        or not text[:at].strip()
        or _opens(text, at, mark)
        or not _may_close(text, at, mark)
    ):
        return False
    return not (mark == '"' and text[at - 1].isalnum())  # inches


def _opens(text: str, at: int, mark: str) -> bool:
    return mark in _CLOSERS and _may_open(text, at, mark)


def _may_open(text: str, at: int, mark: str) -> bool:
    before, after = text[at - 1 : at], text[at + 1 : at + 2]
    if mark in "「『〝«„":
        return True
    return (not before or bool(_BEFORE_AN_OPENING.match(before))) and bool(after) and not after.isspace()


def _may_close(text: str, at: int, mark: str) -> bool:
    """Whether a mark can stand at a quotation's end: no word follows, and none of its own paragraph begins with it."""
    after = text[at + 1 : at + 2]
    if mark in "」』〞〟":
        return True
    if mark in "«»‹›":  # French has spaces within its marks
        return not after.isalnum() or after > "\u2e80"
    if mark in _APOSTROPHES and after.isalnum():
        return False
    before = text[at - 1 : at]
    return bool(before) and not before.isspace() and not after.isalnum()


def _opens_a_paragraph(text: str, at: int) -> bool:
    before = text[max(0, at - 40) : at]
    return "\n" in before[len(before.rstrip()) :]


def marked(text: str, runs: Sequence[tuple[int, int]], known: Iterable[Quotation]) -> Iterator[str]:
    """Runs of a text, with the quotation marks in brackets that they lack where they are somebody's words.

    Args:
        text: what the runs are of.
        runs: characters.
        known: the text's quotations.
    """
    spoken = list(known)
    for start, end in runs:
        before = "".join(item.opener for item in spoken if item.start < start < item.end - 1)
        after = "".join(item.closer for item in reversed(spoken) if item.start < end < item.end)
        yield (f"[{before}]" if before else "") + text[start:end] + (f"[{after}]" if after else "")
