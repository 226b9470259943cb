"""The records of a run: one JSON line for each answer, from which an interrupted run continues."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout

from wim_integrations.evaluation.errors import EvaluationError

OPTIONS_FILE = "options.json"
RECORDS = "records*.jsonl"
_TASKS = "tasks"

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Record:
    """One method's answer to one question.

    Attributes:
        task: the question's task.
        id: the question's id within the task.
        method: the method's name on the command line.
        question: the question.
        answers: the gold answers.
        metric: the metric of the score.
        answer: the method's answer.
        score: the score, 0 to 1; None if the method failed.
        seconds: the seconds that the method took.
        tokens: tokens by kind; see `wim_integrations.evaluation.outcomes.Tokens`.
        calls: every prompt given to the model, with its output.
        chunks: the method's score of each chunk, and whether the chunk is gold.
        calibrated: whether the chunks' scores are probabilities.
        gold_known: whether the gold chunks are known.
        references: the answer's citations (see `wim_integrations.evaluation.outcomes.Reference`), with ``has_answer``,
            whether the quote holds a gold answer, where a quote can; None for a method without citations.
        error: the method's error; empty without one.
    """

    task: str
    id: str
    method: str
    question: str
    answers: tuple[str, ...]
    metric: str
    answer: str = ""
    score: float | None = None
    seconds: float = 0.0
    tokens: Mapping[str, int] = field(default_factory=dict)
    calls: tuple[Mapping[str, str], ...] = ()
    chunks: tuple[Mapping[str, Any], ...] = ()
    calibrated: bool = False
    gold_known: bool = False
    references: tuple[Mapping[str, Any], ...] | None = None
    error: str = ""

    @property
    def key(self) -> Key:
        """The record's key: task, question and method."""
        return self.task, self.id, self.method


class RecordFile:
    """A folder's records, with one shard's file open for appending.

    Args:
        folder: the folder; created if it does not exist.
        options: the options of all records, which must equal those of the folder's records.
        tasks: the digest of each task's data, which must equal that of the folder's records. Tasks may be added.
        shard: the number of this process's shard, from 1, and the number of shards.

    Raises:
        EvaluationError: if the folder's records were made with other options or data, or another process is writing
            the same shard.
    """

    def __init__(
        self,
        folder: Path,
        options: Mapping[str, Any],
        tasks: Mapping[str, str],
        shard: tuple[int, int] = (1, 1),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        name = "records.jsonl" if shard[1] == 1 else f"records-{shard[0]}-of-{shard[1]}.jsonl"
        self.path = folder / name
        self._lock = FileLock(folder / f".{name}.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise EvaluationError(
                f"Another run is writing {self.path}: use another --out or --shard."
            ) from error
        try:
            with FileLock(folder / f".{OPTIONS_FILE}.lock"):
                _check_same_run(folder, options, tasks)
            _drop_unfinished_line(self.path)
            self.done = {record.key for record in read_records(folder) if not record.error}
            self._file: TextIO = self.path.open("a", encoding="utf-8")
        except BaseException:
            self._lock.release()
            raise

    def add(self, record: Record) -> None:
        """Write a record and flush it, so that it survives the process."""
        self._file.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")
        self._file.flush()
        if not record.error:
            self.done.add(record.key)

    def close(self) -> None:
        """Close the file, so that other processes may write the shard."""
        self._file.close()
        self._lock.release()


def read_records(folder: Path) -> list[Record]:
    """The records of a folder's shards: the last one for each question and method, where a success replaces failures.

    Raises:
        EvaluationError: if a line cannot be read.
    """
    found: dict[Key, Record] = {}
    for record in _every_record(folder):
        earlier = found.get(record.key)
        if earlier is None or earlier.error or not record.error:
            found[record.key] = record
    return list(found.values())


def _every_record(folder: Path) -> Iterator[Record]:
    for path in sorted(folder.glob(RECORDS)):
        lines = path.read_bytes().split(b"\n")[:-1]  # text behind the last line end is an unfinished line
        for number, line in enumerate(lines, 1):
            try:
                yield _frozen(json.loads(line))
            except (ValueError, TypeError) as error:
                raise EvaluationError(f"{path}, line {number} is not a record: {error}.") from error


def _frozen(row: Mapping[str, Any]) -> Record:
    lists = {name: tuple(value) for name, value in row.items() if isinstance(value, list)}
    return Record(**{**row, **lists})


def _drop_unfinished_line(path: Path) -> None:
    """Remove the unfinished last line of a killed process."""
    with suppress(FileNotFoundError), path.open("rb+") as file:
        data = file.read()
        file.truncate(data.rfind(b"\n") + 1)


def _check_same_run(folder: Path, options: Mapping[str, Any], tasks: Mapping[str, str]) -> None:
    """Check options and tasks against those of the folder's records, and write them to the folder."""
    path = folder / OPTIONS_FILE
    before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known = before.pop(_TASKS, {})
    if before and before != dict(options):
        changed = sorted(name for name in {*before, *options} if before.get(name) != options.get(name))
        raise EvaluationError(
            _changed(folder, [_difference(n, before.get(n), options.get(n)) for n in changed])
        )
    others = sorted(name for name in tasks if known.get(name, tasks[name]) != tasks[name])
    if others:
        raise EvaluationError(_changed(folder, [f"the data of {name}" for name in others]))
    write_atomically(path, json.dumps({**options, _TASKS: {**known, **tasks}}, indent=2) + "\n")


def _difference(name: str, before: Any, now: Any) -> str:
    return f"{name} ({before} there, {now} here)"


def _changed(folder: Path, what: Iterable[str]) -> str:
    return (
        f"The records in {folder} were made with other options: {', '.join(what)}. "
        "Use another --out, or the same options to go on from these records."
    )


def write_atomically(path: Path, text: str) -> None:
    """Write a text file atomically."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
