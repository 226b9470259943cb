"""The `wim` command: ask a question of files, and watch margins and answer being written.

Exit codes: 0, answered (also after one Ctrl-C while reading, from what was read); 1, it could not be done (a
document too long, a model not found); 2, wrong use (a bad option, a file that cannot be read); 130,
interrupted; 141, the reader of standard output went away.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Generator, Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

try:
    import click
    import rich  # noqa: F401  (wim_kernel.display needs it)
except ModuleNotFoundError as error:
    raise SystemExit(f"wim needs {error.name}: pip install 'wim-integrations[cli]'") from error

from wim_kernel.display import Display, JsonDisplay, harmless, make_display
from wim_kernel.errors import WimError
from wim_kernel.events import AnswerToken, Event
from wim_kernel.files import STDIN, FileError, read_document
from wim_kernel.relevance.scores import BY_NAME

if TYPE_CHECKING:
    from typing_extensions import Self

    from wim_kernel.kernel import WimKernel

_CHUNK_HELP = "At most N tokens a chunk. By default a sixteenth of the window: 512 for the embedded model."

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_PIPE = 1, 2, 130, 141


class Interrupts:
    """Ctrl-C: while reading, once to stop reading and twice to leave; at any other time once to leave.

    A context manager. Outside the main thread, where Python allows no signal handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.reading = False
        self.stopping = False
        self._previous: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._interrupted)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self.stopping or not self.reading:
            raise KeyboardInterrupt
        self.stopping = True
        # Straight to the descriptor: the interrupted code may be within a buffered write of its own.
        with contextlib.suppress(OSError):
            os.write(2, b"\nwim: no more is read; Ctrl-C again leaves at once\n")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="wim-integrations", prog_name="wim")
def main() -> None:
    """Ask questions of documents with a language model that takes notes while it reads."""


@main.command()
@click.argument("question")
@click.argument("files", metavar="[FILE]...", nargs=-1)
@click.option(
    "--model", default="embedded", show_default=True, help="A hub id, a path, or the embedded model."
)
@click.option("--gguf-file", metavar="NAME", help="The GGUF file within the model's repository or folder.")
@click.option(
    "--server",
    "servers",
    metavar="URL",
    multiple=True,
    help="An OpenAI-compatible API that runs --model; again for more.",
)
@click.option("--tokenizer", metavar="NAME", help="The server's model's tokenizer: a hub id or a folder.")
@click.option("--chunk-tokens", type=click.IntRange(min=1), metavar="N", help=_CHUNK_HELP)
@click.option(
    "--relevance",
    type=click.Choice(list(BY_NAME)),
    help="What relevance is taken from. By default all signals.",
)
@click.option("--threshold", type=click.FloatRange(0, 1), help="Relevance from which a margin is kept.")
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
    question: str,
    files: tuple[str, ...],
    model: str,
    gguf_file: str | None,
    servers: tuple[str, ...],
    tokenizer: str | None,
    chunk_tokens: int | None,
    margins_only: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Answer QUESTION from the text, Markdown, HTML or PDF FILEs, read in order as one document.

    FILE `-`, and no FILE where something is piped in, is standard input. With `--task summarise` QUESTION
    says what to look for and may be empty. Ctrl-C while reading answers from what was read; again, it leaves.
    """
    _set_encoding(as_json)
    display = make_display(as_json, quiet, margins_only)
    with _guarded(display), Interrupts() as interrupts, _quietened(show_downloads=not (as_json or quiet)):
        if not question.strip() and options["task"] != "summarise":
            raise click.UsageError("QUESTION is empty.")
        if not files and sys.stdin.isatty():
            raise click.UsageError("Give at least one FILE, or pipe a document in.")
        document = read_document(files or (STDIN,))
        if servers:
            display.status(f"Asking {', '.join(servers)}")
            kernel = _connect(servers, None if model == "embedded" else model, tokenizer)
            if options["margin_style"] == "verbatim" and not kernel.engine.measures_likelihood:
                raise click.UsageError(
                    "Of servers only SGLang can choose verbatim margins, given --tokenizer."
                )
        else:
            display.status(f"Loading the model {model}")
            kernel = _load(model, gguf_file)
        _check(options, kernel)
        display.status(f"Reading {', '.join(files) or 'standard input'}")
        reading = kernel.read(document, chunk_tokens=chunk_tokens or kernel.chunk_tokens)
        stream = reading.stream_margins if margins_only else reading.stream
        events = stream(question, stop_when=lambda _: interrupts.stopping, **_asked(options))
        _follow(events, display, interrupts)


@main.command("eval", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def evaluate(arguments: tuple[str, ...]) -> None:
    """Compare margins with other ways to answer, on your model and questions."""
    from wim_integrations.evaluation.cli import evaluate as command  # its options are its own

    command.main(args=list(arguments), prog_name="wim eval")


def _set_encoding(as_json: bool) -> None:
    """JSON is UTF-8; for people, characters that their encoding lacks are replaced."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        if as_json:
            sys.stdout.reconfigure(encoding="utf-8")
        else:
            sys.stdout.reconfigure(errors="replace")


