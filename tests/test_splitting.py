"""Splitting and joining chunks: nothing is lost, and the budget is kept."""

from __future__ import annotations

from itertools import pairwise

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from text_cases import COUNTERS, PROSE, subwords, texts, words

from wim_kernel.common.chunk import Chunk, Span
from wim_kernel.text.chunks import (
    contiguous,
    join_adjacent,
    split,
    split_chunk,
)
from wim_kernel.text.sentences import sentence_spans


def characters(text: str) -> int:
    return len(regex.findall(r"\X", text))


@pytest.mark.slow
@pytest.mark.invariant(5)
@given(texts, st.integers(1, 40), st.sampled_from(COUNTERS))
@settings(max_examples=400)
def test_split_loses_nothing_and_keeps_the_budget(text, max_tokens, count_tokens):
    chunks = split(text, max_tokens, count_tokens, "s", {"k": 1})
    assert "".join(chunk.text for chunk in chunks) == text
    visible = {match.start() for match in regex.finditer(r"\X", text)}
    for chunk in chunks:
        (span,) = chunk.spans
        assert text[span.start : span.end] == chunk.text
        assert span.start in visible
        assert (span.source_id, chunk.metadata, chunk.continues) == ("s", {"k": 1}, False)
        assert count_tokens(chunk.text) <= max_tokens or characters(chunk.text) == 1


@given(st.lists(st.integers(1, 12), min_size=1, max_size=12), st.integers(1, 15))
def test_split_packs_whole_sentences_greedily(lengths, max_tokens):
    whole = [" ".join(["Word"] + ["word"] * (n - 1)) + ". " for n in lengths]
    chunks = split("".join(whole), max_tokens, words)
    starts = {start for start, _ in sentence_spans("".join(whole))}
    assert starts == {sum(map(len, whole[:n])) for n in range(len(whole))}
    for chunk in chunks:
        start, end = chunk.spans[0].start, chunk.spans[0].end
        following = next((s for s in whole if "".join(whole).find(s, end) == end), "")
        sentence_end = end in starts or end == sum(map(len, whole))
        inside = max(s for s in starts if s < end)
        tail = "".join(whole)[inside:].split(". ")[0]
        if not sentence_end:  # only a sentence over the budget is cut, and it begins a chunk of its own
            assert words(tail) > max_tokens
            assert start >= inside
        elif following:
            assert words(chunk.text + following) > max_tokens


def test_a_long_sentence_is_cut_at_white_space_and_a_long_word_between_characters():
    assert [c.text for c in split("one two three four", 9, len)] == ["one two ", "three ", "four"]
    assert [c.text for c in split("no abcdefghijkl yes", 5, len)] == ["no ", "abcde", "fghij", "kl ", "yes"]
    assert [c.text for c in split("a e\u0301e\u0301 b", 2, len)] == ["a ", "e\u0301", "e\u0301", " b"]


def test_a_word_that_fits_is_not_cut_for_the_short_words_before_it():
    assert [c.text for c in split("a b " + "x" * 159, 160, len)] == ["a b ", "x" * 159]


def test_one_visible_character_over_the_budget_stays_whole():
    family = "👩\u200d👩\u200d👧"
    assert [c.text for c in split(f"ab{family}{family}c", 2, len)] == ["ab", family, family, "c"]


def test_a_start_token_does_not_leave_chunks_half_empty():
    chunks = split("It is so. " * 200, 100, lambda text: len(text.split()) + 4)
    assert min(words(chunk.text) for chunk in chunks[:-1]) >= 90


def test_split_of_empty_and_fitting_texts():
    assert split("", 5, words) == []
    assert split("One. Two.", 2, words) == [Chunk.of("One. Two.", "document", 0)]
    assert split_chunk(Chunk("One. Two."), 1, words) == [Chunk("One. "), Chunk("Two.", continues=True)]
    with pytest.raises(ValueError, match="max_tokens is 0"):
        split("a", 0, words)
    with pytest.raises(ValueError, match="max_tokens is -1"):
        join_adjacent([], -1, words)


def test_split_finds_sentences_of_the_language():
    text = "Ja. Das ist ggf. Unsinn."
    assert [c.text for c in split(text, 4, words, language="de")] == ["Ja. ", "Das ist ggf. Unsinn."]


