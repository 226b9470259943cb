"""Readings as files: safetensors, checksummed, written whole or not at all, and refused where they do not fit.

A file holds the tokens of a reading, piece by piece, its keys and values, and, if a user saved it, its chunks. It says
which model, weights and type it was made with. Nothing in it is ever executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import shutil
import stat
import struct
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wim_kernel.common.errors import OptionError, ReadingFileError
from wim_kernel.common.plain_data import shown
from wim_kernel.engines.document import TokenizedDocument
from wim_kernel.engines.packed import Packed

logger = logging.getLogger(__name__)

FORMAT = "wim-reading-2"
SUFFIX = ".wim.safetensors"
IDS = "ids"
STALE_SECONDS = 3600.0  # after which a file that is still unfinished has lost its writer


@dataclass(frozen=True)
class Saved:
    """What a file holds.

    Attributes:
        document: token ids of the head and of each chunk that was read.
        packed: keys and values, mapped from the file.
        about: what the kernel said of the document, as JSON data; empty in a cache.
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
    """Write a reading to a file, atomically: after a crash there is the old file, or none, or the new one.

    Args:
        path: where to; what is there is replaced.
        document: token ids of the head and of each chunk.
        packed: keys and values of just these.
        identity: what the model is, see `wim_kernel.engines.base.Engine.identity`.
        about: more to keep of the document, as JSON data.
        durable: wait until the disk has it. Otherwise a loss of power may leave a file that is damaged, and says so.

    Raises:
        ReadingFileError: if it cannot be written, on a full disk for example.
    """
    _check_replaceable(path)
    ids = torch.tensor(list(document.ids()), dtype=torch.int32)
    tensors = {IDS: ids, **{f"kv.{name}": tensor for name, tensor in packed.tensors.items()}}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    said = {
        "format": FORMAT,
        "identity": dict(identity),
        "pieces": [len(document.head), *map(len, document.chunks)],
        "chain": chain(document),
        "state": dict(packed.state),
        "document": dict(about or {}),
        "digests": _digests(tensors),
        "shapes": {name: [str(tensor.dtype), *tensor.shape] for name, tensor in tensors.items()},
    }
    text = json.dumps(said, default=str)  # a chunk's metadata may hold anything
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
    """A path as it was given.

    Args:
        given: a string or a path.
        name: what it is called.

    Raises:
        OptionError: if it is none, or no file system can have it.
    """
    if not isinstance(given, str | os.PathLike) or "\0" in str(given):
        raise OptionError(f"{name} has to be a path, as a string or a Path, and is {shown(given)}.")
    return Path(given)


