"""Kernels and nodes for the LlamaIndex tests."""

from __future__ import annotations

import pytest
from helpers import Loaded, TinyModel
from llama_index.core.schema import NodeWithScore
from pieces import piece

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
def nodes() -> list[NodeWithScore]:
    """Three nodes of a log, the second overlapping the first, with retrieval scores."""
    pieces = [
        piece("log", 0, 46, file="log.txt"),
        piece("log", 26, 81, file="log.txt"),
        piece("log", 82, 100),
    ]
    return [NodeWithScore(node=node, score=0.1 * place) for place, node in enumerate(pieces)]
