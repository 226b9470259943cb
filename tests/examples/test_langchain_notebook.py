"""The notebook on LangChain runs from its first cell to its last, and shows the outputs that it is stored with."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from notebooks import execute

NOTEBOOK = Path(__file__).parents[2] / "examples" / "langchain.ipynb"
NUMBER = re.compile(r"\d+\.\d+")

pytestmark = pytest.mark.slow


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    """What each code cell prints, without warnings and progress bars."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [
        "".join(output.text for output in cell.outputs if output.get("name") == "stdout").strip()
        for cell in cells
    ]


def test_notebook_prints_its_stored_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(NOTEBOOK.parents[1])
    monkeypatch.setenv("PYTHONPATH", root)
    stored = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(stored)
    run = nbformat.from_dict(stored)
    execute(run, NOTEBOOK.parent)
    for shown, wanted in zip(printed(run), printed(stored), strict=True):
        assert NUMBER.sub("#", shown) == NUMBER.sub("#", wanted)
        numbers = [float(number) for number in NUMBER.findall(wanted)]
        assert [float(number) for number in NUMBER.findall(shown)] == pytest.approx(numbers, abs=0.11)


def test_notebook_is_short() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    words = sum(len(cell.source.split()) for cell in cells)
    assert words < 480
    assert all(printed(nbformat.read(NOTEBOOK, as_version=4))), "every cell has an output"
