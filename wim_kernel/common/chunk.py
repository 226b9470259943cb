"""Chunks: ordered pieces of a document, each with its place in its sources."""

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
        source_id: the source: a node's id, a file's name.
        start: the first character in the source; None if not known.
        end: one past the last character in the source; None if not known.
        offset: the first character in the chunk's text.
        length: how many characters of the chunk's text the run has.
    """

    source_id: str
    start: int | None
    end: int | None
    offset: int
    length: int

    @property
    def origin(self) -> int | None:
        """The span's first character in its source; None unless source and text agree character for character."""
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
        text: the text that the model reads.
        spans: the runs of sources in ``text``, in order. Characters outside all spans are separators.
        metadata: the caller's own data; never shown to the model.
        continues: whether the text continues exactly where the last chunk with text ends. Set if the spans cannot show
            it: if their offsets are not known, or the cut went through a separator.
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
        """A chunk of one run of one source, from the source's character ``start`` on."""
        end = None if start is None else start + len(text)
        return cls(text, (Span(source_id, start, end, 0, len(text)),), metadata or {})

    @property
    def source_ids(self) -> tuple[str, ...]:
        """The sources of the chunk, each once, in order."""
        return tuple(dict.fromkeys(span.source_id for span in self.spans))

    def locate(self, start: int, end: int) -> tuple[Span, ...]:
        """The places in sources of characters ``start`` to ``end`` of the text.

        Returns:
            Spans in order, with offsets in this chunk's text and without separators. Part of a span that does not
            agree with its source character for character has no ``start`` and ``end``.

        Raises:
            ValueError: if the range is outside the text.
        """
        if not 0 <= start <= end <= len(self.text):
            raise ValueError(f"Characters {start} to {end} of a chunk of {len(self.text)} do not exist.")
        overlapping = (s for s in self.spans if max(s.offset, start) < min(s.offset + s.length, end))
        return tuple(span.cut(start, end) for span in overlapping)

    def narrow(self, start: int, end: int) -> Chunk:
        """Characters ``start`` to ``end`` as a chunk of their own, with the same metadata.

        If they hold no character of a source, the chunk has an empty span of the source before them.
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
            edge = min(max(start, nearest.offset), nearest.offset + nearest.length)
            spans = (replace(nearest.cut(edge, edge), offset=start),)
        moved = tuple(replace(span, offset=span.offset - start) for span in spans)
        return Chunk(self.text[start:end], moved, self.metadata, self.continues and start == 0)

    def to_dict(self) -> dict[str, Any]:
        """The chunk as plain JSON data; metadata is passed through."""
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
