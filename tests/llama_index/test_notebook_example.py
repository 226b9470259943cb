"""The example notebook runs from top to bottom, and says what it says in the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from notebooks import execute

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

pytestmark = [pytest.mark.slow, pytest.mark.in_process]

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"\d+\.\d+")


def texts(notebook: Any) -> list[list[str]]:
    """What each cell printed or has as its value, as text; of HTML, whether there is any."""
    found = []
    for cell in notebook.cells:
        outputs = []
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":  # warnings of libraries, and bars of progress
                continue
            data = output.get("data", {})
            is_page = "text/html" in data
            outputs.append("HTML" if is_page else output.get("text") or data.get("text/plain", ""))
        found.append(outputs)
    return found


def test_notebook_prints_its_stored_outputs() -> None:
    kept = nbformat.read(ROOT / "examples" / "llama_index.ipynb", as_version=4)
    fresh = nbformat.from_dict({**kept, "cells": [dict(cell) for cell in kept.cells]})
    execute(fresh, ROOT)
    assert not any(
        output["output_type"] == "error" or output.get("name") == "stderr"
        for cell in kept.cells
        for output in cell.get("outputs", [])
    )
    spoken = [[NUMBER.sub("#", text) for text in cell] for cell in texts(kept)]
    again = [[NUMBER.sub("#", text) for text in cell] for cell in texts(fresh)]
    assert again == spoken
    assert sum(map(len, spoken)) >= 4
    numbers, close = (
        [float(number) for cell in texts(notebook) for text in cell for number in NUMBER.findall(text)]
        for notebook in (kept, fresh)
    )
    assert close == pytest.approx(numbers, abs=0.05)
    page = kept.cells[-1].outputs[0]["data"]["text/html"]
    assert "<mark" in page
    assert "Elsa Brandt owned the ship Aurora." in page.replace("</mark>", "")
