"""Citations in LangChain's shapes: annotations of messages, and search results as a tool's content."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, ToolMessage
from langchain_core.messages.content import Citation
from pydantic import TypeAdapter

from wim_integrations.langchain import WimRunnable, cited_message, create_wim_tool

TEXT = "The gull sat on the mast. Elsa Brandt owned the ship Aurora. The fog was thick."
QUOTE = "Elsa Brandt owned the ship Aurora."
ANSWER = "Elsa Brandt [1] did [4]."
SHOWN = "Elsa Brandt [1] did."
PAGE = Document(
    page_content=TEXT, metadata={"source": "https://example.org/log", "title": "The log", "page_label": "7"}
)
INPUT = {"question": "Who owned the ship?", "documents": [PAGE]}


def runnable(**fields: Any) -> WimRunnable:
    """On a chat model that quotes, and cites one margin that exists and one that does not."""
    rated = json.dumps({"relevance": 9, "quotes": [QUOTE]})
    return WimRunnable(kernel=FakeListChatModel(responses=[rated, ANSWER]), **fields)


def check(found: list[Any]) -> None:
    """The one citation, with its place in the answer and in the page."""
    (citation,) = TypeAdapter(list[Citation]).validate_python(found)
    assert SHOWN[citation["start_index"] : citation["end_index"]] == "[1]"
    assert citation["cited_text"] == QUOTE
    assert (citation["title"], citation["url"]) == ("The log", "https://example.org/log")
    extras = citation["extras"]
    assert TEXT[extras["start"] : extras["end"]] == QUOTE
    assert (extras["document"], extras["page"], extras["number"], extras["located"]) == (0, "7", 1, "exact")


def test_output_and_stream_have_annotations_only_if_asked_for() -> None:
    output = runnable(citations=True).invoke(INPUT)
    assert output["answer"] == SHOWN
    check(output["citations"])
    assert json.loads(json.dumps(output)) == output
    whole: Any = None
    for chunk in runnable(citations=True).stream(INPUT):
        whole = chunk if whole is None else whole + chunk
    check(whole["citations"])
    assert whole["answer"] == SHOWN
    assert "citations" not in runnable().invoke(INPUT)
    asked, unasked = runnable(citations=True).get_output_schema(), runnable().get_output_schema()
    assert set(asked.model_fields) - set(unasked.model_fields) == {"citations"}
    assert asked.model_validate(output)
    assert unasked.model_validate(runnable().invoke(INPUT))
    empty = runnable(citations=True, empty_response="Nothing.").invoke({**INPUT, "documents": [" "]})
    assert empty["citations"] == []


def test_an_output_is_a_message_with_content_blocks() -> None:
    message = cited_message(runnable(citations=True).invoke(INPUT))
    assert isinstance(message, AIMessage)
    (block,) = message.content_blocks
    assert block["type"] == "text"
    assert (block["text"], message.text) == (SHOWN, SHOWN)
    check(block["annotations"])
    assert cited_message(runnable().invoke(INPUT)).content_blocks[0].get("annotations") is None


async def test_streamed_messages_add_up_to_one_annotated_block() -> None:
    chunks, ends, customs = [], [], []
    async for event in runnable(citations=True).astream_events(INPUT, version="v2"):
        if event["event"] == "on_chat_model_stream" and event["name"] == "WimKernel":
            chunks.append(event["data"]["chunk"])
        elif event["event"] == "on_chat_model_end" and event["name"] == "WimKernel":
            ends.append(event["data"]["output"])
        elif event["event"] == "on_custom_event" and event["name"] == "wim_answer":
            customs.append(event["data"])
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert isinstance(whole, AIMessageChunk)
    for message in (whole, ends[0]):
        (block,) = message.content_blocks
        assert block["type"] == "text"
        assert block["text"] == SHOWN
        check(block["annotations"])
    check(customs[0]["citations"])


async def test_messages_without_citations_are_plain_text_as_ever() -> None:
    async for event in runnable().astream_events(INPUT, version="v2"):
        if event["event"].startswith("on_chat_model_stream") and event["name"] == "WimKernel":
            assert isinstance(event["data"]["chunk"].content, str)
        elif event["event"] == "on_custom_event" and event["name"] == "wim_answer":
            assert "citations" not in event["data"]


def test_a_document_prompt_that_changes_the_text_leaves_no_place() -> None:
    from langchain_core.prompts import PromptTemplate

    prompt = PromptTemplate.from_template("{page_content} {page_content}")
    output = runnable(citations=True, document_prompt=prompt).invoke(INPUT)
    assert [(each["extras"]["start"], each["cited_text"]) for each in output["citations"]] == [(None, QUOTE)]


def called(**options: Any) -> ToolMessage:
    rated = json.dumps({"relevance": 9, "quotes": [QUOTE]})
    tool = create_wim_tool(FakeListChatModel(responses=[rated, "Elsa did."]), [PAGE], **options)
    message = tool.invoke(
        {"type": "tool_call", "id": "1", "name": tool.name, "args": {"question": INPUT["question"]}}
    )
    assert isinstance(message, ToolMessage)
    return message


def test_a_tool_gives_search_results_that_anthropics_own_types_accept() -> None:
    types = pytest.importorskip("anthropic.types")
    message = called(content="search_result")
    text, result = message.content
    assert text == {"type": "text", "text": "Elsa did."}
    TypeAdapter(types.SearchResultBlockParam).validate_python(result)
    assert (result["source"], result["title"]) == ("https://example.org/log", "The log")
    assert result["content"] == [{"type": "text", "text": QUOTE}]
    assert message.artifact["answer"] == "Elsa did."
    assert [block["type"] for block in called(content="search_result", max_output_chars=20).content] == [
        "text"
    ]
    assert isinstance(called().content, str)
    with pytest.raises(ValueError, match="content is one of"):
        called(content="blocks")


def test_langchain_s_anthropic_model_passes_search_results_on() -> None:
    models = pytest.importorskip("langchain_anthropic.chat_models")
    asked = AIMessage("", tool_calls=[{"name": "ask_document", "args": {}, "id": "1"}])
    _, sent = models._format_messages([asked, called(content="search_result")], model="claude-sonnet-5")
    (answered,) = sent[-1]["content"]
    assert answered["type"] == "tool_result"
    assert [block["type"] for block in answered["content"]] == ["text", "search_result"]
