"""Sentences: they cover the text, and end where a reader would say."""

from __future__ import annotations

from itertools import pairwise

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from text_cases import PROSE, texts

from wim_kernel.text import sentences
from wim_kernel.text.chunks import (
    split,
)
from wim_kernel.text.sentences import sentence_spans


def pieces(text: str, language: str = "en") -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text, language)]


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
