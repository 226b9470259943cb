"""Chunks and where they come from: each character knows its source."""

from __future__ import annotations

import json
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_cases import texts

from wim_kernel.common.chunk import Chunk, Span
from wim_kernel.text.chunks import (
    as_chunks,
    contiguous,
    join_adjacent,
    split_chunk,
)


def sample() -> Chunk:
    """Three runs: of a known place, of an unknown one, and one shorter than what its source has there."""
    spans = (Span("a", 100, 104, 0, 4), Span("b", None, None, 6, 3), Span("c", 10, 20, 9, 4))
    return Chunk("aaaa--bbbcccc", spans, {"page": 1}, continues=True)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, 13, sample().spans),
        (1, 3, (Span("a", 101, 103, 1, 2),)),
        (3, 8, (Span("a", 103, 104, 3, 1), Span("b", None, None, 6, 2))),
        (4, 6, ()),
        (2, 2, ()),
        (8, 13, (Span("b", None, None, 8, 1), Span("c", 10, 20, 9, 4))),
        (10, 12, (Span("c", None, None, 10, 2),)),
    ],
)
def test_locate_finds_the_sources_of_characters(start, end, expected):
    assert sample().locate(start, end) == expected


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (3, 2), (0, 14)])
def test_locate_refuses_characters_that_do_not_exist(start, end):
    with pytest.raises(ValueError, match="do not exist"):
        sample().locate(start, end)


def test_narrow_cuts_text_and_spans():
    assert sample().narrow(0, 13) == sample()
    part = sample().narrow(3, 8)
    assert part.text == "a--bb"
    assert part.spans == (Span("a", 103, 104, 0, 1), Span("b", None, None, 3, 2))
    assert part.metadata == {"page": 1}
    assert not part.continues
    assert sample().narrow(0, 3).continues


@pytest.mark.parametrize(
    ("start", "end", "span"),
    [
        (0, 0, Span("a", 100, 100, 0, 0)),
        (2, 2, Span("a", 102, 102, 0, 0)),
        (4, 6, Span("a", 104, 104, 0, 0)),
        (13, 13, Span("c", None, None, 0, 0)),
    ],
)
def test_narrow_to_nothing_of_a_source_keeps_the_source(start, end, span):
    assert sample().narrow(start, end).spans == (span,)


@given(
    st.lists(st.tuples(st.text(min_size=1, max_size=8), st.sampled_from("ab"), st.integers(0, 9)), min_size=1)
)
def test_spans_of_joined_and_split_chunks_name_their_own_characters(parts):
    sources = dict.fromkeys("ab", "")
    chunks = []
    for text, name, skipped in parts:
        sources[name] += "_" * skipped
        chunks.append(Chunk.of(text, name, len(sources[name])))
        sources[name] += text
    (whole,) = join_adjacent(chunks, 10_000, len, separator="|")
    for chunk in [whole, *split_chunk(whole, 5, len)]:
        for span in chunk.spans:
            assert (
                chunk.text[span.offset : span.offset + span.length]
                == sources[span.source_id][span.start : span.end]
            )
            assert chunk.locate(span.offset, span.offset + span.length) == ((span,) if span.length else ())


@given(
    texts,
    st.none() | st.integers(0, 99),
    st.dictionaries(st.text(), st.integers() | st.text()),
    st.booleans(),
)
def test_chunks_survive_to_dict_and_from_dict(text, start, metadata, continues):
    chunk = Chunk(text, Chunk.of(text, "s", start).spans, MappingProxyType(metadata), continues)
    assert Chunk.from_dict(json.loads(json.dumps(chunk.to_dict()))) == chunk
    assert Chunk.from_dict({"text": text}) == Chunk(text)


def test_as_chunks_takes_strings_and_chunks():
    given_chunk = Chunk.of("c", "mine", 5)
    assert as_chunks("text") == [Chunk.of("text", "document", 0)]
    assert as_chunks(iter(["a", given_chunk, "b"])) == [
        Chunk.of("a", "0", 0),
        given_chunk,
        Chunk.of("b", "2", 0),
    ]
    assert as_chunks([]) == []


@pytest.mark.parametrize(
    ("document", "named"),
    [
        (None, "NoneType"),
        (b"ab", "bytes"),
        ({"a": 1}, "dict"),
        ({"a"}, "set"),
        (Chunk("a"), "Chunk"),
        (["a", 3], "1"),
    ],
)
def test_as_chunks_refuses_anything_else(document, named):
    with pytest.raises(TypeError, match=rf"strings and Chunks.*{named}"):
        as_chunks(document)


def test_contiguous_chunks_follow_in_one_source():
    first = Chunk.of("abc", "s", 10)
    assert contiguous(first, Chunk.of("d", "s", 13))
    assert contiguous(first, Chunk("d", continues=True))
    assert not contiguous(first, Chunk.of("d", "s", 12))
    assert not contiguous(first, Chunk.of("d", "t", 13))
    assert not contiguous(Chunk.of("abc", "s"), Chunk.of("d", "s"))
    assert not contiguous(first, Chunk("d"))
    assert not contiguous(Chunk("abc\n", first.spans), Chunk.of("d", "s", 13))
    assert not contiguous(first, Chunk("\nd", (Span("s", 13, 14, 1, 1),)))
