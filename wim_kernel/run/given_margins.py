"""Margins given by people and programs: parsed and checked in one place, for every way of calling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from wim_kernel.common import plain_data
from wim_kernel.common.chunk import Chunk, Span, spans_in
from wim_kernel.common.errors import ChunkError, MarginsError
from wim_kernel.common.margins import TEXT_SIGNALS, Margin, evidence_in, without_text
from wim_kernel.run.grounding import found_share, support
from wim_kernel.run.quoting import quoted_share, reads

MarginsLike = Sequence[Margin | Mapping[str, Any] | str]
FindSpans = Callable[[int, Mapping[str, Any]], tuple[Span, ...]]
"""Reads a margin's sentence spans from its data, given its chunk's index, and checks them."""

APPROVAL = frozenset({"approve", "approved", "accept", "accepted"})
_FIELDS = ("text", "kept", "note", "relevance", "index")
_FORMS = "a Margin, a dict with its text, or a string, which is a note of one's own"


def margins_in(
    given: object,
    chunks: Sequence[Chunk],
    *,
    question: str = "",
    written: Iterable[Margin] | None = None,
    find_spans: FindSpans | None = None,
) -> list[Margin]:
    """Parse the margins that a person or a program gave for an answer.

    A changed text is the person's own words: as after `Margin.edited`, it has no spans, no ``"support"`` and no
    ``"located"``. In data, spans stay with a text that consists of their sentences, and shares with a text that has the
    same ones when it is measured again.

    Args:
        given: a list. Each item is a `Margin`; a dict with ``text`` and, optionally, the other keys that
            `Margin.to_dict` writes; or a string, which is a note of one's own. True or ``"approve"`` in place of the
            list approves ``written``.
        chunks: the reading's chunks.
        question: the question that the margins were written for.
        written: the margins that an approval stands for; None if they are not known.
        find_spans: a callback that reads the spans of a dict; by default it reads ``"spans"`` as `Margin.to_dict`
            writes them.

    Raises:
        MarginsError: for anything else; the message names the wrong margin and says what a margin is.
    """
    if is_approval(given):
        if written is None:
            raise MarginsError(
                f"{plain_data.shown(given)} approves margins that are not known here: give the margins themselves, "
                "as a list."
            )
        return list(written)
    if isinstance(given, str | bytes | Mapping | Margin) or not isinstance(given, Iterable):
        raise MarginsError(
            f"Margins are a list, each item {_FORMS}; this is {_described(given)}. To answer without any, give []."
        )
    find = find_spans or _own_spans
    margins = [_margin(index, item, chunks, find) for index, item in enumerate(given)]
    return [_as_changed(margin, question) for margin in margins]


def chunks_in(given: object, chunks: int) -> int:
    """Check ``chunks_read``, the number of chunks behind which an answer from given margins is written.

    Raises:
        MarginsError: unless ``given`` is an integer from 1 to ``chunks``.
    """
    if isinstance(given, int) and not isinstance(given, bool) and 0 < given <= chunks:
        return given
    raise MarginsError(
        f"chunks_read is {plain_data.shown(given)} and the document has {chunks} chunks: give the number that came "
        "with the margins, or leave it out."
    )


def is_approval(reply: object) -> bool:
    """Whether a person's reply approves the margins as they were shown."""
    return reply is True or (isinstance(reply, str) and reply.strip().lower() in APPROVAL)


def _margin(position: int, item: object, chunks: Sequence[Chunk], find_spans: FindSpans) -> Margin:
    if isinstance(item, Margin):
        _check_index(item.index, chunks)
        return item
    if isinstance(item, str):
        item = {"text": item}
    if not isinstance(item, Mapping):
        raise MarginsError(f"A margin is {_FORMS}; the one at position {position} is {_described(item)}.")
    _check_names(position, item)
    index = item.get("index", len(chunks) - 1)
    if not isinstance(index, int) or isinstance(index, bool):
        raise MarginsError(f"A margin's index is the number of its chunk, not {plain_data.shown(index)}.")
    _check_index(index, chunks)
    chunk, relevance, evidence = item.get("chunk"), item.get("relevance"), item.get("evidence")
    try:
        return Margin(
            index=index,
            text=plain_data.string("text", item["text"]),
            relevance=1.0 if relevance is None else plain_data.share("relevance", relevance),
            kept=plain_data.truth("kept", item.get("kept", True)),
            chunk=chunks[index] if chunk is None else _chunk(position, chunk),
            spans=find_spans(index, item),
            note=plain_data.string("note", "" if item.get("note") is None else item["note"]),
            evidence={} if evidence is None else evidence_in(evidence),
        )
    except plain_data.WrongTypeError as error:
        raise MarginsError(f"The margin at position {position} is wrong: {error}.") from error


def _as_changed(margin: Margin, question: str) -> Margin:
    """The margin without what was found of its text, if that is not of the text that it has now."""
    found = {name: share for name, share in margin.evidence.items() if name in TEXT_SIGNALS}
    if not found or found in (_note_shares(margin, question), _quotation_shares(margin)):
        return margin
    return replace(margin, evidence=without_text(margin.evidence))


def _note_shares(margin: Margin, question: str) -> dict[str, float]:
    text, chunk = margin.text, margin.chunk.text
    shares = {"support": support(text, chunk, question), "located": found_share(text, chunk, question)}
    return {name: share for name, share in shares.items() if share is not None}


def _quotation_shares(margin: Margin) -> dict[str, float]:
    share = quoted_share(margin.text, margin.chunk.text)
    return {} if share is None else {"located": share}


def _check_names(position: int, item: Mapping[Any, Any]) -> None:
    """Check that no key is missing or misspelt. Keys that are not a margin's are the caller's own, and ignored."""
    for name in item:
        near = get_close_matches(str(name).lower(), _FIELDS, n=1, cutoff=0.75)
        if near and name not in _FIELDS and near[0] not in item:
            raise MarginsError(
                f"The margin at position {position} has {name!r}, which is called {near[0]!r}."
            )
    if "text" not in item:
        raise MarginsError(
            f"The margin at position {position} has no 'text': give it one, or leave the margin out of the list."
        )


def _check_index(index: int, chunks: Sequence[Chunk]) -> None:
    if not 0 <= index < len(chunks):
        raise MarginsError(
            f"Margin {plain_data.shown(index)} is of another document: this one has chunks 0 to {len(chunks) - 1}."
        )


def _chunk(position: int, data: object) -> Chunk:
    if isinstance(data, Chunk):
        return data
    try:
        return Chunk.from_dict(plain_data.mapping("chunk", data))
    except (plain_data.WrongTypeError, ChunkError) as error:
        raise MarginsError(
            f"The 'chunk' of the margin at position {position} is not what Chunk.to_dict wrote: leave it out."
        ) from error


def _own_spans(index: int, data: Mapping[str, Any]) -> tuple[Span, ...]:
    """The spans as `Margin.to_dict` writes them; empty without the chunk that they belong to, or for another text."""
    if data.get("chunk") is None or data.get("spans") is None:
        return ()
    try:
        spans, text = spans_in(data["spans"]), _chunk(index, data["chunk"]).text
        sentences = [text[span.offset : span.offset + span.length] for span in spans]
        return spans if reads(str(data["text"]), sentences) else ()
    except plain_data.WrongTypeError as error:
        raise MarginsError(
            f"The 'spans' of margin {index} are not what Margin.to_dict wrote: leave them out."
        ) from error


def _described(value: object) -> str:
    if value is None or isinstance(value, bool | str):
        return plain_data.shown(value)
    name = type(value).__name__
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"
