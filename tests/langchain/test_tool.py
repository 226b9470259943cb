"""The tool: LangChain's own tests, schemas, what an agent may name, and agents that call it in parallel."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from asking import FEW, QUESTION
from langchain.agents import create_agent
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.documents import Document
from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool
from langchain_tests.integration_tests import ToolsIntegrationTests
from langchain_tests.unit_tests import ToolsUnitTests

from wim_integrations.langchain import create_wim_tool
from wim_kernel import WimKernel

SHIP = Document(
    page_content="The gull sat on the mast. Elsa Brandt owned the ship Aurora.", metadata={"source": "log"}
)


class _Params:
    @property
    def tool_constructor(self) -> BaseTool:
        return self.tool_made

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"question": QUESTION}

    @pytest.fixture(autouse=True)
    def _make(self, real_kernel: WimKernel) -> None:
        self.tool_made = create_wim_tool(real_kernel, [SHIP], margin_tokens=8, answer_tokens=8)


class TestToolUnit(_Params, ToolsUnitTests):
    @property
    def tool_constructor(self) -> BaseTool:
        return self.tool_made


class TestToolIntegration(_Params, ToolsIntegrationTests):
    @property
    def tool_constructor(self) -> BaseTool:
        return self.tool_made


# -- what an agent's model sees ----------------------------------------------------------------------------------------


def test_one_document_needs_no_name(kernel: WimKernel) -> None:
    tool = create_wim_tool(kernel, [SHIP])
    schema = tool.tool_call_schema.model_json_schema()
    assert set(schema["properties"]) == {"question"}
    assert schema["required"] == ["question"]
    assert set(tool.args) == {"question"}
    assert "the document" in tool.description


def test_several_documents_are_chosen_by_name(kernel: WimKernel) -> None:
    tool = create_wim_tool(kernel, {"log": [SHIP], "tale": "A long tale."}, name="ask", description="Ask.")
    schema = tool.tool_call_schema.model_json_schema()
    assert schema["properties"]["document"]["enum"] == ["log", "tale"]
    assert (tool.name, tool.description) == ("ask", "Ask.")
    message = called(tool, question=QUESTION, document="../secret")
    assert message.status == "error"
    assert "log, tale" in message.content
    assert called(tool, question=QUESTION, document="tale").status == "success"


def called(tool: BaseTool, **args: Any) -> ToolMessage:
    message = tool.invoke({"type": "tool_call", "id": "1", "name": tool.name, "args": args})
    assert isinstance(message, ToolMessage)
    return message


async def test_content_is_bounded_and_the_artifact_plain(kernel: WimKernel) -> None:
    tool = create_wim_tool(kernel, [SHIP], max_output_chars=60, **FEW)
    message = called(tool, question=QUESTION)
    assert len(message.content) == 60
    assert message.content.endswith("[truncated]")
    assert json.loads(json.dumps(message.artifact)) == message.artifact
    assert message.artifact["question"] == QUESTION
    (margin,) = message.artifact["margins"]
    assert margin["metadata"] == {"source": "log"}
    full = called(create_wim_tool(kernel, [SHIP], **FEW), question=QUESTION).content
    assert full.startswith(message.artifact["answer"].strip())
    assert f"- {margin['text'].strip()} (log, characters 0 to {len(SHIP.page_content)})" in full
    also = await tool.ainvoke(
        {"type": "tool_call", "id": "1", "name": tool.name, "args": {"question": QUESTION}}
    )
    assert also.content == message.content


@pytest.mark.in_process
async def test_errors_become_the_tools_message(kernel: WimKernel) -> None:
    tool = create_wim_tool(kernel, {"log": [SHIP], "blank": " "})
    for args in (
        {"question": " ", "document": "log"},
        {"question": QUESTION, "document": "blank"},
        {"question": "word " * 9000, "document": "log"},
        {"question": QUESTION},
    ):
        call = {"type": "tool_call", "id": "1", "name": tool.name, "args": args}
        assert tool.invoke(call).status == "error"
        assert (await tool.ainvoke(call)).status == "error"
    assert called(tool, question=QUESTION, document="log").status == "success"


def test_tool_needs_documents_or_a_folder(kernel: WimKernel, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="either"):
        create_wim_tool(kernel)
    with pytest.raises(TypeError, match="either"):
        create_wim_tool(kernel, [SHIP], folder=tmp_path)
    for nothing in ({}, [], {"log": []}):
        with pytest.raises(ValueError, match="no documents"):
            create_wim_tool(kernel, nothing)
    with pytest.raises(ValueError, match="max_output_chars"):
        create_wim_tool(kernel, [SHIP], max_output_chars=5)
    with pytest.raises(TypeError, match="question_key"):
        create_wim_tool(kernel, [SHIP], question_key="q")
    with pytest.raises(ValueError, match="no documents"):
        create_wim_tool(kernel, folder=tmp_path)
    with pytest.raises(ValueError, match="not a folder"):
        create_wim_tool(kernel, folder=tmp_path / "none")


# -- a folder ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret.txt").write_text("The password is swordfish.")
    folder = tmp_path / "papers"
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "may.txt").write_text("Elsa Brandt owned the ship Aurora.")
    (folder / "notes.md").write_text("# Notes\n\nThe fog was thick.")
    (folder / ".hidden").write_text("Not for agents.")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 nothing")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "way-in.txt").symlink_to(folder / ".hidden")
    (folder / "picture.png").write_bytes(b"not text")
    (folder / "a.txt").write_text("The first file of all.")
    return folder


def test_files_are_named_from_the_folder(kernel: WimKernel, folder: Path) -> None:
    tool = create_wim_tool(kernel, folder=folder, **FEW)
    assert "a.txt, broken.pdf, logs/may.txt, notes.md." in tool.description
    message = called(tool, question=QUESTION, document="logs/may.txt")
    assert message.status == "success"
    assert message.artifact["margins"][0]["metadata"] == {"source": "logs/may.txt"}
    (folder / "new.txt").write_text("The mate came aboard.")
    assert called(tool, question=QUESTION, document="new.txt").status == "success"
    (folder / "new.txt").write_text("The mate went ashore, and nobody saw him again.")
    again = called(tool, question=QUESTION, document="new.txt")
    assert again.artifact["margins"][0]["end"] == 47


@pytest.mark.parametrize(
    "name",
    [
        "../secret.txt",
        "logs/../../secret.txt",
        "link.txt",
        ".hidden",
        "",
        ".",
        "logs",
        "none.txt",
        "{absolute}",
        "a\0b",
    ],
)
def test_nothing_outside_the_folder_can_be_named(kernel: WimKernel, folder: Path, name: str) -> None:
    tool = create_wim_tool(kernel, folder=folder, **FEW)
    message = called(tool, question=QUESTION, document=name.format(absolute=folder.parent / "secret.txt"))
    assert message.status == "error"
    assert "swordfish" not in message.content
    assert os.fspath(folder.parent) not in message.content.replace(name.format(absolute=folder.parent), "")


def test_a_file_that_cannot_be_read_is_said(kernel: WimKernel, folder: Path) -> None:
    message = called(create_wim_tool(kernel, folder=folder), question=QUESTION, document="broken.pdf")
    assert message.status == "error"
    assert "broken.pdf" in message.content
    assert os.fspath(folder) not in message.content


# -- agents ------------------------------------------------------------------------------------------------------------


class Scripted(FakeMessagesListChatModel):
    """A chat model that says what it was told to, and can be given tools."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self


