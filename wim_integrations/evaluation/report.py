"""The report: a summary as JSON and Markdown, with plots."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wim_integrations.evaluation.errors import EvaluationError
from wim_integrations.evaluation.records import OPTIONS_FILE, read_records, write_atomically
from wim_integrations.evaluation.specs import BASELINE
from wim_integrations.evaluation.statistics import Interval, Selection
from wim_integrations.evaluation.summary import TOKEN_KINDS, Line, Summary, summarise


def write_report(folder: Path) -> tuple[Summary, list[Path], str]:
    """Write ``summary.json``, ``summary.md`` and plots of the records in a folder.

    Returns:
        The summary, the files written, and why there are no plots (empty if there are plots).

    Raises:
        EvaluationError: if there are no records.
    """
    records = read_records(folder) if folder.is_dir() else []
    if not records:
        raise EvaluationError(f"{folder} holds no records: run `wim eval` with this --out first.")
    options = json.loads((folder / OPTIONS_FILE).read_text(encoding="utf-8"))
    summary = summarise(records)
    plots, missing = _plots(summary, folder)
    data = {"options": options, **asdict(summary)}
    files = [folder / "summary.json", folder / "summary.md"]
    write_atomically(files[0], json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    write_atomically(files[1], markdown(summary, options, [path.name for path in plots]))
    return summary, [*files, *plots], missing


def _plots(summary: Summary, folder: Path) -> tuple[list[Path], str]:
    try:
        import matplotlib  # noqa: F401  (plots needs it)
    except ModuleNotFoundError:
        return [], "Plots are left out: they need matplotlib (pip install 'wim-integrations[plots]')."
    from wim_integrations.evaluation.plots import plot

    return plot(summary, folder), ""


def markdown(summary: Summary, options: Mapping[str, Any], plots: Sequence[str] = ()) -> str:
    """A summary as Markdown."""
    parts = [
        "# Evaluation",
        _workload(summary, options),
        overall_table(summary),
        "Means per question; seconds are the median. The difference is paired with plain, question by question, with a "
        "95% bootstrap interval; bold where the interval excludes zero.",
        *_task_part(summary),
        *_choice_part(summary),
        *_citing_part(summary),
        *_calibration_part(summary),
        *(f"![{name.removesuffix('.png').replace('-', ' ')}]({name})" for name in plots),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _workload(summary: Summary, options: Mapping[str, Any]) -> str:
    tasks = ", ".join(
        f"{task} ({count}, {'/'.join(summary.metrics[task])})" for task, count in summary.questions.items()
    )
    shown = ", ".join(
        f"{name.replace('_', ' ')} {value}"
        for name, value in options.items()
        if name != "tasks" and value is not None
    )
    return f"Questions: {tasks}.\n\nOptions: {shown}."


def overall_table(summary: Summary) -> str:
    """A Markdown table of all methods over all tasks."""
    header = [
        "method",
        "tasks",
        "questions",
        "failed",
        "score",
        "against plain",
        "seconds",
        "calls",
        *TOKEN_KINDS,
    ]
    return _table(header, [_overall_row(line) for line in summary.overall])


def _overall_row(line: Line) -> list[str]:
    return [
        line.method,
        str(line.tasks),
        str(line.questions),
        str(line.failed),
        _figure(line.score),
        _interval(line.difference),
        f"{line.seconds:.2f}",
        f"{line.calls:.1f}",
        *(f"{line.tokens[kind]:,.0f}" for kind in TOKEN_KINDS),
    ]


def _task_part(summary: Summary) -> Iterator[str]:
    if len(summary.tasks) < 2:
        return
    yield "## Score by task"
    rows = []
    for line in summary.overall:
        cells = [
            {found.method: found for found in lines}.get(line.method) for lines in summary.tasks.values()
        ]
        rows.append([line.method, *(_task_cell(cell) for cell in cells)])
    yield _table(["method", *summary.tasks], rows)
    if any(line.method == BASELINE for line in summary.overall):
        yield "Bold: the interval of the difference from plain excludes zero."


def _task_cell(line: Line | None) -> str:
    if line is None or line.score is None:
        return "–"
    score = _figure(line.score)
    return f"**{score}**" if line.difference is not None and line.difference.excludes_zero else score


def _choice_part(summary: Summary) -> Iterator[str]:
    if not summary.choices:
        return
    yield "## Chunks chosen, where the gold ones are known"
    rows = []
    for choice in summary.choices:
        rows.append([choice.method, "all", *_selection_cells(choice.overall)])
        if len(choice.tasks) > 1:
            rows += [[choice.method, task, *_selection_cells(found)] for task, found in choice.tasks.items()]
    yield _table(["method", "task", "questions", "precision", "recall", "AUC", "none kept"], rows)


def _citing_part(summary: Summary) -> Iterator[str]:
    if not summary.citing:
        return
    yield "## References"
    header = ["method", "questions", "cited", "references", "marked", "in source", "exact", "hold the answer"]
    rows = []
    for method, found in summary.citing.items():
        shares = (found.marked, found.in_source, found.exact, found.has_answer)
        rows.append(
            [
                method,
                str(found.questions),
                _figure(found.cited),
                str(found.references),
                *map(_figure, shares),
            ]
        )
    yield _table(header, rows)
    yield (
        "Cited: share of the questions whose answer has a reference. The rest are shares of the references: for which "
        "the model wrote a marker, whose quote the document has, whose margin it has word for word, and whose quote "
        "holds the gold answer."
    )


def _selection_cells(found: Selection) -> list[str]:
    figures = (found.precision, found.recall, found.auc, found.none_kept)
    return [str(found.questions), *map(_figure, figures)]


def _calibration_part(summary: Summary) -> Iterator[str]:
    calibrated = [choice for choice in summary.choices if choice.calibration]
    if not calibrated:
        return
    yield "## Calibration of relevance"
    for choice in calibrated:
        yield f"{choice.method}: expected calibration error {_figure(choice.calibration_error)}."
        rows = [
            [f"{row.low:.1f} to {row.high:.1f}", str(row.count), _figure(row.relevance), _figure(row.gold)]
            for row in choice.calibration
        ]
        yield _table(["relevance", "chunks", "mean relevance", "share gold"], rows)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return "–"
    mean = f"{interval.mean:+.2f}"
    return f"{f'**{mean}**' if interval.excludes_zero else mean} [{interval.low:+.2f}, {interval.high:+.2f}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    rule = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))
