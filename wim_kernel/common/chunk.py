"""Chunks: ordered pieces of a document that know where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from wim_kernel.common import plain_data
from wim_kernel.common.errors import ChunkError


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

    @property
    def origin(self) -> int | None:
        """Where the span begins in its source, if source and text agree character for character."""
        if self.start is None or self.end is None or self.end - self.start != self.length:
            return None
        return self.start

    def cut(self, start: int, end: int) -> Span:
        """The part of the span within characters ``start`` to ``end`` of its chunk's text."""
        low, high = max(start, self.offset), min(end, self.offset + self.length)
        if high - low == self.length:
            return self
        origin = self.origin
        if origin is None:
            return Span(self.source_id, None, None, low, high - low)
        return Span(self.source_id, origin + low - self.offset, origin + high - self.offset, low, high - low)


@dataclass(frozen=True)
class Chunk:
    """An ordered piece of a document, with its provenance.

    Attributes:
        text: what is read.
        spans: which characters of which sources ``text`` is made of, in order. Characters of ``text`` outside
            all spans are separators.
        metadata: the caller's own data; never shown to the model.
        continues: the text goes on exactly where the last chunk before it that holds text ends. Set where the
            spans cannot tell: their offsets are not known, or the cut went through a separator.
    """

    text: str
    spans: tuple[Span, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    continues: bool = False

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

    def locate(self, start: int, end: int) -> tuple[Span, ...]:
        """Where characters ``start`` to ``end`` of the text come from.

        Returns:
            The runs in order, with offsets within this chunk's text. Separators are in none of them. Part of
            a run whose place in its source is not known character for character has no ``start`` and
            ``end``.

        Raises:
            ValueError: if the text has no such characters.
        """
        if not 0 <= start <= end <= len(self.text):
            raise ValueError(f"Characters {start} to {end} of a chunk of {len(self.text)} do not exist.")
        overlapping = (s for s in self.spans if max(s.offset, start) < min(s.offset + s.length, end))
        return tuple(span.cut(start, end) for span in overlapping)

    def narrow(self, start: int, end: int) -> Chunk:
        """Characters ``start`` to ``end`` as a chunk of their own, with the same metadata.

        Where they hold nothing of a source, the chunk keeps a span without length of the source before them.
        """
        if (start, end) == (0, len(self.text)):
            return self
        spans = self.locate(start, end)
        if not spans and self.spans:
            nearest = max(
                (s for s in self.spans if s.offset <= start),
                key=lambda span: span.offset,
                default=self.spans[0],
            )
            place = min(max(start, nearest.offset), nearest.offset + nearest.length)
            spans = (replace(nearest.cut(place, place), offset=start),)
        moved = tuple(replace(span, offset=span.offset - start) for span in spans)
        return Chunk(self.text[start:end], moved, self.metadata, self.continues and start == 0)

    def to_dict(self) -> dict[str, Any]:
        """The chunk as plain JSON data (metadata as given)."""
        return {
            "text": self.text,
            "spans": [asdict(span) for span in self.spans],
            "metadata": dict(self.metadata),
            "continues": self.continues,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Chunk:
        """Read back what `to_dict` wrote.

        Raises:
            ChunkError: if it is something else.
        """
        try:
            data = plain_data.mapping("data", data)
            return cls(
                plain_data.string("text", data.get("text")),
                spans_in(data.get("spans", ())),
                dict(plain_data.mapping("metadata", data.get("metadata", {}))),
                plain_data.truth("continues", data.get("continues", False)),
            )
        except plain_data.WrongTypeError as error:
            raise ChunkError(f"Chunk.from_dict reads what Chunk.to_dict wrote: {error}.") from error


def spans_in(data: object) -> tuple[Span, ...]:
    """Spans, as `asdict` wrote them.

    Raises:
        WrongTypeError: if they are something else.
    """
    return tuple(_span_in(item) for item in plain_data.sequence("spans", data))


def _span_in(data: object) -> Span:
    known = plain_data.mapping("span", data)
    return Span(
        plain_data.string("span's source_id", known.get("source_id")),
        plain_data.count_or_none("span's start", known.get("start")),
        plain_data.count_or_none("span's end", known.get("end")),
        plain_data.count("span's offset", known.get("offset")),
        plain_data.count("span's length", known.get("length")),
    )
