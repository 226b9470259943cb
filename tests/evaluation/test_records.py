"""Records: written whole, read back, and kept apart from those of other options."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from wim_integrations.evaluation.errors import EvaluationError
from wim_integrations.evaluation.progress import TimeLeft
from wim_integrations.evaluation.records import Record, RecordFile, read_records

OPTIONS = {"model": "tiny", "seed": 0, "dtype": None}
TASKS = {"ships": "digest"}
RECORD = Record("ships", "1", "wim", "Who?", ("Elsa",), "any-answer", answer="Elsa", score=1.0, seconds=0.5)


def test_records_are_read_back(tmp_path: Path) -> None:
    record = replace(
        RECORD,
        tokens={"prompt": 3},
        calls=({"prompt": "Who?", "output": "Elsa"},),
        chunks=({"index": 0, "score": 0.5, "kept": True, "text": "", "gold": True},),
    )
    with closing(RecordFile(tmp_path, OPTIONS, TASKS)) as file:
        file.add(record)
    assert read_records(tmp_path) == [record]
    with closing(RecordFile(tmp_path, OPTIONS, TASKS)) as file:
        assert file.done == {record.key}


def test_a_torn_line_is_dropped(tmp_path: Path) -> None:
    with closing(RecordFile(tmp_path, OPTIONS, TASKS)) as file:
        file.add(RECORD)
    path = tmp_path / "records.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    assert read_records(tmp_path) == [RECORD]
    with closing(RecordFile(tmp_path, OPTIONS, TASKS)) as file:
        file.add(replace(RECORD, id="2"))
    assert [record.id for record in read_records(tmp_path)] == ["1", "2"]


def test_failed_records_are_retried_and_the_success_counts(tmp_path: Path) -> None:
    failure = replace(RECORD, answer="", score=None, error="ValueError: no")
    with closing(RecordFile(tmp_path, OPTIONS, TASKS)) as file:
        file.add(failure)
        assert file.done == set()
        file.add(RECORD)
    assert read_records(tmp_path) == [RECORD]


def test_shards_write_apart_and_are_read_together(tmp_path: Path) -> None:
    with (
        closing(RecordFile(tmp_path, OPTIONS, TASKS, (1, 2))) as first,
        closing(RecordFile(tmp_path, OPTIONS, TASKS, (2, 2))) as second,
    ):
        first.add(RECORD)
        second.add(replace(RECORD, id="2"))
        with pytest.raises(EvaluationError, match=r"Another run is writing .*records-1-of-2\.jsonl"):
            RecordFile(tmp_path, OPTIONS, TASKS, (1, 2))
    assert sorted(record.id for record in read_records(tmp_path)) == ["1", "2"]
    with closing(RecordFile(tmp_path, OPTIONS, TASKS)) as whole:
        assert len(whole.done) == 2


def test_other_options_or_data_are_refused(tmp_path: Path) -> None:
    RecordFile(tmp_path, OPTIONS, TASKS).close()
    with pytest.raises(EvaluationError, match=r"other options: seed \(0 there, 1 here\). Use another --out"):
        RecordFile(tmp_path, {**OPTIONS, "seed": 1}, TASKS)
    with pytest.raises(EvaluationError, match="other options: the data of ships"):
        RecordFile(tmp_path, OPTIONS, {"ships": "another"})
    RecordFile(
        tmp_path, OPTIONS, {"harbours": "more"}
    ).close()  # a further task is fine, and the lock was let go
    with pytest.raises(EvaluationError, match="the data of ships"):
        RecordFile(tmp_path, OPTIONS, {"ships": "another"})


def test_invalid_record_line_is_refused(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text('{"task": "ships"}\n')
    with pytest.raises(EvaluationError, match=r"records\.jsonl, line 1 is not a record"):
        read_records(tmp_path)


def test_progress_estimates_time_left_by_method() -> None:
    left = TimeLeft(["plain", "plain", "wim", "wim", "rag"])
    assert left.seconds() is None
    left.finished("plain", 1.0)
    left.finished("wim", 3.0)
    assert left.seconds() == 1.0 + 3.0 + 2.0  # rag, not timed yet, as the mean of the others
