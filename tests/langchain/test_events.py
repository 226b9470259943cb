"""Every listener hears every part: handlers, event streams, usage, and the modes of a graph's stream."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any, TypedDict

import pytest
from asking import FEW, QUESTION, Fixed
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.documents import Document
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langgraph.graph import END, START, StateGraph

from wim_integrations.langchain import (
    WimAnswer,
    WimDocumentCompressor,
    WimMargins,
    WimRunnable,
    create_wim_documents_chain,
    create_wim_map_reduce_chain,
    create_wim_tool,
)
from wim_kernel import WimKernel


def whole(kernel: WimKernel, documents: list[Document]) -> Runnable[Any, Any]:
    return RunnableLambda(lambda question: {"question": question, "documents": documents}) | WimRunnable(
        kernel=kernel, **FEW
    )


def margins_only(kernel: WimKernel, documents: list[Document]) -> Runnable[Any, Any]:
    return RunnableLambda(lambda question: {"question": question, "documents": documents}) | WimMargins(
        kernel=kernel, margin_style="free", **FEW
    )


def answer_only(kernel: WimKernel, documents: list[Document]) -> Runnable[Any, Any]:
    given = {"documents": documents, "margins": ["Elsa Brandt owned it."]}
    return RunnableLambda(lambda question: {"question": question, **given}) | WimAnswer(kernel=kernel, **FEW)


def documents_chain(kernel: WimKernel, documents: list[Document]) -> Runnable[Any, Any]:
    return RunnableLambda(lambda question: {"input": question, "context": documents}) | (
        create_wim_documents_chain(kernel, **FEW)
    )


def map_reduce_chain(kernel: WimKernel, documents: list[Document]) -> Runnable[Any, Any]:
    return RunnableLambda(lambda question: {"question": question, "input_documents": documents}) | (
        create_wim_map_reduce_chain(kernel, **FEW)
    )


def compressor(kernel: WimKernel, documents: list[Document]) -> Runnable[Any, Any]:
    return ContextualCompressionRetriever(
        base_compressor=WimDocumentCompressor(kernel=kernel, options={"threshold": 0}),
        base_retriever=Fixed(documents=documents),
    )


def tool(kernel: WimKernel, documents: list[Document]) -> Runnable[Any, Any]:
    return RunnableLambda(lambda question: {"question": question}) | create_wim_tool(kernel, documents, **FEW)


Make = Callable[[WimKernel, list[Document]], Runnable[Any, Any]]
PARTS: list[Make] = [
    whole,
    margins_only,
    answer_only,
    documents_chain,
    map_reduce_chain,
    compressor,
    tool,
]
WITHOUT_ANSWER = (margins_only, compressor)


def wanted_events(make: Make) -> Counter[str]:
    wanted = Counter(wim_chunk=3, wim_margin=3, wim_answer=1)
    if make in WITHOUT_ANSWER:
        del wanted["wim_answer"]
    if make is answer_only:
        del wanted["wim_margin"]
    return wanted


@pytest.fixture(
    params=[
        pytest.param(make, marks=pytest.mark.in_process) if make is compressor else make for make in PARTS
    ],  # a compressor quotes, for which it needs likelihoods
    ids=lambda make: make.__name__,
)
def make(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


class Heard(BaseCallbackHandler):
    def __init__(self) -> None:
        self.names: Counter[str] = Counter()
        self.data: list[Any] = []
        self.runs: list[Any] = []

    def on_custom_event(self, name: str, data: Any, *, run_id: Any, **kwargs: Any) -> None:
        self.names[name] += 1
        self.data.append(data)
        self.runs.append(run_id)


class AsyncHeard(AsyncCallbackHandler):
    def __init__(self) -> None:
        self.names: Counter[str] = Counter()

    async def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        self.names[name] += 1


# -- plain LangChain ---------------------------------------------------------------------------------------------------


async def test_handlers_hear_custom_events(make: Make, kernel: WimKernel, documents: list[Document]) -> None:
    part = make(kernel, documents)
    heard, also, later = Heard(), Heard(), AsyncHeard()
    part.invoke(QUESTION, {"callbacks": [heard]})
    await part.ainvoke(QUESTION, {"callbacks": [also, later]})
    assert heard.names == also.names == later.names == wanted_events(make)
    assert json.loads(json.dumps(heard.data)) == heard.data
    assert {data["question"] for data in heard.data} == {QUESTION}
    assert len(set(heard.runs)) == 1


async def test_event_streams_have_custom_events_and_the_models_own(
    make: Make, kernel: WimKernel, documents: list[Document]
) -> None:
    part = make(kernel, documents)
    events = [event async for event in part.astream_events(QUESTION, version="v2")]
    custom = [event for event in events if event["event"] == "on_custom_event"]
    assert Counter(event["name"] for event in custom) == wanted_events(make)
    starts = [event for event in events if event["event"] == "on_chat_model_start"]
    ends = [event for event in events if event["event"] == "on_chat_model_end"]
    assert len(starts) == len(ends) == 1
    message = ends[0]["data"]["output"]
    pieces = [event["data"]["chunk"] for event in events if event["event"] == "on_chat_model_stream"]
    if make in WITHOUT_ANSWER:
        assert not pieces
        return
    joined = pieces[0]
    for piece in pieces[1:]:
        joined = joined + piece
    assert joined.content == message.content != ""
    assert joined.usage_metadata == message.usage_metadata
    if make is not tool:  # an answer that streams; a tool's result comes whole
        kinds = [event["event"] for event in events]
        assert kinds.count("on_chain_stream") > 3


@pytest.mark.in_process
async def test_usage_is_counted_as_the_kernel_counts_it(
    make: Make, kernel: WimKernel, documents: list[Document]
) -> None:
    part = make(kernel, documents)
    with get_usage_metadata_callback() as first:
        part.invoke(QUESTION)
    (usage,) = first.usage_metadata.values()
    with get_usage_metadata_callback() as second:
        await part.ainvoke(QUESTION)
    (again,) = second.usage_metadata.values()
    document = kernel.read([item.page_content for item in documents]).tokens
    assert usage["input_token_details"]["cache_read"] == 0
    assert again["input_token_details"]["cache_read"] == document
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert again["output_tokens"] == usage["output_tokens"]
    head = len(kernel._head)  # run in the first call, not in the second
    assert again["input_tokens"] == usage["input_tokens"] - head
    assert (usage["output_tokens"] > 0) == (make is not compressor)  # sentences are copied, not generated


@pytest.mark.in_process
async def test_usage_callback_equals_the_outputs_usage(kernel: WimKernel, documents: list[Document]) -> None:
    with get_usage_metadata_callback() as counted:
        usage = whole(kernel, documents).invoke(QUESTION)["usage"]
    (model,) = counted.usage_metadata.values()
    assert model["input_tokens"] == usage["prefill_tokens"] + usage["cached_tokens"] + usage["prompt_tokens"]
    assert model["output_tokens"] == usage["output_tokens"]


async def test_runs_have_names_parents_and_tags(kernel: WimKernel, documents: list[Document]) -> None:
    runnable = WimRunnable(kernel=kernel, answer_tags=["mine"], **FEW).with_config(run_name="reader")
    events = [
        event
        async for event in runnable.astream_events(
            {"question": QUESTION, "documents": documents}, version="v2"
        )
    ]
    (start,) = (event for event in events if event["event"] == "on_chat_model_start")
    assert "mine" in start["tags"]
    assert events[0]["name"] == "reader"
    assert start["parent_ids"] == [events[0]["run_id"]]


@pytest.mark.parametrize("way", ["batch", "abatch"])
async def test_in_a_batch_each_run_hears_of_its_own_question(
    kernel: WimKernel, documents: list[Document], way: str
) -> None:
    runnable = WimRunnable(kernel=kernel, **FEW)
    questions = [QUESTION, "How was the fog?"]
    given = [{"question": question, "documents": documents} for question in questions]
    heard = [Heard(), Heard()]
    configs: list[RunnableConfig] = [{"callbacks": [handler]} for handler in heard]
    with get_usage_metadata_callback() as counted:
        outputs = runnable.batch(given, configs) if way == "batch" else await runnable.abatch(given, configs)
    for handler, question in zip(heard, questions, strict=True):
        assert handler.names == Counter(wim_chunk=3, wim_margin=3, wim_answer=1)
        assert {data["question"] for data in handler.data} == {question}
    (usage,) = counted.usage_metadata.values()
    assert usage["output_tokens"] == sum(output["usage"]["output_tokens"] for output in outputs)


@pytest.mark.in_process
async def test_compressor_works_outside_a_run(kernel: WimKernel, documents: list[Document]) -> None:
    compress = WimDocumentCompressor(kernel=kernel, options={"threshold": 0})
    assert len(compress.compress_documents(documents, QUESTION)) == 3
    assert len(await compress.acompress_documents(documents, QUESTION)) == 3


# -- what goes wrong with a listener -----------------------------------------------------------------------------------


class Broken(BaseCallbackHandler):
    raise_error = True

    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        if name == "wim_margin":
            raise RuntimeError("a listener's own")


@pytest.mark.invariant(6)
async def test_an_exception_in_a_handler_frees_everything(
    make: Make, kernel: WimKernel, documents: list[Document]
) -> None:
    if make is answer_only:
        pytest.skip("writes no margins")
    part = make(kernel, documents)
    with pytest.raises(RuntimeError, match="listener's own"):
        part.invoke(QUESTION, {"callbacks": [Broken()]})
    with pytest.raises(RuntimeError, match="listener's own"):
        await part.ainvoke(QUESTION, {"callbacks": [Broken()]})
    await idle(kernel)
    assert part.invoke(QUESTION)


class Errors(BaseCallbackHandler):
    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.open = 0

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        self.open += 1

    def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
        self.open -= 1

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.open -= 1
        self.errors.append(error)


def test_a_stream_closed_in_its_answer_ends_the_models_run(
    kernel: WimKernel, documents: list[Document]
) -> None:
    heard = Errors()
    stream = WimRunnable(kernel=kernel, **FEW).stream(
        {"question": QUESTION, "documents": documents}, {"callbacks": [heard]}
    )
    next(chunk for chunk in stream if chunk.get("answer"))
    assert heard.open == 1
    stream.close()
    assert heard.open == 0
    assert [type(error) for error in heard.errors] == [GeneratorExit]
    assert not any(live.in_use for live in kernel.cache.held)


@pytest.mark.invariant(6)
async def test_a_cancelled_event_stream_frees_everything(
    make: Make, kernel: WimKernel, documents: list[Document]
) -> None:
    part = make(kernel, documents)
    begun = asyncio.Event()

    async def listen() -> None:
        async for event in part.astream_events(QUESTION, version="v2"):
            if event["event"] == "on_custom_event":
                begun.set()
                await asyncio.sleep(0)

    task = asyncio.create_task(listen())
    await asyncio.wait_for(begun.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await idle(kernel)
    assert await part.ainvoke(QUESTION)


async def idle(kernel: WimKernel) -> None:
    """Wait until the step that was under way has come to its end."""
    for _ in range(200):
        if not any(live.in_use for live in kernel.cache.held):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("a reading is still held")


# -- LangGraph ---------------------------------------------------------------------------------------------------------


class State(TypedDict, total=False):
    question: str
    result: Any


def graph_of(part: Runnable[Any, Any]) -> Any:
    def node(state: State, config: RunnableConfig) -> State:
        return {"result": part.invoke(state["question"], config)}

    async def anode(state: State, config: RunnableConfig) -> State:
        return {"result": await part.ainvoke(state["question"], config)}

    builder = StateGraph(State)
    builder.add_node("read", RunnableLambda(node, anode))
    builder.add_edge(START, "read")
    builder.add_edge("read", END)
    return builder.compile()


async def test_every_mode_of_a_graphs_stream(
    make: Make, kernel: WimKernel, documents: list[Document]
) -> None:
    graph = graph_of(make(kernel, documents))
    modes = ["custom", "messages", "updates"]
    ways = [
        list(graph.stream({"question": QUESTION}, stream_mode=modes)),
        [item async for item in graph.astream({"question": QUESTION}, stream_mode=modes)],
    ]
    for items in ways:
        custom = [data for mode, data in items if mode == "custom"]
        assert Counter(item["event"] for item in custom) == wanted_events(make)
        assert json.loads(json.dumps(custom)) == custom
        messages = [message.content for mode, (message, _) in _only(items, "messages")]
        updates = [data for mode, data in items if mode == "updates"]
        assert list(updates[-1]) == ["read"]
        if (
            make in WITHOUT_ANSWER or make is tool
        ):  # no words of the model's in a stream of messages to the user
            assert messages == []
        else:
            (answer,) = (item["data"]["answer"] for item in custom if item["event"] == "wim_answer")
            assert "".join(messages) == answer != ""


def _only(items: list[Any], mode: str) -> list[Any]:
    return [item for item in items if item[0] == mode]


async def test_graph_without_a_stream_invokes_its_nodes(
    make: Make, kernel: WimKernel, documents: list[Document]
) -> None:
    graph = graph_of(make(kernel, documents))
    assert graph.invoke({"question": QUESTION})["result"]
    assert (await graph.ainvoke({"question": QUESTION}))["result"]


async def test_margins_reach_a_graphs_stream_before_all_is_read(
    kernel: WimKernel, documents: list[Document]
) -> None:
    graph = graph_of(whole(kernel, documents))
    names = [item["event"] for item in graph.stream({"question": QUESTION}, stream_mode="custom")]
    assert names.index("wim_margin") < len(names) - 1 - names[::-1].index("wim_chunk")


async def test_graph_usage_is_counted(kernel: WimKernel, documents: list[Document]) -> None:
    graph = graph_of(whole(kernel, documents))
    with get_usage_metadata_callback() as counted:
        result = graph.invoke({"question": QUESTION})["result"]
    (usage,) = counted.usage_metadata.values()
    assert usage["output_tokens"] == result["usage"]["output_tokens"]
