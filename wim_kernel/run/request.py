"""A call's request: questions and settings, checked before any work begins."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from wim_kernel.common.events import Event
from wim_kernel.run.options import Options, parse_options
from wim_kernel.run.relevance.scores import QuestionLikelihood
from wim_kernel.run.settings import Settings

Result = TypeVar("Result")
Overflow = Literal["volumes", "error"]
Step = Event | None
"""One step of work: an event, or None for a step without one."""
Work = Generator[Step, None, Result]
"""Work in steps, which a caller may suspend or close between any two of them."""


@dataclass(frozen=True)
class Request:
    """A call's request.

    Attributes:
        questions: one or more questions.
        settings: the checked options.
        stream: whether a consumer waits for margins while they are written.
        without_question: whether there is no question, as in a plain summary.
    """

    questions: tuple[str, ...]
    settings: Settings
    stream: bool = False
    without_question: bool = False


def parse_request(questions: Sequence[str], options: Options, *, stream: bool = False) -> Request:
    """Check questions and options, before any work begins.

    Raises:
        TypeError: for a question that is no string, or an unknown option.
        ValueError: for options that do not go together, or an empty question.
    """
    if isinstance(questions, str) or not all(isinstance(question, str) for question in questions):
        raise TypeError("Questions are strings; several are a list of strings.")
    settings = parse_options(options)
    without_question = not all(question.strip() for question in questions)
    if "{question}" not in settings.prompts.question:
        without_question = True  # the prompt shows no question whose likelihood could be measured
    elif without_question:
        raise ValueError('There is no question. Ask one, or use task="summarise".')
    if without_question and settings.margin_style == "verbatim":
        raise ValueError(
            "Verbatim margins are chosen by the question, and there is none: use margin_style='free'."
        )
    searches = getattr(settings.relevance, "searches", ())
    if (
        without_question
        and settings.top_k is not None
        and (searches or isinstance(settings.relevance, QuestionLikelihood))
    ):
        raise ValueError(
            "top_k ranks by the question, and there is none: use relevance='decision' or a callable."
        )
    return Request(tuple(questions), settings, stream, without_question)
