"""What a caller asks for, checked before any work is done."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from wim_kernel.common.events import Event
from wim_kernel.run.options import Options, Settings, settle
from wim_kernel.run.relevance.scores import QuestionLikelihood

Result = TypeVar("Result")
Overflow = Literal["volumes", "error"]
Step = Event | None
"""One step of work: an event, or nothing to tell."""
Work = Generator[Step, None, Result]


@dataclass(frozen=True)
class Request:
    """What a caller wants.

    Attributes:
        questions: one or more.
        settings: how to go about them.
        stream: whether somebody waits for margins as they come.
        blank: whether there is no question to look for.
    """

    questions: tuple[str, ...]
    settings: Settings
    stream: bool = False
    blank: bool = False


def parse_request(questions: Sequence[str], options: Options, *, stream: bool = False) -> Request:
    """Check what a caller wants, before any work is done."""
    if isinstance(questions, str) or not all(isinstance(question, str) for question in questions):
        raise TypeError("Questions are strings; several are a list of strings.")
    settings = settle(options)
    blank = not all(question.strip() for question in questions)
    if "{question}" not in settings.prompts.question:
        blank = True  # nothing to take a likelihood of
    elif blank:
        raise ValueError('There is no question. Ask one, or use task="summarise".')
    if blank and settings.margin_style == "verbatim":
        raise ValueError(
            "Verbatim margins are chosen by the question, and there is none: use margin_style='free'."
        )
    searches = getattr(settings.relevance, "searches", ())
    if (
        blank
        and settings.top_k is not None
        and (searches or isinstance(settings.relevance, QuestionLikelihood))
    ):
        raise ValueError(
            "top_k ranks by the question, and there is none: use relevance='decision' or a callable."
        )
    return Request(tuple(questions), settings, stream, blank)
