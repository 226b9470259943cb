"""What the pages take for granted: a kernel, documents, a retriever, an index.

The README's kernel is on the embedded model, since the page shows what it prints; the others' on a tiny random one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_server import chat_server

from benchmarks.provider import Provider
from wim_kernel import WimKernel
from wim_kernel.engines.local.engine import LocalEngine

PASSAGES = (
    "The gull sat on the mast. It rained all night.",
    "Elsa Brandt owned the ship Aurora. She bought it in Brill.",
    "The fog was thick, and nobody saw the harbour.",
)
QUESTION = "Who owned the ship?"
ANSWER_TOKENS = 6  # answers end there at the latest: most of the time would go into long ones
SHOWN_ANSWER_TOKENS = 20  # in pages that show an answer


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a provider of chat models on this machine, which OpenAI's classes take for theirs."""
    with Provider("openai-automatic").running() as url:
        monkeypatch.setenv("OPENAI_API_BASE", f"{url}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        yield url


@pytest.fixture
def names(
    provider: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Callable[[str], dict[str, Any]]:
    """Gives the names that a page's blocks may use without defining them, by the page's name."""

    def give(page: str) -> dict[str, Any]:
        kernel = request.getfixturevalue("real_kernel" if page == "README" else "tiny_kernel")
        # Each page makes a kernel of its own on the one engine: loading and checking a model take seconds.
        monkeypatch.setattr(LocalEngine, "from_pretrained", lambda name, **options: kernel.engine)
        tokens = SHOWN_ANSWER_TOKENS if page == "README" else ANSWER_TOKENS
        monkeypatch.setattr("wim_kernel.run.options.ANSWER_TOKENS", tokens)
        special = {
            "README": _llama_index,
            "citations": lambda: {**_llama_index(), **_langchain()},
            "agents": lambda: {**_langchain(), "model": _agents_model()},
            "langchain": _langchain,
            "hosted-models": _langchain,
            "servers": lambda: _server(request, monkeypatch),
            "page": _langchain,
            "migrating-from-map-reduce": _langchain,
            "llama-index": _llama_index,
            "migrating-from-tree-summarize": _llama_index,
        }
        return {
            "kernel": kernel,
            "question": QUESTION,
            "pages": list(PASSAGES),
            "reading": kernel.read(PASSAGES),
            **special.get(page, dict)(),
        }

    return give


def _server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A server of words at whatever address and of whatever name, and a file to read in the current folder."""
    server = chat_server()
    url = server.__enter__().url
    request.addfinalizer(lambda: server.__exit__(None, None, None))
    connect = WimKernel.from_server
    monkeypatch.setattr(WimKernel, "from_server", lambda address, *, model, tokenizer: connect(url))
    Path("log.txt").write_text("\n\n".join(PASSAGES))
    return {}


def _langchain() -> dict[str, Any]:
    from langchain_core.documents import Document
    from langchain_core.language_models import FakeListChatModel
    from langchain_core.retrievers import BaseRetriever

    docs = [Document(text, metadata={"source": f"page {page}"}) for page, text in enumerate(PASSAGES)]

    class Everything(BaseRetriever):
        """Finds all documents, whatever the query."""

        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
            return docs

    llm = FakeListChatModel(
        responses=["Elsa Brandt owned the ship."],
        custom_get_token_ids=lambda text: list(
            range(len(text.split()))
        ),  # else it asks the Hub for a tokenizer
    )
    return {"docs": docs, "retriever": Everything(), "llm": llm}


def _agents_model() -> Any:
    """A chat model that calls the tool it is given, and then answers."""
    from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
    from langchain_core.messages import AIMessage

    class Scripted(FakeMessagesListChatModel):
        def bind_tools(self, tools: Any, **kwargs: Any) -> Any:  # called for every turn
            call = {"type": "tool_call", "id": "1", "name": tools[0].name, "args": {}}
            self.responses = [AIMessage("", tool_calls=[call]), AIMessage("Elsa Brandt.")]
            return self

    return Scripted(responses=[])


def _llama_index() -> dict[str, Any]:
    from llama_index.core import SummaryIndex
    from llama_index.core.llms import MockLLM
    from llama_index.core.schema import TextNode

    nodes = [TextNode(text=text, id_=f"node-{place}") for place, text in enumerate(PASSAGES)]
    return {"nodes": nodes, "index": SummaryIndex(nodes), "llm": MockLLM(max_tokens=8)}
