"""Copies share what there is once; pickling says why not."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever as NodeRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from wim_integrations import langchain as lc
from wim_integrations import llama_index as li
from wim_kernel import NotPicklableError, WimError, WimKernel
from wim_kernel.common import errors

QUESTION = "Who owned the ship?"
FEW: dict[str, Any] = {"threshold": 0, "margin_tokens": 3, "answer_tokens": 4}
TEXT = "Elsa Brandt owned the ship Aurora."
Make = Callable[[WimKernel], Any]


class Fixed(BaseRetriever):
    def _get_relevant_documents(self, query: str, **kwargs: Any) -> list[Document]:
        return [Document(page_content=TEXT)]


class FixedNodes(NodeRetriever):
    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=TextNode(text=TEXT))]


HOLDERS: dict[str, Make] = {
    "kernel": lambda kernel: kernel,
    "engine": lambda kernel: kernel.engine,
    "readings": lambda kernel: kernel.cache,
    "reading": lambda kernel: kernel.read(TEXT),
    "runnable": lambda kernel: lc.WimRunnable(kernel=kernel, **FEW),
    "bound runnable": lambda kernel: lc.WimRunnable(kernel=kernel).bind(threshold=0),
    "documents chain": lambda kernel: lc.create_wim_documents_chain(kernel, **FEW),
    "map-reduce chain": lambda kernel: lc.create_wim_map_reduce_chain(kernel, **FEW),
    "compressor": lambda kernel: lc.WimDocumentCompressor(kernel=kernel, threshold=0),
    "retriever": lambda kernel: ContextualCompressionRetriever(
        base_compressor=lc.WimDocumentCompressor(kernel=kernel, threshold=0), base_retriever=Fixed()
    ),
    "tool": lambda kernel: lc.create_wim_tool(kernel, TEXT, **FEW),
    "synthesizer": lambda kernel: li.WimSynthesizer(kernel, **FEW),
    "query engine": lambda kernel: RetrieverQueryEngine(FixedNodes(), li.WimSynthesizer(kernel, **FEW)),
    "postprocessor": lambda kernel: li.WimNodePostprocessor(kernel, threshold=0),
    "language model": lambda kernel: li.WimLLM(kernel, max_tokens=4),
    "function tool": lambda kernel: li.create_wim_tool(kernel, TEXT, **FEW),
}

CALLS: dict[str, Callable[[Any], Any]] = {
    "kernel": lambda kernel: kernel.ask(QUESTION, TEXT, **FEW).answer,
    "reading": lambda reading: reading.ask(QUESTION, **FEW).answer,
    "runnable": lambda part: part.invoke({"question": QUESTION, "documents": TEXT})["answer"],
    "documents chain": lambda part: part.invoke({"input": QUESTION, "context": [TEXT]}),
    "map-reduce chain": lambda part: part.invoke({"question": QUESTION, "input_documents": [TEXT]})[
        "output_text"
    ],
    "compressor": lambda part: part.compress_documents([Document(page_content=TEXT)], QUESTION),
    "retriever": lambda part: part.invoke(QUESTION),
    "tool": lambda part: part.invoke({"question": QUESTION}),
    "synthesizer": lambda part: part.get_response(QUESTION, [TEXT]),
    "query engine": lambda part: str(part.query(QUESTION)),
    "language model": lambda part: part.complete("Hello").text,
}


@pytest.mark.parametrize("name", HOLDERS)
def test_a_deep_copy_shares_the_kernel(kernel: WimKernel, name: str) -> None:
    part = HOLDERS[name](kernel)
    copies = [copy.copy(part), copy.deepcopy(part), copy.deepcopy({"a": [part, part]})["a"][1]]
    if hasattr(part, "model_copy"):
        copies += [part.model_copy(), part.model_copy(deep=True)]
    assert kernel.model is copies[0].model if name == "kernel" else True
    for each in copies:
        held = [each, getattr(each, "kernel", None), getattr(each, "_kernel", None)]
        if name in ("kernel", "runnable", "map-reduce chain", "compressor", "synthesizer", "postprocessor"):
            assert any(item is kernel for item in held)
        if name in CALLS:
            assert CALLS[name](each) == CALLS[name](part)


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize("name", HOLDERS)
def test_pickling_says_why_not(kernel: WimKernel, name: str, protocol: int) -> None:
    part = HOLDERS[name](kernel)
    for given in (part, {"a": [part]}):
        with pytest.raises(
            NotPicklableError, match=r"^A \w+ cannot be pickled, .* loaded model: .*\.$"
        ) as caught:
            pickle.dumps(given, protocol)
        assert isinstance(caught.value, WimError | TypeError)


ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "ChatModelError": ("a model", ValueError("it is gone")),
    "ContextOverflowError": ("The question", 7, 3, "Ask less."),
    "DeviceMemoryError": ("decode", "8 GB"),
    "EmptyDocumentError": (),
    "MemoryBudgetError": (7, 3),
    "ReadingFileError": (Path("a"), "it is damaged"),
    "ServerError": ("http://a", "it is gone"),
}
ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, WimError)]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_errors_cross_between_processes(kind: Callable[..., WimError]) -> None:
    """An error that cannot be unpickled hangs the pool of processes that it was raised in."""
    error = kind(*ARGUMENTS.get(getattr(kind, "__name__", ""), ("It is so.",)))
    if isinstance(error, errors.ServerError):
        error.chunks_read = 4
    for again in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error), copy.copy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)
