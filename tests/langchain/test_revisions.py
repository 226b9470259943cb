"""Margins that become others once more of the documents is known, and a compressor's threshold."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from operator import add
from typing import Any, TypedDict

import pytest
from asking import QUESTION
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langgraph.graph import END, START, StateGraph

from wim_integrations.langchain import (
    WimAnswer,
    WimDocumentCompressor,
    WimMargins,
    WimRunnable,
    create_wim_map_reduce_chain,
    create_wim_tool,
)
from wim_integrations.langchain.documents import DocumentReading
from wim_integrations.langchain.outputs import Margins
from wim_kernel import Evidence, EvidenceProbability, WimKernel
from wim_kernel.common.margins import without_text
from wim_kernel.run.quoting import GAP
from wim_kernel.run.relevance.calibration import Calibration

SLOWLY: dict[str, Any] = {"margin_batch": 1, "answer_tokens": 4}  # so that most is known only later
MARGINS = ("wim_margin", "wim_margin_revised")


@pytest.fixture
def revising(kernel: WimKernel, monkeypatch: pytest.MonkeyPatch) -> WimKernel:
    """A kernel that takes its scores to mean something."""
    monkeypatch.setattr(kernel, "find_calibration", lambda: Calibration(source="examples"))
    return kernel


class Heard(BaseCallbackHandler):
    """Custom events, and the runs of margins."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.runs: list[Any] = []

    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        self.told.append((name, data))

    def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
        if kwargs.get("name") == "WimMargin":
            self.runs.append(inputs["chunk"])


def latest(told: list[tuple[str, Any]]) -> list[Any]:
    """Each margin as it was told last, in reading order."""
    found = {data["index"]: data for name, data in told if name in MARGINS}
    return [
        {name: value for name, value in found[index].items() if name != "question"} for index in sorted(found)
    ]


Part = Callable[[WimKernel, list[Document], dict[str, Any]], Any]


def runnable(kernel: WimKernel, documents: list[Document], config: dict[str, Any]) -> Any:
    return WimRunnable(kernel=kernel, **SLOWLY).invoke(
        {"question": QUESTION, "documents": documents}, config
    )["margins"]


def margins_only(kernel: WimKernel, documents: list[Document], config: dict[str, Any]) -> Any:
    return WimMargins(kernel=kernel, margin_batch=1).invoke(
        {"question": QUESTION, "documents": documents}, config
    )["margins"]


def tool(kernel: WimKernel, documents: list[Document], config: dict[str, Any]) -> Any:
    call = {"args": {"question": QUESTION}, "name": "ask_document", "id": "1", "type": "tool_call"}
    return create_wim_tool(kernel, documents, **SLOWLY).invoke(call, config).artifact["margins"]


@pytest.mark.in_process
@pytest.mark.parametrize("part", [runnable, margins_only, tool], ids=lambda part: part.__name__)
def test_the_last_event_of_a_margin_is_its_final_state(
    part: Part, revising: WimKernel, documents: list[Document]
) -> None:
    heard = Heard()
    margins = part(revising, documents, {"callbacks": [heard]})
    names = Counter(name for name, _ in heard.told)
    assert names["wim_margin"] == 3
    assert names["wim_margin_revised"] > 0
    assert latest(heard.told) == margins
    assert all(margin["evidence"] for margin in margins)
    assert json.loads(json.dumps(heard.told)) == [list(each) for each in heard.told]
    assert set(heard.runs) == {0, 1, 2}


@pytest.mark.in_process
async def test_parts_of_a_stream_add_up_to_revised_margins(
    revising: WimKernel, documents: list[Document]
) -> None:
    given = {"question": QUESTION, "documents": documents}
    for made in (WimRunnable(kernel=revising, **SLOWLY), WimMargins(kernel=revising, margin_batch=1)):
        wanted = made.invoke(given)["margins"]
        for chunks in (list(made.stream(given)), [chunk async for chunk in made.astream(given)]):
            assert sum(len(chunk.get("margins", ())) for chunk in chunks) > 3
            whole = chunks[0]
            for chunk in chunks[1:]:
                whole = whole + chunk
            assert whole["margins"] == wanted
    async for event in made.astream_events(given, version="v2"):
        if event["event"] == "on_chain_end" and not event["parent_ids"]:
            assert event["data"]["output"]["margins"] == wanted


