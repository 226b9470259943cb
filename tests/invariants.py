"""Counts the tests that prove an invariant of docs/design.md, and says at a run's end how they went.

A test is marked by ``@pytest.mark.invariant(3)``, more than once if it proves several. The numbers travel in the tests'
reports, so that they also arrive from the workers of pytest-xdist.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

INVARIANTS = range(1, 8)
OUTCOMES = ("passed", "failed", "error", "skipped")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Write a test's invariants into its reports."""
    for marker in item.iter_markers("invariant"):
        (number,) = marker.args
        if number not in INVARIANTS:
            raise pytest.UsageError(f"{item.nodeid}: docs/design.md has no invariant {number!r}")
        item.user_properties.append(("invariant", number))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line for each invariant whose tests ran."""
    lines = summary(terminalreporter.stats)
    if lines:
        terminalreporter.section("invariants")
        for line in lines:
            terminalreporter.write_line(line)


def summary(reports: Mapping[str, Iterable[Any]]) -> list[str]:
    """The lines, out of a run's reports by outcome."""
    counts = Counter(
        (number, outcome)
        for outcome in OUTCOMES
        for report in reports.get(outcome, ())
        for name, number in getattr(report, "user_properties", ())
        if name == "invariant"
    )
    lines = []
    for invariant in INVARIANTS:
        found = [
            f"{counts[invariant, outcome]} {outcome}" for outcome in OUTCOMES if counts[invariant, outcome]
        ]
        if found:
            lines.append(f"invariant {invariant}: {', '.join(found)}")
    return lines
