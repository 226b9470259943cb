"""Data files, and documents cut into chunks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wim_integrations.evaluation.errors import EvaluationError
from wim_integrations.evaluation.tasks import Question, chunked, load_task

ROW: dict[str, Any] = {
    "id": "1",
    "question": "Who owned the ship?",
    "answers": ["Elsa Brandt"],
    "chunks": ["The gull sat on the mast.", "Elsa Brandt owned the ship."],
    "gold": [1],
}


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "ships.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n")
    return path


def test_task_file_is_read(tmp_path: Path) -> None:
    other = {"id": 0, "question": "Is there a gull?", "answers": ["yes"], "chunks": ["A\u2028gull."]}
    task = load_task(
        write(tmp_path, ROW, {**other, "source": "ignored"}, {**ROW, "id": "3", "metric": "all-answers"})
    )
    assert task.name == "ships"
    assert [question.id for question in task.questions] == ["1", "0", "3"]
    assert [question.gold for question in task.questions] == [(1,), None, (1,)]
    assert [question.metric for question in task.questions] == ["any-answer", "yes-no", "all-answers"]
    assert task.labels == ("Elsa Brandt", "yes")


def test_an_id_that_stands_twice_is_numbered(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, ROW, ROW, {**ROW, "id": "2"}, ROW))
    assert [question.id for question in task.questions] == ["1", "1#2", "2", "1#3"]


def test_written_tasks_are_read_back(tmp_path: Path) -> None:
    first = load_task(write(tmp_path, ROW))
    assert load_task(write(tmp_path, *(q.to_row() for q in first.questions))).questions == first.questions


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "line 2 is not a JSON object"),
        ({**ROW, "answers": []}, "line 2 lacks answers"),
        ({"question": "Who?"}, "line 2 lacks id, answers, chunks"),
        ({**ROW, "answers": "Elsa"}, "answers is a list of strings"),
        ({**ROW, "chunks": [1]}, "chunks is a list of strings"),
        ({**ROW, "gold": [2]}, "gold is a list of indices of its 2 chunks"),
        ({**ROW, "gold": 1}, "gold is a list of indices"),
        ({**ROW, "answers": ["x", " "]}, "an answer is empty"),
        ({**ROW, "metric": "bleu"}, "metric is one of any-answer, .*not 'bleu'"),
    ],
)
def test_unusable_rows_are_refused(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        load_task(write(tmp_path, ROW, row))


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    with pytest.raises(EvaluationError, match=r"bad.jsonl cannot be read: No such file"):
        load_task(path)
    path.write_text("{broken\n")
    with pytest.raises(EvaluationError, match="line 1 is not JSON"):
        load_task(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(EvaluationError, match="is not UTF-8"):
        load_task(path)
    path.write_text("\n\n")
    with pytest.raises(EvaluationError, match="holds no questions"):
        load_task(path)


def words(text: str) -> int:
    return len(text.split())


def cut(text: str) -> list[str]:
    parts = text.split()
    return [" ".join(parts[start : start + 10]) for start in range(0, len(parts), 10)]


def question(paragraphs: list[str], gold: tuple[int, ...] | None) -> Question:
    return Question("ships", "1", "Who?", ("Elsa",), tuple(paragraphs), gold, "any-answer")


def test_paragraphs_are_joined_and_gold_is_kept() -> None:
    paragraphs = ["a " * 4, "b " * 4, "c " * 4, "  ", "d " * 9, "e"]
    document = chunked(question(paragraphs, (1, 5)), 10, words, cut)
    assert [words(chunk) for chunk in document.chunks] == [8, 4, 10]
    assert document.gold == (True, False, True)
    assert document.evidence == ("b " * 4, "", "e")


def test_long_paragraphs_are_split_unless_they_are_gold() -> None:
    document = chunked(question(["a " * 25, "b " * 25, "c " * 14], (1,)), 10, words, cut)
    assert [words(chunk) for chunk in document.chunks] == [10, 10, 5, 25, 14]
    assert document.gold == (False, False, False, True, False)
    assert "".join(document.chunks).count("a") == 25


def test_gold_may_be_unknown_or_nowhere() -> None:
    assert chunked(question(["a b"], None), 10, words, cut).gold is None
    assert chunked(question(["a b"], ()), 10, words, cut).gold == (False,)
