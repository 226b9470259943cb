"""What a person sends back to a graph that showed margins: the margins, an approval, or something that is neither."""

from __future__ import annotations

from typing import Any

import pytest
from asking import QUESTION
from langchain_core.documents import Document
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt
from review_graphs import State, review_graph

from wim_integrations.langchain import WimAnswer, reviewed
from wim_kernel import MarginsError, WimKernel


def graph(kernel: WimKernel, *, keeps_written: bool = False) -> Any:
    """The documented graph; with ``keeps_written``, the one that survives restarts."""

    def review(state: State) -> State:
        reply = interrupt(state["margins"])
        return {"margins": reviewed(state["margins"], reply) if keeps_written else reply}

    # margins written together are the same each time; otherwise they depend on how much is in the cache
    return review_graph(kernel, review, InMemorySaver(), threshold=0, margin_batch=3)


def resumed(made: Any, documents: list[Document], reply: Any, thread: str = "1") -> Any:
    config = {"configurable": {"thread_id": thread}}
    paused = made.invoke({"question": QUESTION, "documents": documents}, config)
    (pause,) = paused["__interrupt__"]
    return made.invoke(Command(resume=pause.value if reply is None else reply), config)


@pytest.mark.parametrize("keeps_written", [False, True])
@pytest.mark.parametrize("reply", [True, "approve", "Approved"])
def test_an_approval_answers_from_the_margins_as_shown(
    kernel: WimKernel, documents: list[Document], reply: Any, keeps_written: bool
) -> None:
    made = graph(kernel, keeps_written=keeps_written)
    wanted = resumed(made, documents, None)["answer"]
    assert resumed(made, documents, reply, "2")["answer"] == wanted
    assert resumed(made, documents, ["Nobody owned a ship, ever."], "3")["answer"] != wanted


def test_an_approval_of_margins_that_are_not_known_says_what_to_do(
    kernel: WimKernel, documents: list[Document]
) -> None:
    answer = WimAnswer(kernel=kernel, answer_tokens=2)
    for reply in (True, "approve"):
        with pytest.raises(MarginsError, match="give the margins themselves"):
            answer.invoke({"question": "Never asked?", "documents": documents, "margins": reply})


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("looks good to me", "Margins are a list"),
        (False, "give \\[\\]"),
        ({"margins": []}, "Margins are a list"),
        ([None], "position 0 is None"),
        ([{}], "no 'text'"),
        ([{"text": "x", "kept": "no"}], "true or false"),
        ([{"text": "x", "index": "0"}], "number of its chunk"),
        ([{"text": "x", "index": 0, "quotes": [{"a": 1}]}], "leave them out"),
    ],
)
async def test_invalid_reviews_are_named(
    kernel: WimKernel, documents: list[Document], reply: Any, said: str
) -> None:
    with pytest.raises(MarginsError, match=said):
        resumed(graph(kernel), documents, reply)
    answer = WimAnswer(kernel=kernel, answer_tokens=2)
    given = {"question": QUESTION, "documents": documents, "margins": reply}
    with pytest.raises(MarginsError, match=said):
        await answer.ainvoke(given)
    with pytest.raises(MarginsError, match=said):
        list(answer.stream(given))


@pytest.mark.parametrize("read", [0, "two", True, 9])
def test_chunks_read_is_checked(kernel: WimKernel, documents: list[Document], read: Any) -> None:
    answer = WimAnswer(kernel=kernel, answer_tokens=2)
    with pytest.raises(ValueError, match="chunks_read is"):
        answer.invoke({"question": QUESTION, "documents": documents, "margins": [], "chunks_read": read})
