"""Questions with known answers, read from JSON lines, and their documents as chunks."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from wim_integrations.evaluation.errors import EvaluationError
from wim_integrations.evaluation.scoring import METRICS, default_metric

SEPARATOR = "\n\n"
# A paragraph this many times as long as a chunk is split, unless it is gold: some of its parts would not be gold.
_LONGEST_PARAGRAPH = 1.5


@dataclass(frozen=True)
class Question:
    """A question about a document, and its gold answers.

    Attributes:
        task: the question's task.
        id: the question's id within the task.
        question: the question.
        answers: the gold answers.
        paragraphs: the document's paragraphs, in order.
        gold: the indexes of the paragraphs with the evidence; None if not known.
        metric: the metric of answers; see `wim_integrations.evaluation.scoring`.
    """

    task: str
    id: str
    question: str
    answers: tuple[str, ...]
    paragraphs: tuple[str, ...]
    gold: tuple[int, ...] | None
    metric: str

    def to_row(self) -> dict[str, Any]:
        """The question as a line of a data file."""
        row = {**asdict(self), "chunks": self.paragraphs}
        del row["task"], row["paragraphs"]
        return row


@dataclass(frozen=True)
class Task:
    """Questions of one kind.

    Attributes:
        name: the task's name: its file's, without the suffix, or its generator's.
        questions: the questions, in order.
        digest: a digest of the data, which distinguishes its records from those of other data.
        labels: every answer that the task's questions have.
    """

    name: str
    questions: tuple[Question, ...]
    digest: str
    labels: tuple[str, ...]

    @classmethod
    def of(cls, name: str, questions: Sequence[Question], digest: str) -> Task:
        """A task of some questions."""
        labels = sorted({answer for question in questions for answer in question.answers})
        return cls(name, tuple(questions), digest, tuple(labels))


@dataclass(frozen=True)
class Document:
    """A question's document, the same for every method.

    Attributes:
        chunks: the chunks' texts, in order.
        gold: whether each chunk has a gold paragraph; None if not known.
        evidence: the gold paragraphs of each chunk as one text; empty without any.
    """

    chunks: tuple[str, ...]
    gold: tuple[bool, ...] | None
    evidence: tuple[str, ...]


def load_task(path: Path) -> Task:
    """Read a data file; its format is described in ``docs/evaluation.md``.

    Raises:
        EvaluationError: if the file or one of its lines cannot be used; it says which line.
    """
    try:
        data = path.read_bytes()
        lines = data.decode("utf-8").split("\n")  # not splitlines: texts may hold other line ends
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path} is not UTF-8: a data file is JSON lines.") from error
    task = path.name.removesuffix(".jsonl")
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    questions = [_question(task, line, f"{path}, line {number}") for number, line in numbered]
    if not questions:
        raise EvaluationError(f"{path} holds no questions.")
    questions = _with_unique_ids(questions)
    return Task.of(task, questions, hashlib.sha256(data).hexdigest())


def _with_unique_ids(questions: Sequence[Question]) -> list[Question]:
    """Questions with numbers appended to repeated ids: ``7``, ``7#2``, ``7#3``."""
    seen: Counter[str] = Counter()
    renamed = []
    for question in questions:
        seen[question.id] += 1
        number = seen[question.id]
        renamed.append(question if number == 1 else replace(question, id=f"{question.id}#{number}"))
    return renamed


def _question(task: str, line: str, where: str) -> Question:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise EvaluationError(f"{where} is not JSON: {error}.") from error
    if not isinstance(row, Mapping):
        raise EvaluationError(f"{where} is not a JSON object.")
    missing = [name for name in ("id", "question", "answers", "chunks") if row.get(name) in (None, "", [])]
    if missing:
        raise EvaluationError(f"{where} lacks {', '.join(missing)}.")
    for name in ("answers", "chunks"):
        if not isinstance(row[name], list) or not all(isinstance(text, str) for text in row[name]):
            raise EvaluationError(f"{where}: {name} is a list of strings.")
    if not all(answer.strip() for answer in row["answers"]):
        raise EvaluationError(f"{where}: an answer is empty, and would be found in any text.")
    chunks, gold = row["chunks"], row.get("gold")
    indices = gold if isinstance(gold, list) else [None]
    if gold is not None and not all(isinstance(i, int) and 0 <= i < len(chunks) for i in indices):
        raise EvaluationError(f"{where}: gold is a list of indices of its {len(chunks)} chunks.")
    answers, question = tuple(row["answers"]), str(row["question"])
    metric = row.get("metric") or default_metric(task, question, answers)
    if metric not in METRICS:
        raise EvaluationError(f"{where}: metric is one of {', '.join(METRICS)}, not {metric!r}.")
    evidence = None if gold is None else tuple(gold)
    return Question(task, str(row["id"]), question, answers, tuple(chunks), evidence, metric)


def chunked(
    question: Question,
    chunk_tokens: int,
    count_tokens: Callable[[str], int],
    split: Callable[[str], Sequence[str]],
) -> Document:
    """Join a document's paragraphs, in order, to chunks of about so many tokens.

    Args:
        question: the question with the document.
        chunk_tokens: most tokens of a chunk, unless a single paragraph is longer.
        count_tokens: a callback that counts a text's tokens.
        split: a callback that cuts a text into texts of at most ``chunk_tokens`` tokens, for much longer paragraphs
            without evidence.
    """
    texts: list[list[str]] = []
    evidence: list[list[str]] = []
    room = 0
    for index, paragraph in enumerate(question.paragraphs):
        is_gold = index in (question.gold or ())
        size = count_tokens(paragraph + SEPARATOR)
        parts: Sequence[str] = [paragraph]
        if size > _LONGEST_PARAGRAPH * chunk_tokens and not is_gold:
            parts = split(paragraph)
        for part in parts if paragraph.strip() else ():
            part_size = size if len(parts) == 1 else count_tokens(part + SEPARATOR)
            if not texts or part_size > room:
                texts.append([])
                evidence.append([])
                room = chunk_tokens
            room -= part_size
            texts[-1].append(part)
            evidence[-1] += [part] if is_gold else []
    return Document(
        tuple(SEPARATOR.join(parts) for parts in texts),
        None if question.gold is None else tuple(bool(parts) for parts in evidence),
        tuple(SEPARATOR.join(parts) for parts in evidence),
    )
