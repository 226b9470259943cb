"""The summary of a run's records: scores with intervals, costs, and the quality of chosen chunks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from wim_integrations.evaluation.outcomes import Tokens
from wim_integrations.evaluation.records import Record
from wim_integrations.evaluation.specs import BASELINE
from wim_integrations.evaluation.statistics import (
    CalibrationBin,
    Citing,
    Interval,
    Selection,
    bootstrap,
    calibration,
    calibration_error,
    citing,
    selection,
)

TOKEN_KINDS = tuple(Tokens.__annotations__)


@dataclass(frozen=True)
class Line:
    """A method's figures on one task, or on all tasks.

    Attributes:
        method: the method.
        tasks: the number of tasks with answered questions.
        questions: the number of answered questions.
        failed: the number of failed questions, which are in no other figure.
        score: the mean score; over all tasks, the mean of the tasks' means.
        difference: the difference from the baseline's scores on questions that both answered; None for the baseline,
            and without a baseline.
        seconds: the median of the seconds per question.
        calls: the mean number of prompts per question.
        tokens: the mean number of tokens per question, by kind.
    """

    method: str
    tasks: int
    questions: int
    failed: int
    score: float | None
    difference: Interval | None
    seconds: float
    calls: float
    tokens: Mapping[str, float]


@dataclass(frozen=True)
class Choice:
    """The quality of a method's chosen chunks.

    Attributes:
        method: the method.
        overall: the selection over all tasks with known gold chunks.
        tasks: the selection of each of these tasks.
        calibration: chunks by relevance; empty if the scores are no probabilities.
        calibration_error: the expected calibration error.
    """

    method: str
    overall: Selection
    tasks: Mapping[str, Selection]
    calibration: tuple[CalibrationBin, ...]
    calibration_error: float | None


@dataclass(frozen=True)
class Summary:
    """All figures of a run.

    Attributes:
        questions: how many questions each task has.
        metrics: the metrics of each task.
        overall: a line for each method.
        tasks: for each task, a line for each method.
        choices: the quality of each method's chosen chunks.
        citing: for each method that was asked for citations, how far they can be relied on.
    """

    questions: Mapping[str, int]
    metrics: Mapping[str, tuple[str, ...]]
    overall: tuple[Line, ...]
    tasks: Mapping[str, tuple[Line, ...]]
    choices: tuple[Choice, ...]
    citing: Mapping[str, Citing]


def summarise(records: Sequence[Record]) -> Summary:
    """Summarise records."""
    methods = list(dict.fromkeys(record.method for record in records))
    methods.sort(key=lambda method: method != BASELINE)  # the baseline is the first line
    tasks = sorted({record.task for record in records})
    by_task = {task: [record for record in records if record.task == task] for task in tasks}
    choices = (_choice(method, [r for r in records if r.method == method]) for method in methods)
    return Summary(
        questions={task: len({record.id for record in by_task[task]}) for task in tasks},
        metrics={task: tuple(sorted({record.metric for record in by_task[task]})) for task in tasks},
        overall=tuple(_line(method, records) for method in methods),
        tasks={task: tuple(_lines(methods, by_task[task])) for task in tasks},
        choices=tuple(choice for choice in choices if choice is not None),
        citing=_citing(methods, records),
    )


def _citing(methods: Sequence[str], records: Sequence[Record]) -> dict[str, Citing]:
    references = {
        method: [r.references for r in records if r.method == method and r.references is not None]
        for method in methods
    }
    found = {method: citing(rows) for method, rows in references.items()}
    return {method: figures for method, figures in found.items() if figures is not None}


def _lines(methods: Iterable[str], records: Sequence[Record]) -> list[Line]:
    present = {record.method for record in records}
    return [_line(method, records) for method in methods if method in present]


def _line(method: str, records: Sequence[Record]) -> Line:
    own = [record for record in records if record.method == method]
    good = [record for record in own if not record.error]
    scores = _scores(good)
    means = [fmean(values.values()) for values in scores.values()]
    return Line(
        method=method,
        tasks=len(scores),
        questions=len(good),
        failed=len(own) - len(good),
        score=fmean(means) if means else None,
        difference=None if method == BASELINE else _difference(scores, records),
        seconds=median([record.seconds for record in good]) if good else 0.0,
        calls=fmean([len(record.calls) for record in good]) if good else 0.0,
        tokens={kind: fmean([r.tokens.get(kind, 0) for r in good]) if good else 0.0 for kind in TOKEN_KINDS},
    )


def _scores(records: Iterable[Record]) -> dict[str, dict[str, float]]:
    """Scores by task and question."""
    scores: dict[str, dict[str, float]] = defaultdict(dict)
    for record in records:
        if record.score is not None:
            scores[record.task][record.id] = record.score
    return scores


def _difference(scores: Mapping[str, Mapping[str, float]], records: Sequence[Record]) -> Interval | None:
    plain = _scores(record for record in records if record.method == BASELINE and not record.error)
    return bootstrap(
        [
            [score - plain[task][id_] for id_, score in values.items() if id_ in plain.get(task, {})]
            for task, values in scores.items()
        ]
    )


def _choice(method: str, records: Sequence[Record]) -> Choice | None:
    scored = [record for record in records if record.chunks and record.gold_known]
    overall = _selection(scored)
    if overall is None:
        return None
    by_task = {
        task: _selection([r for r in scored if r.task == task]) for task in sorted({r.task for r in scored})
    }
    chunks = [chunk for record in scored if record.calibrated for chunk in record.chunks]
    table = calibration([chunk["score"] for chunk in chunks], [chunk["gold"] for chunk in chunks])
    return Choice(
        method,
        overall,
        {task: found for task, found in by_task.items() if found is not None},
        tuple(table),
        calibration_error(table),
    )


def _selection(records: Sequence[Record]) -> Selection | None:
    return selection(
        *([[chunk[name] for chunk in r.chunks] for r in records] for name in ("kept", "score", "gold"))
    )
