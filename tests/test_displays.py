"""The displays of the command line alone, with events made by hand."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from wim_kernel.cli.display import PlainDisplay, QuietDisplay, TerminalDisplay
from wim_kernel.cli.format import harmless, json_line, place
from wim_kernel.common.chunk import Chunk, Span
from wim_kernel.common.events import (
    Answered,
    AnswerToken,
    ChunkRead,
    Event,
    MarginRevised,
    MarginsDone,
    MarginWritten,
)
from wim_kernel.common.margins import Margin, Timings, Usage, WimResult
from wim_kernel.common.result_page import live_fragment

pytestmark = pytest.mark.slow


def some_events(text: str = "a note", answer: str = "Vale.") -> list[Event]:
    chunk = Chunk("abcdef", (Span("a.pdf", 1200, 1206, 0, 6),), {"page_starts": [0, 1203, 3000]})
    kept, dropped = Margin(0, text, 0.9, True, chunk), Margin(1, "", 0.1, False, chunk)
    result = WimResult(
        answer, (kept, dropped), Usage(1500, None, 40, 9), Timings(total=2.5), stopped_early=True
    )
    reads = [ChunkRead(0, 2, 1000, 1500, False), ChunkRead(1, 2, 1500, 1500, True)]
    return [*reads, MarginWritten(kept), MarginWritten(dropped), AnswerToken(answer), Answered(result)]


def test_plain_display_prints_margins_and_answer(capsys: pytest.CaptureFixture[str]) -> None:
    display = PlainDisplay()
    display.status("Reading a.pdf")
    for event in some_events("two\nlines"):
        display.show(event)
    display.fail("no\x1bgood")
    display.close()
    out, err = capsys.readouterr()
    assert out == (
        "* margin 1  relevance 0.90  a.pdf, pages 1-2, chars 1,200-1,206\n    two\n    lines\n"
        "  margin 2  relevance 0.10  a.pdf, pages 1-2, chars 1,200-1,206\n"
        "\nAnswer:\nVale.\n\n"
        "stopped early: 1,500 tokens read, unknown cached, 40 of prompts, 9 written, 2.5 s\n"
    )
    lines = err.splitlines()
    assert [line.rsplit(", ", 1)[0] for line in lines[1:3]] == [
        "chunk 1 of 2, 1,000 of 1,500 tokens",
        "chunk 2 of 2, 1,500 of 1,500 tokens",
    ]
    assert lines[3] == "wim: no\u241bgood"


def test_terminal_display_prints_markup_as_it_stands() -> None:
    screen = io.StringIO()
    display = TerminalDisplay(Console(file=screen, force_terminal=True, width=100))
    for event in some_events("[bold]not bold[/bold] :smile: \x1b[31m", "An [i]answer[/i].\n"):
        display.show(event)
    display.close()
    shown = screen.getvalue()
    assert "[bold]not bold[/bold] :smile: \u241b[31m" in shown
    assert "An [i]answer[/i].\n" in shown
    assert "\x1b[31m" not in shown
    assert "\x1b[?25h" in shown  # the cursor is back


def test_quiet_display_of_margins(capsys: pytest.CaptureFixture[str]) -> None:
    display = QuietDisplay(margins_only=True)
    *events, _, answered = some_events()
    assert isinstance(answered, Answered)
    margins, usage = answered.result.margins, answered.result.usage
    for event in (*events, MarginsDone(margins, usage, Timings(), 2)):
        display.show(event)
    assert capsys.readouterr() == ("a note\n", "")


def test_revised_margins_are_shown_again_where_their_notes_are_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    events = some_events()
    kept, dropped = (event.margin for event in events if isinstance(event, MarginWritten))
    gone = replace(kept, text="", kept=False, relevance=0.2)
    found = replace(dropped, text="another", kept=True, relevance=0.7)
    revised = [MarginRevised(replace(gone, relevance=0.1)), MarginRevised(found)]
    less = [MarginRevised(replace(kept, relevance=0.3)), MarginRevised(gone)]
    screen = io.StringIO()
    terminal = TerminalDisplay(Console(file=screen, width=100))
    for display in (PlainDisplay(), terminal, QuietDisplay(margins_only=True)):
        for event in (*events[2:4], *less, *revised):
            display.show(event)
        display.show(MarginsDone((gone, found), Usage(), Timings(), 2))
        display.close()
    place = "a.pdf, pages 1-2, chars 1,200-1,206"
    shown = [
        f"* margin 1  relevance 0.90  {place}",
        "    a note",
        f"  margin 2  relevance 0.10  {place}",
        f"  margin 1, revised  relevance 0.20  {place}",
        f"* margin 2, revised  relevance 0.70  {place}",
        "    another",
    ]
    assert capsys.readouterr().out.splitlines() == [*shown, "another"]
    assert [line.rstrip() for line in screen.getvalue().splitlines() if line.strip()] == shown


def test_a_note_found_nowhere_is_shown_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    (written, *_) = (event.margin for event in some_events() if isinstance(event, MarginWritten))
    lost = replace(written, kept=False, evidence={"located": 0.0})
    screen = io.StringIO()
    for display in (PlainDisplay(), TerminalDisplay(Console(file=screen, width=100)), QuietDisplay(True)):
        display.show(MarginWritten(lost))
        display.show(MarginsDone((lost,), Usage(), Timings(), 1))
        display.close()
    shown = [
        "  margin 1  relevance 0.90  a.pdf, pages 1-2, chars 1,200-1,206  [not found in the text]",
        "    a note",
    ]
    assert capsys.readouterr().out.splitlines() == shown
    assert [line.rstrip() for line in screen.getvalue().splitlines() if line.strip()] == shown


def test_places_name_each_source_once() -> None:
    spans = (Span("-", 0, 5, 0, 5), Span("b.txt", None, None, 6, 2), Span("-", 9, 12, 9, 3))
    assert place(Margin(0, "", 0.0, False, Chunk("x" * 12, spans))) == "standard input, chars 0-12; b.txt"
    copied = (Span("-", 2, 4, 0, 2),)
    assert place(Margin(0, "", 0.0, False, Chunk("x" * 12, spans), copied)) == "standard input, chars 2-4"


def test_terminal_control_characters_are_replaced() -> None:
    every = "".join(map(chr, range(0x3000))) + "\ud800"
    for shown in (harmless(every), json_line(every)):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", shown)
        shown.encode()
    assert json.loads(json_line(every)) == every
    assert harmless("tab\tline\nkept — naïve 船") == "tab\tline\nkept — naïve 船"


def test_every_display_shows_the_same_margins(capsys: pytest.CaptureFixture[str]) -> None:
    (written, *_) = (event.margin for event in some_events() if isinstance(event, MarginWritten))
    lost = {"located": 0.0}
    cases = [
        (replace(written, text="a note"), "a note"),
        (replace(written, text="", note="see there"), "see there"),
        (replace(written, text="a note", note="see there"), "a note\n    see there"),
        (replace(written, text=" ", note=""), None),
        (replace(written, text="a note", kept=False), None),
        (replace(written, text="", note="see there", kept=False), None),
        (replace(written, text="a note", kept=False, evidence=lost), "a note"),
        (replace(written, text=" ", kept=False, evidence=lost), None),
    ]
    for margin, shown in cases:
        assert margin.is_shown == (shown is not None)
        PlainDisplay().show(MarginWritten(margin))
        lines = capsys.readouterr().out.splitlines()[1:]
        assert lines == ([] if shown is None else f"    {shown}".splitlines())
        result = WimResult("", (margin,), Usage(), Timings())
        assert ("<aside" in live_fragment(result, "Reading", "x")) == margin.is_shown
