"""The progress of a run, and an estimate of its remaining time."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from datetime import timedelta

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

_SECONDS_BETWEEN_LINES = 30.0


class TimeLeft:
    """Estimates a run's remaining time by each method's mean time so far.

    Args:
        methods: the method of each remaining answer.
    """

    def __init__(self, methods: Sequence[str]) -> None:
        self._left = Counter(methods)
        self._took: dict[str, list[float]] = defaultdict(list)

    def finished(self, method: str, seconds: float) -> None:
        """Record a finished answer."""
        self._left[method] -= 1
        self._took[method].append(seconds)

    def seconds(self) -> float | None:
        """Seconds left; None before the first answer. A method without a time yet is taken to need the others' mean."""
        means = {method: sum(took) / len(took) for method, took in self._took.items()}
        if not means:
            return None
        mean = sum(means.values()) / len(means)
        return sum(count * means.get(method, mean) for method, count in self._left.items())


class ProgressDisplay:
    """A context with a progress bar on a terminal, or a line every 30 seconds, on standard error.

    Args:
        methods: the method of each remaining answer.
        clock: a callback that returns seconds.
    """

    def __init__(self, methods: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._done = len(methods), 0
        self._left = TimeLeft(methods)
        self._clock, self._last_line = clock, clock()
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[left]}"), console=console)
            self._task = self._bar.add_task("answers", total=self._total, left="")

    def __enter__(self) -> ProgressDisplay:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def finished(self, method: str, seconds: float) -> None:
        """Record a finished answer."""
        self._done += 1
        self._left.finished(method, seconds)
        left = f"about {_duration(self._left.seconds() or 0.0)} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, left=left)
        elif self._clock() - self._last_line >= _SECONDS_BETWEEN_LINES or self._done == self._total:
            self._last_line = self._clock()
            click.echo(f"{self._done} of {self._total} answers, {left}", err=True)

    def say(self, message: str) -> None:
        """Write a line on standard error, above the bar."""
        if self._bar is not None:
            self._bar.console.print(message, markup=False, highlight=False)
        else:
            click.echo(message, err=True)


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
