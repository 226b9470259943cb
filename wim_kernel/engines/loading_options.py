"""The options of loading a model into this process, and of the engine that runs it; declared once, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    import torch

Attention = Literal["auto", "parts", "kernels", "cudnn"]
Weights = Literal["int8", "fp8"]
KeptDtype = Literal["int8"]


class LoadingOptions(TypedDict, total=False):
    """Keyword arguments of `wim_kernel.engines.loading.load_model`.

    Those that it does not use itself go to ``AutoModelForCausalLM.from_pretrained``, as does any that is not declared
    here.

    Attributes:
        gguf_file: the GGUF file to load out of the folder or hub repository.
        dtype: dtype of the weights, or ``"auto"``, the default. On a CPU that is float32, but for checkpoints in
            bfloat16 and GGUF files of at most 16 bits it is bfloat16 if a short trial finds the processor much faster
            in it; on other devices the checkpoint's half-precision dtype, or bfloat16 if it has none. Give
            ``"float32"`` for exact results.
        device: device of the model. By default the first CUDA device, or the CPU if there is none. Give
            ``device_map`` instead to spread the model over several devices.
        revision: branch, tag or commit of a hub repository.
        trust_remote_code: whether code that comes with the checkpoint may run.
        token: the Hub's access token, for gated repositories.
        local_files_only: whether to use the Hub's local cache alone.
        force_download: whether to download again what the Hub's local cache holds.
        subfolder: the checkpoint's folder within the repository.
        device_map: transformers' map of modules to devices.
        max_memory: most memory of each device, for a ``device_map``.
        offload_folder: folder for weights that fit no device of a ``device_map``.
        quantization_config: transformers' quantization of the weights.
        attn_implementation: the attention that the model uses outside the kernel.
    """

    gguf_file: str | None
    dtype: torch.dtype | str | None
    device: torch.device | str | None
    revision: str | None
    trust_remote_code: bool
    token: str | bool | None
    local_files_only: bool
    force_download: bool
    subfolder: str
    device_map: Any
    max_memory: Any
    offload_folder: Any
    quantization_config: Any
    attn_implementation: str | None


class EngineOptions(TypedDict, total=False):
    """Keyword arguments of `wim_kernel.engines.local.engine.LocalEngine`.

    Attributes:
        window: most tokens of a context; by default what the model's config says.
        cache_mode: ``"shared"`` (one prefix for all branches), ``"snapshot"`` (the model's own cache, one branch at a
            time), or None for ``"shared"`` unless the model fails its check.
        attention: backend that computes attention over a shared prefix, for debugging; see
            `wim_kernel.engines.local.backends.choose.choose_backend`.
        weights: quantises the model's linear layers in place. ``"int8"``, for a CPU: less memory, faster steps, and
            small errors (`wim_kernel.engines.local.model.int8_linear`). ``"fp8"``, for GPUs of compute capability 8.9
            or higher: half the memory, faster reading and steps, and larger errors, since inputs are rounded, too
            (`wim_kernel.engines.local.model.float8_linear`). None leaves them as they are.
        kept_dtype: ``"int8"`` keeps readings outside the model's memory, evicted to the host's or saved to files, in 8
            bits: a half to a quarter of the size, and no longer exact once they are back. By default they are kept as
            they are.
        path: the former name of ``cache_mode``.
    """

    window: int | None
    cache_mode: str | None
    attention: Attention
    weights: Weights | None
    kept_dtype: KeptDtype | None
    path: str | None


class LocalOptions(LoadingOptions, EngineOptions, total=False):
    """The options of loading a model and of its engine together."""
