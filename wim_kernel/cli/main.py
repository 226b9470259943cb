"""The `wim` command: ask questions of files, and watch margins and answers being written.

Exit codes: 0, answered (also after one Ctrl-C while reading, from what was read); 1, it could not be done (a
document too long, a model not found); 2, wrong use (a bad option, a file that cannot be read); 130,
interrupted; 141, the reader of standard output went away.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from dataclasses import replace
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

try:
    import click
    import rich  # noqa: F401  (wim_kernel.cli.display needs it)
except ModuleNotFoundError as error:
    raise SystemExit(f"wim needs {error.name}: pip install 'wim-integrations[cli]'") from error

from wim_kernel.cli.checks import (
    Fraction,
    check_options,
    check_settings,
    check_use,
)
from wim_kernel.cli.console import (
    Interrupts,
    Program,
    check_output,
    check_room,
    guarded,
    quietened,
    set_encoding,
)
from wim_kernel.cli.display import Display, make_display
from wim_kernel.cli.models import ModelChoice, cached_in, model_options
from wim_kernel.common.errors import WimError
from wim_kernel.common.events import AnswerToken, ChunkRead, Event, MarginsDone
from wim_kernel.run.relevance.scores import BY_NAME
from wim_kernel.text.files import STDIN, read_document

if TYPE_CHECKING:
    from wim_kernel.kernel import WimKernel
    from wim_kernel.reading import Reading


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="wim-integrations", prog_name="wim")
def main() -> None:
    """Ask questions of documents with a language model that takes notes while it reads."""


@main.command()
@click.argument("question", required=False)
@click.argument("files", metavar="[FILE]...", nargs=-1)
@click.option(
    "--question", "-Q", "more", metavar="TEXT", multiple=True, help="Another question; again for more."
)
@click.option("--chat", "-i", is_flag=True, help="At a terminal: go on asking about the same document.")
@model_options
@click.option(
    "--relevance",
    type=click.Choice(list(BY_NAME)),
    help="The relevance score. By default all signals combined.",
)
@click.option("--threshold", type=Fraction(0, 1), help="Relevance from which a margin is kept.")
@click.option("--top-k", type=click.IntRange(min=1), metavar="K", help="Keep the K most relevant margins.")
@click.option(
    "--stop-after", type=click.IntRange(min=1), metavar="N", help="Stop reading after N kept margins."
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    metavar="N",
    help="Look for evidence N times, knowing what was found.",
)
@click.option("--margins-only", is_flag=True, help="Write margins and no answer.")
@click.option(
    "--margin-style", type=click.Choice(["free", "verbatim"]), help="Own words, or sentences as they stand."
)
@click.option("--task", type=click.Choice(["answer", "summarise"]), default="answer", show_default=True)
@click.option(
    "--max-answer-tokens", type=click.IntRange(min=1), metavar="N", help="At most N tokens of answer."
)
@click.option(
    "--max-margin-tokens", type=click.IntRange(min=1), metavar="N", help="At most N tokens a margin."
)
@click.option("--json", "as_json", is_flag=True, help="Write each event as a line of JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Write the answer alone.")
def ask(
    question: str | None,
    files: tuple[str, ...],
    more: tuple[str, ...],
    chat: bool,
    chosen: ModelChoice,
    chunk_tokens: int | None,
    margins_only: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Answer QUESTION from the text, Markdown, HTML or PDF FILEs, read in order as one document.

    FILE `-`, and no FILE where something is piped in, is standard input. With `--task summarise` QUESTION
    says what to look for and may be empty. With --question or --chat, QUESTION may be left out: a first
    argument that is a file is read. Ctrl-C while reading answers from what was read; again, it leaves.

    What was read is kept for the next run, in a folder that `--cache-dir` names.
    """
    check_output()
    set_encoding(as_json)
    display = make_display(as_json, quiet, margins_only)
    with guarded(display), Interrupts() as interrupts, quietened(show_downloads=not (as_json or quiet)):
        if (more or chat) and question is not None and (question == STDIN or os.path.exists(question)):
            files = (question, *files)
            question = None
        questions = [*([question] if question is not None else []), *more]
        check_use(questions, files, chat, options["task"])
        chosen.check()
        check_options(questions, _kernel_options(options))
        document = read_document(files or (STDIN,))
        check_room()
        if chosen.is_local:
            check_settings(questions, _kernel_options(options))
        display.status(chosen.action)
        kernel = chosen.kernel()
        if chosen.servers and options["margin_style"] == "verbatim" and not kernel.engine.measures_likelihood:
            raise click.UsageError("Of servers only SGLang can choose verbatim margins, given --tokenizer.")
        _check_engine(options, kernel)
        with cached_in(kernel, chosen):
            display.status(f"Reading {', '.join(files) or 'standard input'}")
            reading = kernel.read(document, chunk_tokens=chunk_tokens or kernel.chunk_tokens)
            named = chat or len(questions) > 1
            for position, each in enumerate(questions):
                display.begin(each if named else None)
                events = _events(reading, each, margins_only, interrupts, _kernel_options(options))
                _follow(events, position, display, interrupts)
            if chat:
                _chat(reading, len(questions), margins_only, display, interrupts, _kernel_options(options))


