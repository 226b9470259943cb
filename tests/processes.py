"""Server programs for tests, each in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def running(
    command: Callable[[int], list[str]],
    log: Path,
    environment: Mapping[str, str],
    *,
    seconds: float,
    port: int | None = None,
) -> Iterator[int]:
    """Start a server, wait until ``/health`` answers, and stop it in the end.

    Args:
        command: how it is started at a port of this machine.
        log: where what it prints goes.
        environment: beside this process's own.
        seconds: how long it may take to start.
        port: where; a free one by default.

    Yields:
        Its port.

    Raises:
        AssertionError: with the end of its log, if it does not start.
    """
    port = port or _free_port()
    with log.open("wb") as out:
        process = subprocess.Popen(command(port), stdout=out, stderr=out, env={**os.environ, **environment})
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process, log, seconds)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2).read()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"It did not start:\n{log.read_text(errors='replace')[-4000:]}")
