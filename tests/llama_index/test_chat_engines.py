"""LlamaIndex's context chat engines: margins as their context, the kernel's model as theirs, in every way to chat."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core import SummaryIndex
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine
from llama_index.core.schema import NodeWithScore

from wim_integrations.llama_index import WimLLM, WimNodePostprocessor
from wim_kernel import WimKernel

QUESTION = "Who owned the ship?"
ENGINES = pytest.mark.parametrize("kind", [ContextChatEngine, CondensePlusContextChatEngine])


class Listening(WimLLM):
    """Writes down what it is asked."""

    def _completions(self, turns: Any, kwargs: dict[str, Any]) -> Any:
        HEARD.append([(turn.role, turn.text) for turn in turns])
        return super()._completions(turns, kwargs)

    def _acompletions(self, turns: Any, kwargs: dict[str, Any]) -> Any:
        HEARD.append([(turn.role, turn.text) for turn in turns])
        return super()._acompletions(turns, kwargs)


HEARD: list[list[tuple[str, str]]] = []


@pytest.fixture(autouse=True)
def _nothing_heard(no_model_anywhere: None) -> None:
    HEARD.clear()


def chat_engine(kind: Any, kernel: WimKernel, nodes: list[NodeWithScore], **options: Any) -> Any:
    few: dict[str, Any] = {"threshold": 0, "margin_style": "free", "margin_tokens": 4, **options}
    return kind.from_defaults(
        retriever=SummaryIndex([item.node for item in nodes]).as_retriever(),
        llm=Listening(kernel, max_tokens=6),
        node_postprocessors=[WimNodePostprocessor(kernel, **few)],
    )


async def say(engine: Any, way: str, message: str) -> Any:
    """The response to a message, and its text, in one of four ways."""
    if way == "chat":
        response = engine.chat(message)
    elif way == "achat":
        response = await engine.achat(message)
    elif way == "stream_chat":
        response = engine.stream_chat(message)
        return response, "".join(response.response_gen)
    else:
        response = await engine.astream_chat(message)
        return response, "".join([piece async for piece in response.async_response_gen()])
    return response, response.response


@ENGINES
@pytest.mark.parametrize("way", ["chat", "achat", "stream_chat", "astream_chat"])
async def test_margins_are_the_context_of_a_chat(
    kernel: WimKernel, nodes: list[NodeWithScore], kind: Any, way: str
) -> None:
    engine = chat_engine(kind, kernel, nodes)
    response, text = await say(engine, way, QUESTION)
    margins = [node.text for node in response.source_nodes]
    assert margins
    assert all(node.metadata["wim"]["node_ids"] for node in response.source_nodes)
    (asked,) = HEARD
    context = "\n".join(said for _, said in asked)
    assert all(margin.strip() in context for margin in margins)
    assert "Elsa Brandt" not in context  # in the nodes' own text alone
    assert asked[-1] == ("user", QUESTION)
    assert text
    second, _ = await say(engine, way, "And the fog?")
    assert second.source_nodes
    condensed = kind is CondensePlusContextChatEngine
    assert len(HEARD) == (3 if condensed else 2)
    assert not condensed or "And the fog?" in HEARD[1][0][1]
    assert ("user", QUESTION) in HEARD[-1]  # the conversation so far
    history: list[ChatMessage] = engine.chat_history
    assert [message.role.value for message in history] == ["user", "assistant"] * 2
    assert (history[1].content or "").strip() == text.strip()  # streams strip it
    assert not any(live.in_use for live in kernel.readings.held)


@ENGINES
def test_chat_without_kept_margins_is_empty(kernel: WimKernel, nodes: list[NodeWithScore], kind: Any) -> None:
    engine = chat_engine(kind, kernel, nodes, keep=lambda margin: False)
    assert engine.chat(QUESTION).response == "Empty Response"
    assert HEARD == []


@ENGINES
def test_the_evidence_reaches_the_chat(real_kernel: WimKernel, nodes: list[NodeWithScore], kind: Any) -> None:
    engine = kind.from_defaults(
        retriever=SummaryIndex([item.node for item in nodes]).as_retriever(),
        llm=Listening(real_kernel, max_tokens=12),
        node_postprocessors=[WimNodePostprocessor(real_kernel)],
    )
    response = engine.chat(QUESTION)
    assert "Elsa Brandt owned the ship Aurora." in "\n".join(said for _, said in HEARD[0])
    assert "Elsa" in response.response
