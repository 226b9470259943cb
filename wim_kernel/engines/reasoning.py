"""How a chat template is kept from having the model reason aloud before it replies.

Reasoning would take a note's tokens, and the first token of a reply could not decide. Templates differ in how they turn
it off: a variable, an empty block that they write by themselves, or not at all. All of it is found in the template and
in what it renders; no model's name is known here.
"""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, TemplateSyntaxError

_OFF: dict[str, Any] = {
    "enable_thinking": False,
    "enable_reasoning": False,
    "thinking": False,
    "reasoning": False,
    "think": False,
    "thinking_mode": "chat",
    "thinking_budget": 0,
}
"""Values with which templates that know these variables turn reasoning off."""

_BLOCKS = (
    ("<think>", "</think>"),
    ("<thought>", "</thought>"),
    ("<thinking>", "</thinking>"),
    ("<seed:think>", "</seed:think>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
"""The beginning and the end of reasoning, as models write it."""


def switches(template: str) -> dict[str, Any]:
    """The variables that turn reasoning off in a template, with their values."""
    known = _variables(template)
    found = {name: value for name, value in _OFF.items() if name in known}
    if "reasoning_effort" in known:  # where effort can be none, the template compares it with that word
        found["reasoning_effort"] = "none" if re.search(r"""['"]none['"]""", template) else "low"
    return found


def _variables(template: str) -> set[str]:
    """The names in a template's code that are not attributes."""
    names, before = set(), ""
    try:
        for _line, kind, word in Environment().lex(template):
            if kind == "name" and before != ".":
                names.add(word)
            if kind != "whitespace":
                before = word
    except TemplateSyntaxError:
        pass  # rendering it will tell
    return names


def reply_lead(template: str, prompt: str, written: str | None, *, switched: bool) -> str:
    """What to put behind a rendered prompt so that the reply begins there, and not the reasoning before it.

    Args:
        template: the chat template.
        prompt: what it renders from the end of the user's turn on, where a reply is asked for.
        written: what it renders between the user's turn and a reply that has been written; None if that is unknown.
        switched: whether the template has a variable that turns reasoning off.
    """
    lead = written.removeprefix(prompt) if written is not None and written.startswith(prompt) else ""
    if (
        not lead.strip()
    ):  # a space before the reply is for the tokenizer of the whole to see, not for the prompt's end
        lead = ""
    for begin, end in _BLOCKS:
        opened = (prompt + lead).rpartition(begin)
        if opened[1] and end not in opened[2]:
            return lead + f"\n{end}\n\n"
        if not opened[1] and not switched and not lead and end in template and end not in prompt:
            return (
                f"{begin}\n\n{end}\n\n"  # the model opens a block by itself, which the template removes later
            )
    return lead