def _load(model: str, gguf_file: str | None) -> WimKernel:
    from transformers.utils import logging as transformers_logging

    from wim_kernel.kernel import WimKernel  # torch comes with it: seconds, not to be spent on --help

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return WimKernel.from_pretrained(model, gguf_file=gguf_file)


def _connect(servers: tuple[str, ...], model: str | None, tokenizer: str | None) -> WimKernel:
    from wim_kernel.kernel import WimKernel

    try:
        return WimKernel.from_server(servers, model, tokenizer=tokenizer)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _asked(options: dict[str, Any]) -> dict[str, Any]:
    """A stream's keyword arguments for the options that were given; the kernel has defaults for the rest."""
    names = {"max_answer_tokens": "answer_tokens", "max_margin_tokens": "margin_tokens"}
    return {names.get(name, name): value for name, value in options.items() if value is not None}


def _check(options: dict[str, Any], kernel: WimKernel) -> None:
    """See that the model, wherever it runs, can do what is asked."""
    from wim_kernel.settings import fitting, settle

    try:
        fitting(settle(_asked(options)), kernel.engine)  # type: ignore[arg-type]
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _follow(events: Generator[Event, None, None], display: Display, interrupts: Interrupts) -> None:
    """Show a stream's events; leaving midway closes the stream, which stops the model."""
    with contextlib.closing(events):
        interrupts.reading = True
        for event in events:
            if isinstance(event, AnswerToken):
                interrupts.reading = False
            display.show(event)


@contextlib.contextmanager
def _guarded(display: Display) -> Iterator[None]:
    """Turn what can go wrong into one line and an exit code."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("\nwim: interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # What is buffered must go nowhere, or Python complains of it at exit.
        with contextlib.suppress(OSError, io.UnsupportedOperation):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_PIPE)
    except FileError as error:
        display.fail(str(error))
        sys.exit(EXIT_USAGE)
    except (WimError, OSError) as error:
        display.fail(str(error))
        sys.exit(EXIT_FAILED)
    except Exception as error:
        if isinstance(display, JsonDisplay):
            display.fail(error.format_message() if isinstance(error, click.UsageError) else repr(error))
        raise  # click explains wrong use; anything else is a bug, and its traceback says where
    finally:
        display.close()


@contextlib.contextmanager
def _quietened(show_downloads: bool) -> Iterator[None]:
    """Keep libraries' chatter off the screen and show warnings as one line each."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not (show_downloads and sys.stderr.isatty()):  # a person waits gladly when told for how long
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")
    # it names byte offsets of files that are read all the same
    logging.getLogger("pypdf").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        if not sys.warnoptions:
            for library in ("torch", "transformers", "huggingface_hub", "accelerate"):
                warnings.filterwarnings("ignore", module=rf"{library}(\.|$)")
        warnings.showwarning = lambda message, *_: click.echo(
            f"wim: warning: {harmless(str(message))}", err=True
        )
        yield


if __name__ == "__main__":
    main()
