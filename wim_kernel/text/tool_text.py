"""The texts of an agent's tool and middleware: descriptions, and the output from an answer and notes."""

from __future__ import annotations

from collections.abc import Sequence

DESCRIPTION = (
    "Answers a question from {documents}. The whole text is read, with notes taken on the way, so ask what you want to "
    "know in one plain question; the text itself is not returned."
)
READ_RESULT = (
    "{name} returned {tokens:,} tokens, which were read to their end for this question: {question}\n"
    "Below are the answer and the passages it was written from, not the result itself."
)
UNREAD_RESULT = "{name} returned {tokens:,} tokens, too many to show, and they could not be read: {error}"
READ_MESSAGE = (
    "[Here the user gave a text of {tokens:,} tokens, which was read to its end for this question: {question}\n"
    "Below are the answer and the passages it was written from, not the text itself.]"
)
UNREAD_MESSAGE = (
    "[Here the user gave a text of {tokens:,} tokens, too many to show, and it could not be read: {error}]"
)
TRUNCATED = "\n[truncated]"


def report(answer: str, notes: Sequence[str], most_chars: int) -> str:
    """The answer and its notes as one text, truncated to ``most_chars`` characters."""
    text = answer.strip()
    if notes:
        text += "\n\nNotes from the document:\n" + "\n".join(f"- {note}" for note in notes)
    if len(text) > most_chars:
        text = text[: max(0, most_chars - len(TRUNCATED))] + TRUNCATED
    return text
