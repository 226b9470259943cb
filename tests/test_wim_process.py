"""`wim` as a process: its streams, signals, terminal and exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked import Forked
from wim_cases import FACTS, QUESTION, events_in

from wim_kernel.cli import main as cli

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


LONG_WAY = "The road went on over the moor, past one grey stone and then another, and nobody met them. " * 90


@pytest.fixture
def facts(tmp_path: Path) -> str:
    path = tmp_path / "facts.txt"
    path.write_text(FACTS)
    return str(path)


def command(*arguments: str) -> list[str]:
    """A command line that keeps nothing, so that tests are as fresh as the first time."""
    keeps_nothing = ["--no-cache"] if arguments[0] == "ask" else []
    return [sys.executable, "-m", "wim_kernel.cli", *arguments, *keeps_nothing]


def spawn(*arguments: str, stdout: int | None = None) -> Forked:
    """`wim` as a process of its own, which keeps nothing."""
    return Forked(lambda: cli.main([*arguments, "--no-cache"]), stdout)


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_a_missing_extra_is_named(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import wim_kernel.cli.main"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == f"wim needs {missing}: pip install 'wim-integrations[cli]'\n"
    assert done.returncode == 1


def test_plain_output_has_margins_answer_and_cost(facts: str) -> None:
    done = subprocess.run(
        command("ask", QUESTION, facts, "--chunk-tokens", "64", "--max-answer-tokens", "16"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    margins, answer = done.stdout.split("\nAnswer:\n")
    assert re.search(
        r"^\* margin \d+  relevance [01]\.\d\d  .*facts\.txt, chars [\d,]+-[\d,]+$", margins, re.MULTILINE
    )
    assert answer.strip()
    assert re.search(
        r"\n\n[\d,]+ tokens read, 0 cached, [\d,]+ of prompts, [\d,]+ written, \d+\.\d s\n$", answer
    )
    assert re.match(r"Loading the model embedded\nReading .*facts\.txt\nchunk 1 of \d+, \d+ of ", done.stderr)
    assert "Warning" not in done.stderr
    assert "%|" not in done.stderr  # somebody's progress bar


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX's")
def test_no_file_at_a_terminal_is_wrong_use() -> None:
    main_end, terminal = os.openpty()
    try:
        done = subprocess.run(
            command("ask", "q"), cwd=ROOT, stdin=terminal, capture_output=True, text=True, check=False
        )
    finally:
        os.close(main_end)
        os.close(terminal)
    assert done.returncode == 2
    assert "Give at least one FILE" in done.stderr


def test_json_is_utf_8_in_any_locale() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    arguments = command("ask", "q", "no-ü.txt", "--json")
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert "no-ü.txt cannot be read" in json.loads(done.stdout.decode("utf-8"))["message"]


@pytest.fixture
def long_run(tmp_path: Path, tiny_folder: Path) -> Iterator[Forked]:
    """`wim ask` at work on a document of many chunks, its first chunk read."""
    path = tmp_path / "way.txt"
    path.write_text(LONG_WAY)
    options = ("--model", str(tiny_folder), "--chunk-tokens", "16", "--json", "--max-answer-tokens", "8")
    with spawn("ask", QUESTION, str(path), *options) as process:
        assert json.loads(process.stdout.readline())["event"] == "chunk_read"
        yield process


@pytest.mark.skipif(os.name != "posix", reason="signals are sent this way on POSIX only")
def test_first_interrupt_answers_from_the_chunks_read(long_run: Forked) -> None:
    long_run.send_signal(signal.SIGINT)
    code, output, errors = long_run.communicate()
    assert code == 0, errors
    assert "no more is read" in errors
    events = events_in(output)
    assert events[-1]["event"] == "answered"
    assert events[-1]["result"]["stopped_early"]
    assert events[-1]["result"]["answer"]
    assert sum(event["event"] == "chunk_read" for event in events) < events[0].get("chunks", 40) - 5


@pytest.mark.skipif(os.name != "posix", reason="signals are sent this way on POSIX only")
def test_second_interrupt_exits_at_once(long_run: Forked) -> None:
    long_run.send_signal(signal.SIGINT)
    while "no more is read" not in long_run.stderr.readline():
        pass
    long_run.send_signal(signal.SIGINT)
    code, _, errors = long_run.communicate()
    assert code == 130
    assert errors.strip() == "wim: interrupted"


@pytest.mark.skipif(os.name != "posix", reason="signals are sent this way on POSIX only")
def test_closed_output_pipe_is_no_error(long_run: Forked) -> None:
    long_run.stdout.close()
    assert long_run.wait() == 141
    assert long_run.stderr.read() == ""


def test_interrupts_are_put_back_and_left_alone_in_other_threads() -> None:
    before = signal.getsignal(signal.SIGINT)
    with cli.Interrupts() as interrupts:
        assert signal.getsignal(signal.SIGINT) not in (before, None)
        interrupts.reading = True
        signal.raise_signal(signal.SIGINT)
        assert interrupts.stopping
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before

    seen = []

    def elsewhere() -> None:
        with cli.Interrupts():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before]


def test_interrupt_while_loading_exits() -> None:
    with cli.Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert not interrupts.stopping


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX's")
def test_a_terminal_gets_colour_and_no_escapes_of_the_document(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    path = tmp_path / "sly\x1b]0;title\x07.txt"
    path.write_text(FACTS.replace("Vale", "V\x1b[2J\x9b2Jale [red]x[/red]"))
    options = (
        "--chunk-tokens",
        "64",
        "--threshold",
        "0",
        "--margin-style",
        "verbatim",
        "--max-answer-tokens",
        "8",
        "--model",
        str(tiny_folder),
    )
    main_end, terminal = os.openpty()
    with spawn("ask", QUESTION, str(path), *options, stdout=terminal) as process:
        os.close(terminal)
        shown = b""
        while piece := read_terminal(main_end):
            shown += piece
        os.close(main_end)
        assert process.wait() == 0
    text = shown.decode()
    assert "\x1b[1m* margin" in text
    assert re.search(r"chunk \d of \d, \d+ of \d+ tokens, [\d,]+ tokens/s", text)
    assert "[red]x[/red]" in text
    assert "\u241b[2J\ufffd2Jale" in text.replace("\r\n", "").replace("    ", "")
    assert "\x1b[2J" not in text
    assert "\x9b" not in text
    assert "\x1b]" not in text
    assert "\x07" not in text


def read_terminal(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux's way to say that the other end is closed
        return b""
