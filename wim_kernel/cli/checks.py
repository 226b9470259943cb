"""Checks of the command line before a model is loaded, so that errors are reported at once."""

from __future__ import annotations

import math
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import click

from wim_kernel.cli.console import at_a_terminal
from wim_kernel.common.errors import ReadingFileError, ServerError
from wim_kernel.text.files import STDIN


class Fraction(click.FloatRange):
    """A parameter type for numbers from 0 to 1, without NaN."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check and convert a value."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not a number between 0 and 1.", param, ctx)
        return number


def check_use(questions: Sequence[str], files: Sequence[str], chat: bool, task: str) -> None:
    """Check that there are questions and a document."""
    if not questions and not chat:
        raise click.UsageError("Missing argument 'QUESTION'.")
    if not all(question.strip() for question in questions) and task != "summarise":
        raise click.UsageError("QUESTION is empty.")
    if chat and not (at_a_terminal(sys.stdin) and at_a_terminal(sys.stdout)):
        raise click.UsageError("--chat needs a terminal: give each question with --question instead.")
    if chat and (not files or STDIN in files):
        raise click.UsageError("With --chat, standard input is for questions: give at least one FILE.")
    if not files and at_a_terminal(sys.stdin):
        raise click.UsageError("Give at least one FILE, or pipe a document in.")


def check_options(questions: Sequence[str], options: dict[str, Any]) -> None:
    """Check that options do not exclude each other, before anything is imported."""
    if options.get("top_k") and options.get("stop_after"):
        raise click.UsageError(
            "--top-k chooses after the whole document is read, and --stop-after stops before: use one of them."
        )
    blank = not all(question.strip() for question in questions)
    if blank and (options.get("top_k") or options.get("margin_style") == "verbatim"):
        raise click.UsageError(
            "--top-k and --margin-style verbatim need a question that says what to look for."
        )


def check_folder(name: str) -> None:
    """Check that a folder for readings exists, or can be created.

    Raises:
        ReadingFileError: if it does not and cannot.
    """
    path = Path(name).expanduser()
    above = next((each for each in (path, *path.parents) if each.exists()), path)
    reason = "it is no folder" if above == path else f"{above} is no folder"
    if above.is_dir():
        if os.access(above, os.R_OK | os.W_OK | os.X_OK):
            return
        reason = "it cannot be written to"
    raise ReadingFileError(path, reason, "Name another folder.", use="as a folder of readings")


def check_settings(questions: Sequence[str], options: Any) -> None:
    """Check options by the kernel's rules, which imports the kernel."""
    from wim_kernel.run.request import parse_request

    try:
        parse_request(questions, options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def check_reachable(servers: Sequence[str]) -> None:
    """Check that a server listens at one of the addresses, which is quick, before a kernel is made.

    Raises:
        ServerError: if none listens.
        click.UsageError: for an invalid address.
    """
    reason = ""
    for url in servers:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]
        except (ValueError, KeyError):
            raise click.UsageError(f"{url!r} is no address: it begins with http:// or https://.") from None
        if not host:
            raise click.UsageError(f"{url!r} names no host.")
        if parts.scheme in getproxies():
            return
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            reason = error.strerror or str(error)
    raise ServerError(servers[-1], f"nobody answers there ({reason}): start it, or check the address")
