"""Real servers for the tests: `transformers serve` on a tiny model, and a proxy that can spoil connections."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import Loaded
from processes import running
from proxy import Proxy, proxied

from wim_kernel import WimKernel

pytest.importorskip("openai")


class Served:
    """`transformers serve --continuous-batching` on a model, in float32.

    A request that is cancelled while it waits for room in the cache can leave the server in a state in which it takes
    no more requests (transformers 5.23). `ensure_it_answers` starts it again then, at the same port.

    Attributes:
        folder: of the model that it serves, which is also the model's name there.
    """

    def __init__(self, folder: str, log: Path) -> None:
        self.folder = folder
        self._log = log
        self._running = ExitStack()
        self.port = self._start(None)

    @property
    def url(self) -> str:
        """Of its API."""
        return f"http://127.0.0.1:{self.port}/v1"

    def ensure_it_answers(self) -> None:
        """Start the server again if it gives no token within half a minute."""
        asks = {"model": self.folder, "prompt": "The", "max_tokens": 1, "stream": False}
        request = urllib.request.Request(
            f"{self.url}/completions", json.dumps(asks).encode(), {"Content-Type": "application/json"}
        )
        try:
            urllib.request.urlopen(request, timeout=30).read()
        except OSError:
            self.stop()
            self._start(self.port)

    def stop(self) -> None:
        """End it."""
        self._running.close()

    def _start(self, port: int | None) -> int:
        started = running(self._command, self._log, {"OMP_NUM_THREADS": "1"}, seconds=120, port=port)
        return self._running.enter_context(started)

    def _command(self, port: int) -> list[str]:
        return [
            *(
                str(Path(sys.executable).with_name("transformers")),
                "serve",
                self.folder,
                "--continuous-batching",
            ),
            *("--dtype", "float32", "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)),
            *("--cb-block-size", "32", "--cb-num-blocks", "800"),
        ]


@contextmanager
def serving(folder: str | Path, log: Path) -> Iterator[Served]:
    """A server on a model."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    server = Served(str(folder), log)
    yield server
    server.stop()


# This folder is a package, so that the server ends with its tests: it is never idle.
@pytest.fixture(scope="package")
def served(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The server, on the tiny llama: most tests are about requests, whatever the model says."""
    with serving(tiny_folder, tmp_path_factory.mktemp("serve") / "log") as server:
        yield server


@pytest.fixture(scope="module")
def serves_smollm2(smollm2: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server on the embedded model, for the tests of what it answers."""
    folder = smollm2[0].name_or_path
    assert Path(folder).is_dir(), "the embedded model is loaded from a converted copy"
    with serving(folder, tmp_path_factory.mktemp("serve") / "log") as server:
        yield server


@pytest.fixture(autouse=True)
def _answering(request: pytest.FixtureRequest) -> None:
    """See before each test that uses the server that it still answers."""
    if "served" in request.fixturenames:
        request.getfixturevalue("served").ensure_it_answers()


@pytest.fixture
def proxy(served: Served) -> Iterator[Proxy]:
    """A proxy in front of it."""
    with proxied(served.port) as made:
        yield made


@pytest.fixture
def behind_proxy(served: Served, proxy: Proxy) -> Callable[..., WimKernel]:
    """Makes kernels that ask the server through the proxy."""

    def make(**options: Any) -> WimKernel:
        url = f"http://127.0.0.1:{proxy.port}/v1"
        options = {"tokenizer": served.folder, "window": 8192, "retries": 3, **options}
        return WimKernel.from_server(url, served.folder, **options)

    return make
