"""Prompts formatted by another library's template engine, as the kernel's prompts.

A caller formats a template with `marked` values for the question, the notes or a note, and plain values for all else.
The formatted text is data except for the marks: control tokens and braces in it stay plain characters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from wim_kernel.text.prompts import Prompts

# A hole's name and its provisional value, between private-use characters.
_MARK = re.compile("\ue000(question|margins|note)\ue001(.*?)\ue002", re.DOTALL)

# The remains of a mark that the template changed, for example by capitalising or truncating it.
_STRAY = re.compile("\ue000[^\ue001\ue002]*(\ue001|$)|\ue002")


@dataclass(frozen=True)
class CallPrompts:
    """The prompts of one call, and ``variables``, the data of their holes besides the kernel's holes."""

    prompts: Prompts
    variables: Mapping[str, str] = field(default_factory=dict)


def marked(hole: Literal["question", "margins", "note"], value: str = "") -> str:
    """The placeholder of a hole while a template is formatted; template logic may look at ``value``."""
    return f"\ue000{hole}\ue001{value}\ue002"


def unmarked(text: str) -> str:
    """The text without its marks."""
    return _MARK.sub("", text)


def adopt(base: Prompts, kernels: Mapping[str, str], formatted: Mapping[str, str]) -> CallPrompts:
    """Replace some prompts by templates and formatted texts.

    Args:
        base: the prompts to start from.
        kernels: templates in the kernel's syntax, by the names of `Prompts`' fields.
        formatted: formatted texts with marks, by name.

    Raises:
        ValueError: for an empty text.
    """
    templates, data = dict(kernels), {}
    for name, text in formatted.items():
        # repeatedly: text, a hole's name, its provisional value
        pieces = [_STRAY.sub("", piece) for piece in _MARK.split(text.strip())]
        if pieces == [""]:
            raise ValueError(f"The prompt {name!r} is empty.")
        template = "\n\n"
        for number, (piece, hole) in enumerate(zip(pieces[::3], [*pieces[1::3], None], strict=True)):
            if piece:
                data[f"{name}_{number}"] = piece
                template += f"{{{name}_{number}}}"
            template += f"{{{hole}}}" if hole else ""
        templates[name] = template
    return CallPrompts(replace(base, **templates), data)
