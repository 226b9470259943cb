"""Chunks: ordered pieces of a document that know where they come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from wim_kernel import plain_data
from wim_kernel.errors import ChunkError
from wim_kernel.sentences import CountTokens, fit, pack

# Shorter agreements between two texts of unknown place are taken for chance.
_SHORTEST_OVERLAP = 16
# A text of more characters than this per token of the budget is cut without counting it whole first.
_CHARACTERS_PER_TOKEN = 16


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
        return tuple(_cut(span, start, end) for span in overlapping)

    def narrow(self, start: int, end: int) -> Chunk:
        """Characters ``start`` to ``end`` as a chunk of their own, with the same metadata.

        Where they hold nothing of a source, the chunk keeps a span without length of the source before them.
        """
        if (start, end) == (0, len(self.text)):
            return self
        spans = self.locate(start, end)
        if not spans and self.spans:
            nearest = max((s for s in self.spans if s.offset <= start), key=_offset, default=self.spans[0])
            place = min(max(start, nearest.offset), nearest.offset + nearest.length)
            spans = (replace(_cut(nearest, place, place), offset=start),)
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


def as_chunks(document: str | Iterable[str | Chunk]) -> list[Chunk]:
    """A document in any of the forms that are accepted, as chunks.

    Args:
        document: one long text, whose source is then called ``"document"``; or texts and chunks in reading
            order, each text a source of its own that is called by its place, ``"0"`` for the first.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(document, str):
        return [Chunk.of(document, "document", 0)]
    # A mapping would be read as its keys, and a set has no order.
    if isinstance(document, Mapping | Set | bytes | bytearray) or not isinstance(document, Iterable):
        raise TypeError(_accepted(f"a {type(document).__name__}"))
    items = list(document)
    for index, item in enumerate(items):
        if not isinstance(item, str | Chunk):
            raise TypeError(_accepted(f"a {type(item).__name__} at index {index}"))
    taken = {source for item in items if isinstance(item, Chunk) for source in item.source_ids}
    return [
        item if isinstance(item, Chunk) else Chunk.of(item, _own_name(index, taken), 0)
        for index, item in enumerate(items)
    ]


def contiguous(previous: Chunk, following: Chunk) -> bool:
    """Whether ``following`` goes on exactly where ``previous`` ends in the same source."""
    if following.continues:
        return True
    if not (previous.spans and following.spans):
        return False
    tail, head = previous.spans[-1], following.spans[0]
    return tail.offset + tail.length == len(previous.text) and head.offset == 0 and _adjoin(tail, head)


def split(
    text: str,
    max_tokens: int,
    count_tokens: CountTokens,
    source_id: str = "document",
    metadata: Mapping[str, Any] | None = None,
    language: str = "en",
) -> list[Chunk]:
    """Cut a text into chunks of at most ``max_tokens`` tokens: `split_chunk` for a text alone."""
    return split_chunk(Chunk.of(text, source_id, 0, metadata), max_tokens, count_tokens, language)


def split_chunk(
    chunk: Chunk, max_tokens: int, count_tokens: CountTokens, language: str = "en"
) -> list[Chunk]:
    """Cut a chunk into chunks of at most ``max_tokens`` tokens, each as many whole sentences as fit.

    A sentence over the budget is cut at white space, a word over it between characters. Only a single
    character, as a reader sees it, may exceed the budget. The pieces' texts joined are the chunk's text, and
    they keep its metadata; a chunk without text gives none.

    Args:
        chunk: what to cut.
        max_tokens: how many tokens a piece may have, as ``count_tokens`` counts its whole text.
        count_tokens: how many tokens a text has. All of the text goes through it about three times.
        language: ISO 639 code, for finding sentences.

    Raises:
        ValueError: if ``max_tokens`` is less than 1.
    """
    _check_budget(max_tokens)
    length = len(chunk.text)
    if 0 < length <= max_tokens * _CHARACTERS_PER_TOKEN and count_tokens(chunk.text) <= max_tokens:
        return [chunk]
    pieces: list[Chunk] = []
    for start, end in pack(chunk.text, max_tokens, count_tokens, language):
        piece = chunk.narrow(start, end)
        if pieces and not contiguous(pieces[-1], piece):
            piece = replace(piece, continues=True)
        pieces.append(piece)
    return pieces


def join_adjacent(
    chunks: Sequence[Chunk], max_tokens: int, count_tokens: CountTokens, separator: str = "\n\n"
) -> list[Chunk]:
    r"""Join chunks that follow one another while the whole stays within ``max_tokens`` tokens.

    Chunks that are `contiguous` join with nothing between them, others with ``separator``. A chunk over the
    budget stays as it is. If the metadata of all chunks joined is equal, the whole has it too; if not, it has
    ``{"joined": [...]}`` with the metadata of each, in order.

    Raises:
        ValueError: if ``max_tokens`` is less than 1.
    """
    _check_budget(max_tokens)

    def measure(first: int, last: int) -> int:
        return count_tokens(_join(chunks[first:last], separator).text)

    estimates = [count_tokens(chunk.text) for chunk in chunks]
    joined: list[Chunk] = []
    first = 0
    while first < len(chunks):
        last = max(first + 1, fit(estimates, first, max_tokens, measure))
        joined.append(_join(chunks[first:last], separator))
        first = last
    return joined


