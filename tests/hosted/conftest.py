"""A provider of chat models on this machine, and a document that it is asked about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from benchmarks.provider import Provider, Rules

FILLER = (
    "The harbour master wrote down the weather of the day, the price of salt and the names of his guests. "
)
EVIDENCE = "Elsa Brandt bought the Aurora at Emden and sold the vessel again in May of that year."
QUESTION = "Who bought the vessel Aurora at Emden?"
LATER = "In which year was the vessel Aurora sold by Elsa Brandt?"


def pages(count: int = 6, evidence: tuple[int, ...] = (1, 4), characters: int = 6000) -> list[str]:
    """Pages of so many characters, some with the evidence in their middle."""
    found = []
    for number in range(count):
        text = f"Day {number + 1} of the log. " + FILLER * (characters // len(FILLER) + 1)
        middle = text.index(". ", characters // 2) + 2
        found.append(
            (text[:middle] + (f"{EVIDENCE} " if number in evidence else "") + text[middle:])[:characters]
        )
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Make a warning of poor reuse an error: the providers here cache by their rules, so that there is no cause."""
    for item in items:
        if "hosted" in item.path.parts:
            item.add_marker(pytest.mark.filterwarnings("error:.*paid for again"))


@pytest.fixture
def provider() -> Iterator[Callable[[Rules], tuple[Provider, str]]]:
    """Starts a provider by its rules; returns it and its address."""
    with ExitStack() as running:

        def start(rules: Rules) -> tuple[Provider, str]:
            made = Provider(rules)
            return made, running.enter_context(made.running())

        yield start


def langchain_model(rules: Rules, url: str, **fields: Any) -> Any:
    """The real class of LangChain for a provider, without retries."""
    if rules == "anthropic":
        from langchain_anthropic import ChatAnthropic

        return ChatAnthropic(model="claude-sonnet-5", base_url=url, api_key="none", max_retries=0, **fields)
    from langchain_openai import ChatOpenAI

    known = {"model": "gpt-5.6" if rules == "openai" else "gpt-5", **fields}
    return ChatOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, **known)
