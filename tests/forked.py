"""Processes of their own for tests, forked from the tests' process: they need no seconds to import what it has."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import IO, Any


class Forked:
    """A function in a forked process, on standard streams of its own; for the rest like `subprocess.Popen`.

    Args:
        main: what the process does. It ends as a program does: by returning, by `SystemExit`, or by an error.
        stdout: the descriptor of its standard output; by default a pipe.

    Attributes:
        stdout: to read its standard output, if that is a pipe.
        stderr: to read its standard error.
    """

    def __init__(self, main: Callable[[], Any], stdout: int | None = None) -> None:
        out, err = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(out[0])
            os.close(err[0])
            _run(main, out[1] if stdout is None else stdout, err[1])
        os.close(out[1])
        os.close(err[1])
        self.stdout: IO[str] = os.fdopen(out[0], encoding="utf-8")
        self.stderr: IO[str] = os.fdopen(err[0], encoding="utf-8")

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.stdout.close()
        self.stderr.close()

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it, if it runs."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0

    def wait(self, seconds: float = 120.0) -> int:
        """Its exit code, or the number of the signal that ended it, negative; a process that hangs is killed."""
        until = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > until:
                self.kill()
                raise AssertionError("The child hangs.")
            time.sleep(0.01)

    def communicate(self, seconds: float = 120.0) -> tuple[int, str, str]:
        """Its exit code, and all that it writes."""
        output, errors = self.stdout.read(), self.stderr.read()
        return self.wait(seconds), output, errors


def in_child(work: Callable[[], Any], seconds: float = 120.0) -> Any:
    """What ``work`` returns in a forked child; an error there is raised here, and a child that hangs is killed."""
    reader, writer = os.pipe()

    def main() -> None:
        try:
            found = True, work()
        except BaseException as error:
            found = False, error
        os.write(writer, pickle.dumps(found))

    with Forked(main) as child, os.fdopen(reader, "rb") as pipe:
        os.close(writer)
        child.wait(seconds)
        well, found = pickle.loads(pipe.read())
    if not well:
        raise found
    return found


def _run(main: Callable[[], Any], out: int, err: int) -> None:
    """Be the process: never returns."""
    code: Any = 1
    try:
        for descriptor, place in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (err, 2)):
            os.dup2(descriptor, place)
        os.close(out)
        os.close(err)
        sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w", encoding="utf-8")
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
        sys.stdout.flush()
        code = 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)
