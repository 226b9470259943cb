"""A whole evaluation: questions, every method's answers to them, and the report."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from wim_integrations.evaluation.errors import EvaluationError
from wim_integrations.evaluation.generated import GENERATORS, generate_task
from wim_integrations.evaluation.methods import Limits, Method, make_method
from wim_integrations.evaluation.outcomes import Outcome
from wim_integrations.evaluation.progress import ProgressDisplay
from wim_integrations.evaluation.records import Record, RecordFile, write_atomically
from wim_integrations.evaluation.scoring import holds_answer, score
from wim_integrations.evaluation.specs import MethodSpec
from wim_integrations.evaluation.tasks import Document, Question, Task, chunked, load_task
from wim_kernel import WimError, WimKernel

_MOST_FAILURES = 10  # in a row; the other answers would most likely fail, too


@dataclass(frozen=True)
class Plan:
    """The plan of an evaluation.

    Attributes:
        data: data files, or names of generated tasks.
        methods: the methods to compare.
        out: the folder for records and reports.
        count: most questions of each task.
        chunk_tokens: about how many tokens a chunk has.
        limits: token limits that all methods share.
        tokens: about how many tokens a generated document has.
        seed: the seed of generated tasks.
        shard: the number of this process's shard, from 1, and the number of shards.
        model: the model's description in the records.
    """

    data: tuple[str, ...]
    methods: tuple[MethodSpec, ...]
    out: Path
    count: int = 100
    chunk_tokens: int = 1024
    limits: Limits = field(default_factory=Limits)
    tokens: int = 4000
    seed: int = 0
    shard: tuple[int, int] = (1, 1)
    model: tuple[tuple[str, Any], ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """The options that all records of a folder have to share."""
        return {
            **dict(self.model),
            "chunk_tokens": self.chunk_tokens,
            **asdict(self.limits),
            "tokens": self.tokens,
            "seed": self.seed,
        }

    def check(self) -> None:
        """Check the data, which needs no model.

        Raises:
            EvaluationError: if a data file cannot be read, or two have the same name.
        """
        names = [name if name in GENERATORS else Path(name).name.removesuffix(".jsonl") for name in self.data]
        if not names:
            raise EvaluationError(f"Give --data files, or one of {', '.join(GENERATORS)}.")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise EvaluationError(f"--data has two tasks of the name {', '.join(twice)}: rename a file.")
        for name in self.data:
            if name not in GENERATORS:
                load_task(Path(name))


def run(plan: Plan, kernel: WimKernel) -> int:
    """Answer a plan's questions by every method, except answers that are in the folder's records already.

    Args:
        plan: the plan.
        kernel: the kernel, whose model all methods use.

    Returns:
        How many answers failed. The records have the errors, and another run tries these questions again.

    Raises:
        EvaluationError: if a method lacks a package, or the folder's records were made with other options.
        WimError: if ten answers in a row fail.
    """
    plan.check()
    tasks = [_task(name, plan, kernel) for name in plan.data]
    methods = {spec.name: make_method(spec, kernel, plan.limits) for spec in plan.methods}
    file = RecordFile(plan.out, plan.options, {task.name: task.digest for task in tasks}, plan.shard)
    with closing(file):
        for task in tasks:
            if task.name in GENERATORS:
                _write_questions(plan.out, task)
        labels = {task.name: task.labels for task in tasks}
        waiting = [
            (question, [spec.name for spec in plan.methods if _applies(spec, question, file)])
            for question in _share(tasks, plan)
        ]
        with ProgressDisplay([name for _, names in waiting for name in names]) as display:
            failed = in_a_row = 0
            for question, names in waiting:
                if not names:
                    continue
                document = _document(question, plan, kernel)
                for name in names:
                    record = _answer(name, methods[name], question, document, labels[question.task])
                    file.add(record)
                    display.finished(name, record.seconds)
                    in_a_row = in_a_row + 1 if record.error else 0
                    if record.error:
                        failed += 1
                        display.say(f"{name} failed on {question.task} {question.id}: {record.error}")
                    if in_a_row == _MOST_FAILURES:
                        raise WimError(
                            f"{in_a_row} answers in a row failed, the last one with {record.error}"
                        )
            return failed


def _task(name: str, plan: Plan, kernel: WimKernel) -> Task:
    if name not in GENERATORS:
        return load_task(Path(name))
    return generate_task(name, plan.count, plan.tokens, kernel.count_tokens, plan.seed)


def _write_questions(folder: Path, task: Task) -> None:
    """Write a generated task as a data file, unless the folder has one that begins with these questions."""
    path = folder / f"{task.name}.questions.jsonl"
    lines = [json.dumps(question.to_row(), ensure_ascii=False) + "\n" for question in task.questions]
    if not path.exists() or not path.read_text(encoding="utf-8").startswith("".join(lines)):
        write_atomically(path, "".join(lines))


def _share(tasks: Sequence[Task], plan: Plan) -> list[Question]:
    """This shard's questions, of all tasks in turn, so that an unfinished run has answers of all tasks."""
    number, shares = plan.shard
    rounds = zip_longest(*(task.questions[: plan.count] for task in tasks))
    return [
        question
        for number_of_round, questions in enumerate(rounds)
        for position, question in enumerate(questions)
        # by round and position, so that every shard has questions of every task
        if question is not None and (number_of_round + position) % shares == number - 1
    ]


