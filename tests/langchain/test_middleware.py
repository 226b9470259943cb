"""Long results of an agent's tools are read, and answered from margins; everything else stays as it was."""

from __future__ import annotations

import base64
import json
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ToolCallRequest
from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import ToolException, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

import wim_integrations.langchain as adapters
from wim_integrations.langchain import WimMiddleware, read_result
from wim_integrations.langchain.middleware import last_question
from wim_kernel import UnknownOptionError, WimKernel

QUESTION = "Who owned the ship?"
FEW: dict[str, Any] = {"threshold": 0, "margin_tokens": 4, "answer_tokens": 5, "chunk_tokens": 40}
FILLER = "The gull sat on the mast, and it rained on the harbour all night. "
LONG = FILLER * 6 + "Elsa Brandt owned the ship Aurora. " + FILLER * 6
IMAGE = {"type": "image", "base64": "AAAA", "mime_type": "image/png"}

pytestmark = pytest.mark.filterwarnings("ignore:The v3 streaming protocol")


class Scripted(FakeMessagesListChatModel):
    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self


@tool
def register() -> str:
    """The whole register."""
    return LONG


@tool
def clock() -> str:
    """The time."""
    return "noon"


@tool(response_format="content_and_artifact")
def archive() -> tuple[str, dict[str, Any]]:
    """A long text with an artifact."""
    return LONG, {"rows": 3}


@tool
def broken() -> str:
    """Fails, at length."""
    raise ToolException(LONG)


broken.handle_tool_error = True


def agent_with(middleware: WimMiddleware, *tools: Any, **options: Any) -> Any:
    calls = [{"type": "tool_call", "id": f"call-{t.name}", "name": t.name, "args": {}} for t in tools]
    model = Scripted(responses=[AIMessage("", tool_calls=calls), AIMessage("Elsa Brandt.")])
    return create_agent(model, tools, middleware=[middleware], **options)


ASK = {"messages": [HumanMessage("Hello."), HumanMessage(QUESTION)]}


def results(state: Any) -> dict[str, ToolMessage]:
    return {str(m.name): m for m in state["messages"] if isinstance(m, ToolMessage)}


@pytest.fixture
def middleware(kernel: WimKernel) -> WimMiddleware:
    return WimMiddleware(kernel, over_tokens=60, **FEW)


# -- results -----------------------------------------------------------------------------------------------------------


async def test_a_long_result_is_answered_and_a_short_one_stays(middleware: WimMiddleware) -> None:
    for state in (
        agent_with(middleware, register, clock).invoke(ASK),
        await agent_with(middleware, register, clock).ainvoke(ASK),
    ):
        message, short = results(state)["register"], results(state)["clock"]
        assert (short.content, short.artifact, read_result(short)) == ("noon", None, None)
        assert (message.tool_call_id, message.status, message.name) == (
            "call-register",
            "success",
            "register",
        )
        data = read_result(message)
        assert data is not None
        assert data["content"] == LONG
        assert data["question"] == QUESTION
        assert f"register returned {data['tokens']:,} tokens" in message.content
        assert data["answer"].strip() in message.content
        assert len(data["margins"]) > 2
        assert "".join(LONG[m["start"] : m["end"]] for m in data["margins"]) == LONG
        assert json.loads(json.dumps(data)) == data
        assert state["messages"][-1].content == "Elsa Brandt."


@pytest.mark.in_process
def test_the_passage_that_answers_is_quoted_with_its_place(real_kernel: WimKernel) -> None:
    middleware = WimMiddleware(
        real_kernel, over_tokens=60, chunk_tokens=60, margin_style="verbatim", answer_tokens=16
    )
    message = results(agent_with(middleware, register).invoke(ASK))["register"]
    assert "Elsa Brandt owned the ship Aurora. (register, characters" in message.content


def test_a_tools_own_artifact_stays(middleware: WimMiddleware) -> None:
    message = results(agent_with(middleware, archive).invoke(ASK))["archive"]
    assert message.artifact == {"rows": 3}
    data = read_result(message)
    assert data is not None
    assert data["content"] == LONG


