"""GGUF files as plain models, and the converted copies kept of them.

Converting a GGUF file to plain weights takes half a minute even for a small model, so the converted copy is kept in the
user's cache folder, checked against its digests when it is read, and made again if it is damaged. Files that were
checked before are not read for it again as long as their sizes, times of change and inodes stay.
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
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from gguf import GGMLQuantizationType, GGUFReader
from platformdirs import user_cache_dir
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from wim_kernel.common.errors import UnsupportedModelError
from wim_kernel.common.file_identity import identity_of
from wim_kernel.common.kept_json import read_json, write_json
from wim_kernel.engines.hub import first_line

_MANIFEST = "manifest.json"
_CHECKED = "checked-files.json"
_MOST_CHECKED = 64  # entries kept; the oldest are dropped
_FLOAT32 = "mostly float32"  # an entry of the manifest
_FORMAT = 1  # version of the copies' content
_SHARD_SIZE = "256MB"  # several files, so that several cores check them at once
_BUFFER = 1 << 20

logger = logging.getLogger(__name__)


def convert(
    gguf: Path, dtype: torch.dtype, model_kwargs: Mapping[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
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


def copies_folder(cache_dir: Path | None) -> Path:
    """The folder of the converted copies; see `wim_kernel.engines.loading.load_model`."""
    folder = cache_dir or os.environ.get("WIM_CACHE_DIR")
    return Path(folder or user_cache_dir("wim-integrations", appauthor=False)).expanduser() / "models"


def kept_copy(gguf: Path, dtype: torch.dtype, cache: Path) -> Path | None:
    """The folder of a GGUF file's converted copy, which is made if necessary; None if it cannot be written."""
    dtype_name = str(dtype).removeprefix("torch.")
    copy = cache / f"{gguf.stem}-{_known_digest(gguf, cache)[:16]}-{dtype_name}-v{_FORMAT}"
    if _known_damage(copy, cache) is None:
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


def mostly_float32(gguf: Path, copy: Path | None = None) -> bool:
    """Whether most weights of a GGUF file have more than 16 bits; files of quantised weights have some that do.

    Reading it from the file takes seconds, so the converted copy is asked first.

    Raises:
        UnsupportedModelError: the file cannot be read.
    """
    if copy is not None:
        with suppress(OSError, ValueError, KeyError):
            return bool(json.loads((copy / _MANIFEST).read_text())[_FLOAT32])
    try:
        sizes = [(tensor.tensor_type, int(tensor.n_elements)) for tensor in GGUFReader(gguf).tensors]
    except Exception as error:  # on a broken file the reader may raise anything
        raise UnsupportedModelError(f"{str(gguf)!r} cannot be read: {first_line(error)}") from error
    wide = sum(size for kind, size in sizes if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F64))
    return 2 * wide > sum(size for _, size in sizes)


def _make_copy(gguf: Path, dtype: torch.dtype, copy: Path) -> None:
    """Convert into a temporary folder next to ``copy``, then rename it. The caller holds the lock."""
    unfinished = copy.with_name(f".{copy.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a process that was killed
    unfinished.mkdir()
    try:
        logger.info("Converting %s once, into %s", gguf.name, copy)
        model, tokenizer = convert(gguf, dtype, {})
        model.save_pretrained(unfinished, max_shard_size=_SHARD_SIZE)
        tokenizer.save_pretrained(unfinished)
        files = sorted(unfinished.iterdir())
        for file in files:
            file.chmod(0o644)  # safetensors makes files readable for the owner alone
        manifest = {file.name: {"bytes": file.stat().st_size, "sha256": _digest(file)} for file in files}
        described = {"source": gguf.name, _FLOAT32: mostly_float32(gguf), "files": manifest}
        (unfinished / _MANIFEST).write_text(json.dumps(described, indent=2))
        if copy.exists():
            shutil.rmtree(copy)
        unfinished.replace(copy)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _known_damage(copy: Path, cache: Path) -> str | None:
    """As `_damage`, without reading the files of a copy that was whole and has not changed since."""
    identity = identity_of(copy.iterdir()) if copy.is_dir() else None
    if identity is not None and read_json(cache / _CHECKED).get(identity) is True:
        return None
    damage = _damage(copy)
    if damage is None and identity is not None and identity == identity_of(copy.iterdir()):
        _remember(cache, identity, True)
    return damage


def _known_digest(gguf: Path, cache: Path) -> str:
    """The SHA-256 of a file, which is not read if it has not changed since its digest was found."""
    identity = identity_of([gguf])
    known = None if identity is None else read_json(cache / _CHECKED).get(identity)
    if isinstance(known, str):
        return known
    digest = _digest(gguf)
    if identity is not None and identity == identity_of([gguf]):
        _remember(cache, identity, digest)
    return digest


def _remember(cache: Path, identity: str, found: str | bool) -> None:
    others = list(read_json(cache / _CHECKED).items())[1 - _MOST_CHECKED :]
    with suppress(OSError):
        write_json(cache / _CHECKED, {**dict(others), identity: found})


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