_ELSEWHERE: Any = {"add_help_option": False, "context_settings": {"ignore_unknown_options": True}}


@main.command("eval", **_ELSEWHERE)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def evaluate(arguments: tuple[str, ...]) -> None:
    """Compare margins with other ways to answer, on your model and questions."""
    _run_installed("eval", arguments)


@main.command("ui", **_ELSEWHERE)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def show_page(arguments: tuple[str, ...]) -> None:
    """Open a page to ask questions of documents and watch margins being written."""
    _run_installed("ui", arguments)


def _run_installed(name: str, arguments: tuple[str, ...]) -> None:
    """Run a command that wim_integrations defines; the extra that it needs has its name."""
    found = entry_points(group="wim_kernel.commands", name=name)
    if not found:
        raise click.UsageError(f"`wim {name}` is not installed: pip install 'wim-integrations[{name}]'.")
    next(iter(found)).load().main(args=list(arguments), prog_name=f"wim {name}")


def _kernel_options(options: dict[str, Any]) -> dict[str, Any]:
    """The kernel's options for the command line's; options that are not given are left out."""
    names = {"max_answer_tokens": "answer_tokens", "max_margin_tokens": "margin_tokens"}
    return {names.get(name, name): value for name, value in options.items() if value is not None}


def _events(
    reading: Reading, question: str, margins_only: bool, interrupts: Interrupts, options: dict[str, Any]
) -> Generator[Event, None, None]:
    interrupts.stopping = False
    stream = reading.stream_margins if margins_only else reading.stream
    try:
        return stream(question, stop_when=lambda _: interrupts.stopping, **options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _check_engine(options: dict[str, Any], kernel: WimKernel) -> None:
    """Check that the engine can do what the options ask for."""
    from wim_kernel.run.options import parse_options
    from wim_kernel.run.settings import adapt_to_engine

    try:
        adapt_to_engine(parse_options(_kernel_options(options)), kernel.engine)  # type: ignore[arg-type]
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _follow(
    events: Generator[Event, None, None], position: int, display: Display, interrupts: Interrupts
) -> None:
    """Show a stream's events. An exception closes the stream, which stops the model."""
    with contextlib.closing(events):
        interrupts.reading = True
        for event in events:
            if isinstance(event, AnswerToken):
                interrupts.reading = False
            display.show(
                event if isinstance(event, ChunkRead | MarginsDone) else replace(event, question=position)
            )
        interrupts.reading = False


def _chat(
    reading: Reading,
    position: int,
    margins_only: bool,
    display: Display,
    interrupts: Interrupts,
    options: dict[str, Any],
) -> None:
    """Answer typed questions until an empty line or the end of input."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (makes input lines editable)
    while True:
        try:
            question = input("\n? ").strip()
        except EOFError:
            click.echo()
            return
        if not question:
            return
        display.begin(None)
        try:
            _follow(
                _events(reading, question, margins_only, interrupts, options), position, display, interrupts
            )
        except WimError as error:  # an error of this question only
            display.fail(str(error))
        position += 1
