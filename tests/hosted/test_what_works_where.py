"""The table "What works where" of docs/hosted-models.md says what the classes do here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hosted.conftest import QUESTION, langchain_model, pages
from langchain_core.language_models import FakeListChatModel
from llama_index.core.llms import CompletionResponse, MockLLM

from benchmarks.provider import Provider, Rules
from wim_kernel import PROMPTS, AnswerToken, WimKernel

Start = Callable[[Rules], tuple[Provider, str]]
PAGE = Path(__file__).parents[2] / "docs" / "hosted-models.md"
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
MEANS: dict[str, tuple[bool, ...]] = {
    "yes": (True,),
    "none": (False,),
    "none: automatic caches": (False,),
    "estimated, if not reported": (False,),
}
"""What cells say of every model of their column. All others are conditions, under which either may be."""
CITED = "Elsa Brandt [1] did, not Jan [7]."
RATING = '{"relevance": 9, "quotes": ["Elsa Brandt bought the Aurora at Emden"]}'


def _table() -> dict[str, dict[str, str]]:
    """The table's cells by column and row."""
    section = PAGE.read_text().partition("## What works where")[2].partition("\n## ")[0]
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    return {
        column: {cells[0]: cells[number] for cells in rows} for number, column in enumerate(head) if column
    }


TABLE = _table()


class Heard(MockLLM):
    """A LlamaIndex model that replies to what it is asked."""

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        asks = prompt.rpartition("Question")[2]
        if PROMPTS["answer"].cite.strip() in prompt:
            return CompletionResponse(text=CITED)
        return CompletionResponse(text=RATING if "relevance" in asks else '{"name": "Elsa"}')

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        reply = self.complete(prompt).text
        return (CompletionResponse(text=reply[: end + 1], delta=reply[end]) for end in range(len(reply)))


def _works(kernel: WimKernel, owner: Provider | None) -> dict[str, bool]:
    """What works with a model, by the table's rows."""
    reading = kernel.read(pages())
    events = list(reading.stream(QUESTION))
    result = events[-1].result  # type: ignore[union-attr]
    usage, bill = result.usage, None if owner is None else owner.total()
    sent = "" if owner is None else json.dumps([request.body for request in owner.requests])
    if owner is not None:
        owner.replies = ['{"name": "Elsa"}']
    answer = reading.answer(QUESTION, result.margins, answer_schema=SCHEMA).answer
    if owner is not None:
        owner.replies = [CITED]
    cited = reading.answer(QUESTION, result.margins, citations=True)
    return {
        "relevance: the model's rating of a chunk": result.relevance_by.startswith("rating")
        and all("rating" in margin.evidence for margin in result.kept),
        "verbatim margins, found in the text": [len(margin.spans) for margin in result.kept] == [1, 1],
        "streams, events, early stop, async, batches": sum(isinstance(event, AnswerToken) for event in events)
        > 1,
        "usage": bill is not None and usage.input_tokens == bill.plain + bill.read + bill.written,
        "cache reads in the usage": bill is not None and usage.cached_tokens == bill.read > 0,
        "cache writes in the usage": bill is not None and usage.cache_write_tokens == bill.written > 0,
        "cache marks": '"cache_control": {' in sent or '"prompt_cache_breakpoint": {' in sent,
        "answers as JSON of a schema": json.loads(answer) == {"name": "Elsa"},
        "citations with numbers that exist": (cited.answer, cited.dropped_markers)
        == ("Elsa Brandt [1] did, not Jan.", 1)
        and [each.quote.startswith("Elsa Brandt bought the Aurora") for each in cited.citations] == [True],
    }


def _check(column: str, works: dict[str, bool], conditions: dict[str, bool]) -> None:
    """Compare a column with what works: its plain words, and what its conditions come to here."""
    cells = TABLE[column]
    assert set(cells) - set(works) == {"tested against its protocol here"}
    for row, does in works.items():
        says = MEANS.get(cells[row], (conditions.get(cells[row]),))
        assert does in says, f"{column}, {row}: {cells[row]!r}, and it is {does}"


@pytest.mark.parametrize(
    ("column", "rules", "conditions"),
    [
        ("LangChain: OpenAI", "openai", {"GPT-5.6 and later": True}),
        ("LangChain: OpenAI", "openai-automatic", {"GPT-5.6 and later": False}),
        ("LangChain: Anthropic", "anthropic", {}),
    ],
)
def test_table_columns_of_langchain_openai_and_anthropic(
    provider: Start, column: str, rules: Rules, conditions: dict[str, bool]
) -> None:
    pytest.importorskip("langchain_openai")
    pytest.importorskip("langchain_anthropic")
    owner, url = provider(rules)
    kernel = WimKernel.from_chat_model(langchain_model(rules, url), provider=rules)
    _check(column, _works(kernel, owner), conditions)


def test_table_column_of_other_langchain_classes() -> None:
    llm = FakeListChatModel(responses=[RATING, RATING, "Elsa Brandt.", '{"name": "Elsa"}', CITED])
    conditions = {"where the class reports it": False, "where the class reports them": False}
    _check("LangChain: others", _works(WimKernel.from_chat_model(llm, max_concurrency=1), None), conditions)


def test_table_column_of_llama_index_openai(provider: Start) -> None:
    openai = pytest.importorskip("llama_index.llms.openai")
    owner, url = provider("openai-automatic")
    llm = openai.OpenAI(model="gpt-5", api_base=f"{url}/v1", api_key="none", max_retries=0)
    kernel = WimKernel.from_chat_model(llm, provider="openai-automatic")
    _check("LlamaIndex: OpenAI", _works(kernel, owner), {"where reported": False})


def test_table_column_of_other_llama_index_classes() -> None:
    conditions = {"where the class reports them": False, "`CachePoint`, for Anthropic": False}
    kernel = WimKernel.from_chat_model(Heard(), window=100_000)
    _check("LlamaIndex: others", _works(kernel, None), conditions)
