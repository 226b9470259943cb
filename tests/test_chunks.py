"""Chunks, sentences, splitting, joining, overlaps: nothing is lost, each character knows where it is from."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from types import MappingProxyType

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wim_kernel.common.chunk import Chunk, Span
from wim_kernel.text import sentences
from wim_kernel.text.chunks import (
    _overlap,
    as_chunks,
    contiguous,
    drop_overlaps,
    join_adjacent,
    split,
    split_chunk,
)
from wim_kernel.text.sentences import sentence_spans

# Any code point at all, lone surrogates too, mixed with what sentences are made of.
BITS = [
    *".?! \n\t\0\"'“”«»()aB9é。\u0301\u200d\u2028\x85\xa0\ud800",
    "\n\n",
    "\r\n",
    "👩\u200d👩\u200d👧",
    "🇬🇷",
]
BITS += ["J.", "Mr. ", "e.g. ", "It is so. ", "Why? ", "word " * 9]
texts = st.lists(st.sampled_from(BITS) | st.characters(), max_size=40).map("".join)

PROSE = "Dr. Roe went\nto sea. She said so. It rained, and it rained. Why? Nobody knew.\n\n"


def words(text: str) -> int:
    return len(text.split())


def subwords(text: str) -> int:
    """As tokenizers count: a space belongs to the next word, so that the parts have more than the whole."""
    return len(re.findall(r" ?\w{1,3}|\s|[^\w\s]", text))


def with_start_token(text: str) -> int:
    return subwords(text) + 1


def dearer_together(text: str) -> int:
    return int(len(text) ** 1.2)


COUNTERS = [len, words, subwords, with_start_token, dearer_together]


def pieces(text: str, language: str = "en") -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text, language)]


def characters(text: str) -> int:
    return len(regex.findall(r"\X", text))


# Sentences


@pytest.mark.slow
@given(texts, st.sampled_from(["en", "de", "zh", "hi", "xx", ""]))
@settings(max_examples=400)
def test_sentences_cover_the_text(text, language):
    spans = sentence_spans(text, language)
    assert "".join(text[start:end] for start, end in spans) == text
    assert all(start < end for start, end in spans)
    assert all(before[1] == after[0] for before, after in pairwise(spans))
    visible = {match.start() for match in regex.finditer(r"\X", text)}
    assert all(start in visible and not text[start].isspace() for start, _ in spans[1:])


@pytest.mark.parametrize(
    "expected",
    [
        ["Mr. Smith went\nto Washington\nin January. ", "He left.\n", "Then he\ncame back."],
        ["Wrapped\r\nlines are one\r\nsentence. ", "Next.\r\n\r\n", "A title\r\n \r\n", "Text."],
        ["See e.g. the U.S. Army, p. 7. ", "J. R. R. Tolkien wrote 3.5 pages. ", "Really!"],
        ['"Who is there?" asked he. ', '"I am. ', 'And you?" ', 'Then, "Go!" she cried. ', "He left."],
        ["‘Who is there?’ asked he. ", "‘I am. ", "And you?’ ", "It’s late. ", "The dogs' owner won't say."],
        ['"This was never closed. ', "He rose. ", '"Nor was this. ', "He went on. ", "And on."],
        ["He came.[1] ", "Then (it was late. Very.) he left. ", "Never."],
        ["这是一句。", "“这是第二句！”", "好"],
        ["„Ja. ", "Nein.“ ", "Dann kam er. ", "«\xa0Oui.\xa0» ", "Puis rien."],
        ["  \n\n  Leading space. ", "Trailing space. \n \n "],
        ["Un\ud800paired. ", "Fine."],
    ],
)
def test_sentences_end_at_full_stops_and_not_at_abbreviations(expected):
    assert pieces("".join(expected)) == expected


@pytest.mark.parametrize(
    "rows",
    [
        [
            "12:00:01 INFO up. Listening on 80\n",
            "12:00:02 WARN disk low\n",
            "12:00:09 ERROR no file. Retry\n",
        ],
        ["name,year,city\n", "Fenn,1820,Lyme\n", "Reed,1815,Whitby. Gone\n"],
        ["| a | b |\n", "|---|---|\n", "| x. Y | y |\n"],
        [f"INFO worker {i} finished. Job {i * 7}\n" for i in range(5)],
        ["ship:\n  ", "name: Aurora. Big\n  ", "tons: 3\n", "mast:\n  ", "oak: 2\n"],
        ["host = a. B\n", "port = 3\n", "user = c\n"],
        ['File "a.py", line 3\n  ', "raise X. Y\n", 'File "b.py", line 4\n  ', "run(it)\n"],
        ["int main(void)\n", "{\n  ", "int ship = 3;\n  ", "sail(ship);\n", "}\n"],
        ["O Captain! my Captain, our trip is done,\n    ", "The ship. It has weathered,\n"] * 3,
    ],
    ids=["log", "csv", "markdown", "alike", "yaml", "settings", "stack", "code", "stepped verse"],
)
def test_rows_are_sentences(rows):
    assert pieces("".join(rows)) == rows
    assert all("\n" in chunk.text[-6:] for chunk in split("".join(rows * 9), 60, len))


def test_lines_without_an_end_are_cut_between_lines():
    verse = ["The ship went down\n", "in the cold dark sea\n", "and none was there\n", "to sing of me\n"] * 20
    assert all(chunk.text.endswith("\n") for chunk in split("".join(verse), 70, len))
    code = "int main(void)\n{\n    int ship = 3;\n    for (;;) {\n        ship++;\n    }\n}\n" * 9
    assert all(chunk.text.rstrip(" ").endswith("\n") for chunk in split(code, 90, len))


def test_an_empty_line_end_ends_cutting():
    for text in ("a" * 500, "a b " * 200, "\n" * 300 + "b" * 90, "a\n\u0301" * 200):
        assert "".join(chunk.text for chunk in split(text, 5, len)) == text


def test_language_decides_abbreviations():
    assert pieces("Das ist ggf. Unsinn. Ja.", "de") == ["Das ist ggf. Unsinn. ", "Ja."]


def test_a_long_text_reads_like_a_short_one():
    # Above some ten thousand characters the segmenter by itself loses blank lines.
    assert pieces(PROSE * 1000) == pieces(PROSE) * 1000


@pytest.mark.parametrize("space", ["\x85", "\xa0", "\u2028", "\u2029", "\u3000"])
def test_wide_white_space_does_not_make_the_segmenter_panic(space, capfd):
    assert "".join(pieces(f"See B{space}. Then go.")) == f"See B{space}. Then go."
    assert "panicked" not in capfd.readouterr().err


def test_a_panic_leaves_the_paragraph_whole(monkeypatch):
    def panic(language, text):
        raise type("PanicException", (BaseException,), {})

    monkeypatch.setattr(sentences, "segment", panic)
    assert pieces("One. Two.\n\nThree.") == ["One. Two.\n\n", "Three."]


def test_keyboard_interrupt_ends_sentence_segmentation(monkeypatch):
    def interrupt(language, text):
        raise KeyboardInterrupt

    monkeypatch.setattr(sentences, "segment", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sentence_spans("One. Two.")


@pytest.mark.slow
@pytest.mark.timeout(60)  # half a second; what grows with the square of the length takes minutes
@pytest.mark.parametrize("unit", [PROSE, "word ", "a", " ", "\n", '"', "👩\u200d👧", ". ", "\n \t"])
def test_sentences_of_a_megabyte_take_linear_time(unit):
    text = unit * (1_000_000 // len(unit))
    assert sentence_spans(text)[-1][1] == len(text)


# Chunks and where they come from


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


# Splitting


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


# Joining


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


# Overlaps

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
