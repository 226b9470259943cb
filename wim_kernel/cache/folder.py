"""A folder of reading files: the prefix cache's level on disk, within a byte budget."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wim_kernel.cache import disk
from wim_kernel.common.errors import ReadingFileError
from wim_kernel.engines.document import TokenizedDocument
from wim_kernel.engines.packed import Packed

logger = logging.getLogger(__name__)

SUFFIX = ".wim.safetensors"
STALE_SECONDS = 3600.0  # the age from which an unfinished file is taken to have lost its writer


class ReadingFolder:
    """A folder of reading files, which several processes may share.

    Args:
        path: the folder; created if it does not exist.
        budget_bytes: most bytes of its files; by default half of the disk's free space. Least recently used files are
            deleted first.

    Raises:
        ReadingFileError: if the folder cannot be created.
    """

    def __init__(self, path: str | Path, budget_bytes: int | None = None) -> None:
        if not str(path).strip():
            raise ReadingFileError(
                Path(path), "its name is empty", "Name a folder, or give None.", use="as a folder of readings"
            )
        path = disk.as_path(path, "cache_dir").expanduser()
        try:
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.mkdir(mode=0o700, exist_ok=True)  # private: the files reveal the documents
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
        self._descriptions: dict[Path, tuple[int, dict[str, Any]]] = {}
        self._warned = False

    def keep(self, document: TokenizedDocument, packed: Packed, identity: Mapping[str, str]) -> bool:
        """Write a reading if possible; returns whether the folder holds it. Warns of the first failure only."""
        reason = f"it has {packed.nbytes:,} bytes and the folder's budget is {self.budget_bytes:,}"
        if packed.nbytes <= self.budget_bytes:
            try:
                self.put(document, packed, identity)
                return True
            except ReadingFileError as error:
                reason = error.reason
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"A reading cannot be kept in {self.path} ({reason}), so its document will be read again when it is "
                "needed: name a folder that can be written to, on a disk with room.",
                stacklevel=2,
            )
        return False

    def put(self, document: TokenizedDocument, packed: Packed, identity: Mapping[str, str]) -> Path:
        """Write a reading, unless the folder holds it already; returns its file.

        Raises:
            ReadingFileError: if the file cannot be written.
        """
        key = json.dumps([dict(identity), disk.chain(document)[-1]], sort_keys=True).encode()
        name = hashlib.blake2b(key, digest_size=16).hexdigest()
        path = self.path / f"{name}{SUFFIX}"
        if not path.exists():
            self.trim(packed.nbytes)
            disk.write(path, document, packed, identity, durable=False)  # reading detects damage
        self._touch(path)
        self.trim()  # a file is somewhat larger than its tensors
        return path

    def best(self, document: TokenizedDocument, identity: Mapping[str, str]) -> tuple[Path | None, int]:
        """The file of this model that shares most leading chunks with a document, and how many; (None, 0) for none."""
        wanted = disk.chain(document)
        found: tuple[Path | None, int] = (None, 0)
        for path in self._files():
            description = self._describe(path)
            if description is None or description["identity"] != dict(identity):
                continue
            pairs = zip(description["chain"], wanted, strict=False)
            shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)) - 1
            if shared > found[1]:
                found = (path, shared)
        return found

    def load(self, path: Path, identity: Mapping[str, str]) -> disk.Saved | None:
        """Read a file; None if the file is gone or damaged. A damaged file is deleted."""
        try:
            saved = disk.read(path, identity)
        except ReadingFileError as error:
            logger.warning("%s", error)
            self._delete(path)
            return None
        self._touch(path)
        return saved

    @property
    def nbytes(self) -> int:
        """Bytes of all reading files in the folder."""
        return sum(size for _, size, _ in self._sized())

    def trim(self, incoming: int = 0) -> None:
        """Delete least recently used files until ``incoming`` more bytes fit, and unfinished files of lost writers."""
        with contextlib.suppress(OSError):
            for unfinished in self.path.glob(".*.unfinished"):
                if time.time() - unfinished.stat().st_mtime > STALE_SECONDS:
                    self._delete(unfinished)
        files = sorted(self._sized(), key=lambda item: item[2])
        total = sum(size for _, size, _ in files) + incoming
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
            with contextlib.suppress(OSError):  # another process may have deleted it
                status = path.stat()
                found.append((path, status.st_size, status.st_mtime))
        return found

    def _describe(self, path: Path) -> dict[str, Any] | None:
        """A file's description, cached while the file is the same."""
        try:
            version = path.stat().st_ino
            if path not in self._descriptions or self._descriptions[path][0] != version:
                self._descriptions[path] = (version, disk.describe(path))
            return self._descriptions[path][1]
        except FileNotFoundError:
            return None
        except ReadingFileError as error:
            logger.warning("%s", error)
            self._delete(path)
            return None

    def _delete(self, path: Path) -> None:
        self._descriptions.pop(path, None)
        with contextlib.suppress(OSError):
            path.unlink()

    def _touch(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            os.utime(path)
