"""What the adapters' tests run on where torch is not installed. No model: a test that needs one fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chat_server import chat_server

from wim_kernel import WimKernel


@pytest.fixture(scope="session")
def tiny_kernel() -> Iterator[WimKernel]:
    """A kernel on a small server of words."""
    with chat_server() as server:
        yield WimKernel.from_server(server.url)


@pytest.fixture
def kernel(tiny_kernel: WimKernel) -> WimKernel:
    """The same kernel, with nothing read."""
    tiny_kernel.cache.clear()
    return tiny_kernel
