"""A kernel on a tiny model, and a reading."""

from __future__ import annotations

import pytest
from kernel_texts import TEXTS

from wim_kernel import (
    WimKernel,
)


@pytest.fixture(scope="module")
def kernel(tiny_model, smollm2):
    return WimKernel(tiny_model("llama"), smollm2[1])


@pytest.fixture
def reading(kernel):
    kernel.cache.clear()
    return kernel.read(TEXTS)
