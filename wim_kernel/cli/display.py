"""What `wim` shows of a stream's events: a live terminal, plain lines, or JSON lines."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from typing import Protocol

import click
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from wim_kernel.common.chunk import Span
from wim_kernel.common.events import (
    Answered,
    AnswerToken,
    ChunkRead,
    Event,
    MarginRevised,
    MarginsDone,
    MarginWritten,
)
from wim_kernel.common.margins import Margin, WimResult
from wim_kernel.text.files import STDIN, pages

# What a terminal could obey: control characters but tab and line end, and marks that reorder or break lines.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


NARROWEST = 10
"""Columns of a terminal that is believed; with fewer (``COLUMNS=0``), rich shows nothing."""


def harmless(text: str) -> str:
    """Text with every character that a terminal could obey shown as a picture or a replacement character."""
    return _CONTROLS.sub(lambda match: _picture(match[0]), text)


def _picture(character: str) -> str:
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


def json_line(data: object) -> str:
    """One line of JSON, characters as they are except those that a terminal could obey, which are escaped."""
    text = json.dumps(data, ensure_ascii=False, default=str)
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def say(message: str) -> None:
    """Write a line to standard error, if that can be done: nobody loses an answer for a message about it."""
    with contextlib.suppress(OSError):
        click.echo(message, err=True)


class Display(Protocol):
    """Somewhere to show a run of `wim ask`.

    Attributes:
        is_json: whether a program reads it, which is told of errors there, too.
    """

    is_json: bool

    def status(self, message: str) -> None:
        """Say what is being waited for."""

    def begin(self, question: str | None) -> None:
        """What is shown from now on is about another question, which is named if there are several."""

    def show(self, event: Event) -> None:
        """Show one event of a stream."""

    def fail(self, message: str) -> None:
        """Show why there is no answer."""

    def close(self) -> None:
        """Leave the terminal as it was; harmless when called twice."""


class JsonDisplay:
    """One event a line on standard output, and nothing else there."""

    is_json = True

    def begin(self, question: str | None) -> None:
        """Nothing: events say which question they are about."""

    def status(self, message: str) -> None:
        """Say nothing."""

    def show(self, event: Event) -> None:
        """Write the event's `to_dict`."""
        click.echo(json_line(event.to_dict()))

    def fail(self, message: str) -> None:
        """Write an error event."""
        click.echo(json_line({"event": "error", "message": message}))

    def close(self) -> None:
        """Nothing to put back."""


class QuietDisplay:
    """The answer alone, or the kept margins' texts where no answer is asked for.

    Args:
        margins_only: whether the margins are what was asked for.
    """

    is_json = False

    def __init__(self, margins_only: bool) -> None:
        self._margins_only = margins_only

    def begin(self, question: str | None) -> None:
        """Nothing: answers follow each other, a line or more each."""

    def status(self, message: str) -> None:
        """Say nothing."""

    def show(self, event: Event) -> None:
        """Write the event's text, if it is asked for."""
        match event:
            case AnswerToken():
                click.echo(harmless(event.text), nl=False)
            case Answered():
                click.echo()
            case MarginsDone(margins) if self._margins_only:  # before, they may still be revised
                for margin in margins:
                    if margin.kept and margin.text:
                        click.echo(harmless(margin.text))

    def fail(self, message: str) -> None:
        """Write the message to standard error."""
        say(f"wim: {harmless(message)}")

    def close(self) -> None:
        """Nothing to put back."""


class PlainDisplay:
    """Lines without colour: margins, answer and cost on standard output, the rest on standard error."""

    is_json = False

    def __init__(self) -> None:
        self._pace = Pace()
        self._margins = Shown()
        self._answering = False

    def status(self, message: str) -> None:
        """Write the message to standard error."""
        say(harmless(message))
        self._pace = Pace()

    def begin(self, question: str | None) -> None:
        """Write the question."""
        self._answering, self._pace = False, Pace()
        if question is not None:
            click.echo(f"\nQuestion: {harmless(question)}\n")

    def show(self, event: Event) -> None:
        """Write the event's lines."""
        match event:
            case ChunkRead():
                say(self._pace.line(event))
            case MarginWritten(margin) | MarginRevised(margin) if self._margins.is_news(margin):
                click.echo(margin_head(margin, revised=isinstance(event, MarginRevised)))
                if margin.kept and margin.text:
                    click.echo("    " + harmless(margin.text).replace("\n", "\n    "))
            case AnswerToken():
                if not self._answering:
                    self._answering = True
                    click.echo("\nAnswer:")
                click.echo(harmless(event.text), nl=False)
            case Answered(result):
                click.echo(f"\n\n{cost(result)}")

    def fail(self, message: str) -> None:
        """Write the message to standard error."""
        say(f"wim: {harmless(message)}")

    def close(self) -> None:
        """Nothing to put back."""


