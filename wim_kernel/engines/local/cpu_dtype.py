"""Which dtype a CPU computes a question in faster: a short trial, remembered for the machine.

Processors with AMX or AVX512-BF16 multiply matrices in bfloat16 several times faster than in float32, but other parts
of a question may be slower in it, attention above all: PyTorch's kernel converts. So the trial has all parts, in the
share that they have in a question.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from wim_kernel.common.kept_json import read_json, write_json
from wim_kernel.engines.local.attention.parts import AttentionParams, attend
from wim_kernel.engines.local.model.onednn import has_onednn, product

logger = logging.getLogger(__name__)

MOST_SHARE = 0.7
"""bfloat16 is taken if a question takes less than this share of the time in float32: its rounding is a price, too, and
answers that differ from machine to machine are one."""
FILE = "cpu-dtype.json"
VARIABLE = "WIM_CPU_DTYPE"
_NAMES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_VERSION = 1  # of the trial: results of another one are not used

# A layer of a small model, and the middle of a document of 4,000 tokens.
_HIDDEN, _INNER, _KEY_HEADS, _GROUP, _HEAD, _KEYS = 576, 1536, 3, 3, 64, 2048
_BLOCK = 128  # tokens read at a time
_PASSES = {_BLOCK: 36, 8: 32, 1: 32}
"""Forward passes of a question by their rows: 4,000 tokens and eight prompts; eight notes; an answer."""
_ROUNDS = 4


def faster_dtype(folder: Path) -> torch.dtype:
    """The dtype in which this machine's CPU computes a question faster: `torch.bfloat16` or `torch.float32`.

    The environment variable ``WIM_CPU_DTYPE`` decides it without a trial.

    Args:
        folder: the folder in which the trial's result is kept; if it cannot be, each process makes the trial.

    Raises:
        ValueError: if the variable is something else.
    """
    asked = os.environ.get(VARIABLE, "auto")
    if asked != "auto":
        if asked not in _NAMES:
            raise ValueError(f"{VARIABLE} is auto, {' or '.join(_NAMES)}, not {asked!r}.")
        return _NAMES[asked]
    if not _multiplies_bfloat16():
        return torch.float32
    return _tried(folder / FILE)


@functools.cache
def _tried(path: Path) -> torch.dtype:
    share = _known(path)
    if share is None:
        share = measure()
        _keep(path, share)
    dtype = torch.bfloat16 if share < MOST_SHARE else torch.float32
    logger.info("In bfloat16 this CPU takes %.2f of float32's time for a question: %s is used.", share, dtype)
    return dtype


def measure() -> float:
    """The time of a question in bfloat16 as a share of its time in float32.

    The trial takes some 0.3 s. It runs on one thread, by the thread's own clock, so that whatever else keeps the
    machine busy matters little. For its time the whole process computes on one thread: steps that other kernels decode
    meanwhile are slower.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _share()
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def _share() -> float:
    layers = {dtype: _Layer(dtype) for dtype in (torch.float32, torch.bfloat16)}
    best = {(dtype, rows): math.inf for dtype in layers for rows in _PASSES}
    for number in range(_ROUNDS + 1):  # the first warms up
        for dtype, rows in best:
            begun = time.thread_time()
            layers[dtype].run(rows)
            if number:
                best[dtype, rows] = min(best[dtype, rows], time.thread_time() - begun)
    whole = {dtype: sum(best[dtype, rows] * count for rows, count in _PASSES.items()) for dtype in layers}
    return whole[torch.bfloat16] / whole[torch.float32]


class _Layer:
    """A layer with the engine's own products and attention."""

    def __init__(self, dtype: torch.dtype) -> None:
        outputs = ((_GROUP + 2) * _KEY_HEADS * _HEAD, _HIDDEN, 2 * _INNER)
        self.weights = [torch.full((size, _HIDDEN), 0.01, dtype=dtype) for size in outputs]
        self.down = torch.full((_HIDDEN, _INNER), 0.01, dtype=dtype)
        self.keys = torch.full((_KEY_HEADS, 1, _KEYS, _HEAD), 0.01, dtype=dtype)
        self.params = AttentionParams(_HEAD**-0.5)
        plain = dtype != torch.float32 or not has_onednn()
        self.product: Callable[[Tensor, Tensor], Tensor] = nn.functional.linear if plain else product

    def run(self, rows: int) -> Tensor:
        """One forward pass of so many tokens."""
        hidden = torch.full((rows, _HIDDEN), 0.01, dtype=self.down.dtype)
        mixed, out, wide = self.weights
        heads = self.product(_normalised(hidden), mixed).reshape(rows, -1, _HEAD)
        query = _rotated(heads[:, : _GROUP * _KEY_HEADS])
        _rotated(heads[:, _GROUP * _KEY_HEADS : (_GROUP + 1) * _KEY_HEADS])
        query = query.reshape(rows, _KEY_HEADS, _GROUP, _HEAD).permute(1, 2, 0, 3).contiguous()
        seen, _ = attend(query, self.keys, self.keys, self.params)
        hidden = hidden + self.product(seen.permute(2, 0, 1, 3).reshape(rows, _HIDDEN), out)
        gate, up = self.product(_normalised(hidden), wide).chunk(2, dim=-1)
        return hidden + self.product(nn.functional.silu(gate) * up, self.down)


def _normalised(hidden: Tensor) -> Tensor:
    """As RMS norms are written in transformers' models, in float32."""
    wide = hidden.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(hidden.dtype) * hidden[0]


def _rotated(heads: Tensor) -> Tensor:
    """As rotary positions are applied in transformers' models."""
    first, second = heads.chunk(2, dim=-1)
    return heads * heads[:1] + torch.cat((-second, first), dim=-1) * heads[:1]


def _multiplies_bfloat16() -> bool:
    """Whether PyTorch knows fast products in bfloat16 for this processor at all."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    known: Callable[[], bool] | None = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return known is not None and bool(known())


def machine_key() -> str:
    """What the trial's result depends on: the processor and PyTorch."""
    found = [platform.machine(), platform.processor()]
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = ("model name", "flags", "CPU part", "Features")
        found += sorted({line for line in lines if line.startswith(names)})
    digest = hashlib.blake2b("\n".join(found).encode(), digest_size=8).hexdigest()
    return f"{digest}, torch {torch.__version__}, trial {_VERSION}"


def _known(path: Path) -> float | None:
    """The result for this machine; None if there is none that can be read."""
    share = read_json(path).get(machine_key())
    return float(share) if isinstance(share, int | float) and 0 < share < math.inf else None


def _keep(path: Path, share: float) -> None:
    """Keep the result beside those of other machines, or do without."""
    with suppress(OSError):
        write_json(path, {**read_json(path), machine_key(): round(share, 4)})
