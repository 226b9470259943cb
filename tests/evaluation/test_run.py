"""Whole runs of `wim eval`: results, going on after a kill, and every error."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from wim_integrations.evaluation import loading
from wim_integrations.evaluation.records import read_records
from wim_kernel import WimKernel
from wim_kernel.cli import main as cli

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
SMALL = ("--answer-tokens", "4", "--margin-tokens", "4", "--chunk-tokens", "32")


@pytest.fixture
def wim(kernel: WimKernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Run `wim eval` in this process with the model loaded already, into the folder ``out``."""
    monkeypatch.setattr(loading, "load_kernel", lambda *_: kernel)

    def run(*arguments: Any) -> Result:
        out = ["--out", str(tmp_path / "out")]
        result = CliRunner().invoke(cli.main, ["eval", *SMALL, *out, *map(str, arguments)])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


def summary_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "summary.json").read_text()))


def test_run_writes_records_summary_and_plots(
    wim: Callable[..., Result], ships: Path, tmp_path: Path
) -> None:
    result = wim("--data", ships, "--methods", "plain,wim,rag,gold")
    assert result.exit_code == 0, result.output
    out = tmp_path / "out"
    records = read_records(out)
    assert [(record.id, record.method) for record in records] == [
        (id_, method) for id_ in ("owner", "captain") for method in ("plain", "wim", "rag", "gold")
    ]
    assert all(record.score in (0, 1) and record.seconds > 0 and record.calls for record in records)
    summary = summary_of(out)
    assert [line["method"] for line in summary["overall"]] == ["plain", "wim", "rag", "gold"]
    assert summary["overall"][0]["difference"] is None
    assert summary["overall"][1]["difference"]["low"] <= summary["overall"][1]["difference"]["high"]
    assert [choice["method"] for choice in summary["choices"]] == ["wim", "rag"]
    assert summary["choices"][0]["calibration"]
    assert not summary["choices"][1]["calibration"]
    assert summary["options"]["answer_tokens"] == 4
    text = (out / "summary.md").read_text()
    assert "| plain | 1 | 2 | 0 |" in text
    assert "## Calibration" in text
    assert "| plain | 1 | 2 | 0 |" in result.output
    for plot in ("score-against-seconds.png", "calibration.png"):
        assert (out / plot).read_bytes().startswith(b"\x89PNG")
        assert plot in text


