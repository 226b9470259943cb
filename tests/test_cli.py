"""The `wim` command with the embedded model: what it writes where, its exit codes, and how it stops."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from helpers import TinyModel
from rich.console import Console

from wim_kernel.cli import main as cli
from wim_kernel.cli import models
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
from wim_kernel.kernel import WimKernel

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
QUESTION = "Who owned the ship Aurora?"
FACTS = """\
The harbour of Brill lies at the mouth of a slow brown river. In winter the fog stands on it until noon,
and the pilots stay in bed. Fishing has been poor there since the old mole was broken by the storm.

The ship Aurora was owned by Margaret Vale, a widow who had never been to sea. She bought it with the
money that her husband had put aside for a mill, and she named it herself.

The school stands on the hill behind the church. Its bell was cast in the year of the great comet, and
children still count its nine strokes in the morning before they run.
"""
LONG_WAY = "The road went on over the moor, past one grey stone and then another, and nobody met them. " * 90


@pytest.fixture(scope="module")
def kernel(real_kernel: WimKernel) -> WimKernel:
    real_kernel.cache.clear()
    return real_kernel


@pytest.fixture
def wim(kernel: WimKernel, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run `wim ask` in this process with the model loaded already."""
    monkeypatch.setattr(models, "load", lambda model, gguf_file, weights: kernel)

    def run(*arguments: str, stdin: bytes | None = None) -> Result:
        result = CliRunner().invoke(cli.main, ["ask", "--no-cache", *arguments], input=stdin)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


@pytest.fixture
def facts(tmp_path: Path) -> str:
    path = tmp_path / "facts.txt"
    path.write_text(FACTS)
    return str(path)


def command(*arguments: str) -> list[str]:
    """A command line that keeps nothing, so that tests are as fresh as the first time."""
    keeps_nothing = ["--no-cache"] if arguments[0] == "ask" else []
    return [sys.executable, "-m", "wim_kernel.cli", *arguments, *keeps_nothing]


