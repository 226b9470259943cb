"""Real servers for the tests: `transformers serve` on the embedded model, and a proxy that can spoil connections."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers import Loaded
from processes import running
from proxy import Proxy, proxied

from wim_kernel import WimKernel

pytest.importorskip("openai")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")


@dataclass(frozen=True)
class Served:
    """A server that runs.

    Attributes:
        port: where.
        folder: of the model that it serves, which is also the model's name there.
    """

    port: int
    folder: str

    @property
    def url(self) -> str:
        """Of its API."""
        return f"http://127.0.0.1:{self.port}/v1"


@pytest.fixture(scope="package")  # it keeps a core busy, also while nobody asks
def served(smollm2: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`transformers serve --continuous-batching`, in float32."""
    folder, log = smollm2[0].name_or_path, tmp_path_factory.mktemp("serve") / "log"
    assert Path(folder).is_dir(), "the embedded model is loaded from a converted copy"

    def command(port: int) -> list[str]:
        return [
            *(str(Path(sys.executable).with_name("transformers")), "serve", folder, "--continuous-batching"),
            *("--dtype", "float32", "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)),
            *("--cb-block-size", "32", "--cb-num-blocks", "800"),
        ]

    with running(command, log, {"OMP_NUM_THREADS": "2"}, seconds=120) as port:
        yield Served(port, folder)


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
