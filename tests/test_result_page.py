"""A result as a page: it shows everything as text, leads from numbers to passages, and loads and runs nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from wim_kernel import Chunk, Margin, Timings, Usage, WimResult
from wim_kernel.run.citing import citations_of

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</style><script>alert(1)</script>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></div><iframe srcdoc='<script>alert(1)</script>'>",
    "<!-- --> &lt;b&gt; \ud800 \x00 javascript:alert(1)",
]
TAGS = {"html", "head", "meta", "title", "style", "body", "div", "h2", "p", "a", "aside", "em", "mark"}


class Parsed(HTMLParser):
    """Tags, attributes and texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    @property
    def ids(self) -> list[str | None]:
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]


def result(text: str, quote: str, answer: str, **fields: Any) -> WimResult:
    """An answer from two margins: a quotation of a chunk, and a note that no chunk has."""
    chunk = Chunk.of(text, fields.pop("source", "log"), 0, fields.pop("metadata", None))
    at = text.index(quote)
    margins = (
        Margin(0, quote, 0.9, True, chunk, chunk.locate(at, at + len(quote))),
        Margin(1, "", 0.1, False, Chunk.of("The gull sat on the mast.", "log", len(text))),
        Margin(2, "An invented note of no chunk.", 0.5, True, Chunk.of("Fog.", "log"), note="mine"),
    )
    cited = citations_of(answer, [margins[0], margins[2]])
    return WimResult(answer, margins, Usage(), Timings(), citations=cited, **fields)


PLAIN = result(
    "It rained. Elsa owned the ship Aurora. So.", "Elsa owned the ship Aurora.", "Elsa [1] & Jan [2]."
)


def test_numbers_lead_to_the_passage_or_to_the_margin() -> None:
    parsed = Parsed(PLAIN.to_html())
    links = [attributes["href"] for tag, attributes in parsed.tags if tag == "a"]
    assert [text for tag, text in parsed.texts if tag == "a"] == ["[1]", "[2]"]
    assert all(link and link.removeprefix("#") in parsed.ids for link in links)
    marks = {attributes.get("id"): text for (tag, attributes), text in _marked(parsed)}
    assert marks == {str(links[0]).removeprefix("#"): "Elsa owned the ship Aurora."}
    assert str(links[1]).endswith("-m2")
    assert "not found in the text" in PLAIN.to_html()
    assert PLAIN.to_html().count("not found in the text") == 1


def _marked(parsed: Parsed) -> list[tuple[tuple[str, dict[str, str | None]], str]]:
    tags = [item for item in parsed.tags if item[0] == "mark"]
    return list(zip(tags, [text for tag, text in parsed.texts if tag == "mark"], strict=True))


def test_everything_read_is_shown_once_with_its_margin() -> None:
    parsed = Parsed(PLAIN.to_html())
    shown = "".join(text for _, text in parsed.texts)
    for margin in PLAIN.margins:
        assert margin.chunk.text in shown
        assert margin.text in shown
    assert "Elsa [1] & Jan [2]." in shown
    assert "mine" in shown
    assert "not read" not in shown
    assert "not read" in replace(PLAIN, stopped_early=True).to_html()


def test_a_sentence_without_a_marker_is_followed_by_a_number() -> None:
    sentence = "Elsa owned the ship Aurora."
    unmarked = result(f"It rained. {sentence} So.", sentence, f"Yes! {sentence} Good.")
    parsed = Parsed(unmarked.to_html())
    assert "".join(text for _, text in parsed.texts if _ in ("p", "a")).startswith(
        f"Yes! {sentence} [1] Good."
    )


def test_ranges_that_overlap_are_marked_once() -> None:
    text = "One two three four five six seven."
    chunk = Chunk.of(text, "log", 0)
    margins = tuple(
        Margin(0, quote, 0.9, True, chunk, chunk.locate(text.index(quote), text.index(quote) + len(quote)))
        for quote in ("two three four five", "four five six seven")
    )
    cited = citations_of("[1][2]", margins)
    page = replace(PLAIN, answer="[1][2]", margins=margins[:1], citations=cited).to_html()
    parsed = Parsed(page)
    assert "".join(mark for _, mark in _marked(parsed)) == "two three four five six seven"
    links = [str(attributes["href"]).removeprefix("#") for tag, attributes in parsed.tags if tag == "a"]
    assert len(set(links)) == 2
    assert all(parsed.ids.count(link) == 1 for link in links)


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("notebook", [False, True])
def test_a_documents_html_never_runs(hostile: str, notebook: bool) -> None:
    sentence = f"Elsa said {hostile} and left the harbour."
    made = result(
        f"It rained. {sentence} So.", sentence, f"{hostile} [1] {hostile} [2] {hostile}",
        question=hostile, source=hostile, metadata={"title": hostile},
    )  # fmt: skip
    margins = [replace(margin, note=hostile) for margin in made.margins]
    made = replace(made, margins=tuple(margins))
    page = made._repr_html_() if notebook else made.to_html()
    parsed = Parsed(page)
    assert not parsed.open
    for tag, attributes in parsed.tags:
        assert tag in TAGS
        assert set(attributes) <= {
            "class",
            "id",
            "href",
            "title",
            "lang",
            "charset",
            "http-equiv",
            "content",
            "name",
        }
        assert str(attributes.get("href", "#")).startswith("#")
    styles = [text for tag, text in parsed.texts if tag == "style"]
    assert not any("url(" in style or "@import" in style or "alert" in style for style in styles)
    shown = "".join(text for _, text in parsed.texts)
    readable = hostile.encode(errors="replace").decode()
    assert (
        shown.count(readable) >= 8
    )  # the question, the answer's three, the document's, the notes, the sources
    assert page.encode()
    assert notebook or "default-src 'none'" in page


def test_two_results_share_a_notebook_page() -> None:
    other = replace(PLAIN, answer="Jan [1].", citations=citations_of("Jan [1].", [PLAIN.margins[0]]))
    ids = Parsed(PLAIN._repr_html_()).ids + Parsed(other._repr_html_()).ids
    assert len(ids) == len(set(ids)) > 6
    assert PLAIN._repr_html_() in PLAIN.to_html()
    assert re.match(r"<div", PLAIN._repr_html_())