def _check_replaceable(path: Path) -> None:
    """See that a file can be put in a path's place without taking anything else away.

    Raises:
        ReadingFileError: if there is a link, a device, a pipe or a folder.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:  # nothing is there, or the writing says what is wrong
        return
    if not stat.S_ISREG(mode):
        kind = next(
            (name for is_kind, name in _KINDS_OF_FILES if is_kind(mode)), "something else than a file"
        )
        raise ReadingFileError(
            path, f"{kind} is there, which would be replaced", "Name a file.", use="to save to"
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
    """Read a file back, its tensors mapped into memory, after checking all of it.

    Args:
        path: the file.
        identity: what the model is now.

    Raises:
        ReadingFileError: if it is no such file, is damaged, or was made with something else; it says which.
    """
    said = describe(path)
    for name in sorted({*said["identity"], *identity}):
        theirs, ours = said["identity"].get(name), identity.get(name)
        if theirs != ours:
            raise ReadingFileError(path, f"its {name} is {theirs} and here it is {ours}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
    except (OSError, SafetensorError) as error:
        raise ReadingFileError(path, f"it is damaged: {error}") from error
    if not set(tensors) == set(said["digests"]) == set(said["shapes"]) or IDS not in tensors:
        raise ReadingFileError(path, "it is damaged: tensors are missing")
    shapes = {name: [str(tensor.dtype), *tensor.shape] for name, tensor in tensors.items()}
    digests = _digests(tensors)
    for name in tensors:
        if said["shapes"][name] != shapes[name] or said["digests"][name] != digests[name]:
            raise ReadingFileError(path, f"it is damaged: {name} is not what was written")
    ids = tensors.pop(IDS).tolist()
    ends = list(itertools.accumulate(said["pieces"], initial=0))
    head, *chunks = (tuple(ids[start:end]) for start, end in itertools.pairwise(ends))
    kept = {name.removeprefix("kv."): tensor for name, tensor in tensors.items()}
    return Saved(
        TokenizedDocument(head, tuple(chunks)), Packed(kept, said["state"], len(ids)), said["document"]
    )


def describe(path: Path) -> dict[str, Any]:
    """What a file says of itself; its tensors are not read.

    Raises:
        ReadingFileError: if it is no such file, or its description is damaged.
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
        said: dict[str, Any] = json.loads(text)
        if said["format"] != FORMAT:
            raise ReadingFileError(path, f"its format is {said['format']} and this version reads {FORMAT}")
        for name, kind in _DESCRIPTION.items():
            if not isinstance(said[name], kind):
                raise TypeError(name)
        if not said["pieces"] or not all(type(length) is int for length in said["pieces"]):
            raise TypeError("pieces")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ReadingFileError(path, f"its description is not what `save` writes: {error}") from error
    return said


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
    """A digest of all tokens up to the head's end and each chunk's, by which common beginnings are seen."""
    digest, found = hashlib.blake2b(digest_size=16), []
    for ids in (document.head, *document.chunks):
        digest.update(struct.pack(f"<I{len(ids)}I", len(ids), *ids))
        found.append(digest.hexdigest())
    return found


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """A digest of each tensor's bytes; by as many threads as torch uses, since hashing lets others run."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return dict(zip(tensors, pool.map(_tensor_digest, tensors.values()), strict=True))


def _tensor_digest(tensor: Tensor) -> str:
    """Of what damage does, not of what an adversary could; as quick as memory is."""
    digest = xxhash.xxh3_128()
    # lets other threads run meanwhile; in older versions the function that does all in one does not
    digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class ReadingFolder:
    """A folder of readings, which several processes may use at once.

    Args:
        path: the folder; made where it is missing.
        budget_bytes: most that its files may take, by default half of what is free on the disk; those used longest ago
            go first.

    Raises:
        ReadingFileError: if there can be no such folder.
    """

    def __init__(self, path: str | Path, budget_bytes: int | None = None) -> None:
        if not str(path).strip():
            raise ReadingFileError(
                Path(path), "its name is empty", "Name a folder, or give None.", use="as a folder of readings"
            )
        path = as_path(path, "cache_dir").expanduser()
        try:
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.mkdir(mode=0o700, exist_ok=True)  # documents can be read out of it
            elif not path.is_dir():
                raise NotADirectoryError("it is no folder")
            free = shutil.disk_usage(path).free
        except OSError as error:
            reason = error.strerror or str(error)
            raise ReadingFileError(
                path, reason, "Name another folder.", use="as a folder of readings"
            ) from error
        self.path = path
        self.budget_bytes = free // 2 if budget_bytes is None else budget_bytes
        self._known: dict[Path, tuple[int, dict[str, Any]]] = {}
        self._warned = False

    def keep(self, document: TokenizedDocument, packed: Packed, identity: Mapping[str, str]) -> bool:
        """Keep a reading, if that can be done, and say whether it is there. The first that cannot be is warned of."""
        reason = f"it takes {packed.nbytes:,} bytes and the folder may take {self.budget_bytes:,}"
        if packed.nbytes <= self.budget_bytes:
            try:
                self.put(document, packed, identity)
                return True
            except ReadingFileError as error:
                reason = error.reason
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"A reading cannot be kept in {self.path} ({reason}), so it will be read again when it is needed: name "
                "a folder that can be written to, on a disk with room.",
                stacklevel=2,
            )
        return False

    def put(self, document: TokenizedDocument, packed: Packed, identity: Mapping[str, str]) -> Path:
        """Keep a reading; does nothing if it is there.

        Raises:
            ReadingFileError: if it cannot be written.
        """
        name = _digest(json.dumps([dict(identity), chain(document)[-1]], sort_keys=True).encode())
        path = self.path / f"{name}{SUFFIX}"
        if not path.exists():
            self.trim(packed.nbytes)
            write(path, document, packed, identity, durable=False)  # it is checked when it is used
        self._touch(path)
        self.trim()  # a file is somewhat larger than its tensors
        return path

    def best(self, document: TokenizedDocument, identity: Mapping[str, str]) -> tuple[Path | None, int]:
        """The file that shares most leading chunks, and how many; files of other models share none."""
        wanted = chain(document)
        found: tuple[Path | None, int] = (None, 0)
        for path in self._files():
            said = self._describe(path)
            if said is None or said["identity"] != dict(identity):
                continue
            pairs = zip(said["chain"], wanted, strict=False)
            shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)) - 1
            if shared > found[1]:
                found = (path, shared)
        return found

    def load(self, path: Path, identity: Mapping[str, str]) -> Saved | None:
        """A file's reading, or None if it is gone or damaged; a damaged one is deleted."""
        try:
            saved = read(path, identity)
        except ReadingFileError as error:
            logger.warning("%s", error)
            self._delete(path)
            return None
        self._touch(path)
        return saved

    @property
    def nbytes(self) -> int:
        """Bytes of all its files."""
        return sum(size for _, size, _ in self._sized())

    def trim(self, coming: int = 0) -> None:
        """Delete what was used longest ago until ``coming`` more bytes fit, and what writers left unfinished."""
        with contextlib.suppress(OSError):
            for left in self.path.glob(".*.unfinished"):
                if time.time() - left.stat().st_mtime > STALE_SECONDS:
                    self._delete(left)
        files = sorted(self._sized(), key=lambda item: item[2])
        total = sum(size for _, size, _ in files) + coming
        for path, size, _ in files:
            if total <= self.budget_bytes:
                return
            self._delete(path)
            total -= size

    def _files(self) -> list[Path]:
        with contextlib.suppress(OSError):
            return sorted(self.path.glob(f"*{SUFFIX}"))
        return []

    def _sized(self) -> list[tuple[Path, int, float]]:
        found = []
        for path in self._files():
            with contextlib.suppress(OSError):  # another process may delete it just now
                status = path.stat()
                found.append((path, status.st_size, status.st_mtime))
        return found

    def _describe(self, path: Path) -> dict[str, Any] | None:
        """What a file says of itself, looked up once as long as it stays the same."""
        try:
            version = path.stat().st_ino
            if path not in self._known or self._known[path][0] != version:
                self._known[path] = (version, describe(path))
            return self._known[path][1]
        except FileNotFoundError:
            return None
        except ReadingFileError as error:
            logger.warning("%s", error)
            self._delete(path)
            return None

    def _delete(self, path: Path) -> None:
        self._known.pop(path, None)
        with contextlib.suppress(OSError):
            path.unlink()

    def _touch(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            os.utime(path)
