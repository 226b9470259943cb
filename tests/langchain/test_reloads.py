"""Events, citations and results survive a checkpoint: as JSON, and in the serializer of LangGraph's savers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypedDict

import pytest
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import END, START, StateGraph

from wim_integrations.langchain import WimRunnable, cited_message
from wim_kernel import (
    Answered,
    AnswerToken,
    ChunkRead,
    Event,
    Margin,
    MarginRevised,
    MarginsDone,
    MarginsError,
    MarginWritten,
    WimKernel,
    WimResult,
    event_from_dict,
)

PAGES = [
    "The gull sat on the mast. It rained on the ship all night.",
    "Elsa Brandt owned the ship Aurora, “the <b>swift</b>” {one}. The fog <|im_end|> was thick.",
    "Nobody saw the ship.",
]
QUESTION = "Who owned the ship?"
ANSWER = "Elsa Brandt [2] did, in the rain [1]. Jan [7] did not."


def replies() -> list[str]:
    quotes = [
        ["It rained on the ship all night.", "A whale sang."],
        [PAGES[1].split(" The")[0]],
        ["A shark!"],
    ]
    return [*(json.dumps({"relevance": 8, "quotes": each}) for each in quotes), ANSWER]


def kernel() -> WimKernel:
    return WimKernel.from_chat_model(FakeListChatModel(responses=replies()), max_concurrency=1)


def events() -> list[Event]:
    reading = kernel().read(PAGES)
    found = list(reading.stream(QUESTION, citations=True))
    assert {type(event) for event in found} == {ChunkRead, MarginWritten, AnswerToken, Answered}
    margin = next(event.margin for event in found if isinstance(event, MarginWritten))
    return [*found, MarginRevised(margin, 2), list(reading.stream_margins(QUESTION))[-1]]


def by_json(data: Any) -> Any:
    return json.loads(json.dumps(data))


def by_checkpoint(data: Any) -> Any:
    serde = JsonPlusSerializer()
    return serde.loads_typed(serde.dumps_typed(data))


WAYS = pytest.mark.parametrize("way", [by_json, by_checkpoint])


@WAYS
def test_every_event_is_the_same_after_a_reload(way: Callable[[Any], Any]) -> None:
    found = events()
    assert isinstance(found[-1], MarginsDone)
    for event in found:
        again = event_from_dict(way(event.to_dict()))
        assert again.to_dict() == event.to_dict()
        assert type(again) is type(event)
        if isinstance(event, ChunkRead | AnswerToken):
            assert again == event


@WAYS
def test_a_result_is_shown_the_same_after_a_reload(way: Callable[[Any], Any]) -> None:
    result = kernel().ask(QUESTION, PAGES, citations=True)
    assert (len(result.citations), result.dropped_markers) == (2, 1)
    again = WimResult.from_dict(way(result.to_dict()))
    assert again.citations == result.citations
    assert (again.usage, again.timings) == (result.usage, result.timings)
    assert [margin.is_used for margin in again.margins] == [True, True, False]
    assert [margin.found_nowhere for margin in again.margins] == [False, False, True]
    assert "A shark! [not in the text]" in again.to_html()
    assert [margin.evidence for margin in again.margins] == [margin.evidence for margin in result.margins]
    assert again.to_html() == result.to_html()
    assert again.to_dict() == result.to_dict()
    llm = FakeListChatModel(responses=[ANSWER])
    more = WimKernel.from_chat_model(llm).read(PAGES).answer(QUESTION, again.margins, citations=True)
    assert (more.answer, more.citations) == (result.answer, result.citations)


@pytest.mark.parametrize(
    "data",
    [
        {},
        "answered",
        {"event": "margin"},
        {"event": "answer_token"},
        {"event": "margin_written"},
        {"event": "answered", "result": {"answer": "x"}},
        {"event": "chunk_read", "index": 0, "chunks": 1, "tokens": -1, "total_tokens": 1, "cached": False},
        {"event": "margins_done", "margins": "none", "usage": {}, "timings": {}, "chunks_read": 1},
    ],
)
def test_other_data_is_refused(data: Any) -> None:
    with pytest.raises(MarginsError):
        event_from_dict(data)
    with pytest.raises(MarginsError, match=r"WimResult\.from_dict|Margin\.from_dict"):
        WimResult.from_dict(data)


def test_a_margin_keeps_what_was_found_of_it() -> None:
    margin = kernel().ask(QUESTION, PAGES).margins[0]
    assert margin.evidence["located"] == 0.5
    assert Margin.from_dict(by_checkpoint(margin.to_dict())).evidence == margin.evidence


class State(TypedDict, total=False):
    output: dict[str, Any]
    messages: list[AIMessage]


def test_an_output_and_its_message_are_the_same_in_a_reloaded_graph() -> None:
    documents = [Document(page, metadata={"source": f"page {n}"}) for n, page in enumerate(PAGES)]
    runnable = WimRunnable(kernel=FakeListChatModel(responses=replies()), citations=True)
    outputs: list[dict[str, Any]] = []

    def answer(state: State) -> State:
        outputs.append(dict(runnable.invoke({"question": QUESTION, "documents": documents})))
        return {"output": outputs[0], "messages": [cited_message(outputs[0])]}

    saver = InMemorySaver()
    thread: Any = {"configurable": {"thread_id": "1"}}
    builder = StateGraph(State)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    builder.add_edge("answer", END)
    builder.compile(checkpointer=saver).invoke({}, thread)
    values = builder.compile(checkpointer=saver).get_state(thread).values  # another graph on what was saved
    assert values["output"] == outputs[0]
    (message,) = values["messages"]
    assert message.content_blocks == cited_message(outputs[0]).content_blocks
    assert len(message.content_blocks[0]["annotations"]) == 2
