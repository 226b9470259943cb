"""The Open WebUI pipe with a stand-in for Open WebUI's event emitter, which is all of it that the pipe meets."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from wim_kernel import WimKernel

QUESTION = "Who owned the ship?"
LOG = "The gull sat on the mast. <|im_end|> {It} rained all night, and the fog was thick."
REGISTER = "Elsa Brandt owned the ship Aurora. She bought it in Brill."


class Emitted(list[dict[str, Any]]):
    """Collects events, as Open WebUI's emitter takes them."""

    async def emit(self, event: dict[str, Any]) -> None:
        self.append(event)

    def data(self, kind: str) -> list[dict[str, Any]]:
        return [event["data"] for event in self if event["type"] == kind]


def file(name: str, text: str | None) -> dict[str, Any]:
    """A file of a chat, as Open WebUI describes it."""
    return {"type": "file", "id": name, "name": name, "file": {"filename": name, "data": {"content": text}}}


def body(content: Any = QUESTION) -> dict[str, Any]:
    return {
        "model": "margins",
        "stream": True,
        "messages": [
            {"role": "user", "content": "Hello."},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": content},
        ],
    }


@pytest.fixture
def make(example: Callable[[str], ModuleType]) -> Callable[[WimKernel], Any]:
    def made(kernel: WimKernel) -> Any:
        pipe = example("open_webui_pipe").Pipe(kernel)
        pipe.valves.ANSWER_TOKENS = 12
        return pipe

    return made


FILES = [file("log.txt", LOG), file("empty.txt", None), file("register.txt", REGISTER)]


async def test_pipe_emits_status_citations_and_answer(
    real_kernel: WimKernel, make: Callable[[WimKernel], Any]
) -> None:
    events = Emitted()
    pieces = []
    async for piece in make(real_kernel).pipe(body(), events.emit, FILES):
        if not pieces:
            assert events.data("citation"), "the citations come before the words that cite them"
        pieces.append(piece)
    assert "".join(pieces).strip()

    statuses = events.data("status")
    assert [data["description"] for data in statuses[:2]] == ["Read passage 1 of 2", "Read passage 2 of 2"]
    assert [data["done"] for data in statuses] == [False] * (len(statuses) - 1) + [True]

    citations = events.data("citation")
    assert all(set(data) == {"document", "metadata", "source"} for data in citations)
    assert all(len(data["document"]) == len(data["metadata"]) == 1 for data in citations)
    assert len({data["source"]["name"] for data in citations}) == len(citations)
    (register,) = [data for data in citations if data["source"]["name"].startswith("register.txt")]
    assert "Elsa Brandt owned the ship Aurora." in register["document"][0]
    assert (register["metadata"][0]["start"], register["metadata"][0]["end"]) == (0, len(REGISTER))

    result = real_kernel.ask(QUESTION, [LOG, REGISTER], answer_tokens=12, citations=True, margin_batch=1)
    used = [margin.text for margin in result.margins if margin.is_used]
    assert [data["document"][0] for data in citations] == used  # number n is the n-th citation


@pytest.mark.parametrize(
    ("content", "files", "said"),
    [
        (QUESTION, None, "Attach a file"),
        (QUESTION, [file("empty.txt", " ")], "Attach a file"),
        ("", FILES, "question"),
        ([{"type": "image_url", "image_url": {"url": "data:"}}], FILES, "question"),
    ],
)
async def test_pipe_reports_errors_in_its_reply(
    kernel: WimKernel, make: Callable[[WimKernel], Any], content: Any, files: Any, said: str
) -> None:
    events = Emitted()
    text = "".join([piece async for piece in make(kernel).pipe(body(content), events.emit, files)])
    assert said in text
    assert not events.data("citation")
    assert all(data["done"] for data in events.data("status")[-1:])


async def test_parts_of_a_message_are_its_question_and_no_emitter_is_needed(
    kernel: WimKernel, make: Callable[[WimKernel], Any]
) -> None:
    parts = [{"type": "text", "text": QUESTION}]
    assert [piece async for piece in make(kernel).pipe(body(parts), None, FILES)]


async def test_titles_and_tags_cost_nothing(kernel: WimKernel, make: Callable[[WimKernel], Any]) -> None:
    events = Emitted()
    pipe = make(kernel).pipe(body(), events.emit, FILES, __task__="title_generation")
    assert [piece async for piece in pipe] == []
    assert events == []


async def test_stopping_frees_the_reading(kernel: WimKernel, make: Callable[[WimKernel], Any]) -> None:
    answer = make(kernel).pipe(body(), Emitted().emit, FILES)
    assert await anext(answer)
    await answer.aclose()
    assert not any(live.in_use for live in kernel.readings.held)
    assert [piece async for piece in make(kernel).pipe(body(), Emitted().emit, FILES)]


def test_pipe_header_holds_open_webuis_settings() -> None:
    source = (Path(__file__).parents[2] / "examples" / "open_webui_pipe.py").read_text()
    assert source.startswith('"""\ntitle: ')
    lines = (ast.get_docstring(ast.parse(source)) or "").splitlines()
    settings = dict(line.split(": ", 1) for line in lines[:5])
    assert list(settings) == [
        "title",
        "description",
        "version",
        "required_open_webui_version",
        "requirements",
    ]
