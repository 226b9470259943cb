"""Displays of a stream's events: a live terminal, plain lines, the answer alone, or JSON lines."""

from __future__ import annotations

import contextlib
import sys
from typing import Protocol

import click
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from wim_kernel.cli.format import Pace, cost, harmless, json_line, margin_head, shown_note
from wim_kernel.common.events import (
    Answered,
    AnswerToken,
    ChunkRead,
    Event,
    MarginRevised,
    MarginsDone,
    MarginWritten,
)
from wim_kernel.common.margins import Margin

NARROWEST = 10
"""The least width of a terminal that is used as reported; rich shows nothing for a width of 0 (``COLUMNS=0``)."""


def say(message: str) -> None:
    """Write a line to standard error, ignoring errors: a message that cannot be written must not lose an answer."""
    with contextlib.suppress(OSError):
        click.echo(message, err=True)


class Display(Protocol):
    """A display of a run of `wim ask`.

    Attributes:
        is_json: whether the output is JSON for a program, which then gets errors as JSON, too.
    """

    is_json: bool

    def status(self, message: str) -> None:
        """Show what the command is waiting for."""

    def begin(self, question: str | None) -> None:
        """Begin another question; its text is None if there is only one."""

    def show(self, event: Event) -> None:
        """Show one event of a stream."""

    def fail(self, message: str) -> None:
        """Show why there is no answer."""

    def close(self) -> None:
        """Restore the terminal; may be called twice."""


class JsonDisplay:
    """Each event as a line of JSON on standard output, and nothing else there."""

    is_json = True

    def begin(self, question: str | None) -> None:
        """Do nothing: events have their question's number."""

    def status(self, message: str) -> None:
        """Do nothing."""

    def show(self, event: Event) -> None:
        """Write the event's `to_dict`."""
        click.echo(json_line(event.to_dict()))

    def fail(self, message: str) -> None:
        """Write an error event."""
        click.echo(json_line({"event": "error", "message": message}))

    def close(self) -> None:
        """Do nothing."""


class QuietDisplay:
    """The answer alone or, without an answer, the kept margins' texts.

    Args:
        margins_only: whether the run writes margins without an answer.
    """

    is_json = False

    def __init__(self, margins_only: bool) -> None:
        self._margins_only = margins_only

    def begin(self, question: str | None) -> None:
        """Do nothing: answers follow each other, each in lines of its own."""

    def status(self, message: str) -> None:
        """Do nothing."""

    def show(self, event: Event) -> None:
        """Write the text of an answer's token, or of final margins."""
        match event:
            case AnswerToken():
                click.echo(harmless(event.text), nl=False)
            case Answered():
                click.echo()
            case MarginsDone(margins) if self._margins_only:  # earlier events may be revised
                for margin in margins:
                    if margin.kept and margin.text:
                        click.echo(harmless(margin.text))

    def fail(self, message: str) -> None:
        """Write the message to standard error."""
        say(f"wim: {harmless(message)}")

    def close(self) -> None:
        """Do nothing."""


class PlainDisplay:
    """Plain lines: margins, answer and cost on standard output, progress and messages on standard error."""

    is_json = False

    def __init__(self) -> None:
        self._pace = Pace()
        self._margins = ShownMargins()
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
        """Write the lines of an event."""
        match event:
            case ChunkRead():
                say(self._pace.line(event))
            case MarginWritten(margin) | MarginRevised(margin) if self._margins.is_news(margin):
                click.echo(margin_head(margin, revised=isinstance(event, MarginRevised)))
                note = shown_note(margin)
                if note is not None:
                    click.echo("    " + note.replace("\n", "\n    "))
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
        """Do nothing."""


class TerminalDisplay:
    """A progress bar while reading, with margins above it, then the answer as it streams.

    All output goes through one console, so that lines do not break the bar.

    Args:
        console: the console; by default one on standard output.
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
        self._margins = ShownMargins()
        self._answering = False

    def begin(self, question: str | None) -> None:
        """Print the question."""
        self.close()
        self._reset()
        if question is not None:
            self._console.print(Text(f"\n{harmless(question)}\n", style="bold"))

    def status(self, message: str) -> None:
        """Print the message, dimmed."""
        self._console.print(Text(harmless(message), style="dim"))
        self._pace = Pace()

    def show(self, event: Event) -> None:
        """Show an event."""
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
        """Remove the progress bar."""
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
        note = shown_note(margin)
        if note is not None:
            text = Text(note, style="" if margin.kept else "dim")
            self._console.print(Padding(text, (0, 0, 0, 4), expand=False))


def _console() -> Console:
    """A console on standard output, with a usable size even if the reported one is not."""
    console = Console(highlight=False, markup=False, emoji=False)
    if console.width >= NARROWEST and console.height >= 1:
        return console
    width = console.width if console.width >= NARROWEST else 80
    return Console(highlight=False, markup=False, emoji=False, width=width, height=max(25, console.height))


class ShownMargins:
    """The notes shown so far, by chunk."""

    def __init__(self) -> None:
        self._notes: dict[int, str | None] = {}

    def is_news(self, margin: Margin) -> bool:
        """Whether a margin's note was not shown yet; records it as shown. A changed relevance alone is no news."""
        note = shown_note(margin)
        news = margin.index not in self._notes or self._notes[margin.index] != note
        self._notes[margin.index] = note
        return news


def make_display(as_json: bool, quiet: bool, margins_only: bool) -> Display:
    """The display for the options and the kind of standard output."""
    if as_json:
        return JsonDisplay()
    if quiet:
        return QuietDisplay(margins_only)
    return TerminalDisplay() if sys.stdout is not None and sys.stdout.isatty() else PlainDisplay()
