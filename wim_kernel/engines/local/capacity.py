"""How much there is room for: a model's window, the bytes for prefixes, and what happens when memory runs out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch

from wim_kernel.common.errors import DeviceMemoryError


@contextmanager
def memory_for(what: str) -> Iterator[None]:
    """Turn torch's out-of-memory error into the kernel's, and release unused memory to the device.

    Args:
        what: the work, for the message.

    Raises:
        DeviceMemoryError: if torch runs out of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise DeviceMemoryError(what, str(error).split(". ")[0].rstrip(".")) from error


def window_of(config: Any) -> int | None:
    """Most tokens that the config allows.

    With length-dependent RoPE (dynamic NTK, LongRoPE) that is the model's original context length: beyond it, keys of a
    shared prefix would have to be rotated again.
    """
    window: int | None = getattr(config, "max_position_embeddings", None)
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in (ropes, *(part for part in ropes.values() if isinstance(part, dict))):
        if rope.get("rope_type") in ("dynamic", "longrope"):
            stated = rope.get("original_max_position_embeddings")
            original = stated or getattr(config, "original_max_position_embeddings", None)
            if original is not None and window is not None and original < window:
                warnings.warn(
                    f"This model's rotary frequencies change beyond {original} tokens, which a shared prefix cannot "
                    f"follow: the window is taken to be {original}, not {window}.",
                    stacklevel=4,
                )
                window = int(original)
    return window


def budget_of(device: torch.device) -> int:
    """Bytes for prefixes: half of the free memory on the CPU, four fifths on an accelerator."""
    if device.type == "cuda":
        return int(0.8 * torch.cuda.mem_get_info(device)[0])
    return int(0.5 * psutil.virtual_memory().available)
