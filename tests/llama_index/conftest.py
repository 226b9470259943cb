"""Nodes for the LlamaIndex tests."""

from __future__ import annotations

import pytest
from llama_index.core import Settings
from llama_index.core.schema import NodeWithScore
from pieces import piece


@pytest.fixture
def nodes() -> list[NodeWithScore]:
    """Three nodes of a log, the second overlapping the first, with retrieval scores."""
    pieces = [
        piece("log", 0, 46, file="log.txt"),
        piece("log", 26, 81, file="log.txt"),
        piece("log", 82, 100),
    ]
    return [NodeWithScore(node=node, score=0.1 * place) for place, node in enumerate(pieces)]


@pytest.fixture
def no_model_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user who has set nothing up."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(Settings, "_llm", None)
