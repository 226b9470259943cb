"""Reading files: safetensors with checksums, written atomically, and refused by a model that they do not fit.

A file holds a reading's token ids, its keys and values, and, if a user saved it, its chunks. Its description has the
identity of the model: name, weights, data type. Loading a file never executes anything in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import stat
import struct
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash
from safetensors import SafetensorError, safe_open

from wim_kernel.common.errors import OptionError, ReadingFileError
from wim_kernel.common.plain_data import shown
from wim_kernel.engines.document import TokenizedDocument
from wim_kernel.engines.packed import Packed

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "wim-reading-2"
IDS = "ids"


@dataclass(frozen=True)
class Saved:
    """The contents of a file.

    Attributes:
        document: token ids of the head and of each chunk that was read.
        packed: keys and values, memory-mapped from the file.
        about: the kernel's data about the document, as JSON data; empty in a cache folder.
    """

    document: TokenizedDocument
    packed: Packed
    about: Mapping[str, Any] = field(default_factory=dict)


def write(
    path: Path,
    document: TokenizedDocument,
    packed: Packed,
    identity: Mapping[str, str],
    about: Mapping[str, Any] | None = None,
    *,
    durable: bool = True,
) -> None:
    """Write a reading to a file, atomically: after a crash the path holds the old file, no file, or the whole new one.

    Args:
        path: the file; an existing file is replaced.
        document: token ids of the head and of each chunk.
        packed: keys and values of these tokens.
        identity: the model's identity, see `wim_kernel.engines.base.Engine.identity`.
        about: further data about the document, as JSON data.
        durable: whether to wait for the disk (fsync). Otherwise a power failure may leave a damaged file, which `read`
            detects.

    Raises:
        ReadingFileError: if the file cannot be written, for example on a full disk.
    """
    import torch  # only where there are tensors to write
    from safetensors.torch import save_file

    _check_replaceable(path)
    ids = torch.tensor(list(document.ids()), dtype=torch.int32)
    tensors = {IDS: ids, **{f"kv.{name}": tensor for name, tensor in packed.tensors.items()}}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    description = {
        "format": FORMAT,
        "identity": dict(identity),
        "pieces": [len(document.head), *map(len, document.chunks)],
        "chain": chain(document),
        "state": dict(packed.state),
        "document": dict(about or {}),
        "digests": _digests(tensors),
        "shapes": {name: [str(tensor.dtype), *tensor.shape] for name, tensor in tensors.items()},
    }
    text = json.dumps(description, default=str)  # a chunk's metadata may hold anything
    metadata = {"wim": text, "digest": _digest(text.encode())}
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, unfinished, metadata)
        if durable:
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        raise ReadingFileError(path, f"it cannot be written: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


def as_path(given: object, name: str) -> Path:
    """The path that a caller gave.

    Args:
        given: the caller's value.
        name: the argument's name, for the error.

    Raises:
        OptionError: if the value is no path, or contains a null character.
    """
    if not isinstance(given, str | os.PathLike) or "\0" in str(given):
        raise OptionError(f"{name} has to be a path, as a string or a Path, and is {shown(given)}.")
    return Path(given)


def _check_replaceable(path: Path) -> None:
    """Check that writing to a path replaces nothing but a regular file.

    Raises:
        ReadingFileError: if the path is a link, a device, a pipe or a folder.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:  # no such file, or an error that the writing will raise, too
        return
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS_OF_FILES if is_kind(mode)), "no regular file")
        raise ReadingFileError(
            path, f"{kind} is in its place and would be replaced", "Name a file.", use="to save to"
        )


_KINDS_OF_FILES: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISLNK, "a link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read(path: Path, identity: Mapping[str, str]) -> Saved:
    """Read a file, its tensors memory-mapped, after checking all checksums.

    Args:
        path: the file.
        identity: the identity of the model that will use the file.

    Raises:
        ReadingFileError: if the path is no reading file, the file is damaged, or it was made with another model; the
            message says which.
    """
    description = describe(path)
    for name in sorted({*description["identity"], *identity}):
        theirs, ours = description["identity"].get(name), identity.get(name)
        if theirs != ours:
            raise ReadingFileError(path, f"its {name} is {theirs} and here it is {ours}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
    except (OSError, SafetensorError) as error:
        raise ReadingFileError(path, f"it is damaged: {error}") from error
    if not set(tensors) == set(description["digests"]) == set(description["shapes"]) or IDS not in tensors:
        raise ReadingFileError(path, "it is damaged: tensors are missing")
    shapes = {name: [str(tensor.dtype), *tensor.shape] for name, tensor in tensors.items()}
    digests = _digests(tensors)
    for name in tensors:
        if description["shapes"][name] != shapes[name] or description["digests"][name] != digests[name]:
            raise ReadingFileError(path, f"it is damaged: {name} is not what was written")
    ids = tensors.pop(IDS).tolist()
    ends = list(itertools.accumulate(description["pieces"], initial=0))
    head, *chunks = (tuple(ids[start:end]) for start, end in itertools.pairwise(ends))
    kept = {name.removeprefix("kv."): tensor for name, tensor in tensors.items()}
    return Saved(
        TokenizedDocument(head, tuple(chunks)),
        Packed(kept, description["state"], len(ids)),
        description["document"],
    )


def describe(path: Path) -> dict[str, Any]:
    """A file's description: all but its tensors, which are not read.

    Raises:
        ReadingFileError: if the path is no reading file, or its description is damaged.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no file")
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = file.read(length) if length <= path.stat().st_size else b""
        metadata = json.loads(header).get("__metadata__", {})
        text = metadata.get("wim")
    except (OSError, struct.error, ValueError, AttributeError, RecursionError, MemoryError) as error:
        raise ReadingFileError(path, f"it cannot be read: {error}") from error
    if not isinstance(text, str):
        raise ReadingFileError(path, "it is no saved reading")
    if metadata.get("digest") != _digest(text.encode()):
        raise ReadingFileError(path, "it is damaged: its description is not what was written")
    try:
        description: dict[str, Any] = json.loads(text)
        if description["format"] != FORMAT:
            raise ReadingFileError(
                path, f"its format is {description['format']} and this version reads {FORMAT}"
            )
        for name, kind in _DESCRIPTION.items():
            if not isinstance(description[name], kind):
                raise TypeError(name)
        if not description["pieces"] or not all(type(length) is int for length in description["pieces"]):
            raise TypeError("pieces")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ReadingFileError(path, f"its description is not what `save` writes: {error}") from error
    return description


_DESCRIPTION: dict[str, type] = {
    "identity": dict,
    "pieces": list,
    "chain": list,
    "state": dict,
    "document": dict,
    "digests": dict,
    "shapes": dict,
}


def chain(document: TokenizedDocument) -> list[str]:
    """Digests of all tokens through the head and through each chunk; equal digests mean equal leading chunks."""
    digest, found = hashlib.blake2b(digest_size=16), []
    for ids in (document.head, *document.chunks):
        digest.update(struct.pack(f"<I{len(ids)}I", len(ids), *ids))
        found.append(digest.hexdigest())
    return found


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """A digest of each tensor's bytes, computed in as many threads as torch uses; hashing releases the GIL."""
    import torch

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return dict(zip(tensors, pool.map(_tensor_digest, tensors.values()), strict=True))


def _tensor_digest(tensor: Tensor) -> str:
    """A digest that detects damage, not manipulation; as fast as memory."""
    import torch

    digest = xxhash.xxh3_128()
    # `update` releases the GIL; the one-shot function does not in older versions of xxhash
    digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
