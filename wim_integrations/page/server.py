"""The server of the page."""

from __future__ import annotations

import socket
import threading
import webbrowser
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, cast

from typing_extensions import Unpack

try:
    import uvicorn
    from fastapi import FastAPI
    from nicegui import app as nicegui_app
    from nicegui import ui
except ImportError as missing:
    raise ImportError("The page needs the extra: pip install 'wim-integrations[ui]'.") from missing

from wim_integrations.options import check_kernel
from wim_integrations.page.guard import LOOPBACK, Guard
from wim_integrations.page.session import SET_HERE
from wim_integrations.page.view import PageView
from wim_kernel import Chunk, Options, Reading, WimKernel
from wim_kernel.run.options import parse_options
from wim_kernel.text.chunks import as_chunks

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from wim_kernel.kernel import Document

PORT = 8460
TITLE = "Writing in the Margins"
_CLOSED_AFTER = 3.0  # seconds without a connection after which a tab counts as closed


class Site:
    """What all pages of a server share.

    Args:
        kernel: the kernel.
        documents: the documents that every page starts with.
        options: options of every question.
    """

    def __init__(self, kernel: WimKernel, documents: Document, options: Options) -> None:
        check_kernel(kernel, "The page")
        for name in SET_HERE:
            if name in options:
                raise ValueError(f"{name} is the page's own: people stop reading by a button.")
        parse_options(options)
        self.kernel = kernel
        self.options = options
        self.sources: list[Chunk] = [chunk for chunk in as_chunks(documents) if chunk.text.strip()]
        self.reading: Reading | None = None
        if self.sources:
            self.reading = kernel.read(self.sources, chunk_tokens=kernel.chunk_tokens)
        self.views: dict[str, PageView] = {}

    def add(self, path: str = "/") -> None:
        """Serve the page at a path."""
        ui.page(path, title=TITLE)(self._build)

    def close(self) -> None:
        """Stop everybody's work."""
        for view in self.views.values():
            view.session.close()
        self.views.clear()

    def _build(self) -> None:
        """Make a page for one browser tab; when the tab closes, its work stops."""
        client = ui.context.client
        view = PageView(self.kernel, self.options)
        self.views[client.id] = view
        client.on_delete(partial(self._left, client.id))
        view.start(self.sources, self.reading)

    def _left(self, client: str) -> None:
        view = self.views.pop(client, None)
        if view is not None:
            view.session.close()


def create_app(
    kernel: WimKernel,
    documents: Document = (),
    *,
    hosts: Iterable[str] = LOOPBACK,
    **options: Unpack[Options],
) -> ASGIApp:
    """The page as an ASGI application, for a server of one's own; see `serve`. A process can have one.

    Args:
        kernel: see `serve`.
        documents: see `serve`.
        hosts: the host names under which the application answers; empty for any.
        options: see `serve`.
    """
    site = Site(kernel, documents, options)
    site.add()
    nicegui_app.on_shutdown(site.close)
    return mount(hosts)


def mount(hosts: Iterable[str] = LOOPBACK) -> ASGIApp:
    """NiceGUI's pages as an application."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    ui.run_with(
        app,
        title=TITLE,
        dark=None,
        language="en-US",
        tailwind=False,
        reconnect_timeout=_CLOSED_AFTER,
        show_welcome_message=False,
    )
    return cast("ASGIApp", Guard(app, frozenset(hosts)))


def serve(
    kernel: WimKernel,
    documents: Document = (),
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    open_browser: bool = False,
    started: Callable[[str], object] = print,
    **options: Unpack[Options],
) -> None:
    """Serve the page until it is interrupted.

    Everybody who opens the page works with documents and questions of their own, on the one kernel. There are no
    accounts: anybody who can reach the address can ask questions and read these documents.

    Args:
        kernel: the kernel, on any model: in process, on a server, or a chat model.
        documents: the documents that every page starts with, as for `WimKernel.read`; none by default.
            `wim_kernel.text.files.read_document` reads files.
        host: the address to listen at; by default this machine alone can reach it.
        port: the port; 0 takes a free one.
        open_browser: whether to open the page in the user's browser.
        started: called with the page's address once it is served.
        options: options of every question, see `wim_kernel.Options`; ``stop_when`` and ``stop_after`` are the page's
            own.

    Raises:
        ImportError: without the package's extra ``ui``.
        OSError: if the port is taken.
        TypeError: if the kernel is none.
        ValueError: for an option that is the page's own.

    Example:
        >>> serve(WimKernel.from_chat_model(llm), open("log.txt").read())  # doctest: +SKIP
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listening:
        app = create_app(kernel, documents, hosts=LOOPBACK if host in LOOPBACK else (), **options)
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}/"
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)
        if open_browser:
            threading.Timer(0.5, webbrowser.open, [address]).start()
        started(address)
        uvicorn.Server(config).run(sockets=[listening])