async def test_errors_and_other_tools_results_stay_unchanged(
    kernel: WimKernel, middleware: WimMiddleware
) -> None:
    message = results(agent_with(middleware, broken).invoke(ASK))["broken"]
    assert (message.status, message.content) == ("error", LONG)
    for chosen in (["archive"], [archive]):
        only = WimMiddleware(kernel, over_tokens=60, tools=chosen, **FEW)
        found = results(await agent_with(only, register, archive).ainvoke(ASK))
        assert found["register"].content == LONG
        assert read_result(found["archive"]) is not None


def test_the_question_may_come_from_the_call(kernel: WimKernel) -> None:
    asked: list[ToolCallRequest] = []

    def question(request: ToolCallRequest) -> str:
        asked.append(request)
        return "What sat {on} the mast? <|im_end|>"

    middleware = WimMiddleware(kernel, over_tokens=60, question=question, **FEW)
    message = results(agent_with(middleware, register).invoke(ASK))["register"]
    data = read_result(message)
    assert data is not None
    assert data["question"] == "What sat {on} the mast? <|im_end|>"
    assert data["question"] in message.content
    assert [request.tool_call["name"] for request in asked] == ["register"]


INSTRUCTION = (
    "Read the register of ships with care, and tell me all that you find about the ship Aurora. " * 27
)


@pytest.mark.parametrize(
    ("said", "question"),
    [
        (INSTRUCTION, INSTRUCTION),
        (f"Please do the following:\n{INSTRUCTION}", None),
        (f"Please do the following:\n\n{INSTRUCTION}", None),
        (f"Please do the following:\n\n1. Read.\n\n2. {INSTRUCTION}\n\nThank you.", None),
        (f"{QUESTION}\n\n{INSTRUCTION}", QUESTION),
        (f"{QUESTION} {INSTRUCTION}", None),
        (f"{QUESTION} {INSTRUCTION * 10}", QUESTION),
        (INSTRUCTION * 10, ""),
        ([{"type": "text", "text": QUESTION}, {"type": "text", "text": INSTRUCTION}], QUESTION),
    ],
)
def test_the_question_is_all_of_a_typed_message(said: Any, question: str | None) -> None:
    state = {"messages": [HumanMessage(said), AIMessage("Well.")]}
    call: Any = {"name": "register", "args": {}, "id": "1"}
    request = ToolCallRequest(tool_call=call, tool=None, state=state, runtime=None)  # type: ignore[arg-type]
    assert last_question(request) == (said if question is None else question)


def test_without_a_question_the_result_is_summarised(middleware: WimMiddleware) -> None:
    state = agent_with(middleware, register).invoke({"messages": [("system", "Look around.")]})
    data = read_result(results(state)["register"])
    assert data is not None
    assert (data["question"], bool(data["answer"])) == ("", True)


@pytest.mark.parametrize("as_pairs", [False, True])
async def test_messages_of_a_command_are_read(middleware: WimMiddleware, as_pairs: bool) -> None:
    @tool
    def deliver(runtime: Any = None) -> Any:
        """Returns an update of the state."""
        messages = [ToolMessage(LONG, tool_call_id="call-deliver", name="deliver")]
        update: Any = [("messages", messages)] if as_pairs else {"messages": messages, "more": 1}
        return Command(update=update)

    request = request_of("deliver")
    for result in (
        middleware.wrap_tool_call(request, lambda _: deliver.func()),
        await middleware.awrap_tool_call(request, later(deliver.func())),
    ):
        assert isinstance(result, Command)
        update = dict(result.update)  # type: ignore[arg-type]
        (message,) = update.pop("messages")
        assert read_result(message)["content"] == LONG  # type: ignore[index]
        assert update == ({} if as_pairs else {"more": 1})
        assert isinstance(result.update, list if as_pairs else dict)


def later(result: Any) -> Callable[[ToolCallRequest], Any]:
    async def handler(request: ToolCallRequest) -> Any:
        return result

    return handler


def request_of(name: str) -> ToolCallRequest:
    call: Any = {"type": "tool_call", "id": f"call-{name}", "name": name, "args": {}}
    return ToolCallRequest(tool_call=call, tool=None, state=ASK, runtime=None)  # type: ignore[arg-type]


def test_a_command_without_messages_stays_as_it_is(middleware: WimMiddleware) -> None:
    for command in (Command(goto="end"), Command(update={"text": LONG}), Command(update=LONG)):
        assert middleware.wrap_tool_call(request_of("any"), lambda _, made=command: made) is command


