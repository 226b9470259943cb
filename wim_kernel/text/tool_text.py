"""What an agent is told of an answer: the answer, the notes it stands on, and no more than fits."""

from __future__ import annotations

from collections.abc import Sequence

DESCRIPTION = (
    "Answers a question from {documents}. The whole text is read, with notes taken on the way, so ask what you want to "
    "know in one plain question; the text itself is not returned."
)
TRUNCATED = "\n[truncated]"


def report(answer: str, notes: Sequence[str], most_chars: int) -> str:
    """The answer and its notes as one text of at most ``most_chars`` characters, which is cut at its end if need be."""
    text = answer.strip()
    if notes:
        text += "\n\nNotes from the document:\n" + "\n".join(f"- {note}" for note in notes)
    if len(text) > most_chars:
        text = text[: max(0, most_chars - len(TRUNCATED))] + TRUNCATED
    return text
