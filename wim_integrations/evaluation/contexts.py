"""The contexts and outputs of lm-evaluation-harness's tasks, as text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from wim_integrations.evaluation.errors import EvaluationError

_MARKER = re.compile(r"^[ \t]*(?:question|query|q)[ \t]*:[ \t]*", re.IGNORECASE | re.MULTILINE)
_CUE = re.compile(r"\n[ \t]*(?:answer|a)[ \t]*:[ \t]*$", re.IGNORECASE)


def split_context(context: str, marker: str | None = None) -> tuple[str, str]:
    """Split a harness's context into a document and the question about it.

    The question begins at the last line that starts with "Question:", "Query:" or "Q:"; else behind the last empty
    line; else at the last line. These words and an "Answer:" at the very end are dropped, for the kernel's prompts say
    the same. Where one of the two parts would be empty, the whole context is both.

    Args:
        context: the harness's context; few-shot examples in it become part of the document.
        marker: a text behind whose last occurrence the question begins; by default a line such as "Question:".

    Raises:
        EvaluationError: if the marker is not in the context.
    """
    context = _CUE.sub("", context.rstrip())
    if marker is not None:
        document, found, question = context.rpartition(marker)
        if not found:
            raise EvaluationError(f"The marker {marker!r} is not in a context that begins {context[:60]!r}.")
        parts = [(document, question)]
    else:
        last = next(reversed(list(_MARKER.finditer(context))), None)
        parts = [] if last is None else [(context[: last.start()], context[last.end() :])]
        parts += [context.rpartition(edge)[::2] for edge in ("\n\n", "\n")]
    for document, question in parts:
        if document.strip() and question.strip():
            return document.rstrip(), question.strip()
    return context, context.strip()


def until(text: str, stops: Sequence[str]) -> str:
    """The text before the first occurrence of any stop."""
    return text[
        : min((position for stop in stops if stop and (position := text.find(stop)) >= 0), default=None)
    ]