def agent_with(tool: BaseTool, *questions: str) -> Any:
    calls = [
        {"type": "tool_call", "id": str(number), "name": tool.name, "args": {"question": question}}
        for number, question in enumerate(questions)
    ]
    model = Scripted(responses=[AIMessage("", tool_calls=calls), AIMessage("Elsa Brandt.")])
    return create_agent(model, [tool])


ASK = {"messages": [("human", "Find out.")]}


async def test_parallel_calls_in_an_agent(kernel: WimKernel) -> None:
    tool = create_wim_tool(kernel, [SHIP], **FEW)
    questions = [QUESTION, "What sat on the mast?", "What was the ship called?"]
    wanted = [called(tool, question=question).content for question in questions]
    kernel.cache.clear()
    for result in (
        agent_with(tool, *questions).invoke(ASK),
        await agent_with(tool, *questions).ainvoke(ASK),
    ):
        messages = [message for message in result["messages"] if isinstance(message, ToolMessage)]
        assert [message.content for message in messages] == wanted
        assert all(message.artifact["margins"] for message in messages)
    prefilled = sum(message.artifact["usage"]["prefill_tokens"] for message in messages)
    assert prefilled == 0  # the first agent read it


def test_an_agents_streams(kernel: WimKernel) -> None:
    tool = create_wim_tool(kernel, [SHIP], **FEW)
    items = list(
        agent_with(tool, QUESTION).stream(ASK, stream_mode=["tools", "custom", "messages", "updates"])
    )
    check_streams(items)


