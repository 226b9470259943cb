"""Every invariant has tests, and a run says how they went, with workers and without."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from invariants import INVARIANTS

TESTS = Path(__file__).parent
SAMPLE = """
import pytest

@pytest.mark.invariant(3)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_three(number):
    assert number != 2

@pytest.mark.invariant(3)
@pytest.mark.invariant(7)
def test_three_and_seven():
    pass

@pytest.mark.invariant(5)
def test_five():
    pytest.skip("not here")

def test_none():
    pass
"""


def test_every_invariant_has_tests() -> None:
    marked = {
        int(number)
        for path in TESTS.rglob("test_*.py")
        if path != Path(__file__)
        for number in re.findall(r"@pytest\.mark\.invariant\((\d)\)", path.read_text())
    }
    assert marked == set(INVARIANTS)


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["one process", "workers"])
def test_summary_counts_outcomes(tmp_path: Path, workers: list[str]) -> None:
    (tmp_path / "conftest.py").write_text(
        "from invariants import pytest_itemcollected, pytest_terminal_summary\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = invariant(n): one\n")
    (tmp_path / "test_sample.py").write_text(SAMPLE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "xdist.plugin", *workers]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    lines = [line for line in ran.stdout.splitlines() if line.startswith("invariant ")]
    assert lines == [
        "invariant 3: 3 passed, 1 failed",
        "invariant 5: 1 skipped",
        "invariant 7: 1 passed",
    ], ran.stdout
