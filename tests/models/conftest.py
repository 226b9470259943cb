"""Models that are built from configs alone, and the embedded model's tokenizer for all of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from helpers import Loaded
from transformers import PreTrainedTokenizerBase


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models on one thread, since two would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def plain_tokenizer(smollm2: Loaded) -> PreTrainedTokenizerBase:
    """The embedded model's tokenizer without its chat template, so that a document begins at the first positions."""
    tokenizer = copy.deepcopy(smollm2[1])
    tokenizer.chat_template = None
    return tokenizer


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked ``every_model``, unless ``-m`` asks for it."""
    if "every_model" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("every_model")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("every_model")]
