"""Every caller of a response synthesizer, called in every way, without a key and with nothing in Settings."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from helpers import spying
from llama_index.core import DocumentSummaryIndex, SummaryIndex
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.chat_engine import CondenseQuestionChatEngine
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.indices.query.query_transform.base import StepDecomposeQueryTransform
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import (
    CitationQueryEngine,
    MultiStepQueryEngine,
    RetrieverQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
)
from llama_index.core.question_gen.types import BaseQuestionGenerator, SubQuestion
from llama_index.core.schema import Document, NodeWithScore, QueryBundle
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import QueryEngineTool, ToolMetadata
from pieces import FEW, LOG, QUESTION

from wim_integrations.llama_index import WimSynthesizer
from wim_kernel import WimKernel

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_model_anywhere")]


@pytest.fixture
def index(nodes: list[NodeWithScore]) -> SummaryIndex:
    return SummaryIndex([item.node for item in nodes])


Make = Callable[[WimSynthesizer, SummaryIndex], BaseQueryEngine]


def by_constructor(synthesizer: WimSynthesizer, index: SummaryIndex) -> BaseQueryEngine:
    return RetrieverQueryEngine(index.as_retriever(), response_synthesizer=synthesizer)


def from_args(synthesizer: WimSynthesizer, index: SummaryIndex) -> BaseQueryEngine:
    return RetrieverQueryEngine.from_args(
        index.as_retriever(), llm=synthesizer.llm, response_synthesizer=synthesizer
    )


def as_query_engine(synthesizer: WimSynthesizer, index: SummaryIndex) -> BaseQueryEngine:
    return index.as_query_engine(llm=synthesizer.llm, response_synthesizer=synthesizer)


def citation(synthesizer: WimSynthesizer, index: SummaryIndex) -> BaseQueryEngine:
    return CitationQueryEngine(index.as_retriever(), llm=synthesizer.llm, response_synthesizer=synthesizer)


def document_summary(synthesizer: WimSynthesizer, index: SummaryIndex) -> BaseQueryEngine:
    summaries = DocumentSummaryIndex.from_documents(
        [Document(text=LOG)],
        llm=synthesizer.llm,
        embed_model=MockEmbedding(4),
        response_synthesizer=WimSynthesizer(synthesizer.kernel, **FEW),
        transformations=[],
    )
    return summaries.as_query_engine(
        llm=synthesizer.llm,
        response_synthesizer=synthesizer,
        retriever_mode="embedding",
    )


class Same(StepDecomposeQueryTransform):
    """Asks the same at every step."""

    def _run(self, query_bundle: QueryBundle, metadata: dict[str, Any]) -> QueryBundle:
        return query_bundle


def multi_step(synthesizer: WimSynthesizer, index: SummaryIndex) -> BaseQueryEngine:
    return MultiStepQueryEngine(
        by_constructor(WimSynthesizer(synthesizer.kernel, **FEW), index),
        query_transform=Same(llm=synthesizer.llm),
        response_synthesizer=synthesizer,
        num_steps=2,
        early_stopping=False,
    )


class TwoQuestions(BaseQuestionGenerator):
    """Asks two things of the one tool."""

    def generate(self, tools: Any, query: QueryBundle) -> list[SubQuestion]:
        return [SubQuestion(sub_question=text, tool_name="log") for text in (QUESTION, "How was the fog?")]

    async def agenerate(self, tools: Any, query: QueryBundle) -> list[SubQuestion]:
        return self.generate(tools, query)

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts: dict[str, Any]) -> None:
        pass


def sub_question(
    synthesizer: WimSynthesizer, index: SummaryIndex, use_async: bool = False
) -> BaseQueryEngine:
    inner = by_constructor(WimSynthesizer(synthesizer.kernel, **FEW), index)
    tool = QueryEngineTool(inner, ToolMetadata(name="log", description="The log."))
    return SubQuestionQueryEngine(TwoQuestions(), synthesizer, [tool], verbose=False, use_async=use_async)


def sub_question_async(synthesizer: WimSynthesizer, index: SummaryIndex) -> BaseQueryEngine:
    return sub_question(synthesizer, index, use_async=True)


class First(LLMSingleSelector):
    """Selects the first tool."""

    def __init__(self) -> None:
        pass

    def select(self, *args: Any, **kwargs: Any) -> Any:
        from llama_index.core.base.base_selector import SelectorResult, SingleSelection

        return SelectorResult(selections=[SingleSelection(index=0, reason="the first")])

    async def aselect(self, *args: Any, **kwargs: Any) -> Any:
        return self.select()


def router(synthesizer: WimSynthesizer, index: SummaryIndex) -> BaseQueryEngine:
    tool = QueryEngineTool.from_defaults(
        by_constructor(synthesizer, index), name="log", description="The log."
    )
    return RouterQueryEngine(First(), [tool], llm=synthesizer.llm, summarizer=synthesizer)  # type: ignore[arg-type]


CALLERS: list[Make] = [
    by_constructor,
    from_args,
    as_query_engine,
    citation,
    document_summary,
    multi_step,
    sub_question,
    sub_question_async,
    router,
]


@pytest.fixture(params=CALLERS, ids=lambda make: make.__name__)
def make(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


def test_every_caller_gets_a_response_with_margins(
    make: Make, kernel: WimKernel, index: SummaryIndex
) -> None:
    response = make(WimSynthesizer(kernel, **FEW), index).query(QUESTION)
    assert isinstance(response, Response)
    assert response.response
    assert response.source_nodes
    if make is multi_step:  # puts metadata of its own in place of any synthesizer's
        return
    assert all(item.score is not None for item in response.source_nodes[: len(response.metadata["margins"])])
    assert response.metadata["usage"]["output_tokens"] > 0
    ids = {item.node.node_id for item in response.source_nodes}
    assert ids <= set(response.metadata)  # the map of nodes
    assert {node_id for margin in response.metadata["margins"] for node_id in margin["node_ids"]} <= ids


async def test_every_caller_works_async_and_streaming(
    make: Make, kernel: WimKernel, index: SummaryIndex
) -> None:
    wanted = str(make(WimSynthesizer(kernel, **FEW), index).query(QUESTION))
    engine = make(WimSynthesizer(kernel, **FEW), index)
    if make is not sub_question_async:  # drives its own loop
        assert str(await engine.aquery(QUESTION)) == wanted
    streamed = make(WimSynthesizer(kernel, streaming=True, **FEW), index).query(QUESTION)
    assert isinstance(streamed, StreamingResponse)
    assert make is multi_step or streamed.metadata["margins"]
    pieces = list(streamed.response_gen)
    assert len(pieces) > 1
    assert "".join(pieces) == wanted
    assert make is multi_step or streamed.metadata["usage"]["output_tokens"] > 0
    if make is sub_question_async:
        return
    astreamed = await make(WimSynthesizer(kernel, streaming=True, **FEW), index).aquery(QUESTION)
    assert isinstance(astreamed, AsyncStreamingResponse)
    assert "".join([piece async for piece in astreamed.async_response_gen()]) == wanted
    assert make is multi_step or astreamed.metadata["usage"]["output_tokens"] > 0


def test_router_that_combines_calls_get_response_on_strings(kernel: WimKernel, index: SummaryIndex) -> None:
    class Both(First):
        def select(self, *args: Any, **kwargs: Any) -> Any:
            from llama_index.core.base.base_selector import SelectorResult, SingleSelection

            return SelectorResult(selections=[SingleSelection(index=place, reason="") for place in (0, 1)])

    engine = by_constructor(WimSynthesizer(kernel, **FEW), index)
    tools = [QueryEngineTool.from_defaults(engine, name=name, description=name) for name in ("one", "two")]
    combined = RouterQueryEngine(
        Both(),  # type: ignore[arg-type]
        tools,
        llm=MockLLM(),
        summarizer=WimSynthesizer(kernel, **FEW),  # type: ignore[arg-type]
    )
    assert str(combined.query(QUESTION))


async def test_get_response_reads_strings(kernel: WimKernel) -> None:
    synthesizer = WimSynthesizer(kernel, **FEW)
    wanted = synthesizer.get_response(QUESTION, [LOG[:46], LOG[46:]])
    assert isinstance(wanted, str)
    assert await synthesizer.aget_response(QUESTION, [LOG[:46], LOG[46:]]) == wanted
    streaming = WimSynthesizer(kernel, streaming=True, **FEW)
    assert "".join(streaming.get_response(QUESTION, [LOG[:46], LOG[46:]])) == wanted
    pieces = await streaming.aget_response(QUESTION, [LOG[:46], LOG[46:]])
    assert "".join([piece async for piece in pieces]) == wanted


async def test_condense_question_chat_engine_chats_streams_and_awaits(
    kernel: WimKernel, index: SummaryIndex
) -> None:
    synthesizer = WimSynthesizer(kernel, **FEW)
    chat = CondenseQuestionChatEngine.from_defaults(by_constructor(synthesizer, index), llm=MockLLM())
    wanted = str(chat.chat(QUESTION))
    assert wanted
    chat.reset()
    assert "".join(chat.stream_chat(QUESTION).response_gen) == wanted
    assert synthesizer._streaming is False
    chat.reset()
    assert str(await chat.achat(QUESTION)) == wanted
    chat.reset()
    stream = await chat.astream_chat(QUESTION)
    assert "".join([piece async for piece in stream.async_response_gen()]) == wanted
    assert chat.stream_chat("And when?").response_gen


async def test_query_engine_tool_returns_margins(kernel: WimKernel, index: SummaryIndex) -> None:
    tool = QueryEngineTool.from_defaults(
        by_constructor(WimSynthesizer(kernel, **FEW), index), name="log", description=""
    )
    output = tool.call(input=QUESTION)
    assert output.content == (await tool.acall(input=QUESTION)).content != ""
    assert output.raw_output.metadata["margins"]


@pytest.mark.in_process
def test_margins_are_written_together_where_nobody_watches(
    kernel: WimKernel, nodes: list[NodeWithScore]
) -> None:
    def passes(**options: Any) -> int:
        kernel.cache.clear()
        with spying(kernel.model) as spy:
            WimSynthesizer(kernel, **{**FEW, "margin_style": "free"}, **options).synthesize(QUESTION, nodes)
        return len(spy.batches)

    assert passes() < passes(margin_batch=1)
    assert passes() == passes(margin_batch=3)


@pytest.mark.invariant(7)
@pytest.mark.in_process
async def test_twenty_queries_at_once_run_no_model_in_the_loops_thread(
    kernel: WimKernel, index: SummaryIndex
) -> None:
    engine = by_constructor(WimSynthesizer(kernel, threshold=0, margin_tokens=4, answer_tokens=4), index)
    questions = [f"Who owned ship number {number}?" for number in range(20)]
    wanted = [str(engine.query(question)) for question in questions]
    kernel.cache.clear()
    threads: set[int] = set()
    hook = kernel.model.register_forward_pre_hook(lambda *_: threads.add(threading.get_ident()))
    responses = await asyncio.gather(*(engine.aquery(question) for question in questions))
    hook.remove()
    assert [str(response) for response in responses] == wanted
    usages = [response.metadata["usage"] for response in responses]
    assert (
        sum(usage["prefill_tokens"] for usage in usages)
        == usages[0]["prefill_tokens"] + usages[0]["cached_tokens"]
    )
    assert threads
    assert threading.get_ident() not in threads


@pytest.mark.invariant(6)
async def test_closing_streams_and_cancelling_frees_everything(
    kernel: WimKernel, nodes: list[NodeWithScore]
) -> None:
    synthesizer = WimSynthesizer(kernel, streaming=True, threshold=0, margin_tokens=4, answer_tokens=40)
    stream = synthesizer.synthesize(QUESTION, nodes).response_gen
    next(stream)
    stream.close()
    assert not any(live.in_use for live in kernel.cache.held)
    unused = synthesizer.synthesize(QUESTION, nodes)
    del unused
    assert not any(live.in_use for live in kernel.cache.held)
    task = asyncio.create_task(WimSynthesizer(kernel, threshold=0).asynthesize(QUESTION, nodes))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(200):
        if not any(live.in_use for live in kernel.cache.held):
            break
        await asyncio.sleep(0.02)
    assert not any(live.in_use for live in kernel.cache.held)


@pytest.mark.in_process
@pytest.mark.invariant(1)
def test_the_same_nodes_prefill_once(kernel: WimKernel, nodes: list[NodeWithScore]) -> None:
    synthesizer = WimSynthesizer(kernel, margin_style="free", **FEW)  # notes that quote no mark
    mark = kernel.tokenizer.encode(" Brandt", add_special_tokens=False)[0]
    with spying(kernel.model) as spy:
        for question in (QUESTION, "How was the fog?"):
            synthesizer.synthesize(question, nodes)
    assert spy.count(mark) == 1
