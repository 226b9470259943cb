"""The pages agree with the tree: the map names every file, links lead somewhere, lines fit a screen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
PACKAGES = ("wim_kernel", "wim_integrations")


def _mapped() -> list[str]:
    """The paths that the map in docs/design.md names: folders by a slash, files below them by their indentation."""
    text = (ROOT / "docs" / "design.md").read_text()
    block = text.split("## Map", 1)[1].split("```", 2)[1]
    folders: list[str] = []
    files = []
    for line in block.strip("\n").splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name)
        else:
            files.append("".join(folders) + name)
    return files


def test_map_names_every_file_and_nothing_else() -> None:
    files = [
        str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")
    ]  # a package's __init__.py is the folder's own line
    assert sorted(_mapped()) == sorted(file for file in files if not file.endswith("__init__.py"))


def test_design_lists_seven_invariants() -> None:
    section = (ROOT / "docs" / "design.md").read_text().split("## Invariants", 1)[1].split("\n## ", 1)[0]
    assert re.findall(r"^(\d)\. ", section, re.M) == list("1234567")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_fits_and_its_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    wide = [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")]
    assert not wide
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose):
        if not link.startswith(("http:", "https:")):
            assert (page.parent / link).exists(), link


def test_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 130
    assert max(map(len, lines)) <= 120
