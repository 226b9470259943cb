"""Documents as chunks: splitting, joining, and dropping overlaps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from wim_kernel.common.chunk import Chunk, Span
from wim_kernel.text.sentences import CountTokens, fit, pack

# The least overlap, in characters, of two texts with unknown offsets; shorter ones may be chance.
_SHORTEST_OVERLAP = 16
# A text with more characters per token of the budget than this is cut without first counting its tokens.
_CHARACTERS_PER_TOKEN = 16


def as_chunks(document: str | Iterable[str | Chunk]) -> list[Chunk]:
    """A document in any accepted form, as chunks.

    Args:
        document: one long text, whose source is named ``"document"``; or texts and chunks in reading order, each text a
            source of its own, named by its index, ``"0"`` for the first.

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
    """Whether ``following`` continues exactly where ``previous`` ends in the same source."""
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
    """Cut a chunk into chunks of at most ``max_tokens`` tokens, each of as many whole sentences as fit.

    A longer sentence is cut at white space, and a longer word between characters. Only a single grapheme may exceed the
    budget. The new chunks' texts joined are the chunk's text, and they have its metadata; a chunk without text gives no
    chunks.

    Args:
        chunk: the chunk to cut.
        max_tokens: most tokens of a new chunk, as ``count_tokens`` counts its text.
        count_tokens: a callback that counts a text's tokens. It gets all of the text about three times.
        language: the ISO 639 code of the language, for finding sentences.

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
    r"""Join consecutive chunks up to ``max_tokens`` tokens.

    Chunks that are `contiguous` join with nothing between them, others with ``separator``. A chunk over the budget
    stays as it is. The joined chunk has the chunks' metadata if it is equal for all of them, otherwise
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
    """Drop from the head of each chunk the text that it shares with the chunk before it in the same source.

    The overlap is known from the spans' offsets, if the texts agree. Without offsets it is the longest end of the
    previous text with which the next one begins, of at least 16 characters. Chunks of different sources, and chunks out
    of order in their source (such as nodes by score), stay whole.

    Returns:
        As many chunks, in the same order. A chunk without new text has an empty text and an empty span.
    """
    kept: list[Chunk] = []
    previous: Chunk | None = None  # the last chunk with new text, as given
    before: Chunk | None = None  # the same chunk, without its overlap
    for chunk in chunks:
        shared = _shared(previous, chunk) if previous is not None else 0
        rest = chunk.narrow(shared, len(chunk.text))
        if shared and rest.text and before is not None and not contiguous(before, rest):
            rest = replace(rest, continues=True)
        kept.append(rest)
        if rest.text:
            previous, before = chunk, rest
    return kept


def _own_name(index: int, taken: Set[str]) -> str:
    """A text's source name: its index, changed if some chunk has a source of that name."""
    name = str(index)
    while name in taken:
        name = f"text {name}"
    return name


def _accepted(given: str) -> str:
    return f"A document is a string, or an ordered iterable of strings and Chunks; this is {given}."


def _check_budget(max_tokens: int) -> None:
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}; a chunk needs room for at least one token.")


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


def _shared(previous: Chunk, chunk: Chunk) -> int:
    """How many characters at the head of ``chunk`` are in ``previous``, too."""
    if not (previous.spans and chunk.spans):
        return 0
    tail, head = previous.spans[-1], chunk.spans[0]
    if tail.source_id != head.source_id or head.offset > 0:
        return 0
    before = previous.text[tail.offset : tail.offset + tail.length]
    following = chunk.text[: head.length]
    begin, origin = head.origin, tail.origin
    if begin is None or origin is None:
        return _overlap(before, following)
    if begin < origin:
        return 0
    shared = before[begin - origin :][: head.length]
    return len(shared) if following.startswith(shared) else 0


def _overlap(previous: str, following: str) -> int:
    """The longest end of one text with which the other begins, in linear time (Knuth, Morris and Pratt)."""
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
