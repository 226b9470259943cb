"""The table of servers in docs/servers.md says what the code does for each family."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from chat_server import chat_server
from server.ollama_server import ollama

from wim_kernel import WimKernel
from wim_kernel.engines.server import ollama as ollama_engine
from wim_kernel.engines.server.families import FAMILIES
from wim_kernel.engines.server.likelihoods import ways_of

PAGE = (Path(__file__).parents[2] / "docs" / "servers.md").read_text()
QUESTION = "Who owned the ship?"
TEXTS = ["Elsa owned the ship.", "The owner of the ship was at sea."]
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
    relevance, verbatim, cached, cache, structured, citations = row(NAMES[family.name])
    measures = bool(ways_of(family)) and family.takes_ids
    assert relevance == ("shared words and likelihoods" if measures else "shared words, then YES or NO")
    assert verbatim == ("yes" if measures else "no")
    assert citations == "yes"  # on every server; see below
    assert structured == ("no" if family.name == "transformers" else "JSON schema")
    assert (cached, cache) == (CACHED[family.name], CACHE[family.name])
    assert ("one prompt" in cache) == family.sequential
    for flag in re.findall(r"--[a-z-]+", cached + cache):
        assert flag in family.advice
    if family.name == "ollama":
        assert f"after {re.findall('[0-9.]+[0-9]', cached)[0]};" in " ".join(
            (ollama_engine.__doc__ or "").split()
        )


@contextmanager
def served(family: str, says: list[str]) -> Iterator[tuple[WimKernel, Callable[[], list[dict[str, Any]]]]]:
    """A kernel on a server of words that it takes for one of a family, and the bodies of its requests."""
    if family == "ollama":
        with ollama() as own:
            own.says = says
            kernel = WimKernel.from_server(f"http://127.0.0.1:{own.port}/v1")
            yield kernel, lambda: own.bodies
    else:
        with chat_server() as server:
            server.says = says
            yield (
                WimKernel.from_server(server.url, family=family, window=8192, retries=0),
                lambda: server.asked,
            )


@pytest.mark.parametrize("family", FAMILIES)
def test_citations_and_what_needs_likelihoods_are_as_the_table_says(family):
    with served(family, ["YES", " She", " did", " [1]", ", he", " [7]", "."]) as (kernel, _):
        assert kernel.engine.family.name == family
        result = kernel.ask(QUESTION, TEXTS, citations=True)
        assert result.relevance_by.startswith("lexical+decision, by the ")
        assert (result.answer, result.dropped_markers) == ("YES She did [1], he.", 1)
        assert {citation.number for citation in result.citations} == {1}
        with pytest.raises(ValueError, match="Verbatim margins"):  # without a tokenizer, nowhere
            kernel.ask(QUESTION, TEXTS, margin_style="verbatim")


@pytest.mark.parametrize("family", FAMILIES)
def test_structured_answers_are_as_the_table_says(family):
    schema = {"type": "object", "properties": {"owner": {"type": "string"}}, "required": ["owner"]}
    with served(family, ['{"owner":', ' "Elsa"}']) as (kernel, asked):
        reading = kernel.read(TEXTS)
        if row(NAMES[family])[4] == "no":
            with pytest.raises(ValueError, match="schema"):
                reading.answer(QUESTION, [], answer_schema=schema)
        else:
            assert reading.answer(QUESTION, [], answer_schema=schema).answer == '{"owner": "Elsa"}'
            *_, body = asked()
            fields = {name: value for name, value in body.items() if name != "messages"}
            assert "owner" in json.dumps(fields)  # as the server's own schema, not only in the prompt
