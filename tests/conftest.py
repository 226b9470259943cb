"""What the tests run on: models where torch is installed, and a small server of words where it is not."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from invariants import pytest_itemcollected, pytest_terminal_summary  # noqa: F401  (pytest calls them)

pytest_plugins = ["model_fixtures" if importlib.util.find_spec("torch") else "server_fixtures"]

MODELS = {"smollm2", "gemma3", "tiny_model", "real_kernel"}
"""The fixtures that are models in this process."""


LONGEST = (
    "served",
    "test_captured.py",
    "test_real_models.py",
    "test_kernels.py",
    "test_relevance.py",
    "test_langchain_notebook.py",
    "test_store.py",
    "test_exactness.py",
    "test_compilation.py",
    "test_notebook_example.py",
    "test_imports.py",
    "test_llm.py",
    "test_code_blocks.py",
    "test_cli.py",
    "test_prompt_probe.py",
    "test_grammar.py",
    "test_page.py",
    "test_concurrency.py",
    "test_wim_process.py",
)
"""The folders and files that take longest, which go first: at the end, no process waits for another's."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that ask for a model, and put the longest files first."""
    for item in items:
        if not MODELS.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("in_process")

    def rank(item: pytest.Item) -> int:
        return min((LONGEST.index(part) for part in item.path.parts if part in LONGEST), default=len(LONGEST))

    items.sort(key=rank)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give whole files to a process, and all files of ``served`` to one: each process would start a server."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "served" if "/served/" in nodeid else super()._split_scope(nodeid)

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None
