"""Interprets replies: the probabilities of choices, and a note without the choice that it begins with."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Sequence
from typing import Any

from wim_kernel.engines.base import Branch
from wim_kernel.engines.server.families import Family


def choice_probabilities(
    choices: Sequence[str], top: dict[str, float], text: str, first: Sequence[Collection[str]] | None
) -> tuple[float, ...]:
    """Probabilities of choices, normalised over them, by log-probabilities of the first token or by the text.

    Args:
        choices: texts that compete to be the beginning of the reply.
        top: log-probabilities of first tokens, by name; empty if unknown. A choice that is missing gets the lowest of
            them, which is an upper bound.
        text: beginning of the reply, which decides if ``top`` is empty.
        first: for each choice, the names of its first token; None to accept all tokens with which a choice begins.
    """
    if top:
        sums = [0.0] * len(choices)
        for token, logprob in top.items():
            word = token.strip().upper()
            for index, choice in enumerate(choices):
                hit = token in first[index] if first is not None else word and choice.upper().startswith(word)
                sums[index] += math.exp(logprob) if hit else 0.0
        least = math.exp(min(top.values()))
        sums = [found or least for found in sums]
        return tuple(chance / sum(sums) if sum(sums) else 1 / len(choices) for chance in sums)
    begins = [bool(_choice_at_start(text, choice)) for choice in choices]
    return tuple(map(float, begins)) if any(begins) else (1.0, *[0.0] * (len(choices) - 1))


def _choice_at_start(text: str, choice: str) -> re.Match[str] | None:
    """Match the choice as a whole word at the beginning of a text."""
    return re.match(rf"\s*{re.escape(choice.rstrip(':'))}\b[:\s]*", text, re.IGNORECASE)


def without_decision(text: str, branch: Branch, *, decided: bool, whole: bool = False) -> str:
    """A reply without the choice that it begins with, if the model generated it.

    Args:
        text: the reply so far.
        branch: the branch.
        decided: whether the choice was part of the prompt, so that the reply is without it.
        whole: whether the reply is complete. Until then, text that may become the choice is left out.
    """
    if not branch.choices or decided:
        return text
    head, choice = text.lstrip(), branch.choices[0].rstrip(":")
    if not whole and len(head) <= len(choice) and choice.upper().startswith(head.upper()):
        return ""
    found = _choice_at_start(head, choice)
    return head[found.end() :] if found else head


def schema_fields(family: Family, schema: str) -> dict[str, Any]:
    """The fields of a request that constrain the reply to JSON of a schema."""
    shape = {"name": "answer", "schema": json.loads(schema), "strict": True}
    if family.name == "sglang":
        return {"json_schema": schema}
    if family.name == "llama.cpp":
        return {"json_schema": json.loads(schema)}
    if family.name == "ollama":
        return {"format": json.loads(schema)}
    return {"response_format": {"type": "json_schema", "json_schema": shape}}
