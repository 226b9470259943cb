"""Plots of a summary: score against seconds, and calibration. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from wim_integrations.evaluation.summary import Summary


def plot(summary: Summary, folder: Path) -> list[Path]:
    """Draw a summary's plots into a folder; returns the files."""
    drawn = {
        "score-against-seconds.png": _score_against_seconds(summary),
        "calibration.png": _calibration(summary),
    }
    files = []
    for name, figure in drawn.items():
        if figure is not None:
            FigureCanvasAgg(figure)
            figure.savefig(folder / name)
            files.append(folder / name)
    return files


def _score_against_seconds(summary: Summary) -> Figure | None:
    lines = [line for line in summary.overall if line.score is not None]
    if not lines:
        return None
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for line in lines:
        assert line.score is not None
        axes.scatter(line.seconds, line.score, label=line.method)
    figure.legend(loc="outside right upper", fontsize=9)
    axes.set_xlabel("median seconds a question")
    axes.set_ylabel("score")
    axes.grid(alpha=0.3)
    return figure


def _calibration(summary: Summary) -> Figure | None:
    choices = [choice for choice in summary.choices if choice.calibration]
    if not choices:
        return None
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], linestyle="--", color="grey", linewidth=1)
    for choice in choices:
        axes.plot(
            [row.relevance for row in choice.calibration],
            [row.gold for row in choice.calibration],
            marker="o",
            label=choice.method,
        )
    axes.set_xlabel("relevance")
    axes.set_ylabel("share of chunks that are gold")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.legend()
    axes.grid(alpha=0.3)
    return figure
