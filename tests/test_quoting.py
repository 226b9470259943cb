"""Verbatim margins as quotations: gaps are marked, speech keeps its quotation marks, whatever the language's are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wim_kernel import Chunk
from wim_kernel.run.quoting import quote, reads
from wim_kernel.run.relevance.passages import quotable
from wim_kernel.text.sentences import sentence_spans
from wim_kernel.text.speech import quotations


def words(text: str) -> int:
    return len(text.split())


def quoted(text: str, *which: int, most: int = 200) -> str:
    """The text of a margin that quotes some sentences of a text."""
    sentences = quotable(text)
    found = quote(Chunk.of(text, "a", 0), [sentences[place] for place in which], most, words)
    own = [text[span.start : span.end] for span in found.spans]
    assert reads(found.text, own)
    assert not reads(found.text, own[1:])
    assert not reads("So: " + found.text, own)
    return found.text


SPEECH = [
    ("He spoke. “I saw it. She sank. All died.” He left.", "[“]She sank.[”]"),
    ('"I saw it. She sank. All died." He left.', '["]She sank.["]'),
    ("Er sagte: „Ich sah es. Sie sank. Alle starben.“ Er ging.", "[„]Sie sank.[“]"),
    ("”Jag såg det? Den sjönk. Alla dog.” Han gick.", "[”]Den sjönk.[”]"),
    ("'I saw it. She sank. Don't ask.' He left.", "[']She sank.[']"),
    ("“He said ‘I saw it. She sank. They did.’ and left.” So.", "[“‘]She sank.[’”]"),
    ("“I saw it all.\n\n“She sank. All died.” He left.", "“She sank.[”]"),
    ("I saw it. She sank. All died.” He left.", "[“]She sank.[”]"),
    ("“I saw it. She sank. All died.", "[“]She sank.[”]"),
]


@pytest.mark.parametrize(("text", "said"), SPEECH)
def test_a_sentence_out_of_a_speech_is_marked_as_one(text: str, said: str) -> None:
    assert quoted(text, 2 if text.startswith("He spoke") else 1) == said


def test_narration_gets_no_quotation_marks() -> None:
    for text in [
        "“Yes,” he said. She sank.",
        'Only 5" pipes. She sank. 6" too.',
        "The dogs' house. She sank. It's.",
    ]:
        assert quoted(text, 1) == "She sank."
    opened = "He said: “I saw it.\n\nShe sank. All died."
    assert quoted(opened, 1) == "She sank."


def test_gaps_stand_between_whole_quotations() -> None:
    text = "“I saw it. She sank. All died.” He left."
    assert quoted(text, 0, 2) == "“I saw it.[”] […] [“]All died.”"
    assert quoted(text, 0, 1) == "“I saw it. She sank.[”]"
    assert quoted(text, 1, 3) == "[“]She sank.[”] […] He left."
    assert quoted(text, 0, 1, 2, 3) == text


def test_limits_hold_with_what_is_added() -> None:
    text = " ".join(f"Sentence {place} has five words." for place in range(40))
    assert words(quoted(text, *range(0, 40, 2), most=50)) <= 50
    long = "“" + "word " * 300 + "end.”"
    cut = quoted(long, 0, most=10)
    assert words(cut) <= 48
    assert cut.endswith("word[”]")


def test_paragraphs_keep_the_mark_that_they_begin_with() -> None:
    for mark in "“\"‘'":
        text = f"One day.\n\n{mark}Two days. Three."
        assert [text[slice(*span)].strip() for span in sentence_spans(text)][1] == f"{mark}Two days."


@given(st.text(st.sampled_from("ab. “”\"„‘’'«»「」\n—"), max_size=40))
def test_quotations_are_well_formed_for_any_text(text: str) -> None:
    for item in quotations(text):
        assert -1 <= item.start < item.end <= len(text) + 1
    sentences = quotable(text)
    if sentences:
        found = quote(Chunk.of(text, "a", 0), sentences[::2], 200, words)
        assert reads(found.text, [text[span.start : span.end] for span in found.spans])


@pytest.mark.parametrize(
    "text",
    [
        'She went home.\n\nIt was late, he said, and dark." So they left.',
        'She went home.\n\n`"Run home!" said he, and she ran.\'',
        'The plank was 5" wide. She sawed it.',
    ],
)
def test_lone_closing_mark_does_not_reach_back_over_paragraphs(text: str) -> None:
    assert all(item.start >= 0 for item in quotations(text))


def test_speech_that_began_before_the_text_ends_in_its_first_paragraph() -> None:
    assert [item.start for item in quotations("and sold the ship.” She left.\n\nThe end.”")] == [-1]


def test_a_sentence_that_introduces_a_speech_is_quoted_with_the_rest_of_it() -> None:
    text = "The Rabbit called out, `Why, what are you doing?  Run home!  Quick!'  She ran. He slept."
    chunk = Chunk(text)
    first = quotable(text)[0]
    assert quote(chunk, [first], 200, words).text == text[: text.index("  She")]
    assert quote(chunk, [first], 9, words).text == text[: text.index("  Run")] + "[']"


@pytest.mark.parametrize(
    "text", ["```python\nrun(x)\n```", "Call `run` twice. It waits.", "A ` alone. It stays."]
)
def test_backticks_around_code_make_no_speech(text: str) -> None:
    assert all(text[item.start] == text[item.end - 1] == "`" for item in quotations(text))
