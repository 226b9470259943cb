"""The table of servers in docs/scaling.md says what the code does for each family."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wim_kernel.engines.server import ollama
from wim_kernel.engines.server.families import FAMILIES
from wim_kernel.engines.server.likelihoods import ways_of

PAGE = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
NAMES = {
    "vllm": "vLLM",
    "sglang": "SGLang",
    "llama.cpp": "llama.cpp",
    "ollama": "Ollama",
    "transformers": "transformers serve",
    "openai": "any other",
}

# What servers report of cached tokens, and how they keep prefixes; the code says the same in the families' advice.
CACHED = {
    "vllm": "with `--enable-prompt-tokens-details`",
    "sglang": "with `--enable-cache-report`",
    "llama.cpp": "yes",
    "ollama": "versions after 0.32",
    "transformers": "no",
    "openai": "where reported",
}
CACHE = {
    "vllm": "blocks, on by default",
    "sglang": "radix tree, on by default",
    "llama.cpp": "one prompt a slot",
    "ollama": "one prompt",
    "transformers": "pages, with `--continuous-batching`",
    "openai": "where it has one",
}


def row(name: str) -> list[str]:
    """The cells of a family's row, without its name."""
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {name} |") and "words" in line]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_every_family_has_a_row():
    assert set(NAMES) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_a_row_says_what_the_family_can_do(family):
    relevance, verbatim, cached, cache, structured = row(NAMES[family.name])
    measures = bool(ways_of(family)) and family.takes_ids
    assert relevance == ("shared words and likelihoods" if measures else "shared words, then YES or NO")
    assert verbatim == ("yes" if measures else "no")
    assert structured == ("no" if family.name == "transformers" else "JSON schema")
    assert (cached, cache) == (CACHED[family.name], CACHE[family.name])
    assert ("one prompt" in cache) == family.sequential
    for flag in re.findall(r"--[a-z-]+", cached + cache):
        assert flag in family.advice
    if family.name == "ollama":
        assert f"after {re.findall('[0-9.]+[0-9]', cached)[0]};" in " ".join((ollama.__doc__ or "").split())
