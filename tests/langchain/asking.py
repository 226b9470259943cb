"""What the tests of LangChain's adapter ask: a question, few tokens, and a retriever that always finds the same."""

from __future__ import annotations

from typing import Any

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

QUESTION = "Who owned the ship?"
FEW: dict[str, Any] = {"threshold": 0, "margin_tokens": 4, "answer_tokens": 6}


class Fixed(BaseRetriever):
    """Finds the same documents whatever is asked."""

    documents: list[Document]

    def _get_relevant_documents(self, query: str, **kwargs: Any) -> list[Document]:
        return self.documents


def asked(documents: Any, question: str = QUESTION) -> dict[str, Any]:
    return {"question": question, "documents": documents}


def without_times(output: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in output.items() if name not in ("timings", "usage")}
