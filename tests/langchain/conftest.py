"""Kernels and documents for the LangChain tests."""

from __future__ import annotations

import pytest
from helpers import Loaded, TinyModel
from langchain_core.documents import Document

from wim_integrations.langchain import WimRunnable
from wim_kernel import WimKernel


@pytest.fixture(scope="session")
def real_kernel(smollm2: Loaded) -> WimKernel:
    return WimKernel(*smollm2)


@pytest.fixture(scope="session")
def tiny_kernel(tiny_model: TinyModel, smollm2: Loaded) -> WimKernel:
    """A random model with a real tokenizer: everything runs, in milliseconds, and says nothing."""
    return WimKernel(tiny_model("llama"), smollm2[1])


@pytest.fixture
def kernel(tiny_kernel: WimKernel) -> WimKernel:
    """The tiny kernel, with nothing read."""
    tiny_kernel.readings.clear()
    return tiny_kernel


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
