"""A person between margins and answer, in LangGraph: interrupt, edit, resume, restart."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from asking import QUESTION
from helpers import spying
from langchain_core.documents import Document
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt
from review_graphs import State, review_graph

from wim_integrations.langchain import WimAnswer, WimMargins, WimRunnable
from wim_kernel import WimKernel


def reviewed_graph(kernel: WimKernel, saver: InMemorySaver, **fields: Any) -> Any:
    """Margins by one node, a person by the next, the answer by the last."""

    def review(state: State) -> State:
        return {"margins": interrupt({"margins": state["margins"]})}

    return review_graph(kernel, review, saver, **fields)


def single_node_graph(kernel: WimKernel, saver: InMemorySaver) -> Any:
    """All in one node, which runs again from its start when it is resumed."""
    margins = WimMargins(kernel=kernel, threshold=0, margin_tokens=4)
    answer = WimAnswer(kernel=kernel, answer_tokens=6)

    def node(state: State) -> State:
        given = {"question": state["question"], "documents": state["documents"]}
        noted = margins.invoke(given)
        chosen = interrupt(noted["margins"])
        output = answer.invoke({**given, "margins": chosen, "chunks_read": noted["chunks_read"]})
        return {"answer": output["answer"], "usage": output["usage"]}

    builder = StateGraph(State)
    builder.add_node("ask", node)
    builder.add_edge(START, "ask")
    builder.add_edge("ask", END)
    return builder.compile(checkpointer=saver)


THREAD: dict[str, Any] = {"configurable": {"thread_id": "1"}}


def start(graph: Any, documents: list[Document]) -> list[dict[str, Any]]:
    paused = graph.invoke({"question": QUESTION, "documents": documents}, THREAD)
    (shown,) = paused["__interrupt__"]
    margins: list[dict[str, Any]] = shown.value["margins"]
    return margins


def edited(margins: list[dict[str, Any]]) -> list[dict[str, Any]]:
    margins = [dict(margin) for margin in margins]
    margins[0]["kept"] = False  # thumbs down
    margins[1].update(text="Elsa Brandt owned it.", note="the register says so")
    return margins


@pytest.mark.in_process
def test_the_resumed_graph_answers_from_what_the_person_left_and_prefills_nothing(
    kernel: WimKernel, documents: list[Document]
) -> None:
    graph = reviewed_graph(kernel, InMemorySaver(), threshold=0)
    margins = start(graph, documents)
    assert [margin["kept"] for margin in margins] == [True] * 3
    mark = kernel.tokenizer.encode(" Brandt", add_special_tokens=False)[0]
    with spying(kernel.model) as spy:
        done = graph.invoke(Command(resume=edited(margins)), THREAD)
    assert done["usage"]["prefill_tokens"] == 0
    assert spy.count(mark) == 1  # in the edited note, and not in the document again
    assert done["answer"] == by_hand(kernel, documents, edited(margins))
    assert done["answer"] != by_hand(kernel, documents, margins)


def by_hand(kernel: WimKernel, documents: list[Document], margins: list[dict[str, Any]]) -> str:
    """The same answer from the kernel alone."""
    reading = kernel.read([document.page_content for document in documents])
    written = reading.margins(QUESTION, threshold=0, margin_tokens=4)
    left = []
    for margin, data in zip(written, margins, strict=True):
        if data["text"] != margin.text:
            margin = margin.edited(data["text"])
        left.append(type(margin)(**{**vars(margin), "kept": data["kept"], "note": data["note"]}))
    return reading.answer(QUESTION, left, answer_tokens=6).answer


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="LangGraph interrupts no async node before Python 3.11"
)
async def test_resumed_graph_answers_asynchronously(kernel: WimKernel, documents: list[Document]) -> None:
    graph = reviewed_graph(kernel, InMemorySaver(), threshold=0)
    paused = await graph.ainvoke({"question": QUESTION, "documents": documents}, THREAD)
    margins = paused["__interrupt__"][0].value["margins"]
    done = await graph.ainvoke(Command(resume=edited(margins)), THREAD)
    assert done["usage"]["prefill_tokens"] == 0
    assert done["answer"] == by_hand(kernel, documents, edited(margins))


@pytest.mark.in_process
def test_after_a_restart_it_reads_again_and_answers_rightly(
    kernel: WimKernel, documents: list[Document]
) -> None:
    saver = InMemorySaver()
    margins = start(reviewed_graph(kernel, saver, threshold=0), documents)
    wanted = by_hand(kernel, documents, edited(margins))
    restarted = WimKernel(kernel.model, kernel.tokenizer)  # what was saved is all there is
    done = reviewed_graph(restarted, saver, threshold=0).invoke(Command(resume=edited(margins)), THREAD)
    assert done["usage"]["prefill_tokens"] > 0
    assert done["answer"] == wanted


@pytest.mark.in_process
def test_a_reading_that_stopped_early_is_answered_from_where_it_stopped(
    kernel: WimKernel, documents: list[Document]
) -> None:
    saver = InMemorySaver()
    margins = start(reviewed_graph(kernel, saver, threshold=0, stop_after=1, margin_batch=1), documents)
    assert len(margins) == 1
    restarted = WimKernel(kernel.model, kernel.tokenizer)
    done = reviewed_graph(restarted, saver).invoke(Command(resume=margins), THREAD)
    first = kernel.count_tokens(documents[0].page_content)
    assert done["usage"]["prefill_tokens"] == first


def test_one_node_that_runs_again_finds_its_reading(kernel: WimKernel, documents: list[Document]) -> None:
    graph = single_node_graph(kernel, InMemorySaver())
    paused = graph.invoke({"question": QUESTION, "documents": documents}, THREAD)
    margins = paused["__interrupt__"][0].value
    read = kernel.read([document.page_content for document in documents]).prefill()
    assert read.prefill_tokens == 0
    done = graph.invoke(Command(resume=edited(margins)), THREAD)
    assert done["usage"]["prefill_tokens"] == 0
    assert done["answer"] == by_hand(kernel, documents, edited(margins))


def test_dropping_all_margins_is_an_answer_without_notes(
    kernel: WimKernel, documents: list[Document]
) -> None:
    graph = reviewed_graph(kernel, InMemorySaver(), threshold=0)
    start(graph, documents)
    done = graph.invoke(Command(resume=[]), THREAD)
    reading = kernel.read([document.page_content for document in documents])
    assert done["answer"] == reading.answer(QUESTION, [], answer_tokens=6).answer


@pytest.mark.in_process
@pytest.mark.parametrize(
    ("kind", "ask"),
    [
        (WimMargins, lambda runnable, given: runnable.invoke(given)),
        (WimRunnable, lambda runnable, given: runnable.batch([given])[0]),
    ],
)
def test_an_interrupt_in_a_callback_is_not_swallowed(
    kernel: WimKernel, documents: list[Document], kind: Any, ask: Any
) -> None:
    """A `keep` may ask the person itself, margin by margin."""
    runnable = kind(
        kernel=kernel, threshold=0, margin_tokens=4, keep=lambda margin: bool(interrupt(margin.text))
    )

    def node(state: State) -> State:
        given = {"question": state["question"], "documents": state["documents"]}
        return {"margins": ask(runnable, given)["margins"]}

    builder = StateGraph(State)
    builder.add_node("read", node)
    builder.add_edge(START, "read")
    graph = builder.compile(checkpointer=InMemorySaver())
    result = graph.invoke({"question": QUESTION, "documents": documents}, THREAD)
    for choice in (True, False, True):
        assert "__interrupt__" in result
        result = graph.invoke(Command(resume=choice), THREAD)
    assert [margin["kept"] for margin in result["margins"]] == [True, False, True]
    assert not any(live.in_use for live in kernel.cache.held)


@pytest.mark.parametrize("mode", ["updates", "values"])
def test_margins_are_state_that_a_checkpoint_can_hold(
    kernel: WimKernel, documents: list[Document], mode: str
) -> None:
    saver = InMemorySaver()
    graph = reviewed_graph(kernel, saver, threshold=0)
    list(graph.stream({"question": QUESTION, "documents": documents}, THREAD, stream_mode=mode))
    state = graph.get_state(THREAD)
    assert state.next == ("review",)
    assert [margin["index"] for margin in state.values["margins"]] == [0, 1, 2]
    assert state.values["documents"] == documents
