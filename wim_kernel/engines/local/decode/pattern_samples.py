"""Short strings and digits that fit the patterns and multiples of a schema: hints for a search, which checks them."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

if sys.version_info >= (3, 11):
    from re import _parser as parser  # type: ignore[attr-defined]
else:
    import sre_parse as parser

MOST = 4096
"""Most characters of a sample."""
LONGEST_ENDING = 16
"""Most characters of a sample's ending that becomes a hint of its own."""
_CANDIDATES = [
    *range(ord("a"), ord("z") + 1),
    *range(ord("0"), ord("9") + 1),
    *range(32, 127),
    9,
    10,
    233,
    0x4E2D,
]


def samples(schema: Any) -> list[bytes]:
    """For each pattern in a schema, a matching string and its endings, escaped for JSON; the shortest first."""
    found: set[bytes] = set()
    for pattern in _patterns(schema):
        text = sample(pattern)
        if text:
            starts = {0, *range(max(0, len(text) - LONGEST_ENDING), len(text))}
            found |= {json.dumps(text[start:], ensure_ascii=False)[1:-1].encode() for start in starts}
    return sorted(found, key=len)[:256]


def sample(pattern: str) -> str | None:
    """A short string in which ``pattern`` is found; None if none could be made."""
    try:
        text = _of_all(parser.parse(pattern))
        return text if re.search(pattern, text) else None
    except (re.error, ValueError, OverflowError, RecursionError):
        return None


def multiples(schema: Any) -> list[Decimal]:
    """What numbers of a schema are to be multiples of."""
    found = {Decimal(str(step)) for step in _said(schema, "multipleOf") if isinstance(step, int | float)}
    return sorted(step for step in found if step > 0)


def completions(begun: bytes, step: Decimal) -> Iterator[bytes]:
    """Digits that make a multiple of ``step`` of a number whose first digits stand, the fewest first."""
    before, point, after = begun.lstrip(b"-").partition(b".")
    digits = before + after
    if not digits.isdigit():
        return
    whole, parts = step.as_integer_ratio()
    for more in range(len(str(whole)) + len(str(parts)) + 1):
        scale = 10 ** (len(after) + more) if point else 1
        # the number is n / scale: a multiple if n * parts is one of whole * scale
        modulus = whole * scale // math.gcd(whole * scale, parts)
        missing = -int(digits) * 10**more % modulus
        if missing < 10**more:
            yield f"{missing:0{more}}".encode() if more else b""


def _patterns(schema: Any) -> Iterator[str]:
    yield from (pattern for pattern in _said(schema, "pattern") if isinstance(pattern, str))
    for named in _said(schema, "patternProperties"):
        if isinstance(named, dict):
            yield from named


def _said(schema: Any, keyword: str) -> Iterator[Any]:
    """What stands under a keyword anywhere in a schema."""
    pending = [schema]
    while pending:
        item = pending.pop()
        if isinstance(item, list):
            pending += item
        elif isinstance(item, dict):
            pending += item.values()
            if keyword in item:
                yield item[keyword]


def _of_all(parts: Any) -> str:
    return "".join(_of(str(kind), given) for kind, given in parts)


def _of(kind: str, given: Any) -> str:
    """A short text that matches one part of a parsed pattern.

    Raises:
        ValueError: for a kind of part that is not supported.
    """
    match kind:
        case "LITERAL":
            return chr(given)
        case "ANY":
            return "a"
        case "NOT_LITERAL":
            return "a" if given != ord("a") else "b"
        case "IN":
            return _of_class(given)
        case "BRANCH":
            return min((_of_all(branch) for branch in given[1]), key=len)
        case "SUBPATTERN":
            return _of_all(given[3])
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            least, _, repeated = given
            if least > MOST:
                raise ValueError("too long")
            return _of_all(repeated) * int(least) if least else ""
        case "ATOMIC_GROUP":
            return _of_all(given)
        case "AT":
            return ""
    raise ValueError(kind)


def _of_class(members: list[tuple[Any, Any]]) -> str:
    negated = bool(members) and str(members[0][0]) == "NEGATE"
    for code in [*_CANDIDATES, *(code for kind, code in members if str(kind) == "LITERAL")]:
        if any(_is_in(code, str(kind), given) for kind, given in members) is not negated:
            return chr(code)
    for kind, given in members:
        if str(kind) == "RANGE" and not negated:
            return chr(given[0])
    raise ValueError("an empty class")


def _is_in(code: int, kind: str, given: Any) -> bool:
    match kind:
        case "LITERAL":
            return bool(code == given)
        case "RANGE":
            return bool(given[0] <= code <= given[1])
        case "CATEGORY":
            name = str(given)
            plain = {"DIGIT": str.isdigit, "SPACE": str.isspace, "WORD": lambda c: c.isalnum() or c == "_"}
            fits: Any = plain[name.rsplit("_", 1)[1]]
            return bool(fits(chr(code))) is not ("NOT" in name)
    return False