def drop_overlaps(chunks: Iterable[Chunk]) -> list[Chunk]:
    """Take from the head of each chunk what the chunks just before it in the same source already said.

    Where offsets are known they say how much is shared, provided that the texts agree. Where they are not,
    it is the longest end of the previous text that the next begins with, from 16 characters on. Chunks of
    different sources, and chunks that go back in their source (nodes in order of score), are left whole.

    Returns:
        As many chunks in the same order. One that adds nothing has an empty text and a span without length.
    """
    kept: list[Chunk] = []
    reach: Chunk | None = None  # the last chunk that added text, as it came
    before: Chunk | None = None  # the same, as it was kept
    for chunk in chunks:
        shared = _shared(reach, chunk) if reach is not None else 0
        rest = chunk.narrow(shared, len(chunk.text))
        if shared and rest.text and before is not None and not contiguous(before, rest):
            rest = replace(rest, continues=True)
        kept.append(rest)
        if rest.text:
            reach, before = chunk, rest
    return kept


def _own_name(index: int, taken: Set[str]) -> str:
    """What a text is called by its place, unless a chunk beside it names its source so."""
    name = str(index)
    while name in taken:
        name = f"text {name}"
    return name


def _accepted(given: str) -> str:
    return f"A document is a string, or an ordered iterable of strings and Chunks; this is {given}."


def _check_budget(max_tokens: int) -> None:
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}; a chunk needs room for at least one token.")


def _offset(span: Span) -> int:
    return span.offset


def _origin(span: Span) -> int | None:
    """Where the span begins in its source, if source and text agree character for character."""
    if span.start is None or span.end is None or span.end - span.start != span.length:
        return None
    return span.start


def _cut(span: Span, start: int, end: int) -> Span:
    """The part of a span within characters ``start`` to ``end`` of its chunk's text."""
    low, high = max(start, span.offset), min(end, span.offset + span.length)
    if high - low == span.length:
        return span
    origin = _origin(span)
    if origin is None:
        return Span(span.source_id, None, None, low, high - low)
    return Span(span.source_id, origin + low - span.offset, origin + high - span.offset, low, high - low)


def _adjoin(tail: Span, head: Span) -> bool:
    return tail.source_id == head.source_id and tail.end is not None and tail.end == head.start


def _join(chunks: Sequence[Chunk], separator: str) -> Chunk:
    if len(chunks) == 1:
        return chunks[0]
    text = ""
    spans: list[Span] = []
    before: Chunk | None = None
    for chunk in chunks:
        if chunk.text:
            if before is not None and not contiguous(before, chunk):
                text += separator
            before = chunk
        spans += [replace(span, offset=span.offset + len(text)) for span in chunk.spans]
        text += chunk.text
    metadata = chunks[0].metadata
    if any(chunk.metadata != metadata for chunk in chunks):
        metadata = {"joined": [dict(chunk.metadata) for chunk in chunks]}
    return Chunk(text, tuple(spans), metadata, chunks[0].continues)


def _shared(reach: Chunk, chunk: Chunk) -> int:
    """How many characters at the head of ``chunk`` stand in ``reach`` too."""
    if not (reach.spans and chunk.spans):
        return 0
    tail, head = reach.spans[-1], chunk.spans[0]
    if tail.source_id != head.source_id or head.offset > 0:
        return 0
    said = reach.text[tail.offset : tail.offset + tail.length]
    following = chunk.text[: head.length]
    begin, origin = _origin(head), _origin(tail)
    if begin is None or origin is None:
        return _overlap(said, following)
    if begin < origin:
        return 0
    shared = said[begin - origin :][: head.length]
    return len(shared) if following.startswith(shared) else 0


def _overlap(previous: str, following: str) -> int:
    """The longest end of one text that the other begins with, in linear time (Knuth, Morris and Pratt)."""
    end = previous[-len(following) :]
    begin = end.find(following[:_SHORTEST_OVERLAP])
    if len(following) < _SHORTEST_OVERLAP or begin < 0:
        return 0
    # borders[i]: the longest proper end of following[: i + 1] that is also its beginning
    borders, matched = [0], 0
    for char in following[1:]:
        while matched and char != following[matched]:
            matched = borders[matched - 1]
        matched += char == following[matched]
        borders.append(matched)
    matched = 0
    for char in end[begin:]:
        while matched and char != following[matched]:
            matched = borders[matched - 1]
        matched += char == following[matched]
    long_enough = matched >= _SHORTEST_OVERLAP and any(map(str.isalnum, following[:matched]))
    return matched if long_enough else 0
