"""Type checks of values that are read from JSON; each error is one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


class WrongTypeError(ValueError):
    """A value has the wrong type. Callers convert this into an error of their own."""

    def __init__(self, name: str, wanted: str, value: object) -> None:
        super().__init__(f"its {name} is {wanted}, not {shown(value)}")


def string(name: str, value: object) -> str:
    """A string."""
    if not isinstance(value, str):
        raise WrongTypeError(name, "a string", value)
    return value


def string_or_none(name: str, value: object) -> str | None:
    """A string, or None."""
    return None if value is None else string(name, value)


def truth(name: str, value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise WrongTypeError(name, "true or false", value)
    return value


def count(name: str, value: object) -> int:
    """A whole number that is not negative."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise WrongTypeError(name, "a whole number from 0", value)
    return value


def count_or_none(name: str, value: object) -> int | None:
    """A whole number that is not negative, or None."""
    return None if value is None else count(name, value)


def number(name: str, value: object) -> float:
    """A number that is finite."""
    if not is_finite(value):
        raise WrongTypeError(name, "a number", value)
    return float(value)  # type: ignore[arg-type]


def share(name: str, value: object) -> float:
    """A number from 0 to 1."""
    if not is_finite(value) or not 0 <= value <= 1:  # type: ignore[operator]
        raise WrongTypeError(name, "a number from 0 to 1", value)
    return float(value)  # type: ignore[arg-type]


def mapping(name: str, value: object) -> Mapping[Any, Any]:
    """A dict."""
    if not isinstance(value, Mapping):
        raise WrongTypeError(name, "a dict", value)
    return value


def sequence(name: str, value: object) -> Sequence[Any]:
    """A list or the like."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray):
        raise WrongTypeError(name, "a list", value)
    return value


def is_finite(value: object) -> bool:
    """Whether a value is a number, and neither infinite nor more than a float holds."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def shown(value: object) -> str:
    """A value's repr for an error message: on one line, and shortened."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a repr may do anything, and numbers may have too many digits for one
        text = f"a {type(value).__name__}"
    return f"{text[:60]}{'...' if len(text) > 60 else ''}"
