"""What is in a server's reply: the chances of a decision, and a note without the decision that it begins with."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Sequence
from typing import Any

from wim_kernel.engines.base import Branch
from wim_kernel.engines.server.families import Family


def chances(
    choices: Sequence[str], top: dict[str, float], text: str, first: Sequence[Collection[str]] | None
) -> tuple[float, ...]:
    """Probabilities of choices, normalised over them: by the first token's, or by how the text begins.

    Args:
        choices: texts that compete.
        top: log-probabilities of first tokens, the likeliest or those asked for; empty if they are not known. A choice
            that is not among them is taken to be as likely as the least likely of them, which it is at most.
        text: how the reply begins.
        first: names of each choice's first token; None to take all tokens that a choice begins with.
    """
    if top:
        sums = [0.0] * len(choices)
        for token, logprob in top.items():
            word = token.strip().upper()
            for place, choice in enumerate(choices):
                hit = token in first[place] if first is not None else word and choice.upper().startswith(word)
                sums[place] += math.exp(logprob) if hit else 0.0
        least = math.exp(min(top.values()))
        sums = [found or least for found in sums]
        return tuple(chance / sum(sums) if sum(sums) else 1 / len(choices) for chance in sums)
    begins = [bool(_choice_at_start(text, choice)) for choice in choices]
    return tuple(map(float, begins)) if any(begins) else (1.0, *[0.0] * (len(choices) - 1))


def _choice_at_start(text: str, choice: str) -> re.Match[str] | None:
    """The choice as a whole word at a text's beginning."""
    return re.match(rf"\s*{re.escape(choice.rstrip(':'))}\b[:\s]*", text, re.IGNORECASE)


def without_decision(text: str, branch: Branch, *, decided: bool, whole: bool = False) -> str:
    """A reply without the choice that it begins with, where the model wrote that itself.

    Args:
        text: the reply so far.
        branch: what was asked.
        decided: whether the choice was put into the model's mouth.
        whole: whether the reply is at its end; before that, what may turn out to be the choice is not shown.
    """
    if not branch.choices or decided:
        return text
    head, choice = text.lstrip(), branch.choices[0].rstrip(":")
    if not whole and len(head) <= len(choice) and choice.upper().startswith(head.upper()):
        return ""
    found = _choice_at_start(head, choice)
    return head[found.end() :] if found else head


def schema_fields(family: Family, schema: str) -> dict[str, Any]:
    """How a family is asked for JSON of a schema."""
    shape = {"name": "answer", "schema": json.loads(schema), "strict": True}
    if family.name == "sglang":
        return {"json_schema": schema}
    if family.name == "llama.cpp":
        return {"json_schema": json.loads(schema)}
    return {"response_format": {"type": "json_schema", "json_schema": shape}}
