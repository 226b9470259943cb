"""Every Python block of README.md, CONTRIBUTING.md and docs runs as it stands.

Blocks of one page share their names, from top to bottom. `conftest.py` has what a page takes for granted: a kernel,
documents, a retriever. A ``text`` block that follows a Python block is what that block prints. A block that needs more
than this machine is marked in the page: ``<!-- skip: next "needs a running server" -->``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import SkipTest

import pytest

pytest.importorskip("sybil")
from sybil import Document, Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MOST_SKIPPED = 3
NUMBER = re.compile(r"\d+\.\d+")


def _compare(example: Example) -> None:
    """Printed text equals the block, with numbers within a few hundredths: processors round differently."""
    wanted, printed = example.parsed.strip(), example.namespace.pop("_printed", "").strip()
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", wanted)
    numbers = [float(number) for number in NUMBER.findall(wanted)]
    assert [float(number) for number in NUMBER.findall(printed)] == pytest.approx(numbers, abs=0.05)


def _parse(page: Path) -> Document:
    parsers = [PythonCodeBlockParser(), CodeBlockParser("text", _compare), SkipParser()]
    return Sybil(parsers=parsers).parse(page)


def _blocks(page: Path) -> int:
    return page.read_text().count("```python\n")


@pytest.mark.parametrize(
    "page", [page for page in PAGES if _blocks(page)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_blocks_run(
    page: Path,
    names: Callable[[str], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    os.symlink(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    document = _parse(page)
    document.namespace.update(names(page.stem))
    for example in document.examples():
        capsys.readouterr()
        try:
            example.evaluate()
        except SkipTest:
            continue
        document.namespace["_printed"] = capsys.readouterr().out


def test_few_blocks_are_skipped_and_each_says_why() -> None:
    skipped = [
        match[1] for page in PAGES for match in re.finditer(r"<!--+ skip:(.*?)-+->", page.read_text(), re.S)
    ]
    assert all(re.fullmatch(r' next "[^"]{10,}" ', reason) for reason in skipped), skipped
    assert len(skipped) <= MOST_SKIPPED


def test_every_python_block_is_found() -> None:
    for page in PAGES:
        text = page.read_text()
        assert not re.search(r"^```(py|python3|pycon|Python)\b(?!thon\n)", text, re.M), page
        assert text.count("```python") == _blocks(page), page
