"""What the run streams of LangGraph 1.2 carry: ``stream(version="v2")``, and ``stream_events(version="v3")``."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph

import wim_integrations.langchain as adapters
from wim_integrations.langchain import WimRunnable, WimTransformer, create_wim_tool
from wim_kernel import WimKernel

QUESTION = "Who owned the ship?"
FEW: dict[str, Any] = {"threshold": 0, "margin_tokens": 4, "answer_tokens": 5}
WANTED = Counter(wim_chunk=3, wim_margin=3, wim_answer=1)

pytestmark = pytest.mark.filterwarnings("ignore:The v3 streaming protocol")


class State(TypedDict, total=False):
    question: str
    documents: list[Document]
    answer: str


def graph_of(node: Any, **compiled: Any) -> Any:
    builder = StateGraph(State)
    builder.add_node("ask", node)
    builder.add_edge(START, "ask")
    builder.add_edge("ask", END)
    return builder.compile(**compiled)


@pytest.fixture
def graph(kernel: WimKernel) -> Any:
    return graph_of(WimRunnable(kernel=kernel, **FEW))


@pytest.fixture
def given(documents: list[Document]) -> dict[str, Any]:
    return {"question": QUESTION, "documents": documents}


# -- version 2 ---------------------------------------------------------------------------------------------------------


async def test_parts_of_version_two_carry_margins_and_tokens(graph: Any, given: dict[str, Any]) -> None:
    modes = ["custom", "messages", "values"]
    parts = list(graph.stream(given, stream_mode=modes, version="v2"))
    check_parts(parts)
    check_parts([part async for part in graph.astream(given, stream_mode=modes, version="v2")])


def check_parts(parts: list[Any]) -> None:
    custom = [part["data"] for part in parts if part["type"] == "custom"]
    assert Counter(data["event"] for data in custom) == WANTED
    said = "".join(part["data"][0].text for part in parts if part["type"] == "messages")
    (final,) = [part["data"] for part in parts if part["type"] == "values"][-1:]
    assert said == final["answer"] != ""
    kinds = [part["data"]["event"] if part["type"] == "custom" else part["type"] for part in parts]
    assert kinds.index("wim_margin") < kinds.index("messages")


# -- version 3 ---------------------------------------------------------------------------------------------------------


def test_a_run_has_margins_as_an_extension_and_the_answer_as_a_message(
    graph: Any, given: dict[str, Any]
) -> None:
    run = graph.stream_events(given, version="v3", transformers=[WimTransformer])
    events: list[str] = []
    for name, item in run.interleave("wim", "messages"):
        if name == "wim":
            assert item["namespace"] == []
            assert item["data"]["question"] == QUESTION
            events.append(item["event"])
        else:
            events.append("message")
            pieces = list(item.text)
            message = item.output
    assert Counter(events) == WANTED + Counter(message=1)
    assert events.index("message") > events.index("wim_margin")
    assert "".join(pieces) == message.text == run.output["answer"] != ""
    assert len(pieces) > 1
    assert message.usage_metadata["output_tokens"] > 0


async def test_run_extension_and_messages_stream_asynchronously(graph: Any, given: dict[str, Any]) -> None:
    run = await graph.astream_events(given, version="v3", transformers=[WimTransformer])
    events = [item["event"] async for item in run.extensions["wim"]]
    assert Counter(events) == WANTED
    assert (await run.output())["answer"] != ""
    run = await graph.astream_events(given, version="v3")
    async for message in run.messages:
        pieces = [piece async for piece in message.text]
    assert "".join(pieces) == (await run.output())["answer"]
    assert len(pieces) > 1


def test_closing_a_run_stops_the_reading(kernel: WimKernel, graph: Any, given: dict[str, Any]) -> None:
    with graph.stream_events(given, version="v3", transformers=[WimTransformer]) as run:
        first = next(iter(run.extensions["wim"]))
    assert first["event"] == "wim_chunk"
    assert not any(live.in_use for live in kernel.readings.held)
    assert kernel.ask(QUESTION, ["Elsa Brandt owned the ship Aurora."], **FEW).answer


@pytest.mark.in_process
def test_the_messages_citations_are_annotations(real_kernel: WimKernel, given: dict[str, Any]) -> None:
    graph = graph_of(
        WimRunnable(kernel=real_kernel, citations=True, margin_style="verbatim", answer_tokens=16)
    )
    run = graph.stream_events(given, version="v3")
    (message,) = [stream.output for stream in run.messages]
    (block,) = message.content_blocks
    assert block["annotations"]
    for found in block["annotations"]:
        assert 0 <= found["start_index"] <= found["end_index"] <= len(message.text)
        assert found["cited_text"] in "".join(document.page_content for document in given["documents"])


def test_raw_events_carry_the_extension_and_others_stay_out_of_it(
    kernel: WimKernel, given: dict[str, Any]
) -> None:
    runnable = WimRunnable(kernel=kernel, **FEW)

    def node(state: State) -> State:
        get_stream_writer()({"event": "progress", "data": 1})
        get_stream_writer()("words")
        return {"answer": runnable.invoke({**state})["answer"]}

    run = graph_of(node, transformers=[WimTransformer]).stream_events(given, version="v3")
    raw = list(run)
    events = [event["params"]["data"]["event"] for event in raw if event["method"] == "custom:wim"]
    assert Counter(events) == WANTED
    custom = [event["params"]["data"] for event in raw if event["method"] == "custom"]
    assert {"event": "progress", "data": 1} in custom
    assert "words" in custom


def test_margins_of_a_subgraph_reach_the_run_with_their_path(
    kernel: WimKernel, graph: Any, given: dict[str, Any]
) -> None:
    outer = graph_of(graph)
    run = outer.stream_events(given, version="v3", transformers=[WimTransformer])
    items = list(run.extensions["wim"])
    assert Counter(item["event"] for item in items) == WANTED
    assert {path.split(":")[0] for item in items for path in item["namespace"]} == {"ask"}
    run = outer.stream_events(given, version="v3", transformers=[WimTransformer])
    (inner,) = [list(subgraph.extensions["wim"]) for subgraph in run.subgraphs]
    assert Counter(item["event"] for item in inner) == WANTED
    assert all(item["namespace"] == [] for item in inner)


# -- agents ------------------------------------------------------------------------------------------------------------


class Scripted(FakeMessagesListChatModel):
    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self


@pytest.fixture
def agent(kernel: WimKernel, documents: list[Document]) -> Callable[[], Any]:
    def make() -> Any:
        call = {"type": "tool_call", "id": "1", "name": "ask_document", "args": {"question": QUESTION}}
        model = Scripted(responses=[AIMessage("", tool_calls=[call]), AIMessage("Elsa Brandt.")])
        return create_agent(model, [create_wim_tool(kernel, documents, **FEW)], transformers=[WimTransformer])

    return make


ASK = {"messages": [("human", "Find out.")]}


async def test_a_tools_margins_reach_an_agents_run(agent: Callable[[], Any]) -> None:
    run = agent().stream_events(ASK, version="v3")
    assert Counter(item["event"] for item in run.extensions["wim"]) == WANTED
    run = await agent().astream_events(ASK, version="v3")
    assert Counter([item["event"] async for item in run.extensions["wim"]]) == WANTED


def test_a_tools_margins_are_its_calls_output(agent: Callable[[], Any]) -> None:
    run = agent().stream_events(ASK, version="v3")
    (deltas,) = [list(call.output_deltas) for call in run.tool_calls]
    assert Counter(delta["event"] for delta in deltas) == WANTED


def test_an_agents_messages_are_its_own_models(agent: Callable[[], Any]) -> None:
    run = agent().stream_events(ASK, version="v3")
    assert [str(message.text) for message in run.messages] == ["", "Elsa Brandt."]


# -- where langgraph is not installed ----------------------------------------------------------------------------------


def test_transformer_without_langgraph_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langgraph.stream", None)
    monkeypatch.delitem(sys.modules, "wim_integrations.langchain.transformer")
    with pytest.raises(ImportError, match=r"WimTransformer needs langgraph>=1\.2: pip install 'langgraph"):
        _ = adapters.WimTransformer
    with pytest.raises(AttributeError, match="no attribute 'WimNothing'"):
        _ = adapters.WimNothing  # type: ignore[attr-defined]
