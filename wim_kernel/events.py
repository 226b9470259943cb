"""What a stream yields. Each event is a value; ``to_dict`` gives it as plain JSON data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from wim_kernel.margins import Margin, WimResult


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
    """A chunk's margin is there: written, or found not relevant enough to be written."""

    margin: Margin

    def to_dict(self) -> dict[str, Any]:
        """The event as plain JSON data."""
        return {"event": "margin_written", "margin": self.margin.to_dict()}


@dataclass(frozen=True)
class AnswerToken:
    """The next piece of the answer's text; the pieces joined are the answer."""

    text: str

    def to_dict(self) -> dict[str, Any]:
        """The event as plain JSON data."""
        return {"event": "answer_token", "text": self.text}


@dataclass(frozen=True)
class Answered:
    """The last event of a stream."""

    result: WimResult

    def to_dict(self) -> dict[str, Any]:
        """The event as plain JSON data."""
        return {"event": "answered", "result": self.result.to_dict()}


Event = ChunkRead | MarginWritten | AnswerToken | Answered
