"""Tests that need a CUDA device: `make test-gpu`. They bring their own tokenizer, and need no model package."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from helpers import TinyModel
from transformers import PreTrainedModel
from word_tokenizer import tokenizer

from wim_kernel import WimKernel


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is in this folder where there is no device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.path.parent.name:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


class MakeKernel:
    """Makes kernels on tiny random models on the device, each with its own copy."""

    def __init__(self, tiny_model: TinyModel) -> None:
        self.tiny_model = tiny_model
        self.made: list[WimKernel] = []

    def model(self, kind: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """A copy of the tiny model of a kind."""
        original = self.tiny_model(kind)
        model = type(original)(original.config).to(dtype)
        model.load_state_dict(original.state_dict())
        return model.to("cuda").eval()

    def __call__(self, kind: str, attention: str = "auto", dtype: torch.dtype = torch.float32) -> WimKernel:
        """A kernel on it."""
        kernel = WimKernel(self.model(kind, dtype), tokenizer(), attention=attention)
        self.made.append(kernel)
        return kernel


@pytest.fixture
def make_kernel(tiny_model: TinyModel) -> Iterator[MakeKernel]:
    """See `MakeKernel`; what was lent to the models is taken back afterwards."""
    make = MakeKernel(tiny_model)
    yield make
    for kernel in make.made:
        kernel.engine.runner.uninstall()
