"""The events of a stream. Each event is a value; ``to_dict`` returns it as plain JSON data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from wim_kernel.common.margins import Margin, Timings, Usage, WimResult


@dataclass(frozen=True)
class ChunkRead:
    """A chunk was prefilled, or found in the cache.

    Attributes:
        index: the chunk's index.
        chunks: how many chunks the document has.
        tokens: document tokens read so far, this chunk included.
        total_tokens: document tokens in all.
        cached: whether the chunk was in the cache.
    """

    index: int
    chunks: int
    tokens: int
    total_tokens: int
    cached: bool

    def to_dict(self) -> dict[str, Any]:
        """The event as plain JSON data."""
        return {"event": "chunk_read", **asdict(self)}


@dataclass(frozen=True)
class MarginWritten:
    """A margin was written, or its chunk was not relevant enough for a note.

    Attributes:
        margin: the margin.
        question: the index of the margin's question among the call's questions.
    """

    margin: Margin
    question: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The event as plain JSON data."""
        return {"event": "margin_written", "question": self.question, "margin": self.margin.to_dict()}


@dataclass(frozen=True)
class MarginRevised:
    """A margin changed after more of the document was read: its note, or only its relevance.

    Attributes:
        margin: the new margin, which replaces the margin with the same index.
        question: the index of the margin's question among the call's questions.
    """

    margin: Margin
    question: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The event as plain JSON data."""
        return {"event": "margin_revised", "question": self.question, "margin": self.margin.to_dict()}


@dataclass(frozen=True)
class MarginsDone:
    """The last event of a call for margins without an answer.

    Attributes:
        margins: every margin, in chunk order.
        usage: tokens that the call cost.
        timings: seconds that the call took.
        chunks_read: how many chunks were read, for ``Reading.answer``.
    """

    margins: tuple[Margin, ...]
    usage: Usage
    timings: Timings
    chunks_read: int

    def to_dict(self) -> dict[str, Any]:
        """The event as plain JSON data."""
        return {
            "event": "margins_done",
            "margins": [margin.to_dict() for margin in self.margins],
            "usage": asdict(self.usage),
            "timings": asdict(self.timings),
            "chunks_read": self.chunks_read,
        }


@dataclass(frozen=True)
class AnswerToken:
    """The next piece of an answer's text; the answer is the sum of its pieces.

    Attributes:
        text: the piece.
        question: the index of the answer's question among the call's questions.
    """

    text: str
    question: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The event as plain JSON data."""
        return {"event": "answer_token", "question": self.question, "text": self.text}


@dataclass(frozen=True)
class Answered:
    """An answer is finished. A stream ends with one such event for each question, in their order.

    Attributes:
        result: the answer, its margins and its cost.
        question: the index of the answer's question among the call's questions.
    """

    result: WimResult
    question: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The event as plain JSON data."""
        return {"event": "answered", "question": self.question, "result": self.result.to_dict()}


Event = ChunkRead | MarginWritten | MarginRevised | MarginsDone | AnswerToken | Answered