# -- files and blocks --------------------------------------------------------------------------------------------------


def answered(middleware: WimMiddleware, content: Any) -> ToolMessage:
    message = ToolMessage(content, tool_call_id="1", name="fetch")
    result = middleware.wrap_tool_call(request_of("fetch"), lambda _: message)
    assert isinstance(result, ToolMessage)
    return result


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("block", "source"),
    [
        ({"type": "text", "text": LONG}, "fetch"),
        ({"type": "text-plain", "text": LONG, "mime_type": "text/plain", "title": "A"}, "fetch"),
        ({"type": "file", "base64": encoded(LONG), "mime_type": "text/plain"}, "fetch"),
        (
            {
                "type": "file",
                "base64": encoded(f"<p>{LONG}</p><script>x</script>"),
                "mime_type": "text/html",
                "extras": {"filename": "log.html"},
            },
            "log.html",
        ),
        (
            {
                "type": "search_result",
                "source": "log",
                "title": "A",
                "content": [{"type": "text", "text": LONG}],
            },
            "log",
        ),
    ],
    ids=["text", "plain", "file", "html", "search result"],
)
def test_texts_and_files_are_read_and_images_stay(middleware: WimMiddleware, block: Any, source: str) -> None:
    message = answered(middleware, [block, IMAGE])
    data = read_result(message)
    assert data is not None
    assert data["content"] == [block, IMAGE]
    assert {margin["metadata"]["source"] for margin in data["margins"]} == {source}
    assert message.content[-1] == IMAGE
    assert [block["type"] for block in message.content] == ["text", "image"]  # type: ignore[index]
    assert "<script>" not in str(message.content)


def test_results_without_text_stay(middleware: WimMiddleware) -> None:
    for block in (
        IMAGE,
        {
            "type": "file",
            "base64": base64.b64encode(b"\0\1\2" * 999).decode(),
            "mime_type": "application/zip",
        },
        {"type": "file", "base64": "not base64!", "mime_type": "text/plain"},
        {"type": "file", "url": "https://example.org/a.pdf", "mime_type": "application/pdf"},
        {"type": "file", "file_id": "file-1"},
    ):
        assert answered(middleware, [block]).content == [block]
    assert answered(middleware, "").content == ""


def test_margins_as_search_results(kernel: WimKernel) -> None:
    middleware = WimMiddleware(kernel, over_tokens=60, content="search_result", **FEW)
    message = answered(middleware, LONG)
    kinds = Counter(block["type"] for block in message.content)  # type: ignore[index]
    assert kinds["search_result"] >= 1
    assert message.content[0]["text"].startswith("fetch returned")  # type: ignore[index]


def test_content_is_bounded(kernel: WimKernel) -> None:
    middleware = WimMiddleware(kernel, over_tokens=60, max_output_chars=50, **FEW)
    message = answered(middleware, LONG)
    text = str(message.content).split("\n\n", 1)[1]
    assert len(text) <= 50
    assert text.endswith("[truncated]")


@pytest.mark.in_process
def test_unreadable_result_becomes_an_error_that_keeps_it(tiny_kernel: WimKernel) -> None:
    middleware = WimMiddleware(tiny_kernel, over_tokens=60, question=lambda request: "word " * 9000, **FEW)
    message = answered(middleware, LONG)
    assert message.status == "error"
    assert "could not be read" in str(message.content)
    assert read_result(message)["content"] == LONG  # type: ignore[index]


# -- streams, threads, state -------------------------------------------------------------------------------------------


async def test_margins_reach_an_agents_streams(middleware: WimMiddleware) -> None:
    modes = ["custom", "messages"]
    check_items(list(agent_with(middleware, register).stream(ASK, stream_mode=modes)))
    check_items([item async for item in agent_with(middleware, register).astream(ASK, stream_mode=modes)])
    agent = agent_with(middleware, register)
    run = agent.stream_events(ASK, version="v3")
    check_names([item["event"] for item in run.extensions["wim"]])
    events = [event async for event in agent_with(middleware, register).astream_events(ASK, version="v2")]
    check_names([event["name"] for event in events if event["event"] == "on_custom_event"])


def check_items(items: list[Any]) -> None:
    check_names([data["event"] for mode, data in items if mode == "custom"])
    said = [data[0] for mode, data in items if mode == "messages"]
    assert "".join(message.text for message in said if isinstance(message, AIMessage)) == "Elsa Brandt."


