"""Long messages of people: an agent's model sees their words, and what was read in the place of what they pasted."""

from __future__ import annotations

import base64
import json
from collections import Counter
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, RemoveMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from long_texts import FILE, FILLER, IMAGE, LONG, QUESTION, TRACEBACK

from wim_integrations.langchain import WimMiddleware
from wim_kernel import WimError, WimKernel
from wim_kernel.text.files import read_file

FEW: dict[str, Any] = {"threshold": 0, "margin_tokens": 4, "answer_tokens": 5, "chunk_tokens": 40}

pytestmark = pytest.mark.filterwarnings("ignore:The v3 streaming protocol")


class Scripted(FakeMessagesListChatModel):
    """Answers, and records what it saw."""

    seen: list[list[BaseMessage]] = []

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **options: Any) -> Any:
        self.seen.append(list(messages))
        return super()._generate(messages, *args, **options)


def agent_with(
    middleware: WimMiddleware, *others: Any, **options: Any
) -> tuple[Any, list[list[BaseMessage]]]:
    """An agent, and the list of what its model sees."""
    seen: list[list[BaseMessage]] = []
    model = Scripted(responses=[AIMessage("Elsa Brandt."), AIMessage("Nobody.")])
    model.seen = seen
    return create_agent(model, [], middleware=[*others, middleware], **options), seen


@pytest.fixture
def middleware(kernel: WimKernel) -> WimMiddleware:
    return WimMiddleware(kernel, over_message_tokens=60, **FEW)


def said(content: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [HumanMessage(content, **fields)]}


async def test_the_model_sees_words_and_what_was_read(middleware: WimMiddleware) -> None:
    for wait in (False, True):
        agent, seen = agent_with(middleware)
        asked = said(f"{LONG}\n\n{QUESTION}", id="m1")
        state = await agent.ainvoke(asked) if wait else agent.invoke(asked)
        data = state["wim_messages"]["m1"]
        ((shown,),) = seen
        assert shown.content == data["shown"]
        assert LONG not in shown.content
        assert shown.content.startswith("[Here the user gave a text of ")
        assert data["answer"].strip() in shown.content
        assert shown.content.endswith(f"\n\n{QUESTION}")
        assert data["question"] == QUESTION
        assert "".join(LONG[m["start"] : m["end"]] for m in data["margins"]) == LONG
        assert json.loads(json.dumps(data)) == data
        assert state["messages"][0].content == f"{LONG}\n\n{QUESTION}"
        assert state["messages"][-1].content == "Elsa Brandt."


@pytest.mark.in_process
def test_the_passage_that_answers_is_quoted_with_its_place(real_kernel: WimKernel) -> None:
    reads = WimMiddleware(
        real_kernel, over_message_tokens=60, chunk_tokens=60, margin_style="verbatim", answer_tokens=16
    )
    agent, seen = agent_with(reads)
    agent.invoke(said(f"{QUESTION}\n\n{FILLER * 5}Elsa Brandt owned the ship Aurora. {FILLER * 4}"))
    assert "Elsa Brandt owned the ship Aurora. (the message, characters" in seen[0][0].content


def test_messages_stay_by_default_and_when_short(kernel: WimKernel, middleware: WimMiddleware) -> None:
    for reads, text in ((WimMiddleware(kernel, **FEW), LONG), (middleware, QUESTION)):
        agent, seen = agent_with(reads)
        state = agent.invoke(said(text))
        assert seen[0][0].content == text
        assert "wim_messages" not in state


def test_files_are_read_and_images_stay(middleware: WimMiddleware) -> None:
    agent, seen = agent_with(middleware)
    state = agent.invoke(said([{"type": "text", "text": QUESTION}, FILE, IMAGE], id="m1"))
    words, read, image = seen[0][0].content
    assert (words["text"], image) == (QUESTION, IMAGE)
    assert state["wim_messages"]["m1"]["answer"].strip() in read["text"]


