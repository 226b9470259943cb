"""What a stream yields. Each event is a value; ``to_dict`` gives it as plain JSON data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from wim_kernel.common.margins import Margin, Timings, Usage, WimResult


@dataclass(frozen=True)
class ChunkRead:
    """A chunk was prefilled, or found prefilled.

    Attributes:
        index: the chunk's position, from 0.
        chunks: how many chunks the document has.
        tokens: document tokens read so far, this chunk included.
        total_tokens: document tokens in all.
        cached: whether the chunk was in the cache already.
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
    """A chunk's margin is there: written, or found not relevant enough to be written.

    Attributes:
        margin: the margin.
        question: which of the call's questions it is for, from 0.
    """

    margin: Margin
    question: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The event as plain JSON data."""
        return {"event": "margin_written", "question": self.question, "margin": self.margin.to_dict()}


@dataclass(frozen=True)
class MarginRevised:
    """A margin that was written before is another, now that more of the document is known.

    It may have gained or lost its note, or only be more or less relevant than it seemed.

    Attributes:
        margin: the margin that takes the place of the one with the same index.
        question: which of the call's questions it is for, from 0.
    """

    margin: Margin
    question: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The event as plain JSON data."""
        return {"event": "margin_revised", "question": self.question, "margin": self.margin.to_dict()}


@dataclass(frozen=True)
class MarginsDone:
    """The last event where margins alone are asked for.

    Attributes:
        margins: every margin, in chunk order.
        usage: tokens this call cost.
        timings: seconds this call took.
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
    """The next piece of an answer's text; the pieces joined are the answer.

    Attributes:
        text: the piece.
        question: which of the call's questions it answers, from 0.
    """

    text: str
    question: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The event as plain JSON data."""
        return {"event": "answer_token", "question": self.question, "text": self.text}


@dataclass(frozen=True)
class Answered:
    """The last event of a stream: one for each question, in their order.

    Attributes:
        result: the answer and everything it stands on.
        question: which of the call's questions it answers, from 0.
    """

    result: WimResult
    question: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The event as plain JSON data."""
        return {"event": "answered", "question": self.question, "result": self.result.to_dict()}


Event = ChunkRead | MarginWritten | MarginRevised | MarginsDone | AnswerToken | Answered
