"""Overlapping chunks: what two of them share is read once."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wim_kernel.common.chunk import Chunk, Span
from wim_kernel.text.chunks import (
    _overlap,
    contiguous,
    drop_overlaps,
)

LONG = " ".join(f"w{n:03d}" for n in range(200))  # no 16 characters of it occur twice


def windows(bounds: list[tuple[int, int]], known: bool) -> list[Chunk]:
    return [Chunk.of(LONG[a:b], "s", a if known else None) for a, b in bounds]


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 200)), max_size=12))
def test_known_overlaps_are_read_once(sizes):
    bounds = [(start, start + size) for start, size in sorted(sizes)]
    chunks = windows(bounds, known=True)
    kept = drop_overlaps(chunks)
    assert [chunk.source_ids for chunk in kept] == [("s",)] * len(chunks)
    read = [place for chunk in kept for place in range(chunk.spans[0].start, chunk.spans[0].end)]
    assert read == sorted({place for start, end in bounds for place in range(start, end)})
    assert all(LONG[c.spans[0].start : c.spans[0].end] == c.text for c in kept)


@given(st.lists(st.tuples(st.integers(1, 80), st.integers(16, 60)), min_size=1, max_size=10), st.booleans())
def test_sliding_windows_join_to_the_text(steps, known):
    bounds = [(0, 70)]
    for step, overlap in steps:
        start = max(bounds[-1][1] - overlap, bounds[-1][0])
        bounds.append((start, bounds[-1][1] + step))
    kept = drop_overlaps(windows(bounds, known))
    assert "".join(chunk.text for chunk in kept) == LONG[: bounds[-1][1]]
    assert all(contiguous(before, after) for before, after in pairwise(kept))


def test_a_contained_chunk_becomes_empty():
    for known in (True, False):
        kept = drop_overlaps(windows([(0, 100), (60, 100), (70, 130)], known))
        assert [chunk.text for chunk in kept] == [LONG[:100], "", LONG[100:130]]
        assert kept[1].source_ids == ("s",)
        assert kept[1].spans[0].length == 0
        assert contiguous(kept[0], kept[2])


@pytest.mark.parametrize(
    "chunks",
    [
        windows([(200, 300), (0, 100)], known=True),  # going back
        windows([(100, 200), (50, 150)], known=True),  # going back, and sharing
        windows([(300, 400), (0, 100), (120, 200)], known=True),  # before the furthest end, but not said yet
        [Chunk.of(LONG[:100], "s", 0), Chunk.of(LONG[50:150], "t", 50)],
        [Chunk.of(LONG[:100], "s"), Chunk.of(LONG[50:150], "t")],
        [
            Chunk.of(LONG[:100], "s", 0),
            Chunk.of("Another text altogether.", "s", 50),
        ],  # texts that do not agree
        [Chunk.of(LONG[:100], "s"), Chunk.of(LONG[85:150], "s")],  # 15 characters: chance
        [
            Chunk.of("Top.\n" + "=" * 20, "s"),
            Chunk.of("=" * 20 + "\nBottom.", "s"),
        ],  # a ruled line is no text
        [Chunk.of(LONG[:100], "s", 0), Chunk("Page 2: " + LONG[50:150], (Span("s", 50, 150, 8, 100),))],
        [Chunk.of("ab" * 50, "s", 100), Chunk.of("ab" * 50, "s", 50)],  # going back, and alike throughout
        [
            Chunk.of("ab" * 50, "s", 0),
            Chunk("ab" * 51, (Span("s", 50, 150, 2, 100),)),
        ],  # after a header, alike
        [Chunk(LONG[:100]), Chunk(LONG[50:150])],
        [Chunk.of("", "s"), Chunk.of("", "s")],
    ],
)
def test_overlaps_of_different_sources_stay(chunks):
    assert drop_overlaps(chunks) == chunks


def test_overlap_after_going_back_is_with_the_chunk_just_before():
    kept = drop_overlaps(windows([(200, 300), (0, 100), (80, 250)], known=True))
    assert [chunk.text for chunk in kept] == [LONG[200:300], LONG[:100], LONG[100:250]]


def test_white_space_stripped_at_the_edges_does_not_hide_an_overlap():
    chunks = [Chunk.of(LONG[:60].strip(), "s"), Chunk.of(LONG[34:120].strip(), "s")]
    assert "".join(chunk.text for chunk in drop_overlaps(chunks)) == LONG[:120].rstrip()


@given(st.text("ab", max_size=60), st.text("ab", max_size=60), st.text("ab", max_size=60))
@example("aaba", "aab", "aaac")  # falls back to the border of a border
def test_overlap_is_the_longest(head, shared, tail):
    previous, following = head + shared, shared + tail
    longest = max(n for n in range(len(following) + 1) if previous.endswith(following[:n]))
    assert _overlap(previous, following) == (longest if longest >= 16 else 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wim_kernel.text.chunks._SHORTEST_OVERLAP", 1)
        assert _overlap(previous, following) == longest


@pytest.mark.slow
@pytest.mark.timeout(60)  # a tenth of a second; what grows with the square of the length takes hours
def test_overlap_of_a_repetitive_text_takes_linear_time():
    assert _overlap("a" * 300_000, "a" * 200_000 + "b" + "a" * 99_999) == 200_000