def test_a_text_is_asked_anew_and_not_read_anew_for_the_next_question(middleware: WimMiddleware) -> None:
    thread = {"configurable": {"thread_id": "1"}}
    agent, seen = agent_with(middleware, checkpointer=InMemorySaver())
    first = agent.invoke(said(f"{QUESTION}\n\n{LONG}", id="m1"), thread)["wim_messages"]["m1"]
    later = agent.invoke(said("What sat on the mast?", id="m2"), thread)["wim_messages"]
    assert list(later) == ["m1"]
    assert (first["question"], later["m1"]["question"]) == (QUESTION, "What sat on the mast?")
    assert later["m1"]["usage"]["prefill_tokens"] == 0
    assert [message.content for message in seen[1]] == [
        later["m1"]["shown"],
        "Elsa Brandt.",
        "What sat on the mast?",
    ]


def test_a_message_is_read_once_for_a_question(middleware: WimMiddleware, kernel: WimKernel) -> None:
    thread: Any = {"configurable": {"thread_id": "1"}}
    agent, seen = agent_with(middleware, checkpointer=InMemorySaver())
    state = agent.invoke(said(f"{QUESTION}\n\n{LONG}", id="m1"), thread)
    kernel.cache.clear()
    again = agent.invoke({"messages": [AIMessage("Well?")]}, thread)
    assert again["wim_messages"] == state["wim_messages"]
    assert not kernel.cache.held
    assert seen[1][0].content == seen[0][0].content


