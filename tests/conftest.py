"""What the tests run on: models where torch is installed, and a small server of words where it is not."""

from __future__ import annotations

import importlib.util

import pytest
from invariants import pytest_itemcollected, pytest_terminal_summary  # noqa: F401  (pytest calls them)

pytest_plugins = ["model_fixtures" if importlib.util.find_spec("torch") else "server_fixtures"]

MODELS = {"smollm2", "gemma3", "tiny_model", "real_kernel"}
"""The fixtures that are models in this process."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that ask for a model."""
    for item in items:
        if not MODELS.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("in_process")
