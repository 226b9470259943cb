"""Documents for the LangChain tests."""

from __future__ import annotations

import pytest
from langchain_core.documents import Document

from wim_integrations.langchain import WimRunnable
from wim_kernel import WimKernel


@pytest.fixture
def documents() -> list[Document]:
    return [
        Document(page_content="The gull sat on the mast. It rained.", metadata={"source": "log", "day": 1}),
        Document(page_content="Elsa Brandt owned the ship Aurora.", metadata={"source": "register"}),
        Document(page_content="The fog was thick.", metadata={"source": "log", "day": 2}),
    ]


@pytest.fixture
def runnable(kernel: WimKernel) -> WimRunnable:
    """Every margin written in full and kept, and few tokens."""
    return WimRunnable(kernel=kernel, threshold=0, margin_tokens=5, answer_tokens=6)
