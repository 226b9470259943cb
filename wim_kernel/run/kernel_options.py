"""The options of a kernel, declared once for every way to make one."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypedDict

from wim_kernel.engines.loading_options import EngineOptions, LocalOptions
from wim_kernel.run.relevance.calibration import Calibration
from wim_kernel.text.prompts import Frame


class KernelOptions(TypedDict, total=False):
    """Keyword arguments of every way to make a `wim_kernel.WimKernel` on a model in this process.

    Attributes:
        chunk_tokens: most tokens of a chunk when a long text is split; by default a sixteenth of the window, at least
            256 and at most 4,096 (the paper's).
        budget_bytes: most bytes of keys and values of cached readings in the model's memory; by default a share of the
            free memory. Least recently used readings are evicted, never one in use.
        host_budget_bytes: most bytes of readings evicted from a GPU to the host's memory; by default half of the free
            memory.
        cache_dir: a folder for readings evicted from the host's memory. Several processes may share it, and readings
            in it are found after a restart; `PrefixCache.flush` writes all readings to it.
        disk_budget_bytes: most bytes of the folder; by default half of the disk's free space.
        frame: the frame around every document.
        calibration: the calibration of the model's relevance signals. ``"auto"`` uses a shipped or cached one, or
            measures it once, at the first question (see `WimKernel.calibrate`); ``"off"`` scores by shared words alone.
    """

    chunk_tokens: int | None
    budget_bytes: int | None
    host_budget_bytes: int | None
    cache_dir: str | Path | None
    disk_budget_bytes: int | None
    frame: Frame | None
    calibration: Calibration | Literal["auto", "off"]


class ModelOptions(KernelOptions, EngineOptions, total=False):
    """The options of a kernel on a loaded model: its own and its engine's."""


class PretrainedOptions(KernelOptions, LocalOptions, total=False):
    """The options of a kernel that loads its model: its own, its engine's, and those of loading."""
