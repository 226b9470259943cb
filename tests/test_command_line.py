"""`wim ask` where something is wrong around it, over several questions, and from one run to the next."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from click.testing import CliRunner, Result

from wim_kernel import WimKernel
from wim_kernel.cli import checks as cli_checks
from wim_kernel.cli import console, models
from wim_kernel.cli import main as cli
from wim_kernel.cli.display import TerminalDisplay
from wim_kernel.common.errors import ServerError
from wim_kernel.common.events import AnswerToken, ChunkRead

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
QUESTION = "Who owned the ship Aurora?"
TEXT = "The ship Aurora was owned by Margaret Vale. The school stands on the hill. " * 12
FEW = ("--chunk-tokens", "64", "--threshold", "0", "--max-margin-tokens", "3", "--max-answer-tokens", "4")


@pytest.fixture
def facts(tmp_path: Path) -> str:
    path = tmp_path / "facts.txt"
    path.write_text(TEXT)
    return str(path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where readings are kept by default."""
    monkeypatch.setenv("WIM_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "readings"


@pytest.fixture
def wim(kernel: WimKernel, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Run `wim ask` in this process on a tiny model that is loaded already, with nothing read."""
    monkeypatch.setattr(models, "load", lambda model, gguf_file, weights: kernel)
    budget = kernel.cache.budget

    def run(*arguments: str, stdin: bytes | None = None) -> Result:
        kernel.cache.clear()
        kernel.cache.budget = budget
        result = CliRunner().invoke(cli.main, ["ask", *arguments, *FEW], input=stdin)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    yield run
    kernel.cache.budget = budget


def run(line: str) -> tuple[int, str]:
    """Exit code and standard error of a command line of `wim`: in this process, if a shell is not needed."""
    if re.search("[<>]", line):
        done = shell(line)
        return done.returncode, done.stderr
    result = CliRunner().invoke(cli.main, shlex.split(line)[1:])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stderr


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command line of `wim`, by a shell, so that its streams can be closed or full."""
    line = line.replace("wim ", f"exec {sys.executable} -m wim_kernel.cli ", 1)
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", **environment}
    return subprocess.run(
        line, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def answered(output: str) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in output.splitlines()]
    return [event["result"] for event in events if event["event"] == "answered"]


posix = pytest.mark.skipif(os.name != "posix", reason="streams are closed this way on POSIX only")


@posix
@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("wim ask q FILE --top-k 2 --stop-after 2", 2, "use one of them"),
        ("wim ask q FILE --threshold nan", 2, "nan is not a number between 0 and 1"),
        ("wim ask q FILE --threshold inf", 2, "--threshold"),
        ("wim ask '' FILE --task summarise --top-k 2", 2, "need a question"),
        ("wim ask '' FILE --task summarise --margin-style verbatim", 2, "need a question"),
        ("wim ask q FILE --tokenizer x", 2, "belongs to --server"),
        ("wim ask q FILE --cache-dir x --no-cache", 2, "not both"),
        ("wim ask q FILE --weights int3", 2, "'int3' is not"),
        ("wim ask q FILE --weights int8 --server http://x/v1", 2, "for a model in this process"),
        ("wim ask q FILE --chat-model openai:m --server http://x/v1", 2, "--chat-model or --server"),
        ("wim ask q FILE --chat-model openai:m --model m", 2, "--chat-model or --model"),
        ("wim ask q FILE --chat-model openai:m --gguf-file m", 2, "--chat-model or --gguf-file"),
        ("wim ask q FILE --chat-model openai:m --cache-dir x", 2, "no use with --server and --chat-model"),
        ("wim ask q FILE --chat-model ''", 1, "write PROVIDER:NAME"),
        ("wim ask q FILE --cache-dir FILE", 1, "it is no folder. Name another folder"),
        ("wim ask q FILE --cache-dir FILE/deeper", 1, "is no folder. Name another folder"),
        ("wim ask q FILE --server nonsense", 2, "is no address"),
        ("wim ask q FILE --server http://127.0.0.1:99999/v1", 2, "is no address"),
        ("wim ask q FILE --server http://127.0.0.1:9/v1", 1, "nobody answers there"),
        ("wim ask -i FILE </dev/null", 2, "--chat needs a terminal"),
        ("wim ask", 2, "Missing argument 'QUESTION'"),
        ("wim ask q <&-", 2, "standard input cannot be read: it is closed"),
        ("wim ask q - <&-", 2, "standard input cannot be read: it is closed"),
        ("wim ask q FILE >&-", 2, "Standard output is closed"),
        ("wim ask q no-such-file 2>&-", 2, ""),
        ("wim ask q no-such-file --json >/dev/full", 1, "standard output cannot be written: No space left"),
        ("wim ask q FILE --json >/dev/full", 1, "standard output cannot be written: No space left"),
        ("wim ask q FILE >/dev/full", 1, "standard output cannot be written: No space left"),
        ("wim ask --help >/dev/full", 1, "standard output cannot be written: No space left"),
        ("wim --version >/dev/full", 1, "standard output cannot be written: No space left"),
        ("wim ask q no-such-file 2>/dev/full", 2, ""),
        ("wim ask q FILE --threshold 3 2>/dev/full", 2, ""),
        ("wim ask q no-such-file >/dev/full 2>/dev/full", 2, ""),
    ],
)
def test_usage_errors_are_one_line_before_the_model_loads(
    line: str, code: int, said: str, facts: str
) -> None:
    if "/dev/full" in line and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    found, errors = run(line.replace("FILE", facts))
    assert found == code, errors
    assert said in errors
    assert "Traceback" not in errors
    assert "Loading" not in errors
    assert "cached" not in errors


