"""Chunks: ordered pieces of a document that know where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Span:
    """A run of characters of one source.

    Attributes:
        source_id: which source: a node's id, a file's name.
        start: first character in the source; None where the source's offsets are not known.
        end: one past the last character in the source; None likewise.
        offset: where the run begins in the text of the chunk that holds it.
        length: how many characters of the chunk's text the run takes.
    """

    source_id: str
    start: int | None
    end: int | None
    offset: int
    length: int


@dataclass(frozen=True)
class Chunk:
    """An ordered piece of a document, with its provenance.

    Attributes:
        text: what is read.
        spans: which characters of which sources ``text`` is made of, in order. Characters of ``text`` outside all
            spans are separators.
        metadata: the caller's own data; never shown to the model.
    """

    text: str
    spans: tuple[Span, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        text: str,
        source_id: str,
        start: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Chunk:
        """A chunk that is one run of one source, beginning at character ``start`` of it."""
        end = None if start is None else start + len(text)
        return cls(text, (Span(source_id, start, end, 0, len(text)),), metadata or {})

    @property
    def source_ids(self) -> tuple[str, ...]:
        """The sources of the chunk, each once, in order."""
        return tuple(dict.fromkeys(span.source_id for span in self.spans))

    def to_dict(self) -> dict[str, Any]:
        """The chunk as plain JSON data (metadata as given)."""
        return {"text": self.text, "spans": [asdict(s) for s in self.spans], "metadata": dict(self.metadata)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Chunk:
        """Read back what `to_dict` wrote."""
        spans = tuple(Span(**span) for span in data.get("spans", ()))
        return cls(str(data["text"]), spans, dict(data.get("metadata", {})))