class TerminalDisplay:
    """A progress bar while reading, margins above it as they are written, then the answer as it streams.

    All goes through one console, so that lines printed and the bar do not run into each other.

    Args:
        console: where to draw; by default standard output.
    """

    is_json = False

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or _console()
        self._reset()

    def _reset(self) -> None:
        columns = (BarColumn(bar_width=24), TextColumn("{task.description}", style="dim", markup=False))
        self._progress = Progress(
            *columns, console=self._console, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._task: TaskID | None = None
        self._pace = Pace()
        self._margins = Shown()
        self._answering = False

    def begin(self, question: str | None) -> None:
        """Print the question."""
        self.close()
        self._reset()
        if question is not None:
            self._console.print(Text(f"\n{harmless(question)}\n", style="bold"))

    def status(self, message: str) -> None:
        """Print the message dim."""
        self._console.print(Text(harmless(message), style="dim"))
        self._pace = Pace()

    def show(self, event: Event) -> None:
        """Draw the event."""
        match event:
            case ChunkRead():
                self._advance(event)
            case MarginWritten(margin) | MarginRevised(margin) if self._margins.is_news(margin):
                self._margin(margin, revised=isinstance(event, MarginRevised))
            case AnswerToken():
                if not self._answering:
                    self._answering = True
                    self.close()
                    self._console.print(Text("\nAnswer", style="bold"))
                self._console.out(harmless(event.text), highlight=False, end="")
            case Answered(result):
                self.close()
                self._console.print(Text(f"\n\n{cost(result)}", style="dim"))

    def fail(self, message: str) -> None:
        """Print the message on standard error."""
        self.close()
        say(f"wim: {harmless(message)}")

    def close(self) -> None:
        """Take the progress bar off the screen."""
        self._progress.stop()

    def _advance(self, event: ChunkRead) -> None:
        if self._task is None:
            self._task = self._progress.add_task("", total=event.total_tokens)
            self._progress.start()
        self._progress.update(
            self._task, completed=event.tokens, description=self._pace.line(event), refresh=True
        )

    def _margin(self, margin: Margin, *, revised: bool) -> None:
        head = margin_head(margin, revised=revised)
        self._console.print(Text(head, style="bold" if margin.kept else "dim"))
        if margin.kept and margin.text:
            self._console.print(Padding(Text(harmless(margin.text)), (0, 0, 0, 4), expand=False))


def _console() -> Console:
    """Standard output, with room to write in whatever its size is said to be."""
    console = Console(highlight=False, markup=False, emoji=False)
    if console.width >= NARROWEST and console.height >= 1:
        return console
    width = console.width if console.width >= NARROWEST else 80
    return Console(highlight=False, markup=False, emoji=False, width=width, height=max(25, console.height))


class Pace:
    """How fast a document is read: tokens a second since this was made, margins included."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._fresh = 0
        self._before = 0

    def line(self, event: ChunkRead) -> str:
        """A chunk's progress in words."""
        if not event.cached:
            self._fresh += event.tokens - self._before
        self._before = event.tokens
        rate = self._fresh / max(time.perf_counter() - self._start, 1e-9)
        return (
            f"chunk {event.index + 1} of {event.chunks}, {event.tokens:,} of {event.total_tokens:,} tokens, "
            f"{rate:,.0f} tokens/s"
        )


class Shown:
    """The notes that a reader has seen, by their chunks."""

    def __init__(self) -> None:
        self._notes: dict[int, str | None] = {}

    def is_news(self, margin: Margin) -> bool:
        """Whether a margin says what was not shown yet; it is shown now. A changed relevance alone is no news."""
        note = margin.text if margin.kept else None
        news = margin.index not in self._notes or self._notes[margin.index] != note
        self._notes[margin.index] = note
        return news


def margin_head(margin: Margin, *, revised: bool = False) -> str:
    """A margin's number, relevance and place, in one line; if ``revised``, it stands for the one shown before."""
    mark, again = "*" if margin.kept else " ", ", revised" if revised else ""
    return (
        f"{mark} margin {margin.index + 1}{again}  relevance {margin.relevance:.2f}  {place(margin)}".rstrip()
    )


def place(margin: Margin) -> str:
    """Where a margin's chunk, or a verbatim margin's sentences, stand: source, page, characters."""
    spans = margin.spans or margin.chunk.spans
    sources = dict.fromkeys(span.source_id for span in spans)
    return "; ".join(_place_in(source, spans, margin) for source in sources)


def _place_in(source: str, spans: tuple[Span, ...], margin: Margin) -> str:
    mine = [
        span for span in spans if span.source_id == source and span.start is not None and span.end is not None
    ]
    words = [harmless("standard input" if source == STDIN else source)]
    stretch = pages(mine, margin.chunk.metadata)
    if stretch is not None:
        words.append(f"page {stretch[0]}" if stretch[0] == stretch[1] else f"pages {stretch[0]}-{stretch[1]}")
    if mine:
        words.append(f"chars {mine[0].start:,}-{mine[-1].end:,}")
    return ", ".join(words)


def cost(result: WimResult) -> str:
    """What an answer cost, in one line."""
    usage = result.usage
    cached = "unknown" if usage.cached_tokens is None else f"{usage.cached_tokens:,}"
    stopped = "stopped early: " if result.stopped_early else ""
    return (
        f"{stopped}{usage.prefill_tokens:,} tokens read, {cached} cached, "
        f"{usage.prompt_tokens:,} of prompts, {usage.output_tokens:,} written, {result.timings.total:.1f} s"
    )


def make_display(as_json: bool, quiet: bool, margins_only: bool) -> Display:
    """The display for where standard output goes."""
    if as_json:
        return JsonDisplay()
    if quiet:
        return QuietDisplay(margins_only)
    return TerminalDisplay() if sys.stdout is not None and sys.stdout.isatty() else PlainDisplay()