@pytest.mark.parametrize("failing", ["json", "plain", "quiet"])
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_full_output_while_answering(
    wim: Callable[..., Result], facts: str, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, event: Any) -> None:
        if isinstance(event, AnswerToken):
            raise OSError(28, "No space left on device")

    kinds = {"json": "JsonDisplay", "plain": "PlainDisplay", "quiet": "QuietDisplay"}
    monkeypatch.setattr(f"wim_kernel.cli.display.{kinds[failing]}.show", full)
    result = wim(QUESTION, facts, *([] if failing == "plain" else [f"--{failing}"]))
    assert result.exit_code == 1
    assert result.stderr.endswith("wim: standard output cannot be written: No space left on device.\n")


def test_full_standard_error_keeps_the_answer(
    wim: Callable[..., Result], facts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import click

    echo = click.echo

    def full(*arguments: Any, err: bool = False, **options: Any) -> None:
        if err:
            raise OSError(28, "No space left on device")
        echo(*arguments, **options)

    monkeypatch.setattr(click, "echo", full)
    result = wim(QUESTION, facts)
    assert result.exit_code == 0
    assert "\nAnswer:\n" in result.stdout


@pytest.mark.parametrize(
    "size", [{"COLUMNS": "0"}, {"COLUMNS": "1"}, {"COLUMNS": "-3"}, {"LINES": "0"}, {"COLUMNS": "x"}]
)
def test_terminal_of_no_size_shows_the_answer(size: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", screen)
    for name, value in {"TERM": "xterm", **size}.items():
        monkeypatch.setenv(name, value)
    display = TerminalDisplay()
    display.show(ChunkRead(0, 1, 10, 10, False))
    for word in ("Margaret ", "Vale ", "owned ", "it."):
        display.show(AnswerToken(word))
    display.close()
    assert "Margaret Vale owned it." in screen.getvalue()


@posix
def test_missing_model_is_reported_without_retries(facts: str) -> None:
    done = shell(f"wim ask q {facts} --model nosuch/x", no_proxy="*", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1
    assert "Retrying" not in done.stderr
    assert "'nosuch/x' cannot be loaded" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_model_is_reported_offline(facts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    code, errors = run(f"wim ask q {facts} --model nosuch/x")
    assert code == 1
    assert "'nosuch/x' cannot be loaded" in errors
    assert "Traceback" not in errors


def test_hub_is_left_alone_where_nobody_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from wim_kernel.engines import hub, loading

    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "getproxies", dict)
    assert hub.hub_options("a/b", {"token": "t"}) == {"token": "t", "local_files_only": True}
    assert hub.hub_options(str(tmp_path), {}) == {}
    assert hub.hub_options("a/b", {"local_files_only": False}) == {"local_files_only": False}
    for load in (loading.load_model, hub.load_tokenizer):
        with pytest.raises(loading.ModelNotFoundError, match="nosuch/x"):
            load("nosuch/x")
    with pytest.raises(loading.ModelNotFoundError, match=r"nosuch/x"):
        loading.load_model("nosuch/x", gguf_file="y.gguf")


def test_server_that_was_never_reached_speaks_of_no_cache() -> None:
    error = ServerError("http://x", "it is off")
    assert "cache" not in str(error)
    error.chunks_read = 2
    assert "cached" in str(error)


def test_several_questions_read_once(wim: Callable[..., Result], facts: str) -> None:
    questions = [QUESTION, "Where is the school?", "Who?"]
    for arguments in (
        [questions[0], facts, "--question", questions[1], "-Q", questions[2]],
        [facts, "-Q", questions[0], "-Q", questions[1], "-Q", questions[2]],
    ):
        result = wim(*arguments, "--json", "--no-cache")
        assert result.exit_code == 0, result.output
        results = answered(result.stdout)
        assert [each["question"] for each in results] == questions
        assert results[0]["usage"]["prefill_tokens"] > 0
        assert [each["usage"]["prefill_tokens"] for each in results[1:]] == [0, 0]
        events = [json.loads(line) for line in result.stdout.splitlines()]
        assert {event["question"] for event in events if event["event"] == "margin_written"} == {0, 1, 2}


def test_several_questions_for_people(wim: Callable[..., Result], facts: str) -> None:
    result = wim(QUESTION, facts, "-Q", "Where?\x1b", "--no-cache")
    assert re.findall(r"^Question: (.*)$", result.stdout, re.MULTILINE) == [QUESTION, "Where?\u241b"]
    assert result.stdout.count("\nAnswer:\n") == 2
    assert len(wim(QUESTION, facts, "-Q", "Where?", "--quiet").stdout.splitlines()) >= 2


def test_a_single_question_has_no_heading(wim: Callable[..., Result], facts: str) -> None:
    assert "Question:" not in wim(QUESTION, facts).stdout
    assert answered(wim(QUESTION, "--json", stdin=TEXT.encode()).stdout)[0]["question"] == QUESTION


def test_readings_are_kept_for_the_next_run(wim: Callable[..., Result], facts: str, cache: Path) -> None:
    first, second = (answered(wim(QUESTION, facts, "--json").stdout)[0] for _ in range(2))
    assert first["usage"]["cached_tokens"] == 0
    assert second["usage"]["prefill_tokens"] == 0
    assert len(list(cache.iterdir())) == 1
    assert cache.stat().st_mode & 0o077 == 0
    other = answered(wim("Where?", facts, "--json").stdout)[0]
    assert other["usage"]["prefill_tokens"] == 0


def test_no_cache_keeps_and_uses_nothing(wim: Callable[..., Result], facts: str, cache: Path) -> None:
    wim(QUESTION, facts, "--no-cache")
    assert not cache.exists()
    wim(QUESTION, facts)
    assert answered(wim(QUESTION, facts, "--no-cache", "--json").stdout)[0]["usage"]["cached_tokens"] == 0


def test_cache_folder_of_the_users_own(
    wim: Callable[..., Result], facts: str, cache: Path, tmp_path: Path
) -> None:
    wim(QUESTION, facts, "--cache-dir", str(tmp_path / "mine"))
    assert not cache.exists()
    assert list((tmp_path / "mine").iterdir())
    result = wim(QUESTION, facts, "--cache-dir", facts)
    assert result.exit_code == 1
    assert "Name another folder" in result.stderr


def test_default_cache_folder_that_cannot_be_made(
    wim: Callable[..., Result], facts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WIM_CACHE_DIR", facts)
    result = wim(QUESTION, facts)
    assert result.exit_code == 0
    assert "warning" in result.stderr
    assert "\nAnswer:\n" in result.stdout


def test_chat_goes_on_asking(wim: Callable[..., Result], facts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter(["Where is the school?", TEXT * 200, "Who?", ""])
    for module in (cli_checks, console):
        monkeypatch.setattr(module, "at_a_terminal", lambda stream: True)
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    result = wim("-i", facts)
    assert result.exit_code == 0
    assert result.stdout.count("\nAnswer:\n") == 2
    assert "tokens" in result.stderr.splitlines()[-1] or "tokens" in result.stderr
    typed = iter([""])
    assert wim("--chat", QUESTION, facts).stdout.count("\nAnswer:\n") == 1


def test_chat_ends_with_the_input(
    wim: Callable[..., Result], facts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(prompt: str) -> str:
        raise EOFError

    for module in (cli_checks, console):
        monkeypatch.setattr(module, "at_a_terminal", lambda stream: True)
    monkeypatch.setattr("builtins.input", ends)
    assert wim("-i", facts).exit_code == 0
    assert wim("-i", "-Q", QUESTION).exit_code == 2
    assert wim("-i", "-", "-Q", QUESTION).exit_code == 2
