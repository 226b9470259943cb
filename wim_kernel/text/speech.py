"""Finds the quotations in a text, by the quotation marks of any language.

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
    "`": "'`",  # as in plain-text books, and around code
}
# The opening mark to assume for a closing mark without one.
_OPENERS = {"”": "“", "“": "„", "»": "«", "«": "»", "›": "‹", "‹": "›", "」": "「", "』": "『", '"': '"'}
_APOSTROPHES = "'’‘"
_MARKS = "".join(sorted({*_CLOSERS, *"".join(_CLOSERS.values())}))
_MARK = regex.compile(rf"[{_MARKS}]|\n[^\S\n]*\n\s*")
_BEFORE_AN_OPENING = regex.compile(r"[\s`(\[{<\p{Pd}\p{Ps}\p{Pi}\p{Lo}:=“”„\"«»'‘’]")

ADDED = rf"(?:\[[{_MARKS}]+\])?"
"""A pattern of the marks that `marked` adds: in brackets, as editors mark their additions."""


@dataclass(frozen=True)
class Quotation:
    """A quotation in a text.

    Attributes:
        start: the position of the opening mark; -1 if the quotation began before the text.
        end: one past the closing mark; without one, one past the text's end, or the position where the next paragraph
            opens the quotation again.
        opener: the opening mark.
        closer: the closing mark.
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
        elif mark in '"`' and mark in (text[at - 1 : at], text[at + 1 : at + 2]):
            continue  # code, or an empty string
        elif is_first_paragraph and not open_ and not found and _closes_earlier_speech(text, at, mark):
            found.append(Quotation(-1, at + 1, _OPENERS[mark], mark))
        else:
            _take(text, at, mark, open_, found)
    end = len(text)
    for at, mark in open_:
        if mark not in _APOSTROPHES + "`":
            found.append(Quotation(at, end + 1, mark, _CLOSERS[mark][0]))
    return sorted(found, key=lambda item: (item.start, -item.end))


def _take(text: str, at: int, mark: str, open_: list[tuple[int, str]], found: list[Quotation]) -> None:
    """Apply one mark: close the innermost quotation that it can close, or open one."""
    if _may_close(text, at, mark):
        for index in range(len(open_) - 1, -1, -1):
            if mark in _CLOSERS[open_[index][1]]:
                start, opener = open_[index]
                found.append(Quotation(start, at + 1, opener, mark))
                del open_[index:]
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
    """Whether a mark can close a quotation: no word follows it, and it does not open its own paragraph."""
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
    """Runs of a text, with missing quotation marks added in brackets around quoted words.

    Args:
        text: the text.
        runs: character ranges of the text.
        known: the text's quotations.
    """
    spoken = list(known)
    for start, end in runs:
        before = "".join(item.opener for item in spoken if item.start < start < item.end - 1)
        after = "".join(item.closer for item in reversed(spoken) if item.start < end < item.end)
        yield (f"[{before}]" if before else "") + text[start:end] + (f"[{after}]" if after else "")
