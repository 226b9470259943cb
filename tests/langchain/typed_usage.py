"""Lines of the documentation as a type checker reads them; `make types` runs one over it."""

from typing import TypedDict

from langchain_core.documents import Document
from langgraph.graph import END, START, StateGraph
from langgraph.types import interrupt

from wim_integrations.langchain import (
    MarginData,
    WimAnswer,
    WimDocumentCompressor,
    WimMargins,
    WimMarginsOutput,
    WimOutput,
    WimRunnable,
    create_wim_documents_chain,
    create_wim_map_reduce_chain,
    create_wim_tool,
    reviewed,
)
from wim_kernel import WimKernel


class State(TypedDict, total=False):
    """What a graph remembers."""

    question: str
    documents: list[Document]
    margins: list[MarginData]
    chunks_read: int
    answer: str


def graph(kernel: WimKernel) -> StateGraph[State]:
    """The documented graph."""
    builder = StateGraph(State)
    builder.add_node("read", WimMargins(kernel=kernel))
    builder.add_node("review", lambda state: {"margins": interrupt(state["margins"])})
    builder.add_node(
        "keep", lambda state: {"margins": reviewed(state["margins"], interrupt(state["margins"]))}
    )
    builder.add_node("reply", WimAnswer(kernel=kernel))
    builder.add_node("all", WimRunnable(kernel=kernel, threshold=0.5, answer_tokens=8))
    builder.add_edge(START, "read")
    builder.add_edge("read", END)
    return builder


def outputs(kernel: WimKernel, documents: list[Document]) -> tuple[str, int, float]:
    """Outputs have the types of what is in them."""
    given = {"question": "Who?", "documents": documents}
    whole: WimOutput = WimRunnable(kernel=kernel).invoke(given)
    first: MarginData = whole["margins"][0]
    noted: WimMarginsOutput = WimMargins(kernel=kernel, top_k=2).invoke(given)
    answer: str = whole["answer"]
    read: int = noted["chunks_read"]
    relevance: float = first["relevance"]
    return answer, read, relevance


def parts(kernel: WimKernel, documents: list[Document]) -> None:
    """Every part, as the documentation makes it."""
    for chunk in WimRunnable(kernel=kernel).bind(threshold=0.1).stream({"documents": documents}):
        print(chunk.get("answer"))
    print(
        create_wim_map_reduce_chain(kernel, threshold=0.1).invoke({"input_documents": documents})[
            "output_text"
        ]
    )
    print(create_wim_documents_chain(kernel).invoke({"input": "Who?", "context": documents}))
    print(WimDocumentCompressor(kernel=kernel, threshold=0.7).compress_documents(documents, "Who?"))
    print(create_wim_tool(kernel, {"handbook": documents}).name)