async def test_an_agents_streams_asynchronously(kernel: WimKernel) -> None:
    tool = create_wim_tool(kernel, [SHIP], **FEW)
    agent = agent_with(tool, QUESTION)
    items = [
        item async for item in agent.astream(ASK, stream_mode=["tools", "custom", "messages", "updates"])
    ]
    check_streams(items)


def check_streams(items: list[Any]) -> None:
    wanted = Counter(wim_chunk=1, wim_margin=1, wim_answer=1)
    deltas = [data["delta"] for mode, data in items if mode == "tools" and "delta" in data]
    assert Counter(delta["event"] for delta in deltas) == wanted
    assert json.loads(json.dumps(deltas)) == deltas
    custom = [data for mode, data in items if mode == "custom"]
    assert Counter(data["event"] for data in custom) == wanted
    messages = [data[0] for mode, data in items if mode == "messages"]
    said = "".join(message.content for message in messages if isinstance(message, AIMessage))
    assert said == "Elsa Brandt."  # not a word of the tool's own model
    (result,) = (message for message in messages if isinstance(message, ToolMessage))
    assert result.status == "success"
    assert [name for mode, data in items if mode == "updates" for name in data] == ["model", "tools", "model"]


async def test_an_agents_usage_counts_the_tools_model(kernel: WimKernel) -> None:
    tool = create_wim_tool(kernel, [SHIP], **FEW)
    with get_usage_metadata_callback() as counted:
        result = await agent_with(tool, QUESTION).ainvoke(ASK)
    (message,) = (message for message in result["messages"] if isinstance(message, ToolMessage))
    usage = counted.usage_metadata[kernel.engine.model_name]
    assert usage["output_tokens"] == message.artifact["usage"]["output_tokens"] > 0


def test_agent_goes_on_after_a_tools_error(kernel: WimKernel) -> None:
    tool = create_wim_tool(kernel, [" "])
    result = agent_with(tool, QUESTION).invoke(ASK)
    (message,) = (message for message in result["messages"] if isinstance(message, ToolMessage))
    assert message.status == "error"
    assert "document is empty" in message.content
    assert result["messages"][-1].content == "Elsa Brandt."


def test_a_document_in_which_nothing_is_said_has_no_notes(real_kernel: WimKernel) -> None:
    tool = create_wim_tool(real_kernel, documents=[Document("...")], threshold=0, answer_tokens=4)
    assert "Notes" not in tool.invoke({"question": QUESTION})
    assert create_wim_tool(real_kernel, documents=[Document("")]).invoke({"question": QUESTION}) == (
        "The document is empty: it holds no text."
    )
