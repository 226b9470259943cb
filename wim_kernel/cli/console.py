"""`wim` as a program: interrupts, warnings, closed or full streams, and exit codes."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import signal
import stat
import sys
import threading
import warnings
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import click

from wim_kernel.cli.display import Display, say
from wim_kernel.cli.format import harmless
from wim_kernel.common.errors import WimError
from wim_kernel.text.files import FileError

if TYPE_CHECKING:
    from typing_extensions import Self

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_PIPE = 1, 2, 130, 141


class Interrupts:
    """A context that handles Ctrl-C: while reading, the first stops reading and the second exits; otherwise it exits.

    Outside the main thread, where Python allows no signal handlers, it does nothing.
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
        # Write to the descriptor directly: the interrupted code may be in a buffered write.
        if sys.stderr is not None:
            with contextlib.suppress(OSError):
                os.write(2, b"\nwim: no more is read; Ctrl-C again leaves at once\n")


class Program(click.Group):
    """A group of commands that reports errors of its output in one line."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command line and, in standalone mode, exit with its code."""
        run: Any = super().main
        if not extra.pop("standalone_mode", True):
            return run(*args, standalone_mode=False, **extra)
        code: Any = 0
        try:
            code = run(*args, standalone_mode=False, **extra)
            if sys.stdout is not None:
                sys.stdout.flush()
        except click.ClickException as error:
            with contextlib.suppress(OSError):
                error.show()
            code = error.exit_code
        except (click.Abort, KeyboardInterrupt):
            code = EXIT_INTERRUPTED
        except OSError as error:
            code = give_up_output(error)
        sys.exit(code if isinstance(code, int) else 0)


def give_up_output(error: OSError) -> int:
    """Report why standard output cannot be written, unless its reader closed it; returns the exit code."""
    # Discard buffered output, for which Python would report the error again at exit.
    with contextlib.suppress(OSError, ValueError, AttributeError, io.UnsupportedOperation):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno == errno.EPIPE:
        return EXIT_PIPE
    say(f"wim: standard output cannot be written: {error.strerror or error}.")
    return EXIT_FAILED


@contextlib.contextmanager
def guarded(display: Display) -> Iterator[None]:
    """Report errors in one line, and exit with their codes."""
    try:
        yield
    except KeyboardInterrupt:
        say("\nwim: interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except FileError as error:
        display.fail(str(error))
        sys.exit(EXIT_USAGE)
    except WimError as error:
        display.fail(str(error))
        sys.exit(EXIT_FAILED)
    except click.UsageError as error:
        if display.is_json:
            display.fail(error.format_message())
        raise
    except OSError as error:
        if error.filename is None:  # an error of a stream; files have names
            sys.exit(give_up_output(error))
        display.fail(str(error))
        sys.exit(EXIT_FAILED)
    except Exception as error:
        if display.is_json:
            display.fail(repr(error))
        raise  # a bug: show its traceback
    finally:
        with contextlib.suppress(OSError):
            display.close()


@contextlib.contextmanager
def quietened(show_downloads: bool) -> Iterator[None]:
    """Silence libraries, and show each warning as one line."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not (show_downloads and sys.stderr is not None and sys.stderr.isatty()):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")
    # pypdf warns of byte offsets in files that it can read
    logging.getLogger("pypdf").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        if not sys.warnoptions:
            for library in ("torch", "transformers", "huggingface_hub", "accelerate"):
                warnings.filterwarnings("ignore", module=rf"{library}(\.|$)")
        warnings.showwarning = lambda message, *_: say(f"wim: warning: {harmless(str(message))}")
        yield


def check_output() -> None:
    """Check that standard output is open.

    Raises:
        click.UsageError: if standard output is closed.
    """
    if sys.stdout is None:
        raise click.UsageError("Standard output is closed, so an answer would be lost.")


def check_room() -> None:
    """Check, before a model is loaded, that standard output has room, as far as the system can tell.

    Raises:
        OSError: if its disk is full, or it is a device that takes nothing.
    """
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError, AttributeError):  # replaced by an object without a descriptor
        return
    if _is_full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_full(descriptor: int) -> bool:
    """Whether writing to a file or device is known to fail for lack of room."""
    try:
        state = os.fstat(descriptor)
        if stat.S_ISCHR(state.st_mode):
            return os.path.exists("/dev/full") and state.st_rdev == os.stat("/dev/full").st_rdev
        return (
            stat.S_ISREG(state.st_mode) and hasattr(os, "fstatvfs") and os.fstatvfs(descriptor).f_bavail == 0
        )
    except OSError:
        return False


def at_a_terminal(stream: Any) -> bool:
    """Whether a standard stream is a terminal; a closed one is not."""
    return stream is not None and not stream.closed and bool(stream.isatty())


def set_encoding(as_json: bool) -> None:
    """Write JSON as UTF-8; otherwise replace characters that the terminal's encoding lacks."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        if as_json:
            sys.stdout.reconfigure(encoding="utf-8")
        else:
            sys.stdout.reconfigure(errors="replace")
