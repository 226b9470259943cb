"""The table of providers in docs/hosted-models.md is that of the code."""

from __future__ import annotations

from pathlib import Path

from wim_kernel.engines.chat.providers import PROVIDERS, Provider

PAGE = Path(__file__).parents[2] / "docs" / "hosted-models.md"


def _row(provider: Provider) -> str:
    cells = [f"`{provider.name}`", f"`{provider.mark}`" if provider.mark else "none", "", "", "", ""]
    if provider.caches:
        cells[2:] = [
            f"{provider.least_tokens:,}",
            f"{provider.seconds:,.0f}",
            str(provider.write),
            str(provider.read),
        ]
    cells += ["yes" if provider.keyed else "no", "yes" if provider.schema_in_prefix else "no"]
    return "| " + " | ".join(cells) + " |"


def test_the_page_lists_every_provider_as_it_is() -> None:
    lines = PAGE.read_text().splitlines()
    missing = [
        row for row in map(_row, PROVIDERS) if row.replace("|  |", "| |").replace("|  |", "| |") not in lines
    ]
    assert not missing, "\n".join(missing)
