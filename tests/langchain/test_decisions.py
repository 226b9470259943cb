"""Reviews in the shapes of LangChain's ``HumanInTheLoopMiddleware``."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents.middleware.human_in_the_loop import HITLRequest, HITLResponse
from langchain_core.documents import Document
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt
from pydantic import TypeAdapter
from review_graphs import State, review_graph

from wim_integrations.langchain import WimAnswer, WimMargins, review_request, reviewed
from wim_kernel import MarginsError, WimKernel
from wim_kernel.common.margins import without_text

QUESTION = "Who owned the ship?"
APPROVE = {"type": "approve"}
WORDS = "The harbour master owned it."


def graph(kernel: WimKernel, *, in_answer: bool = False) -> Any:
    """The documented graph; with ``in_answer``, the decisions go straight to `WimAnswer`."""

    def review(state: State) -> State:
        reply = interrupt(review_request(state["margins"]))
        TypeAdapter(HITLResponse).validate_python(reply)
        return {"margins": reply if in_answer else reviewed(state["margins"], reply)}

    return review_graph(kernel, review, InMemorySaver(), threshold=0, margin_batch=3)


def edit(**args: Any) -> dict[str, Any]:
    return {"type": "edit", "edited_action": {"name": "use_margin", "args": args}}


@pytest.fixture
def margins(kernel: WimKernel, documents: list[Document]) -> list[Any]:
    chain = WimMargins(kernel=kernel, threshold=0, margin_tokens=4, margin_batch=3)
    return list(chain.invoke({"question": QUESTION, "documents": documents})["margins"])


def test_review_request_has_the_middlewares_shape(margins: list[Any]) -> None:
    request = review_request(margins)
    assert TypeAdapter(HITLRequest).validate_python(request) == request
    assert len(request["action_requests"]) == len(request["review_configs"]) == 3
    for margin, action, config in zip(
        margins, request["action_requests"], request["review_configs"], strict=True
    ):
        assert action["name"] == config["action_name"] == "use_margin"
        assert action["args"]["text"] == margin["text"]
        assert action["args"]["source"] == margin["metadata"]["source"]
        assert margin["text"].strip() in action["description"]
        assert config["allowed_decisions"] == ["approve", "edit", "reject", "respond"]


@pytest.mark.parametrize(
    "decision", [edit(text="Elsa Brandt owned it."), {"type": "respond", "message": WORDS}]
)
def test_another_text_leaves_out_what_was_found_of_the_old_one(decision: dict[str, Any]) -> None:
    written = {"text": "A whale.", "kept": True, "evidence": {"lexical": 0.1, "support": 0.0, "located": 0.0}}
    (changed,) = reviewed([written], {"decisions": [decision]})
    assert changed["evidence"] == {"lexical": 0.1}
    assert reviewed([written], {"decisions": [APPROVE]}) == [written]
    assert reviewed([written], {"decisions": [edit(text="A whale.")]}) == [written]


@pytest.mark.parametrize("in_answer", [False, True])
def test_decisions_change_margins_by_their_type(
    kernel: WimKernel, documents: list[Document], margins: list[Any], in_answer: bool
) -> None:
    decisions = [
        {"type": "reject", "message": "off the point"},
        edit(text="Elsa Brandt owned it.", note="the register says so"),
        {"type": "respond", "message": WORDS},
    ]
    wanted = [dict(margin) for margin in margins]
    wanted[0].update(kept=False, note="off the point")
    wanted[1].update(text="Elsa Brandt owned it.", note="the register says so")
    wanted[2].update(text=WORDS, quotes=[])
    for changed in wanted[1:3]:
        changed["evidence"] = without_text(changed["evidence"])
    assert reviewed(margins, {"decisions": decisions}) == wanted

    given = {"question": QUESTION, "documents": documents}
    made, thread = graph(kernel, in_answer=in_answer), {"configurable": {"thread_id": "1"}}
    (pause,) = made.invoke(given, thread)["__interrupt__"]
    assert pause.value == review_request(margins)
    done = made.invoke(Command(resume={"decisions": decisions}), thread)
    by_hand = WimAnswer(kernel=kernel, answer_tokens=6).invoke({**given, "margins": wanted})
    assert done["answer"] == by_hand["answer"] != ""
    assert [margin["text"] for margin in by_hand["margins"] if margin["kept"]] == [
        "Elsa Brandt owned it.",
        WORDS,
    ]


def test_approving_all_is_the_answer_as_it_would_be(
    kernel: WimKernel, documents: list[Document], margins: list[Any]
) -> None:
    assert reviewed(margins, {"decisions": [APPROVE] * 3}) == margins
    given = {"question": QUESTION, "documents": documents}
    answer = WimAnswer(kernel=kernel, answer_tokens=6)
    wanted = answer.invoke({**given, "margins": margins})["answer"]
    assert answer.invoke({**given, "margins": {"decisions": [APPROVE] * 3}})["answer"] == wanted


def test_only_kept_margins_with_text_are_asked_about(margins: list[Any]) -> None:
    margins[0]["kept"] = False
    margins[1]["text"] = " "
    request = review_request(margins)
    assert [action["args"]["index"] for action in request["action_requests"]] == [2]
    after = reviewed(margins, {"decisions": [{"type": "reject"}]})
    assert [margin["kept"] for margin in after] == [False, True, False]
    assert margins[2]["kept"] is True  # what was given is unchanged
    assert after[2]["note"] == ""


def test_an_edit_may_drop_a_margin_and_cannot_move_it(margins: list[Any]) -> None:
    after = reviewed(margins, {"decisions": [edit(kept=False, index=2, relevance=0.0), APPROVE, APPROVE]})
    assert after[0] == {**margins[0], "kept": False}


@pytest.mark.parametrize(
    ("decisions", "said"),
    [
        ([APPROVE], "Decisions: 1, margins shown: 3"),
        ("approve", "decisions are a list"),
        ([None, APPROVE, APPROVE], "Decision 0 is wrong"),
        ([APPROVE, {"type": "accept"}, APPROVE], "one of approve, edit, reject, respond, not 'accept'"),
        ([APPROVE, APPROVE, {"type": "respond"}], "message is a string"),
        ([{"type": "edit"}, APPROVE, APPROVE], "edited_action is a dict"),
        ([edit(text=3), APPROVE, APPROVE], "text is a string"),
        ([edit(kept="no"), APPROVE, APPROVE], "kept is true or false"),
        (
            [{"type": "edit", "edited_action": {"name": "send", "args": {}}}, APPROVE, APPROVE],
            "name is 'use_margin'",
        ),
        ([{"type": "reject", "message": 3}, APPROVE, APPROVE], "message is a string"),
    ],
)
def test_invalid_decisions_are_named(
    kernel: WimKernel, documents: list[Document], margins: list[Any], decisions: Any, said: str
) -> None:
    with pytest.raises(MarginsError, match=said):
        reviewed(margins, {"decisions": decisions})
    answer = WimAnswer(kernel=kernel, answer_tokens=2)
    with pytest.raises(MarginsError, match=said):
        answer.invoke({"question": QUESTION, "documents": documents, "margins": {"decisions": decisions}})


def test_decisions_may_be_limited(margins: list[Any]) -> None:
    request = review_request(margins, allowed_decisions=["approve", "reject"])
    assert request["review_configs"][0]["allowed_decisions"] == ["approve", "reject"]
    with pytest.raises(MarginsError, match="one of approve, reject, not 'edit'"):
        reviewed(margins, {"decisions": [edit(text="x")] * 3}, allowed_decisions=["approve", "reject"])
    for wrong in ([], ["accept"]):
        with pytest.raises(ValueError, match="allowed_decisions are some of"):
            review_request(margins, allowed_decisions=wrong)  # type: ignore[arg-type]


def test_decisions_about_margins_that_are_not_known_say_what_to_do(
    kernel: WimKernel, documents: list[Document]
) -> None:
    with pytest.raises(MarginsError, match=r"which reviewed\(\) makes"):
        WimAnswer(kernel=kernel).invoke(
            {"question": "Never asked?", "documents": documents, "margins": {"decisions": []}}
        )
    with pytest.raises(MarginsError, match="as WimMargins puts them out; this is a str"):
        review_request(["a note"])  # type: ignore[list-item]
