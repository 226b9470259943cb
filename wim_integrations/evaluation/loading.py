"""Loading a kernel on a model named on a command line."""

from __future__ import annotations

from typing import Any

from wim_integrations.evaluation.errors import EvaluationError
from wim_kernel import WimKernel

DTYPES = ("bfloat16", "float16", "float32")


def load_kernel(
    model: str,
    gguf_file: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    weights: str | None = None,
) -> WimKernel:
    """Load a model.

    Args:
        model: a hub id, a path, or ``"embedded"``.
        gguf_file: the GGUF file within the model's repository or folder.
        dtype: one of `DTYPES`; None for one that suits the device.
        device: the device; None for the best available one.
        weights: see `wim_kernel.engines.loading_options.EngineOptions`.

    Raises:
        EvaluationError: for an unknown dtype.
        ModelNotFoundError: if there is no such model.
        ValueError: if its weights cannot be quantised so.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    if dtype is not None and dtype not in DTYPES:
        raise EvaluationError(f"dtype is one of {', '.join(DTYPES)}, not {dtype!r}.")
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    given: dict[str, Any] = {
        "gguf_file": gguf_file,
        "dtype": getattr(torch, dtype) if dtype else None,
        "device": device,
        "weights": weights,
    }
    return WimKernel.from_pretrained(
        model, **{name: value for name, value in given.items() if value is not None}
    )
