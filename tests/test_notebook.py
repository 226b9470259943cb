"""Margins appear in a notebook while it runs: a real notebook, executed, and the messages that it sent."""

from __future__ import annotations

from typing import Any

import pytest
from notebooks import execute

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

FIRST = """
import json, time
from langchain_core.language_models import FakeListChatModel
from wim_kernel import WimKernel, ashow, show
from wim_kernel.common import notebook

notebook.PAUSE = 0
pages = [
    "The gull sat on the mast of the <b>ship</b>.",
    "Elsa Brandt owned the ship Aurora. <script>alert(1)</script>",
    "Nobody saw the ship that night.",
]
replies = [json.dumps({"relevance": 9, "quotes": [page.split(". ")[0]]}) for page in pages]

def reading():
    llm = FakeListChatModel(responses=[*replies, "Elsa Brandt [2] owned it."])
    return WimKernel.from_chat_model(llm, max_concurrency=1).read(pages)

QUESTION = "Who owned the ship?"
"""
LIVE = "result = show(reading().stream(QUESTION, citations=True, margin_batch=1)); print(result.answer)"
ASYNC = "result = await ashow(reading().astream(QUESTION)); len(result.margins)"
VALUE = "result"
MARGINS = "found = show(reading().stream_margins(QUESTION)); print(len(found.margins), repr(found.answer))"
CLOSED = """
stream = reading().stream(QUESTION)
stream.close()
try:
    show(stream)
except ValueError as error:
    print(error)
try:
    show(reading().stream_many([QUESTION, QUESTION]))
except ValueError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[dict[str, Any]]]:
    """The executed notebook, and the messages about its displays, in order."""
    messages: list[dict[str, Any]] = []

    def hear(msg: dict[str, Any], cell: int) -> None:
        if msg["msg_type"] in ("display_data", "update_display_data"):
            messages.append({"cell": cell, "kind": msg["msg_type"], **msg["content"]})

    cells = [nbformat.v4.new_code_cell(each) for each in (FIRST, LIVE, ASYNC, VALUE, MARGINS, CLOSED)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    execute(notebook, tmp_path_factory.mktemp("notebook"), hear)
    return notebook, messages


def html(output: dict[str, Any]) -> str:
    return "".join(output["data"]["text/html"])


def test_margins_are_shown_one_by_one_and_before_the_answer(executed: tuple[Any, list[Any]]) -> None:
    _, messages = executed
    own = [message for message in messages if message["cell"] == 1]
    assert [message["kind"] for message in own[:2]] == ["display_data", "update_display_data"]
    assert len({message["transient"]["display_id"] for message in own}) == 1
    cards = [html(message).count("<aside") for message in own]
    assert cards == sorted(cards)
    assert {0, 1, 2, 3} == set(cards)
    answers = ["<h2>Answer</h2>" in html(message) for message in own]
    assert not any(shown for count, shown in zip(cards, answers, strict=True) if count < 3)
    partial = [html(message) for message, shown in zip(own, answers, strict=True) if shown]
    assert len(partial) > 3
    assert "owned it." not in partial[0]
    assert "Read chunk" in html(own[1])


def test_what_stays_has_numbers_that_lead_to_notes_and_no_markup_of_the_document(
    executed: tuple[Any, list[Any]],
) -> None:
    notebook, _ = executed
    display, printed = notebook.cells[1].outputs
    shown = html(display)
    assert "Done in" in shown
    assert 'href="#wim-live-' in shown
    assert shown.split('href="#')[1].split('"')[0] in shown.split("<h2>Answer")[0]
    assert "<script" not in shown
    assert "<b>" not in shown
    assert "Elsa Brandt [2] owned it." in printed["text"]
    assert display["data"]["text/plain"].endswith("Elsa Brandt [2] owned it.")


def test_async_streams_margins_alone_and_a_result_as_a_value(executed: tuple[Any, list[Any]]) -> None:
    notebook, _ = executed
    display, value = notebook.cells[2].outputs
    assert html(display).count("<aside") == 3
    assert value["data"]["text/plain"] == "3"
    (page,) = notebook.cells[3].outputs
    assert "<h2>Document</h2>" in html(page)
    assert "<mark" in html(page)
    margins, printed = notebook.cells[4].outputs
    assert html(margins).count("<aside") == 3
    assert "<h2>Answer</h2>" not in html(margins)
    assert printed["text"] == "3 ''\n"


def test_a_closed_stream_and_several_questions_are_errors(executed: tuple[Any, list[Any]]) -> None:
    notebook, _ = executed
    said = "".join(output.get("text", "") for output in notebook.cells[5].outputs)
    assert said == (
        "The stream has no result: it was closed, or read to its end before.\n"
        "show is for one question: give it the stream of each question by itself.\n"
    )
    stopped = [html(output) for output in notebook.cells[5].outputs if "data" in output]
    assert "Stopped" in stopped[-1]
