"""The page in a real Chromium: a server in a thread, tabs that reach nothing else, and a chat model by script."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nicegui", reason="the page needs the extra `ui`")
pytest.importorskip("playwright", reason="the tests of the page need playwright")
import uvicorn
from page.script import wait_until
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from wim_integrations.page.server import Site, mount
from wim_kernel import WimKernel

ROOT = Path(__file__).parents[2]
PICTURES = os.environ.get("WIM_PICTURES")
"""Where pictures of the states are kept; without it they are made, and thrown away."""
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_paths = count()

expect.set_options(timeout=30_000)


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """The address of a server that runs in a thread."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(mount(), log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(20)


@pytest.fixture
def site(address: str) -> Iterator[Callable[..., tuple[Site, str]]]:
    """Serves a page of a kernel and documents; returns what its tabs share, and its address."""
    made: list[Site] = []

    def open_site(kernel: WimKernel, documents: Any = (), **options: Any) -> tuple[Site, str]:
        path = f"/site-{next(_paths)}"
        found = Site(kernel, documents, options)
        found.add(path)
        made.append(found)
        return found, f"{address}{path}"

    yield open_site
    for each in made:
        each.close()


@pytest.fixture
def command() -> Iterator[Callable[..., str]]:
    """Runs `wim ui` on a free port, with variables of its environment; returns the page's address.

    At the end it is interrupted, and must end without a traceback.
    """
    running: list[subprocess.Popen[str]] = []

    def run(*arguments: str, **environment: str) -> str:
        code = "from wim_integrations.page.cli import show; show()"
        program = subprocess.Popen(
            [sys.executable, "-c", code, *arguments, "--port", "0"],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(program)
        assert program.stdout is not None
        said = program.stdout.readline()
        assert said.startswith("The page is at http://127.0.0.1:"), program.communicate()
        return said.split()[4]

    yield run
    for program in running:
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=60)
        assert "Traceback" not in errors


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, without a window. (For a module: while Playwright runs, no test can run an event loop.)"""
    names = (os.environ.get("WIM_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    program = next((found for name in names if name and (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium is installed: `make browser`, or name one by WIM_CHROMIUM")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=list(_FLAGS))
        yield started
        started.close()


@pytest.fixture
def tab(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens an address in a tab of its own. At the end nothing was asked of other hosts, and no script had failed."""
    wrong: list[str] = []
    contexts = []

    def open_tab(url: str, **settings: Any) -> Page:
        own = "/".join(url.split("/")[:3])

        def reach(route: Route) -> None:
            if route.request.url.startswith(f"{own}/"):
                route.continue_()
            else:
                wrong.append(f"asked {route.request.url}")
                route.abort()

        context = browser.new_context(**{"viewport": {"width": 1200, "height": 820}, **settings})
        contexts.append(context)
        context.route("**/*", reach)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(f"failed: {error}"))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.goto(url)
        return page

    yield open_tab
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture
def picture() -> Callable[[Page, str], None]:
    """Makes a picture of a page, small enough for the documentation."""
    from PIL import Image

    def take(page: Page, name: str) -> None:
        shown = Image.open(io.BytesIO(page.screenshot(animations="disabled")))
        packed = io.BytesIO()
        shown.save(packed, "WEBP", quality=55, method=6)
        assert len(packed.getvalue()) < 80_000
        if PICTURES:
            (Path(PICTURES) / f"{name}.webp").write_bytes(packed.getvalue())

    return take