def _applies(spec: MethodSpec, question: Question, file: RecordFile) -> bool:
    """Whether a method can answer a question, and the records have no answer yet."""
    possible = spec.kind != "gold" or bool(question.gold)
    return possible and (question.task, question.id, spec.name) not in file.done


def _document(question: Question, plan: Plan, kernel: WimKernel) -> Document:
    def split(text: str) -> list[str]:
        return [chunk.text for chunk in kernel.read(text, chunk_tokens=plan.chunk_tokens).chunks]

    return chunked(question, plan.chunk_tokens, kernel.count_tokens, split)


def _answer(
    name: str, method: Method, question: Question, document: Document, labels: Sequence[str]
) -> Record:
    """A method's answer as a record. An error becomes a record, too, so that it does not end a long run."""
    blank = Record(
        question.task,
        question.id,
        name,
        question.question,
        question.answers,
        question.metric,
        gold_known=document.gold is not None,
    )
    begun = time.perf_counter()
    try:
        outcome = method(question, document)
    except Exception as error:
        seconds = time.perf_counter() - begun
        return replace(blank, seconds=seconds, error=f"{type(error).__name__}: {error}")
    return replace(
        blank,
        answer=outcome.answer,
        score=score(question.metric, outcome.answer, question.answers, question.question, labels),
        seconds=time.perf_counter() - begun,
        tokens=asdict(outcome.tokens),
        calls=tuple(asdict(call) for call in outcome.calls),
        chunks=tuple(_chunk_rows(outcome, document)),
        calibrated=outcome.calibrated,
        references=_reference_rows(outcome, question),
    )


def _chunk_rows(outcome: Outcome, document: Document) -> list[dict[str, Any]]:
    rows = [asdict(chunk) for chunk in outcome.chunks]
    if document.gold is not None:
        for row in rows:
            row["gold"] = row["index"] < len(document.gold) and document.gold[row["index"]]
    return rows


def _reference_rows(outcome: Outcome, question: Question) -> tuple[dict[str, Any], ...] | None:
    if outcome.references is None:
        return None
    return tuple(
        {**asdict(each), "has_answer": holds_answer(question.metric, each.quote, question.answers)}
        for each in outcome.references
    )


def parse_shard(text: str) -> tuple[int, int]:
    """Parse a shard such as ``2/4``, the second of four.

    Raises:
        EvaluationError: for anything else.
    """
    number, _, shares = text.partition("/")
    if not (number.isdecimal() and shares.isdecimal() and 1 <= int(number) <= int(shares)):
        raise EvaluationError(
            f"--shard is written like 2/4, the second of four, and counts from 1: not {text!r}."
        )
    return int(number), int(shares)
