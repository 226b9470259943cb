"""Replies of chat models as data: ratings with a note or quotations, decisions, and JSON in text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
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
    """

    rating: float
    note: str = ""
    quotes: tuple[str, ...] = ()


def rated(data: Any, text: str, rates: str) -> Rated:
    """A margin out of a reply: out of its data, JSON in its text, or else the text itself.

    A text that is no JSON is taken for the note or quotation that was asked for, unless it says no. It is rated in the
    middle, since it does not say.

    Args:
        data: the reply as data; None if there is only text.
        text: the reply's text.
        rates: what was asked for: ``"note"`` or ``"quotes"``.
    """
    found = data if isinstance(data, Mapping) else json_in(text)
    if not isinstance(found, Mapping):
        plain = text.strip()
        says_no = not plain or re.match(r"(no|none|not relevant|nothing)\b", plain, re.IGNORECASE)
        return Rated(0.0) if says_no else Rated(0.5, plain, (plain,) if rates == "quotes" else ())
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


def json_in(text: str) -> Any:
    """The JSON value in a text: the whole text, or the first object or list in it. None if there is none."""
    plain = text.strip()
    try:
        return json.loads(plain)
    except ValueError:
        pass
    reader = json.JSONDecoder()
    for match in re.finditer(r"[{\[]", plain):
        try:
            return reader.raw_decode(plain, match.start())[0]
        except ValueError:
            continue
    return None


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
        found = re.match(rf"\W*{re.escape(choice.rstrip(':'))}\b[:\s]*", text, re.IGNORECASE)
        if found:
            return tuple(float(number == index) for number in range(len(choices))), text[found.end() :]
    return tuple(float(number == 0) for number in range(len(choices))), text
