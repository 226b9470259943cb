"""Method specs: parsing of the command line's methods with their options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wim_integrations.evaluation.errors import EvaluationError
from wim_kernel.run.options import Options, parse_options

BASELINE = "plain"
_WIM = {"wim": {}, "wim-free": {"margin_style": "free"}, "wim-verbatim": {"margin_style": "verbatim"}}
_OTHERS = ("plain", "gold", "rag", "map-reduce", "refine", "tree-summarize")
NAMES = ("plain", *_WIM, *_OTHERS[1:])
# Options that are objects or functions, or that have to be the same for all methods.
_EXCLUDED = {
    *("keep", "stop_when", "prompts", "variables", "margin_config", "answer_config", "answer_schema"),
    *("answer_tokens", "task"),
}


@dataclass(frozen=True)
class MethodSpec:
    """A method of the command line.

    Attributes:
        name: the method as it was written, which is its name in records and tables.
        kind: the method's kind; ``"wim"`` for all ``wim`` methods.
        options: the method's options.
    """

    name: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)


def parse_methods(text: str) -> list[MethodSpec]:
    """Parse a comma-separated list of methods, such as ``plain,wim:top_k=3,relevance=decision,rag``.

    An option belongs to the method before it. Repeated methods are dropped.

    Raises:
        EvaluationError: for an unknown method or option, or an invalid value.
    """
    parts: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        head = part.partition("=")[0]
        if "=" in part and ":" not in head:  # a further option
            if not parts or ":" not in parts[-1]:
                raise EvaluationError(f"{part!r} is an option without a method: write METHOD:{part}.")
            parts[-1] += f",{part}"
        else:
            parts.append(part)
    if not parts:
        raise EvaluationError(f"No method is named. Methods are {', '.join(NAMES)}.")
    return [_spec(part) for part in dict.fromkeys(parts)]


def _spec(text: str) -> MethodSpec:
    name, _, rest = text.partition(":")
    if name not in NAMES:
        raise EvaluationError(f"Unknown method: {name!r}. Methods are {', '.join(NAMES)}.")
    options = dict(_option(text, part) for part in rest.split(",")) if rest else {}
    if name in _WIM:
        options = {**_WIM[name], **options}
        _check_wim(text, options)
        return MethodSpec(text, "wim", options)
    known = ("top_k",) if name == "rag" else ()
    unknown = set(options) - set(known)
    if unknown:
        has = f"has the option {', '.join(known)}" if known else "has no options"
        raise EvaluationError(
            f"{text}: unknown option {', '.join(sorted(unknown))}. The method {name} {has}."
        )
    top_k = options.get("top_k", 1)
    if not isinstance(top_k, int) or top_k < 1:
        raise EvaluationError(f"{text}: top_k is at least 1, not {top_k}.")
    return MethodSpec(text, name, options)


def _option(text: str, part: str) -> tuple[str, Any]:
    key, equals, value = part.partition("=")
    if not key.strip() or not equals:
        raise EvaluationError(f"{text}: options are written KEY=VALUE, not {part!r}.")
    try:
        return key.strip(), json.loads(value)
    except json.JSONDecodeError:
        return key.strip(), value


def _check_wim(text: str, options: dict[str, Any]) -> None:
    known = sorted(set(Options.__annotations__) - _EXCLUDED)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise EvaluationError(
            f"{text}: {', '.join(unknown)} cannot be set here. Options are {', '.join(known)}."
        )
    try:
        parse_options(options)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise EvaluationError(f"{text}: {error}") from error
