"""Prompts that another library's template engine formatted, as prompts of the kernel.

A caller formats a template with `marked` values where the question, the notes or a note belong, and all else as it
stands. What comes out is data but for the marks: control tokens in it stay characters, braces in it stay braces.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from wim_kernel.text.prompts import Prompts

# A hole's name and what stands in it meanwhile, between characters that no text has.
_MARK = re.compile("\ue000(question|margins|note)\ue001(.*?)\ue002", re.DOTALL)

# What is left of a mark that the template changed: the question in capitals, or its beginning.
_STRAY = re.compile("\ue000[^\ue001\ue002]*(\ue001|$)|\ue002")


@dataclass(frozen=True)
class CallPrompts:
    """Prompts for one call, and its ``variables``: the data in their holes beyond the kernel's own."""

    prompts: Prompts
    variables: Mapping[str, str] = field(default_factory=dict)


def marked(hole: Literal["question", "margins", "note"], value: str = "") -> str:
    """What stands for a hole while a template is formatted; ``value`` is what template logic may look at."""
    return f"\ue000{hole}\ue001{value}\ue002"


def unmarked(text: str) -> str:
    """The text without its marks."""
    return _MARK.sub("", text)


def adopt(base: Prompts, kernels: Mapping[str, str], formatted: Mapping[str, str]) -> CallPrompts:
    """Prompts with some replaced.

    Args:
        base: those that are not.
        kernels: templates of the kernel's own, by the names of `Prompts`' fields.
        formatted: texts with marks, by name.

    Raises:
        ValueError: for a text that says nothing.
    """
    templates, data = dict(kernels), {}
    for name, text in formatted.items():
        # text, hole's name, what stood in it, text, ...
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
