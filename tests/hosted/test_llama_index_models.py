"""Real classes of LlamaIndex for OpenAI and Anthropic, against a server that speaks their protocols."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hosted.conftest import EVIDENCE, QUESTION, pages
from llama_index.core import SummaryIndex
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms import ChatMessage, ChatResponse, MockLLM
from llama_index.core.schema import TextNode

from benchmarks.provider import Provider, Rules
from wim_integrations.llama_index import WimNodePostprocessor, WimSynthesizer, create_wim_tool
from wim_kernel import WimKernel

Start = Callable[[Rules], tuple[Provider, str]]


def _nodes() -> list[TextNode]:
    return [TextNode(text=text, id_=f"node-{number}") for number, text in enumerate(pages())]


def _openai(url: str, **fields: Any) -> Any:
    openai = pytest.importorskip("llama_index.llms.openai")
    return openai.OpenAI(model="gpt-5", api_base=f"{url}/v1", api_key="none", max_retries=0, **fields)


def test_synthesizer_takes_an_llm(provider: Start) -> None:
    owner, url = provider("openai-compatible")
    synthesizer = WimSynthesizer(llm=_openai(url))
    response = (
        SummaryIndex(_nodes())
        .as_query_engine(response_synthesizer=synthesizer, llm=synthesizer.llm)
        .query(QUESTION)
    )
    assert str(response).startswith("Elsa Brandt")
    kept = [margin for margin in response.metadata["margins"] if margin["kept"]]
    assert [margin["node_ids"] for margin in kept] == [["node-1"], ["node-4"]]
    assert all(EVIDENCE in margin["text"] for margin in kept)
    usage, bill = response.metadata["usage"], owner.total()
    assert usage["prefill_tokens"] + usage["prompt_tokens"] == bill.plain
    assert usage["output_tokens"] == bill.output
    assert usage["calls"] == 3


def test_prefix_is_read_from_the_providers_cache(provider: Start) -> None:
    owner, url = provider("openai-automatic")
    kernel = WimKernel.from_chat_model(_openai(url), provider="openai-automatic")
    result = kernel.ask(QUESTION, pages())
    assert result.usage.cached_tokens == owner.total().read > 4000
    assert {request.body["prompt_cache_key"] for request in owner.requests} == {
        owner.requests[0].body["prompt_cache_key"]
    }


def test_marked_blocks_are_followed_by_cache_points() -> None:
    class Heard(MockLLM):
        def stream_chat(self, messages: Any, **kwargs: Any) -> Any:
            heard.extend(messages)
            return iter([ChatResponse(message=ChatMessage(content="Elsa"), delta="Elsa")])

    heard: list[ChatMessage] = []
    WimKernel.from_chat_model(Heard(), provider="anthropic", window=100_000).ask(QUESTION, pages())
    kinds = [[block.block_type for block in message.blocks] for message in heard if message.role == "user"]
    assert kinds == [
        ["text", "text", "cache", "text"],
        ["text", "text", "cache", "text", "text", "text", "cache", "text"],
        ["text", "text", "cache", "text", "text", "text", "cache", "text", "cache", "text"],
    ]


async def test_streams_async_tool_and_postprocessor_take_an_llm(provider: Start) -> None:
    _, url = provider("openai-compatible")
    llm, index = _openai(url), SummaryIndex(_nodes())
    streaming = WimSynthesizer(llm, streaming=True)
    nodes = index.as_retriever().retrieve(QUESTION)
    response: Any = streaming.synthesize(QUESTION, nodes=nodes)
    assert len(list(response.response_gen)) > 3
    assert str(await WimSynthesizer(llm).asynthesize(QUESTION, nodes=nodes)).startswith("Elsa Brandt")
    found = WimNodePostprocessor(llm).postprocess_nodes(nodes, query_str=QUESTION)
    assert [EVIDENCE in item.node.get_content() for item in found] == [True, True]
    assert create_wim_tool(llm, _nodes()).metadata.name == "ask_document"


def test_output_class_is_filled(provider: Start) -> None:
    class Owner(BaseModel):
        name: str

    owner, url = provider("openai-compatible")
    synthesizer = WimSynthesizer(llm=_openai(url), output_cls=Owner)
    nodes = SummaryIndex(_nodes()).as_retriever().retrieve(QUESTION)
    owner.replies = [
        '{"relevance": 9, "quotes": []}',
        '{"relevance": 9, "quotes": []}',
        '{"name": "Elsa Brandt"}',
    ]
    response: Any = synthesizer.synthesize(QUESTION, nodes=nodes)
    assert response.response.name == "Elsa Brandt"


def test_token_counter_counts_once(provider: Start) -> None:
    owner, url = provider("openai-compatible")
    counter = TokenCountingHandler(tokenizer=str.split)
    manager = CallbackManager([counter])
    synthesizer = WimSynthesizer(llm=_openai(url, callback_manager=manager), callback_manager=manager)
    synthesizer.synthesize(QUESTION, nodes=SummaryIndex(_nodes()).as_retriever().retrieve(QUESTION))
    bill = owner.total()
    assert counter.prompt_llm_token_count == bill.plain + bill.read
    assert counter.completion_llm_token_count == bill.output