def test_a_file_is_parsed_once(middleware: WimMiddleware, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[Any] = []

    def read(path: Any) -> str:
        parsed.append(path)
        return read_file(path)

    monkeypatch.setattr("wim_integrations.langchain.results.read_file", read)
    small = {**FILE, "base64": base64.b64encode(b"Few words, once.").decode()}
    thread: Any = {"configurable": {"thread_id": "1"}}
    agent, _ = agent_with(middleware, checkpointer=InMemorySaver())
    agent.invoke(said([QUESTION, small, FILE], id="once"), thread)
    agent.invoke({"messages": [AIMessage("Well?")]}, thread)
    agent.invoke(said("And when?", id="m2"), thread)
    assert len(parsed) == 2
    agent.invoke(said([QUESTION, FILE], id="once"), thread)  # the same id, and another content
    assert len(parsed) == 3


def test_what_was_read_goes_with_its_message(middleware: WimMiddleware) -> None:
    thread: Any = {"configurable": {"thread_id": "1"}}
    agent, _ = agent_with(middleware, checkpointer=InMemorySaver())
    agent.invoke(said(f"{QUESTION}\n\n{LONG}", id="m1"), thread)
    state = agent.invoke(
        {"messages": [RemoveMessage("m1"), HumanMessage(f"{QUESTION}\n\n{LONG}", id="m2")]}, thread
    )
    assert list(state["wim_messages"]) == ["m2"]
    state = agent.invoke({"messages": [RemoveMessage("m2"), HumanMessage("Well?", id="m3")]}, thread)
    assert state["wim_messages"] == {}


@tool
def clock() -> str:
    """The time."""
    return "noon"


async def test_a_failure_is_tried_again_in_a_later_run(
    middleware: WimMiddleware, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    def fails(*args: Any, **options: Any) -> Any:
        tries.append("failed")
        raise WimError("The server is away.")

    async def afails(*args: Any, **options: Any) -> Any:
        return fails()

    reader = middleware._reader.__class__
    calls = [{"type": "tool_call", "id": "1", "name": "clock", "args": {}}]
    for wait in (False, True):
        tries.clear()
        model = Scripted(responses=[AIMessage("", tool_calls=calls), AIMessage("Well."), AIMessage("Elsa.")])
        agent = create_agent(model, [clock], middleware=[middleware], checkpointer=InMemorySaver())
        thread: Any = {"configurable": {"thread_id": "1"}}
        asked = said(f"{QUESTION}\n\n{LONG}", id="m1")
        with monkeypatch.context() as patch:
            patch.setattr(reader, "invoke", fails)
            patch.setattr(reader, "ainvoke", afails)
            state = await agent.ainvoke(asked, thread) if wait else agent.invoke(asked, thread)
        assert state["wim_messages"]["m1"]["error"] == "The server is away."
        assert tries == ["failed"]  # once, though the model was called twice
        again = {"messages": [AIMessage("Once more.")]}
        state = await agent.ainvoke(again, thread) if wait else agent.invoke(again, thread)
        assert "error" not in state["wim_messages"]["m1"]
        assert state["wim_messages"]["m1"]["answer"]


def test_words_before_a_text_alone_are_its_question(middleware: WimMiddleware) -> None:
    agent, _ = agent_with(middleware)
    given = [HumanMessage("I will paste a log. Who owned the ship?", id="m1"), HumanMessage(LONG, id="m2")]
    state = agent.invoke({"messages": given})
    assert state["wim_messages"]["m2"]["question"] == "I will paste a log. Who owned the ship?"
    agent, _ = agent_with(middleware)
    state = agent.invoke({"messages": [HumanMessage(QUESTION, id="m1"), HumanMessage(TRACEBACK, id="m2")]})
    assert state["wim_messages"]["m2"]["question"] == QUESTION


def test_a_text_without_words_is_summarised(middleware: WimMiddleware) -> None:
    agent, seen = agent_with(middleware)
    state = agent.invoke(said(LONG, id="m1"))
    data = state["wim_messages"]["m1"]
    assert (data["question"], bool(data["answer"])) == ("", True)
    assert "none, a summary" in str(seen[0][0].content)


@pytest.mark.in_process
def test_unreadable_message_is_reported_to_the_model(tiny_kernel: WimKernel) -> None:
    agent, seen = agent_with(WimMiddleware(tiny_kernel, over_message_tokens=60, **FEW))
    words = [{"type": "text", "text": "word " * 100}] * 90  # more than fits the model's window
    state = agent.invoke(said([*words, FILE], id="m1"))
    assert "it could not be read: " in str(seen[0][0].content)
    assert state["wim_messages"]["m1"]["error"] in str(seen[0][0].content)
    assert state["messages"][-1].content == "Elsa Brandt."


def test_margins_reach_an_agents_streams(middleware: WimMiddleware) -> None:
    asked = said(f"{QUESTION}\n\n{LONG}")
    agent, _ = agent_with(middleware)
    names = [data["event"] for data in agent.stream(asked, stream_mode="custom")]
    agent, _ = agent_with(middleware)
    run = agent.stream_events(asked, version="v3")
    for found in (Counter(names), Counter(item["event"] for item in run.extensions["wim"])):
        assert found["wim_margin"] == found["wim_chunk"] > 2
        assert found["wim_answer"] == 1


def test_a_message_that_another_middleware_cut_is_read_whole(middleware: WimMiddleware) -> None:
    @wrap_model_call
    def cut(request: Any, handler: Any) -> Any:
        (message,) = request.messages
        return handler(request.override(messages=[message.model_copy(update={"content": "cut"})]))

    agent, seen = agent_with(middleware, cut)
    state = agent.invoke(said(f"{QUESTION}\n\n{LONG}", id="m1"))
    assert seen[0][0].content == state["wim_messages"]["m1"]["shown"]
    assert str(seen[0][0].content).startswith(QUESTION)


@pytest.mark.slow
def test_in_a_deep_agent_messages_are_read(kernel: WimKernel) -> None:
    deepagents = pytest.importorskip("deepagents")
    text = FILLER * 3100  # deep agents move messages of more than 200,000 characters to a file
    options = {**FEW, "threshold": None, "top_k": 1, "chunk_tokens": 8000}
    reads = WimMiddleware(kernel, over_message_tokens=2000, **options)
    model = Scripted(responses=[AIMessage("Elsa Brandt.")])
    model.seen = []
    agent = deepagents.create_deep_agent(model, [], middleware=[reads])
    state = agent.invoke(said(f"{text}\n\n{QUESTION}", id="m1"))
    shown = model.seen[0][-1]
    assert shown.content == state["wim_messages"]["m1"]["shown"]
    assert str(shown.content).endswith(QUESTION)
