"""What the documentation shows passes a strict type checker."""

from __future__ import annotations

from pathlib import Path

import pytest
from mypy import api

pytestmark = pytest.mark.slow


def test_documented_lines_pass_mypy() -> None:
    found, errors, status = api.run(["--strict", str(Path(__file__).with_name("typed_usage.py"))])
    assert status == 0, found + errors