@pytest.mark.parametrize("start", [None, 7])
def test_pieces_of_a_chunk_are_contiguous(start):
    pieces = split_chunk(Chunk.of(PROSE, "s", start, {"k": 1}), 5, words)
    assert len(pieces) > 3
    assert all(contiguous(before, after) for before, after in pairwise(pieces))
    assert all(piece.source_ids == ("s",) and piece.metadata == {"k": 1} for piece in pieces)
    (whole,) = join_adjacent(pieces, 100, words)
    assert (whole.text, whole.metadata) == (PROSE, {"k": 1})


def test_a_piece_knows_which_of_several_sources_it_is_from():
    (joined,) = join_adjacent([Chunk.of("One. Two. ", "a", 0), Chunk.of("Three. Four.", "b", 50)], 9, words)
    pieces = split_chunk(joined, 1, words)
    assert [(p.text, p.source_ids) for p in pieces[1:3]] == [("Two. \n\n", ("a",)), ("Three. ", ("b",))]
    assert pieces[2].spans == (Span("b", 50, 57, 0, 7),)
    assert contiguous(pieces[1], pieces[2])


@pytest.mark.parametrize(
    ("text", "times"),
    [(PROSE * 2000, 2.1), ("word " * 30_000, 4.1), ("a" * 100_000, 4.1), (" " * 100_000, 4.1)],
)
def test_split_counts_the_text_about_three_times(text, times):
    counted = 0

    def count_tokens(part: str) -> int:
        nonlocal counted
        counted += len(part)
        return subwords(part)

    chunks = split(text, 256, count_tokens)
    assert counted < times * len(text)
    assert len(chunks) <= 1.15 * subwords(text) / 256 + 1


@given(st.lists(st.tuples(texts, st.sampled_from("ab"), st.none() | st.integers(0, 50))), st.integers(1, 30))
def test_join_keeps_texts_sources_and_budget(parts, max_tokens):
    chunks = [Chunk.of(*part) for part in parts]
    joined = join_adjacent(chunks, max_tokens, len, separator="|")
    originals = iter(chunks)
    for whole in joined:
        count = len(whole.spans)
        members = [next(originals) for _ in range(count)]
        assert len(whole.text) <= max_tokens or count == 1
        for member, span in zip(members, whole.spans, strict=True):
            assert whole.text[span.offset : span.offset + span.length] == member.text
            assert (span.source_id, span.start, span.end) == (
                member.spans[0].source_id,
                member.spans[0].start,
                member.spans[0].end,
            )
        outside = len(whole.text) - sum(span.length for span in whole.spans)
        told = [member for member in members if member.text]
        assert outside == sum(not contiguous(before, after) for before, after in pairwise(told))
    assert next(originals, None) is None


def test_join_fills_the_budget():
    chunks = [Chunk.of("word " * n, str(n)) for n in (3, 4, 3, 9, 12, 1, 1)]
    joined = join_adjacent(chunks, 10, words)
    assert [words(chunk.text) for chunk in joined] == [10, 9, 12, 2]
    assert joined[2] is chunks[4]


def test_join_of_many_small_chunks_counts_little():
    counted = 0

    def count_tokens(text: str) -> int:
        nonlocal counted
        counted += 1
        return subwords(text)

    joined = join_adjacent([Chunk.of("a", str(n)) for n in range(3000)], 300, count_tokens)
    assert {subwords(chunk.text) for chunk in joined} == {298}
    assert counted < 3000 + 6 * len(joined)


def test_join_goes_on_where_its_first_chunk_did():
    chunks = [Chunk("a"), Chunk("b", continues=True), Chunk("c")]
    assert [c.continues for c in join_adjacent(chunks[1:], 9, len)] == [True]
    assert [c.continues for c in join_adjacent(chunks[:2], 9, len)] == [False]


def test_join_separates_only_what_does_not_go_on():
    chunks = [Chunk.of("ab", "s", 0), Chunk.of("cd", "s", 2), Chunk.of("", "s", 3), Chunk.of("ef", "s", 9)]
    (whole,) = join_adjacent(chunks, 99, len, separator=" / ")
    assert whole.text == "abcd / ef"
    assert [span.offset for span in whole.spans] == [0, 2, 4, 7]


def test_join_keeps_all_metadata():
    one, two = Chunk.of("a", "s", 0, {"page": 1}), Chunk.of("b", "s", 1, {"page": 2})
    assert join_adjacent([one, one], 9, len)[0].metadata == {"page": 1}
    assert join_adjacent([one, two], 9, len)[0].metadata == {"joined": [{"page": 1}, {"page": 2}]}
