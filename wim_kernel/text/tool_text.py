"""The text of an agent's tool: its description, and its output from an answer and notes."""

from __future__ import annotations

from collections.abc import Sequence

DESCRIPTION = (
    "Answers a question from {documents}. The whole text is read, with notes taken on the way, so ask what you want to "
    "know in one plain question; the text itself is not returned."
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
