"""A page in the browser: ask questions of documents, watch margins being written, and judge them (extra ``ui``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wim_integrations.page.server import create_app, serve

__all__ = ["create_app", "serve"]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use; NiceGUI takes a second."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from wim_integrations.page import server

    return getattr(server, name)
