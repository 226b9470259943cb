"""Quotations by a model are found in the text, or marked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wim_kernel import Chunk
from wim_kernel.run.quoting import locate_quotes
from wim_kernel.text.locating import NOT_FOUND, locate

TEXT = (
    "The log of the Aurora.\n\nElsa Brandt owned the ship, and said: “Sell\nher in May.” "
    "The harbour-\nmaster wrote it down – with care. Straße und Fluß."
)


@pytest.mark.parametrize(
    ("quote", "found"),
    [
        ("Elsa Brandt owned the ship", "Elsa Brandt owned the ship"),
        ("elsa  brandt owned\nthe ship", "Elsa Brandt owned the ship"),
        ('said: "Sell her in May."', "said: “Sell\nher in May.”"),
        ("“Sell her in May.”", "Sell\nher in May."),
        ("The harbourmaster wrote it down - with care.", "The harbour-\nmaster wrote it down – with care."),
        ("STRASSE UND FLUSS", "Straße und Fluß"),
    ],
)
def test_typographic_differences_still_locate_exactly(quote: str, found: str) -> None:
    place = locate(quote, TEXT)
    assert place is not None
    assert place.how == "exact"
    assert TEXT[place.start : place.end].strip("”.") == found.strip("”.")


@pytest.mark.parametrize(
    "quote",
    [
        "Elsa Brandt owned a ship, and said",
        "Elsa Brand owned the ship and said",
        "The harbourmaster wrote this down with care",
    ],
)
def test_edited_quotations_are_located_fuzzily(quote: str) -> None:
    pytest.importorskip("rapidfuzz")
    place = locate(quote, TEXT)
    assert place is not None
    assert place.how == "fuzzy"
    found = TEXT[place.start : place.end]
    assert found.split()[0] in ("Elsa", "The")
    assert TEXT[place.end : place.end + 1] in (" ", "\n", "", ".", ":", ",")


@pytest.mark.parametrize(
    "quote", ["", "…", "Jan Dekker bought bread in Brill.", "ship sank", "Elsa Brandt drowned in the storm"]
)
def test_absent_quotations_are_not_found(quote: str) -> None:
    assert locate(quote, TEXT) is None


@given(st.text(min_size=1, max_size=60), st.data())
def test_every_run_of_a_text_is_found_at_its_own_characters(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    quote = text[start:end]
    place = locate(quote, text)
    if place is not None and place.how == "exact":
        again = locate(text[place.start : place.end], text)
        assert again is not None or not text[place.start : place.end].strip()


def test_a_margin_has_the_text_s_own_characters_and_marks_what_is_lost() -> None:
    chunk = Chunk.of(TEXT, "log", 100)
    quoted = locate_quotes(chunk, ["Elsa brandt owned the ship", "She paid nine hundred crowns in gold."])
    assert quoted.text == f"Elsa Brandt owned the ship […] She paid nine hundred crowns in gold. {NOT_FOUND}"
    assert quoted.located == 0.5
    (span,) = quoted.spans
    assert (span.source_id, span.start, span.end) == ("log", 124, 150)
    assert locate_quotes(chunk, ()).located is None
    twice = locate_quotes(chunk, ["Elsa Brandt owned", "Brandt owned the ship"])
    assert twice.text == "Elsa Brandt owned the ship"


def test_marks_that_are_not_compared_stay_with_their_letter() -> None:
    text = "ذهب الولدُ إلى المدرسةِ"
    place = locate(text, text)
    assert place is not None
    assert (place.start, place.end, place.how) == (0, len(text), "exact")
    soft = locate("The fog came", "The fog came\u00ad and went")
    assert soft is not None
    assert soft.end == len("The fog came\u00ad")


def test_half_a_character_is_not_found() -> None:
    assert locate("cafe", "the café is") is None
    place = locate("서울가", "서울각과 서울가는 길")
    assert place is not None
    assert place.start == 5
