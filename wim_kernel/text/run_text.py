"""Runs of prompt text: the application's text, which may hold control tokens, and data, which never does."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Text:
    """A run of prompt text.

    Attributes:
        text: the characters.
        trusted: True for the application's own prompt text, which may hold control tokens. Text from documents,
            questions and margins is not trusted: nothing in it is ever read as a control token.
        hole: the name of the template's hole that the run fills; empty if it fills none.
    """

    text: str
    trusted: bool = False
    hole: str = field(default="", compare=False, repr=False)


Prompt = tuple[Text, ...]
