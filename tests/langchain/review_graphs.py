"""The documented graph in which a person stands between margins and answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

from langchain_core.documents import Document
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph

from wim_integrations.langchain import WimAnswer, WimMargins
from wim_kernel import WimKernel


class State(TypedDict, total=False):
    question: str
    documents: list[Document]
    margins: Any
    chunks_read: int
    answer: str
    usage: dict[str, Any]


def review_graph(
    kernel: WimKernel, review: Callable[[State], State], saver: InMemorySaver, **fields: Any
) -> Any:
    """Margins by one node, a person by the next, the answer by the last.

    Args:
        kernel: the kernel.
        review: the person's node.
        saver: keeps the graph's state.
        fields: of `WimMargins`.
    """
    builder = StateGraph(State)
    builder.add_node("read", WimMargins(kernel=kernel, margin_tokens=4, **fields))
    builder.add_node("review", review)
    builder.add_node("reply", WimAnswer(kernel=kernel, answer_tokens=6))
    builder.add_edge(START, "read")
    builder.add_edge("read", "review")
    builder.add_edge("review", "reply")
    builder.add_edge("reply", END)
    return builder.compile(checkpointer=saver)
