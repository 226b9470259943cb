"""The `wim` command with the embedded model, in this process: what it writes where, and its exit codes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from helpers import TinyModel
from wim_cases import FACTS, QUESTION, events_in

from wim_kernel.cli import main as cli
from wim_kernel.cli import models
from wim_kernel.kernel import WimKernel

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
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


def test_help_names_the_options() -> None:
    shown = CliRunner().invoke(cli.main, ["ask", "--help"])
    assert shown.exit_code == 0
    assert "--margins-only" in shown.stdout


def test_version_is_the_distribution_s() -> None:
    from importlib.metadata import version

    assert (
        CliRunner().invoke(cli.main, ["--version"]).stdout == f"wim, version {version('wim-integrations')}\n"
    )


def test_json_is_every_event_and_nothing_else(wim: Callable[..., Result], facts: str) -> None:
    result = wim(QUESTION, facts, "--chunk-tokens", "64", "--max-answer-tokens", "12", "--json")
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


@pytest.mark.parametrize("question", ["", "q"])
def test_errors_are_events_in_json(wim: Callable[..., Result], question: str) -> None:
    result = wim(question, "no-such-file.txt", "--json")
    assert result.exit_code == 2
    [event] = events_in(result.stdout)
    assert event["event"] == "error"
    assert event["message"]


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