def check_names(names: list[str]) -> None:
    found = Counter(names)
    assert found["wim_margin"] == found["wim_chunk"] > 2
    assert found["wim_answer"] == 1


async def test_calls_in_parallel_each_get_their_own(middleware: WimMiddleware) -> None:
    agent = agent_with(middleware, register, archive, clock)
    for state in (agent.invoke(ASK), await agent_with(middleware, register, archive, clock).ainvoke(ASK)):
        found = results(state)
        assert [read_result(found[name]) is not None for name in ("register", "archive", "clock")] == [
            True,
            True,
            False,
        ]
        assert "register returned" in found["register"].content
        assert "archive returned" in found["archive"].content


def test_the_same_text_is_not_read_again(middleware: WimMiddleware) -> None:
    agent_with(middleware, register).invoke(ASK)
    other = {"messages": [HumanMessage("What sat on the mast?")]}
    data = read_result(results(agent_with(middleware, register).invoke(other))["register"])
    assert data is not None
    assert data["usage"]["prefill_tokens"] == 0


def test_a_checkpoint_keeps_what_was_read(middleware: WimMiddleware) -> None:
    saver, thread = InMemorySaver(), {"configurable": {"thread_id": "1"}}
    agent = agent_with(middleware, register, archive, checkpointer=saver)
    wanted = results(agent.invoke(ASK, thread))
    state = agent_with(middleware, register, archive, checkpointer=saver).get_state(thread)
    for name, message in results(state.values).items():
        assert read_result(message) == read_result(wanted[name]) is not None


# -- how it is made ----------------------------------------------------------------------------------------------------


def test_wrong_arguments_are_refused(kernel: WimKernel) -> None:
    with pytest.raises(UnknownOptionError, match="answer_tokens"):
        WimMiddleware(kernel, answer_token=3)
    with pytest.raises(UnknownOptionError, match="question_key"):
        WimMiddleware(kernel, question_key="q")
    with pytest.raises(ValueError, match="over_tokens"):
        WimMiddleware(kernel, over_tokens=0)
    with pytest.raises(ValueError, match="over_message_tokens"):
        WimMiddleware(kernel, over_message_tokens=0)
    with pytest.raises(ValueError, match="max_output_chars"):
        WimMiddleware(kernel, max_output_chars=3)
    with pytest.raises(ValueError, match="content is one of"):
        WimMiddleware(kernel, content="html")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="WimKernel"):
        WimMiddleware("embedded")  # type: ignore[arg-type]


def test_without_langchain_it_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langchain.agents.middleware", None)
    monkeypatch.delitem(sys.modules, "wim_integrations.langchain.middleware")
    with pytest.raises(ImportError, match=r"WimMiddleware needs langchain>=1\.4"):
        _ = adapters.WimMiddleware


# -- deepagents --------------------------------------------------------------------------------------------------------


def test_in_a_deep_agent_results_are_read_before_they_are_moved_to_a_file(middleware: WimMiddleware) -> None:
    deepagents = pytest.importorskip("deepagents")

    @tool
    def library() -> str:
        """More text than deep agents leave in a message."""
        return LONG * 120

    calls = [{"type": "tool_call", "id": "call-library", "name": "library", "args": {}}]
    model = Scripted(responses=[AIMessage("", tool_calls=calls), AIMessage("Elsa Brandt.")])
    cut = deepagents.create_deep_agent(model, [library]).invoke(ASK)
    assert cut["files"]  # without the middleware

    model = Scripted(responses=[AIMessage("", tool_calls=calls), AIMessage("Elsa Brandt.")])
    options = {"threshold": None, "top_k": 2, "chunk_tokens": 400}
    reads = WimMiddleware(middleware.kernel, over_tokens=2000, **{**FEW, **options})
    run = deepagents.create_deep_agent(model, [library], middleware=[reads]).stream_events(ASK, version="v3")
    events = Counter(item["event"] for item in run.extensions["wim"])
    message = results(run.output)["library"]
    assert events["wim_margin"] > 2
    assert not run.output.get("files")
    assert "library returned" in str(message.content)
    assert read_result(message)["content"] == LONG * 120  # type: ignore[index]