def test_generated_tasks_are_run_and_kept(wim: Callable[..., Result], tmp_path: Path) -> None:
    given = ("--data", "needles", "common-words", "--n", "1", "--tokens", "600", "--methods", "plain,gold")
    assert wim(*given).exit_code == 0
    done = {(record.task, record.method) for record in read_records(tmp_path / "out")}
    assert done == {("needles", "plain"), ("needles", "gold"), ("common-words", "plain")}  # no gold there
    (line,) = (tmp_path / "out" / "needles.questions.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "needles-0000"
    other = ("--data", "needles", "--n", "2", "--tokens", "700", "--methods", "plain")
    assert "tokens (600 there, 700 here)" in wim(*other).output
    assert (tmp_path / "out" / "needles.questions.jsonl").read_text().splitlines() == [line]
    assert "## Score by task" in (tmp_path / "out" / "summary.md").read_text()


def test_a_run_goes_on_with_more_methods_and_questions(
    wim: Callable[..., Result], ships: Path, tmp_path: Path
) -> None:
    assert wim("--data", ships, "--methods", "plain", "--n", "1").exit_code == 0
    before = (tmp_path / "out" / "records.jsonl").read_text()
    assert wim("--data", ships, "--methods", "plain,rag").exit_code == 0
    after = (tmp_path / "out" / "records.jsonl").read_text()
    assert after.startswith(before)
    assert len(after.splitlines()) == len(read_records(tmp_path / "out")) == 4
    assert wim("--data", ships, "--methods", "plain,rag").exit_code == 0
    assert (tmp_path / "out" / "records.jsonl").read_text() == after


def test_killed_run_resumes_from_its_records(
    wim: Callable[..., Result], ships: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    """Killed while it writes answers; the records until then stay as they are."""
    row = json.loads(ships.read_text().splitlines()[0])
    ships.write_text("".join(json.dumps({**row, "id": str(i)}) + "\n" for i in range(300)))
    out = tmp_path / "out"
    given = ["--data", str(ships), "--methods", "plain,wim", "--n", "300", "--out", str(out), *SMALL]
    command = [sys.executable, "-m", "wim_kernel.cli", "eval", "--model", str(tiny_folder), *given]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    path = out / "records.jsonl"
    deadline = time.monotonic() + 300
    while not (path.exists() and path.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    killed = path.read_bytes()
    whole = killed[: killed.rfind(b"\n") + 1]
    count = whole.count(b"\n")
    assert 3 <= count < 600
    path.write_bytes(whole + b'{"task": "shi')  # as if it had died within a line
    questions = (count + 1) // 2 + 1
    arguments = ["--n", questions, "--methods", "plain,wim", "--data", ships, "--model", tiny_folder]
    result = wim(*arguments)
    assert result.exit_code == 0, result.output
    lines = path.read_bytes()
    assert lines.startswith(whole)
    assert lines.count(b"\n") == len(read_records(out)) == 2 * questions


def test_other_options_are_refused(wim: Callable[..., Result], ships: Path, tmp_path: Path) -> None:
    assert wim("--data", ships, "--methods", "plain", "--n", "1").exit_code == 0
    result = wim("--data", ships, "--methods", "plain", "--chunk-tokens", "64")
    assert result.exit_code == 2
    assert "other options: chunk_tokens (32 there, 64 here)" in result.output
    ships.write_text(ships.read_text().replace("Margaret", "Mary"))
    result = wim("--data", ships, "--methods", "plain")
    assert result.exit_code == 2
    assert "the data of ships" in result.output


def test_shards_are_summarised_together(wim: Callable[..., Result], ships: Path, tmp_path: Path) -> None:
    for shard in ("1/2", "2/2"):
        assert wim("--data", ships, "--methods", "plain", "--shard", shard).exit_code == 0
    assert summary_of(tmp_path / "out")["questions"] == {"ships": 2}
    assert (tmp_path / "out" / "records-2-of-2.jsonl").read_text().count("\n") == 1


def test_report_only_loads_no_model(wim: Callable[..., Result], ships: Path, tmp_path: Path) -> None:
    assert "holds no records" in wim("--report-only").output
    assert wim("--data", ships, "--methods", "plain,wim").exit_code == 0
    (tmp_path / "out" / "summary.md").unlink()
    assert wim("--report-only").exit_code == 0
    assert (tmp_path / "out" / "summary.md").exists()


def test_a_failure_is_recorded_and_does_not_end_the_run(wim: Callable[..., Result], tmp_path: Path) -> None:
    row = {"id": "1", "question": "Who?", "answers": ["x"], "chunks": ["The gull sat on the mast. "] * 900}
    data = tmp_path / "long.jsonl"
    data.write_text(json.dumps(row) + "\n")
    result = wim("--data", data, "--methods", "plain,rag", "--chunk-tokens", "512")
    assert result.exit_code == 0, result.output
    assert "Answers that failed: 1." in result.output
    plain, rag = read_records(tmp_path / "out")
    assert plain.error.startswith("ContextOverflowError: The document has")
    assert plain.score is None
    assert not rag.error
    assert "| plain | 0 | 0 | 1 | – |" in (tmp_path / "out" / "summary.md").read_text()


def test_run_ends_when_every_question_fails(wim: Callable[..., Result], tmp_path: Path) -> None:
    row = {"question": "Who?", "answers": ["x"], "chunks": ["The gull sat on the mast. " * 900]}
    data = tmp_path / "long.jsonl"
    data.write_text("".join(json.dumps({**row, "id": i, "gold": [0]}) + "\n" for i in range(12)))
    result = wim("--data", data, "--methods", "plain")
    assert result.exit_code == 1
    assert "10 answers in a row failed, the last one with ContextOverflowError" in result.output


def test_an_interrupted_run_says_how_to_go_on(
    wim: Callable[..., Result], ships: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "load_kernel", interrupt)
    result = wim("--data", ships)
    assert result.exit_code == 130
    assert "interrupted; the same command goes on" in result.output


def test_without_matplotlib_there_are_no_plots(
    wim: Callable[..., Result], ships: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = wim("--data", ships, "--methods", "plain", "--n", "1")
    assert result.exit_code == 0
    assert "Plots are left out: they need matplotlib" in result.output
    assert not list((tmp_path / "out").glob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Give --data files, or one of needles"),
        (("--data", "missing.jsonl"), "missing.jsonl cannot be read"),
        (("--data", "needles", "needles"), "two tasks of the name needles"),
        (("--data", "needles", "--methods", "magic"), "Unknown method: 'magic'"),
        (("--data", "needles", "--tokens", "100"), "--tokens is at least 500"),
        (("--data", "needles", "--shard", "0/2"), "--shard is written like 2/4"),
        (("--data", "needles", "--shard", "3/2"), "counts from 1: not '3/2'"),
        (("--data", "needles", "--n", "0"), "Invalid value for '--n'"),
    ],
)
def test_wrong_arguments_are_refused_with_a_reason(
    wim: Callable[..., Result], arguments: tuple[str, ...], message: str
) -> None:
    result = wim(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_missing_wonderwords_is_named(wim: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    from wim_integrations.evaluation import generated

    generated._words.cache_clear()
    monkeypatch.setitem(sys.modules, "wonderwords", None)
    result = wim("--data", "needles", "--methods", "plain")
    assert "A generated task needs wonderwords: pip install 'wim-integrations[eval]'." in result.output


def test_models_that_cannot_be_loaded(ships: Path, tmp_path: Path) -> None:
    given = ["eval", "--data", str(ships), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli.main, [*given, "--dtype", "int3"])
    assert result.exit_code == 2
    assert "dtype is one of bfloat16, float16, float32, not 'int3'." in result.output
    result = CliRunner().invoke(cli.main, [*given, "--model", str(tmp_path / "nothing")])
    assert result.exit_code == 1


def test_eval_help_shows_its_own_options() -> None:
    result = CliRunner().invoke(cli.main, ["eval", "--help"])
    assert result.exit_code == 0
    assert "--methods LIST" in result.output