def spawn(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | options
    return subprocess.Popen(command(*arguments), cwd=ROOT, text=True, **pipes)


def events_in(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_help_is_quick_and_loads_no_model_code() -> None:
    heavy = {"torch", "transformers", "lxml", "pypdf"}
    code = f"import sys, wim_kernel.cli.main; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "[]\n"
    shown = CliRunner().invoke(cli.main, ["ask", "--help"])
    assert shown.exit_code == 0
    assert "--margins-only" in shown.stdout


def test_version_is_the_distribution_s() -> None:
    from importlib.metadata import version

    assert (
        CliRunner().invoke(cli.main, ["--version"]).stdout == f"wim, version {version('wim-integrations')}\n"
    )


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_a_missing_extra_is_named(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import wim_kernel.cli.main"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == f"wim needs {missing}: pip install 'wim-integrations[cli]'\n"
    assert done.returncode == 1


def test_plain_output_has_margins_answer_and_cost(facts: str) -> None:
    done = subprocess.run(
        command("ask", QUESTION, facts, "--chunk-tokens", "64"),
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


def test_json_is_every_event_and_nothing_else(wim: Callable[..., Result], facts: str) -> None:
    result = wim(QUESTION, facts, "--chunk-tokens", "64", "--json")
    assert result.exit_code == 0
    assert result.stderr == ""
    events = events_in(result.stdout)
    by_kind = {
        kind: [event for event in events if event["event"] == kind] for kind in {e["event"] for e in events}
    }
    assert set(by_kind) - {"margin_revised"} == {"chunk_read", "margin_written", "answer_token", "answered"}
    [answered] = by_kind["answered"]
    assert events[-1] is answered
    assert "".join(event["text"] for event in by_kind["answer_token"]) == answered["result"]["answer"]
    assert (
        len(by_kind["margin_written"]) == len(by_kind["chunk_read"]) == by_kind["chunk_read"][0]["chunks"] > 2
    )
    for event in by_kind["margin_written"]:
        chunk = event["margin"]["chunk"]
        [span] = chunk["spans"]
        assert span["source_id"] == facts
        assert FACTS[span["start"] : span["end"]] == chunk["text"][span["offset"] :][: span["length"]]


def test_margins_only_writes_no_answer(wim: Callable[..., Result], facts: str) -> None:
    result = wim(QUESTION, facts, "--chunk-tokens", "64", "--margins-only", "--json")
    assert result.exit_code == 0
    *events, last = events_in(result.stdout)
    assert {event["event"] for event in events} - {"margin_revised"} == {"chunk_read", "margin_written"}
    assert last["event"] == "margins_done"
    assert len(last["margins"]) == sum(event["event"] == "margin_written" for event in events)


def test_quiet_writes_the_answer_alone(wim: Callable[..., Result], facts: str) -> None:
    asked = (QUESTION, facts, "--max-answer-tokens", "12")
    loud, quiet = wim(*asked), wim(*asked, "--quiet")
    assert quiet.exit_code == 0
    assert quiet.stderr == ""
    assert loud.stdout.split("\nAnswer:\n")[1].rsplit("\n\n", 1)[0].strip() == quiet.stdout.strip() != ""


def test_quiet_margins_are_the_kept_texts(wim: Callable[..., Result], facts: str) -> None:
    options = ("--chunk-tokens", "64", "--margins-only", "--margin-style", "verbatim", "--top-k", "1")
    result = wim(QUESTION, facts, *options, "--quiet")
    assert result.exit_code == 0
    whole = " ".join(FACTS.split())
    sentences = re.split(r"(?<=[.!?])\s+", result.stdout.strip())
    assert all(" ".join(sentence.split()) in whole for sentence in sentences)


def test_a_piped_document_is_read(wim: Callable[..., Result]) -> None:
    for files in ((), ("-",)):
        result = wim(QUESTION, *files, "--json", "--max-answer-tokens", "4", stdin=FACTS.encode())
        assert result.exit_code == 0
        margin = events_in(result.stdout)[-1]["result"]["margins"][0]
        assert {span["source_id"] for span in margin["chunk"]["spans"]} == {"-"}


def test_several_files_are_one_document(wim: Callable[..., Result], facts: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<title>x</title><p>The crew of the Aurora were <b>paid</b> on Fridays.</p>")
    result = wim(QUESTION, facts, str(page), "--json", "--margins-only")
    chunks = [
        event["margin"]["chunk"] for event in events_in(result.stdout) if event["event"] == "margin_written"
    ]
    assert {span["source_id"] for chunk in chunks for span in chunk["spans"]} == {facts, str(page)}
    assert chunks[-1]["text"].strip() == "The crew of the Aurora were paid on Fridays."


def test_stop_after_leaves_the_rest_unread(wim: Callable[..., Result], facts: str) -> None:
    options = (
        "--chunk-tokens",
        "32",
        "--threshold",
        "0",
        "--max-margin-tokens",
        "4",
        "--max-answer-tokens",
        "4",
    )
    result = wim(QUESTION, facts, *options, "--stop-after", "2", "--json")
    answered = events_in(result.stdout)[-1]["result"]
    assert answered["stopped_early"]
    assert 2 <= len(answered["margins"]) <= 4  # they are written a few at a time


def test_token_limits_hold(wim: Callable[..., Result], facts: str) -> None:
    options = (
        "--threshold",
        "0",
        "--margin-style",
        "free",
        "--max-margin-tokens",
        "5",
        "--max-answer-tokens",
        "3",
    )
    result = wim(QUESTION, facts, *options, "--json")
    answered = events_in(result.stdout)[-1]["result"]
    assert answered["usage"]["output_tokens"] <= 5 * len(answered["margins"]) + 3


def test_summarising_needs_no_question(wim: Callable[..., Result], facts: str) -> None:
    result = wim("", facts, "--task", "summarise", "--max-answer-tokens", "12", "--max-margin-tokens", "8")
    assert result.exit_code == 0
    assert "\nAnswer:\n" in result.stdout


def test_wrong_use_exits_2_before_any_model_loads(facts: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.touch()
    for arguments, reason in (
        (["", facts], "QUESTION is empty"),
        (["q", str(tmp_path / "none.txt")], "none.txt cannot be read: No such file or directory"),
        (["q", str(tmp_path)], "cannot be read"),
        (["q", str(empty)], "empty.txt holds no text"),
        (["q", facts, "--threshold", "2"], "--threshold"),
        (["q", facts, "--task", "translate"], "--task"),
        (["q", "-", "-"], "once"),
    ):
        result = CliRunner().invoke(cli.main, ["ask", *arguments])
        assert result.exit_code == 2, arguments
        assert result.stdout == ""
        assert reason in result.stderr
        assert "Traceback" not in result.stderr


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


@pytest.mark.parametrize("question", ["", "q"])
def test_errors_are_events_in_json(wim: Callable[..., Result], question: str) -> None:
    result = wim(question, "no-such-file.txt", "--json")
    assert result.exit_code == 2
    [event] = events_in(result.stdout)
    assert event["event"] == "error"
    assert event["message"]


def test_json_is_utf_8_in_any_locale() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    arguments = command("ask", "q", "no-ü.txt", "--json")
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert "no-ü.txt cannot be read" in json.loads(done.stdout.decode("utf-8"))["message"]


def test_a_document_longer_than_the_window_is_read_in_volumes(
    wim: Callable[..., Result],
    kernel: WimKernel,
    tiny_model: TinyModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = WimKernel(tiny_model("llama"), kernel.tokenizer, window=1024)
    monkeypatch.setattr(models, "load", lambda model, gguf_file, weights: small)
    path = tmp_path / "long.txt"
    path.write_text(LONG_WAY)
    *_, answered = events_in(wim(QUESTION, str(path), "--json", "--max-answer-tokens", "8").stdout)
    assert answered["result"]["volumes"] > 1


def test_a_question_too_long_says_how_long(wim: Callable[..., Result], facts: str) -> None:
    result = wim(LONG_WAY * 6, facts)
    assert result.exit_code == 1
    assert re.search(r"wim: .*[\d,]+ tokens and -?[\d,]+ fit", result.stderr)
    [event] = events_in(wim(LONG_WAY * 6, facts, "--json").stdout)
    assert "tokens" in event["message"]


def test_a_model_not_found_says_so(facts: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.main, ["ask", QUESTION, facts, "--model", str(tmp_path / "no-model")])
    assert result.exit_code == 1
    assert "no-model" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture
def long_run(tmp_path: Path, tiny_folder: Path) -> Iterator[subprocess.Popen[str]]:
    """`wim ask` at work on a document of many chunks, its first chunk read."""
    path = tmp_path / "way.txt"
    path.write_text(LONG_WAY)
    options = ("--model", str(tiny_folder), "--chunk-tokens", "16", "--json", "--max-answer-tokens", "8")
    with spawn("ask", QUESTION, str(path), *options) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "chunk_read"
        yield process
        process.kill()


@pytest.mark.skipif(os.name != "posix", reason="signals are sent this way on POSIX only")
def test_first_interrupt_answers_from_the_chunks_read(long_run: subprocess.Popen[str]) -> None:
    long_run.send_signal(signal.SIGINT)
    output, errors = long_run.communicate(timeout=120)
    assert long_run.returncode == 0, errors
    assert "no more is read" in errors
    events = events_in(output)
    assert events[-1]["event"] == "answered"
    assert events[-1]["result"]["stopped_early"]
    assert events[-1]["result"]["answer"]
    assert sum(event["event"] == "chunk_read" for event in events) < events[0].get("chunks", 40) - 5


@pytest.mark.skipif(os.name != "posix", reason="signals are sent this way on POSIX only")
def test_second_interrupt_exits_at_once(long_run: subprocess.Popen[str]) -> None:
    assert long_run.stderr is not None
    long_run.send_signal(signal.SIGINT)
    while "no more is read" not in long_run.stderr.readline():
        pass
    long_run.send_signal(signal.SIGINT)
    _, errors = long_run.communicate(timeout=60)
    assert long_run.returncode == 130
    assert errors.strip() == "wim: interrupted"


@pytest.mark.skipif(os.name != "posix", reason="signals are sent this way on POSIX only")
def test_closed_output_pipe_is_no_error(long_run: subprocess.Popen[str]) -> None:
    assert long_run.stdout is not None
    assert long_run.stderr is not None
    long_run.stdout.close()
    assert long_run.wait(timeout=60) == 141
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


def test_an_interrupt_while_loading_leaves() -> None:
    with cli.Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert not interrupts.stopping


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX's")
def test_a_terminal_gets_colour_and_no_escapes_of_the_document(tmp_path: Path, tiny_folder: Path) -> None:
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
    process = spawn("ask", QUESTION, str(path), *options, stdout=terminal, env=os.environ | {"TERM": "xterm"})
    os.close(terminal)
    shown = b""
    while piece := read_terminal(main_end):
        shown += piece
    os.close(main_end)
    assert process.wait(timeout=60) == 0
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


# The displays alone, with events made by hand.


def some_events(text: str = "a note", answer: str = "Vale.") -> list[Event]:
    chunk = Chunk("abcdef", (Span("a.pdf", 1200, 1206, 0, 6),), {"page_starts": [0, 1203, 3000]})
    kept, dropped = Margin(0, text, 0.9, True, chunk), Margin(1, "", 0.1, False, chunk)
    result = WimResult(
        answer, (kept, dropped), Usage(1500, None, 40, 9), Timings(total=2.5), stopped_early=True
    )
    reads = [ChunkRead(0, 2, 1000, 1500, False), ChunkRead(1, 2, 1500, 1500, True)]
    return [*reads, MarginWritten(kept), MarginWritten(dropped), AnswerToken(answer), Answered(result)]


def test_plain_display(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_options_are_the_kernel_s_to_fill_in(
    wim: Callable[..., Result], facts: str, kernel: WimKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def read(*_: object, **__: object) -> Any:
        def stream(question: str, **options: Any) -> Any:
            asked.append({name: value for name, value in options.items() if name != "stop_when"})
            yield from ()

        return SimpleNamespace(stream=stream)

    monkeypatch.setattr(kernel, "read", read)
    assert wim(QUESTION, facts).exit_code == 0
    assert wim(QUESTION, facts, "--relevance", "lexical", "--rounds", "2").exit_code == 0
    assert asked == [{"task": "answer"}, {"task": "answer", "relevance": "lexical", "rounds": 2}]
    monkeypatch.setattr(kernel.engine, "heads", ())
    refused = wim(QUESTION, facts, "--relevance", "attention")
    assert refused.exit_code == 2
    assert "cannot see the model's attention" in refused.stderr


def test_places_name_each_source_once() -> None:
    spans = (Span("-", 0, 5, 0, 5), Span("b.txt", None, None, 6, 2), Span("-", 9, 12, 9, 3))
    assert place(Margin(0, "", 0.0, False, Chunk("x" * 12, spans))) == "standard input, chars 0-12; b.txt"
    copied = (Span("-", 2, 4, 0, 2),)
    assert place(Margin(0, "", 0.0, False, Chunk("x" * 12, spans), copied)) == "standard input, chars 2-4"


def test_nothing_a_terminal_obeys_gets_through() -> None:
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
