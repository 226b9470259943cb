"""Runs notebooks for the tests, in processes of their own, on the Python of the tests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def execute(notebook: Any, folder: Path, hear: Callable[[dict[str, Any], int], None] | None = None) -> None:
    """Execute a notebook in place.

    Args:
        notebook: the notebook, whose outputs are replaced.
        folder: its current folder.
        hear: gets each message about an output, and the index of its cell.

    Raises:
        CellExecutionError: if a cell raises an error.
    """
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    class Client(NotebookClient):  # type: ignore[misc]
        def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
            if hear is not None:
                hear(msg, cell_index)
            return super().process_message(msg, cell, cell_index)

    manager = AsyncKernelManager()
    manager._kernel_spec = KernelSpec(  # no kernel has to be installed for the user
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        display_name="Python",
        language="python",
    )
    # Without `cleanup_kc`, a process whose manager is given would live until the tests end.
    Client(notebook, km=manager, timeout=500).execute(cwd=str(folder), cleanup_kc=True)
