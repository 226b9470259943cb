"""Text as pieces of about one token each, for models whose tokenizer is not here.

A piece has up to four characters of ASCII, two of other alphabets, or one of a script with many characters. That is an
estimate: of English prose the hosted models' tokenizers make a token of 4.2 to 4.8 characters, of code one of about 3.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_PIECE = re.compile(r"[\x00-\x7f]{1,4}|[\x80-\u2e7f]{1,2}|[^\x00-\u2e7f]")
SYSTEM_END = 0
"""The id between the system's text and the user's."""


def encode(text: str) -> list[int]:
    """The ids of a text, one for each piece.

    >>> [decode([piece]) for piece in encode("The ship sank.")]
    ['The ', 'ship', ' san', 'k.']
    """
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # no lone surrogates
    return [int.from_bytes(b"\1" + piece.encode(), "big") for piece in _PIECE.findall(text)]


def decode(ids: Iterable[int]) -> str:
    """The text of ids."""
    return "".join(_text(item) for item in ids if item != SYSTEM_END)


def _text(item: int) -> str:
    return item.to_bytes((item.bit_length() + 7) // 8, "big")[1:].decode()
