"""Chooses the attention backend, by device and dtype or by the user's option."""

from __future__ import annotations

import logging
from typing import Literal, get_args

from wim_kernel.common.errors import UnsupportedModelError
from wim_kernel.engines.loading_options import Attention
from wim_kernel.engines.local.attention.triton_launch import DTYPES, available
from wim_kernel.engines.local.backends.base import AttentionBackend
from wim_kernel.engines.local.backends.cudnn import CuDNN
from wim_kernel.engines.local.backends.torch_backend import TorchBackend
from wim_kernel.engines.local.backends.triton_backend import TritonBackend
from wim_kernel.engines.local.model.runner import ModelRunner

logger = logging.getLogger(__name__)


def choose_backend(attention: Attention, runner: ModelRunner) -> AttentionBackend:
    """Choose the backend for a model, and log the reason.

    Args:
        attention: ``"parts"``: plain PyTorch; ``"kernels"``: Triton; ``"cudnn"``: Triton, with cuDNN for a chunk's
            attention to itself and to long runs of earlier chunks, where cuDNN supports the dtype and head size;
            ``"auto"``: on a CUDA device Triton, with cuDNN if a measurement finds it faster; otherwise plain PyTorch.
        runner: the model.

    Raises:
        UnsupportedModelError: if the device cannot run the backend that ``attention`` names.
        ValueError: if there is no backend of this name.
    """
    if attention not in get_args(Attention):
        raise ValueError(f"attention is one of {', '.join(get_args(Attention))}, not {attention!r}.")
    device, dtype = runner.device, runner.model.dtype
    fits = available(device) and dtype in DTYPES
    if attention in ("kernels", "cudnn") and not fits:
        raise UnsupportedModelError(
            f"attention={attention!r} needs Triton, a CUDA device and a floating-point type of 16 or 32 bits; this "
            f"model is {dtype} on {device.type}."
        )
    if attention == "parts" or (attention == "auto" and not (fits and device.type == "cuda")):
        why = "it was asked for" if attention == "parts" else f"the model is {dtype} on {device.type}"
        logger.info("Attention is computed in plain PyTorch: %s.", why)
        return TorchBackend(runner)
    use: dict[Attention, Literal["always", "never", "measured"]] = {"cudnn": "always", "kernels": "never"}
    cudnn = CuDNN(use.get(attention, "measured"))
    why = f"the model is {dtype} on {device.type}" if attention == "auto" else "it was asked for"
    logger.info("Attention is computed by Triton; use of cuDNN: %s (%s).", cudnn.use, why)
    return TritonBackend(runner, cudnn)
