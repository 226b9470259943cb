"""Replies of chat models as data: ratings with a note or quotations, decisions, and JSON in text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST = 10
"""The highest rating."""
_RATING = {"type": "integer", "description": f"0 (does not help) to {MOST} (says it outright)"}
SCHEMAS: dict[str, dict[str, Any]] = {
    "note": {
        "title": "Margin",
        "description": "How much a passage helps, and a note of what helps",
        "type": "object",
        "properties": {"relevance": _RATING, "note": {"type": "string"}},
        "required": ["relevance", "note"],
        "additionalProperties": False,
    },
    "quotes": {
        "title": "Margin",
        "description": "How much a passage helps, and the sentences of it that help",
        "type": "object",
        "properties": {"relevance": _RATING, "quotes": {"type": "array", "items": {"type": "string"}}},
        "required": ["relevance", "quotes"],
        "additionalProperties": False,
    },
}
"""The schema of a margin in one reply, by `wim_kernel.engines.base.Branch.rates`."""


@dataclass(frozen=True)
class Rated:
    """A margin in one reply.

    Attributes:
        rating: how much the passage helps, 0 to 1.
        note: the note, in the model's words.
        quotes: sentences that the model says stand in the passage.
        is_unreadable: whether the reply is broken JSON or JSON of something else; it is rated 0 then.
    """

    rating: float
    note: str = ""
    quotes: tuple[str, ...] = ()
    is_unreadable: bool = False


_SAYS_NO = re.compile(
    r"(no|none|not relevant|nothing)\b"
    r"|(i|it|there|(the|this|that) (last )?(passage|text|document|chunk|excerpt)|passage \[?\d+\]?)\b"
    r"[^.!?\n]*\b(no|not|none|nothing|cannot|\w+n['\u2019]t)\b[^.!?\n]*"
    r"\b(relevant|relevance|help|helps|helpful|useful|information|sentences?|passages?|mention|answer)\b",
    re.IGNORECASE,
)
_RATES = re.compile(
    r"[*_]*\b(?:relevance|rating)\b[\W_]*(?:is|of)?[\W_]{0,6}(\d{1,2}(?:\.\d+)?)\b(?:\s*(?:/|out of)\s*10\b)?[*_.,;]*",
    re.IGNORECASE,
)


_IS_JSON = re.compile(r"\{|\[\s*[\[{\"\]]")


def rated(data: Any, text: str, rates: str) -> Rated:
    """A margin out of a reply: out of its data, JSON in its text, or else the text itself.

    A text that is no JSON is taken for the note or quotation that was asked for, unless it says no. If it does not say
    ``Relevance: 7`` either, it is rated in the middle.

    Args:
        data: the reply as data; None if there is only text.
        text: the reply's text.
        rates: what was asked for: ``"note"`` or ``"quotes"``.
    """
    found = _object_in(text, data)
    if found is not None:
        return _of_object(found)
    plain = re.sub(r"^```\w*\s*|\s*```$", "", text.strip())
    if data is not None or _IS_JSON.match(plain) or '"relevance"' in plain:
        return Rated(0.0, is_unreadable=plain != "[]")
    says = _RATES.search(plain)
    rating = _share(says[1] if says else plain if plain.isdigit() else None)
    plain = "" if plain.isdigit() else _RATES.sub("", plain, count=1).strip()
    if not says and (not text.strip() or _SAYS_NO.match(plain)):
        return Rated(0.0)
    return Rated(rating, plain, (plain,) if rates == "quotes" and plain else ())


def _object_in(text: str, data: Any) -> Mapping[str, Any] | None:
    """The data, or the first JSON object in a text, if it has a rating, a note or quotes; one with a rating first."""
    values = json_values(text) if data is None else [data]
    objects = [found for found in values if isinstance(found, Mapping)]
    for names in ({"relevance"}, {"note", "quotes"}):
        for found in objects:
            if names & found.keys():
                return found
    return None


def _of_object(found: Mapping[str, Any]) -> Rated:
    quotes = found.get("quotes")
    listed = quotes if isinstance(quotes, Sequence) and not isinstance(quotes, str) else [quotes]
    return Rated(
        _share(found.get("relevance")),
        str(found.get("note") or "").strip(),
        tuple(quote.strip() for quote in listed if isinstance(quote, str) and quote.strip()),
    )


def _share(value: Any) -> float:
    """A rating as a share of the highest one; in the middle if it is no number."""
    try:
        return min(1.0, max(0.0, float(value) / MOST))
    except (TypeError, ValueError):
        return 0.5


def json_values(text: str) -> Iterator[Any]:
    """The JSON values in a text: the whole text, or the objects and lists in it."""
    plain = text.strip()
    try:
        yield json.loads(plain)
        return
    except ValueError:
        pass
    reader, after = json.JSONDecoder(), 0
    for match in re.finditer(r"[{\[]", plain):
        if match.start() < after:
            continue
        try:
            found, after = reader.raw_decode(plain, match.start())
        except ValueError:
            continue
        yield found


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value has the outermost shape of a schema: its type, and the names that it requires."""
    kinds: dict[str, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "boolean": bool,
        "number": (int, float),
        "integer": int,
    }
    wanted = kinds.get(str(schema.get("type")))
    if wanted is not None and not isinstance(value, wanted):
        return False
    return not isinstance(value, dict) or all(name in value for name in schema.get("required", ()))


def decided(choices: Sequence[str], text: str) -> tuple[tuple[float, ...], str]:
    """The probability of each choice by how a reply begins, and the reply without the choice.

    A reply that begins with none of them counts as the first: what is not denied is kept.
    """
    for index, choice in enumerate(choices):
        found = re.match(rf"\W*{re.escape(choice.rstrip(':'))}\b[\s:;,.*_-]*", text, re.IGNORECASE)
        if found:
            return tuple(float(number == index) for number in range(len(choices))), text[found.end() :]
    return tuple(float(number == 0) for number in range(len(choices))), text