def test_margins_add_up_from_either_side() -> None:
    first, second, third = ({"index": 0, "text": "a"}, {"index": 1, "text": "b"}, {"index": 0, "text": "c"})
    one, other = Margins([first, second]), Margins([third])  # type: ignore[list-item]
    assert one + other == [third, second]
    assert add(one, [third]) == add([first, second], other) == [third, second]
    assert isinstance(add([first], other), Margins)


class State(TypedDict, total=False):
    question: str
    documents: list[Document]
    margins: Any
    answer: str


@pytest.mark.in_process
def test_graphs_hear_of_revised_margins(revising: WimKernel, documents: list[Document]) -> None:
    builder = StateGraph(State)
    builder.add_node("read", WimRunnable(kernel=revising, **SLOWLY))
    builder.add_edge(START, "read")
    builder.add_edge("read", END)
    told: list[tuple[str, Any]] = []
    state: Any = {}
    given = {"question": QUESTION, "documents": documents}
    for mode, data in builder.compile().stream(given, stream_mode=["custom", "values"]):
        if mode == "custom":
            told.append((data["event"], data["data"]))
        else:
            state = data
    assert "wim_margin_revised" in dict(told)
    assert latest(told) == state["margins"]


def test_intermediate_steps_are_the_revised_ones(revising: WimKernel, documents: list[Document]) -> None:
    chain = create_wim_map_reduce_chain(revising, return_intermediate_steps=True, **SLOWLY)
    heard = Heard()
    output = chain.invoke({"input_documents": documents, "question": QUESTION}, config={"callbacks": [heard]})
    assert output["intermediate_steps"] == [margin["text"] for margin in latest(heard.told)]


def test_margins_come_back_with_their_evidence_and_their_gaps(
    kernel: WimKernel, documents: list[Document]
) -> None:
    """What a person hands back has the evidence of the margin that was written, but what was found of its text."""
    text = "The gull sat. It rained. Elsa Brandt owned the ship."
    source = DocumentReading(kernel, [Document(page_content=text)])
    written = source.reading.margins(QUESTION, threshold=0)[0]
    chunk = written.chunk
    spans = (*chunk.locate(0, 13), *chunk.locate(25, len(text)))
    for between, known in ((GAP, True), (" ", True), ("\n", True), (" and ", False)):
        quoted = f"The gull sat.{between}Elsa Brandt owned the ship."
        data = {**source.margin_data(written), "text": quoted}
        data["quotes"] = [{"start": 0, "end": 13}, {"start": 25, "end": len(text)}]
        (back,) = source.margins([data])
        assert back.spans == (spans if known else ())
        assert back.evidence == without_text(written.evidence) != {}
    answered = WimAnswer(kernel=kernel, answer_tokens=2).invoke(
        {"question": QUESTION, "documents": [text], "margins": [data]}
    )
    assert answered["margins"][0]["evidence"] == without_text(written.evidence)


# -- the compressor's threshold ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Faint(EvidenceProbability):
    """A probability of evidence that is low, but lowest where nothing is said of Elsa."""

    def __call__(self, evidence: Evidence) -> float:
        return 0.15 if "Elsa" in evidence.chunk.text else 0.05


def faint(evidence: Evidence) -> float:
    return 0.15 if "Elsa" in evidence.chunk.text else 0.05


@pytest.mark.in_process
def test_a_compressor_leans_to_recall(kernel: WimKernel, documents: list[Document]) -> None:
    def kept(**fields: Any) -> list[str]:
        found = WimDocumentCompressor(kernel=kernel, **fields).compress_documents(documents, QUESTION)
        assert all(document.metadata["wim"]["evidence"] for document in found)
        return [document.page_content for document in found]

    assert kept(relevance=Faint()) == ["Elsa Brandt owned the ship Aurora."]
    assert kept(relevance=Faint(), threshold=0.25) == []
    assert len(kept(relevance=Faint(), threshold=0.01)) == 3
    assert len(kept(relevance=Faint(), top_k=2)) == 2
    assert len(kept(relevance=Faint(), keep=lambda margin: True)) == 3
    assert kept(relevance=faint) == []  # the kernel's default is for the kernel's other scores
    asked = kernel.read([document.page_content for document in documents]).ask(
        QUESTION, relevance=Faint(), answer_tokens=1
    )
    assert not asked.kept  # behind an answer stands the whole document
