"""Live readings: prefixes that hold documents, found again by what they hold, within a byte budget."""

from __future__ import annotations

import bisect
import itertools
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from wim_kernel.cache.disk import ReadingFolder
from wim_kernel.common import forks
from wim_kernel.common.copying import Shared
from wim_kernel.common.errors import MemoryBudgetError
from wim_kernel.engines.base import AnyEngine, Prefix
from wim_kernel.engines.document import TokenizedDocument
from wim_kernel.engines.packed import Packed

logger = logging.getLogger(__name__)

Where = Literal["engine", "host"]


@dataclass(frozen=True)
class Budget:
    """What live readings may take, level by level.

    Attributes:
        engine: bytes where the engine keeps keys and values. While all of them are in use it may be exceeded.
        host: bytes in the host's memory, for those that have to make way; 0 where the engine keeps its own there.
        folder: for those that have to make way there, too, and for those that earlier or other processes left.
    """

    engine: int
    host: int = 0
    folder: ReadingFolder | None = None


@dataclass(eq=False)
class Entry:
    """A live prefix, or what one was packed into.

    Attributes:
        document: what it holds and what its holders are going to read; just what it holds if it is packed.
        prefix: the engine's cache; None if it is packed.
        packed: its data in the host's memory; None if it is not there.
        planned: tokens that there is room for.
        users: calls that hold it now.
        used: when it was last held, as a count.
        hits: how often a call found what it wanted in it.
    """

    document: TokenizedDocument
    prefix: Prefix | None = None
    packed: Packed | None = None
    planned: int = 0
    users: int = 0
    used: int = 0
    hits: int = 0

    @property
    def tokens(self) -> int:
        """How many tokens it holds."""
        if self.prefix is not None:
            return self.prefix.tokens
        return self.packed.tokens if self.packed is not None else 0

    @property
    def read(self) -> int:
        """How many chunks are read whole."""
        return max(0, bisect.bisect_right(self.document.ends, self.tokens) - 1)


@dataclass(frozen=True)
class LiveReading:
    """What `PrefixCache.held` tells of one reading.

    Attributes:
        tokens: how many it holds, the head included.
        chunks: how many of them are read whole.
        nbytes: what it takes, room allocated ahead included.
        in_use: whether a call holds it now.
        where: ``"engine"``, ready to be used, or ``"host"``, to be moved back first.
        hits: how often a call found what it wanted in it.
    """

    tokens: int
    chunks: int
    nbytes: int
    in_use: bool
    where: Where = "engine"
    hits: int = 0


class PrefixCache(Shared):
    """The kernel's live readings: found by what they hold, moved down a level when they have to make way.

    Args:
        engine: opens and extends prefixes.
        budget: bytes that they may take. The least recently used make way, never one in use.
    """

    def __init__(self, engine: AnyEngine, budget: Budget) -> None:
        self.engine = engine
        self.budget = budget
        self._entries: list[Entry] = []
        self._clock = itertools.count(1)
        self.renew_after_fork()
        forks.register(self)

    def renew_after_fork(self) -> None:
        """Fresh locks. What was in use at the fork is forgotten: a parent's thread may have been writing to it."""
        # for the entries' fields; never held while anything is computed or moved
        self.lock = threading.RLock()
        # one finds or moves a reading at a time; taken before the lock, never under it
        self._move_lock = threading.RLock()
        self._moving = 0  # bytes where the engine keeps them, of what is on its way there or from there
        self._entries = [entry for entry in self._entries if not entry.users]

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes that live prefixes take where the engine keeps them, room allocated ahead included."""
        with self.lock:
            return sum(self._size(entry) for entry in self._entries if entry.prefix is not None)

    @property
    def host_nbytes(self) -> int:
        """Bytes that packed ones take in the host's memory."""
        with self.lock:
            return sum(self._size(entry) for entry in self._entries if entry.prefix is None)

    @property
    def held(self) -> list[LiveReading]:
        """The live readings, least recently used first; what lies on disk is not listed."""
        with self.lock:
            return [
                LiveReading(
                    entry.tokens,
                    entry.read,
                    self._size(entry),
                    entry.users > 0,
                    "host" if entry.prefix is None else "engine",
                    entry.hits,
                )
                for entry in sorted(self._entries, key=lambda entry: entry.used)
            ]

    def clear(self) -> None:
        """Forget every reading that is not in use. Files stay."""
        with self.lock:
            self._entries = [entry for entry in self._entries if entry.users]

    def forget(self, document: TokenizedDocument) -> None:
        """Forget readings that hold this document or leading chunks of it and are not in use. Files stay."""
        with self.lock:
            self._entries = [
                entry
                for entry in self._entries
                if entry.users or entry.document.common_chunks(document) < len(entry.document)
            ]

    def flush(self) -> int:
        """Write every reading to the folder, if there is one; says how many are there.

        One that cannot be written is left out, with a warning.
        """
        forks.check(self.engine)
        written = 0
        with self._move_lock:
            for entry in list(self._entries):
                if self._to_disk(entry):
                    written += 1
        return written

    def keep_in(self, path: Path, most_bytes: int | None = None) -> None:
        """Use a folder from now on, for what has to make way and for what is in it.

        Args:
            path: the folder; made where it is missing.
            most_bytes: most that its files may take; half of what is free on the disk in any case, if not given.

        Raises:
            ReadingFileError: if there can be no such folder.
        """
        folder = ReadingFolder(path)
        if most_bytes is not None:
            folder.budget_bytes = min(folder.budget_bytes + folder.nbytes, most_bytes)
        self.budget = replace(self.budget, folder=folder)

    def acquire(self, document: TokenizedDocument) -> Entry:
        """Hold the prefix that shares most leading chunks, or a new one, until it is released.

        Raises:
            MemoryBudgetError: if it alone needs more than the budget.
        """
        self._check(document)
        with self.lock:
            entry = self._find_complete(document)
            # Fast path: a complete live entry needs no door, so a slow move of another reading does not delay it.
            if entry is not None:
                entry.hits += 1
                return self._hold(entry, document)
        with self._move_lock:
            entry = self._found(document)
            with self.lock:
                return self._hold(entry, document)

    def _hold(self, entry: Entry, document: TokenizedDocument) -> Entry:
        """The entry with one more user, who plans to read ``document``; under the lock."""
        # Another caller who comes now with the same document finds the plan, and reads it together with this one.
        if entry.document.common_chunks(document) == len(entry.document):
            entry.document = entry.document.then(document.chunks[len(entry.document) :])
        entry.users += 1
        entry.used = next(self._clock)
        return entry

    def release(self, entry: Entry) -> None:
        """Give an entry back; it stays live while the budget allows."""
        with self.lock:
            entry.users -= 1
        self.trim()

    def must_fork(self, entry: Entry, document: TokenizedDocument, chunk: int, known: int = 0) -> bool:
        """Whether others hold or have read something else than ``chunk`` here; if not, it is planned next.

        Args:
            entry: an entry that the caller holds.
            document: what the caller reads.
            chunk: the one that is next.
            known: leading chunks of the entry known to be the caller's.

        Chunks that were announced and not yet prefilled are discarded. That is safe, because the lock is held until
        ours is recorded.
        """
        with self.lock:
            planned = entry.document
            if planned.common_chunks(document, known) == chunk and len(planned) > chunk:
                if entry.users > 1 or entry.tokens > document.ends[chunk]:
                    return True
                planned = planned.part(range(chunk))
            entry.document = planned.then(document.chunks[len(planned) : chunk + 1])
            return False

    def fork(self, entry: Entry, document: TokenizedDocument, chunk: int) -> Entry:
        """Release a held entry and hold a copy of it that goes on with ``chunk``.

        The engine copies without the lock: a caller who releases an entry must not wait for somebody's forward pass.
        """
        assert entry.prefix is not None, "what is held is never packed"
        prefix = self.engine.fork(entry.prefix, document.ends[chunk])  # held by us, so it stays
        planned = document.part(range(chunk + 1))
        with self.lock:
            other = self._hold(self.add(prefix, planned), planned)
            entry.users -= 1
        return other

    def reserve(self, entry: Entry, tokens: int) -> None:
        """Make room for ``tokens`` tokens in all in a held entry."""
        with self.lock:
            grows = tokens > entry.planned
            entry.planned = max(tokens, entry.planned)
        if grows:
            self.trim()
            assert entry.prefix is not None, "what is held is never packed"
            self.engine.reserve(entry.prefix, tokens)

    def _find_complete(self, document: TokenizedDocument) -> Entry | None:
        """An entry where the engine can use it that holds, or is going to hold, all that is wanted."""
        live = (entry for entry in self._entries if entry.prefix is not None)
        whole = (entry for entry in live if entry.document.common_chunks(document) == len(document))
        return max(whole, key=lambda e: e.used, default=None)

    def adopt(self, document: TokenizedDocument, packed: Packed) -> None:
        """Take in a reading that was packed elsewhere, unless it is here.

        Raises:
            MemoryBudgetError: if it alone needs more than the budget.
        """
        self._check(document)
        with self._move_lock:
            here = (
                entry.document.common_chunks(document) == len(document) <= entry.read
                for entry in self._entries
            )
            if not any(here):
                self._unpack_entry(Entry(document, packed=packed), document)

    def trim(self, coming: int = 0) -> None:
        """Move down the least recently used, not in use, until the rest and ``coming`` bytes are within the budget."""
        if self._fits(coming):
            return
        with self._move_lock:
            while True:
                with self.lock:
                    idle = [entry for entry in self._entries if not entry.users and entry.prefix is not None]
                    if self._fits(coming) or not idle:
                        return
                    entry = min(idle, key=lambda entry: entry.used)
                    self._entries.remove(entry)  # nobody finds it meanwhile; they wait at the door
                with self._in_transit(self._size(entry)):
                    self._demote(entry)

    def evict_idle(self) -> None:
        """Move down everything that is not in use: the device ran out of memory."""
        self.trim(self.budget.engine)

    def _fits(self, coming: int) -> bool:
        with self.lock:
            return self.nbytes + self._moving + coming <= self.budget.engine

    def _check(self, document: TokenizedDocument) -> None:
        forks.check(self.engine)
        needed = self.engine.prefix_bytes(document.total)
        if needed > self.budget.engine:
            raise MemoryBudgetError(needed, self.budget.engine)

    # -- finding, with the door closed --------------------------------------------------------------------------------

    def _found(self, document: TokenizedDocument) -> Entry:
        """The entry that holds most of what is wanted, brought back if it was packed; or a new one."""
        with self.lock:
            best = max(
                self._entries,
                key=lambda e: (e.document.common_chunks(document), e.prefix is not None, e.used),
                default=None,
            )
            shared = best.document.common_chunks(document) if best is not None else 0
        folder = self.budget.folder
        if folder is not None and shared < len(document):
            identity = self.engine.identity()
            path, more = folder.best(document, identity)
            if path is not None and more > max(0, shared):
                saved = folder.load(path, identity)
                if saved is not None:
                    best, shared = Entry(saved.document, packed=saved.packed), more
        if best is None or shared < 1:  # a head alone is run again sooner than copied
            return self.add(self.engine.open(), document.part(range(0)))
        if best.prefix is None:
            best = self._unpack_entry(best, document)
        best.hits += 1
        return best

    def _unpack_entry(self, entry: Entry, document: TokenizedDocument) -> Entry:
        """A packed entry's leading chunks that are wanted, where the engine can use them."""
        shared, total = entry.document.common_chunks(document), document.total
        assert entry.packed is not None
        wanted = document.part(range(shared))
        with self._in_transit(self.engine.prefix_bytes(total)):
            self.trim()
            prefix = self.engine.unpack(entry.packed, list(wanted.ids()), total)
            with self.lock:
                back = self.add(prefix, wanted)
                back.planned, back.hits = total, entry.hits
        with self.lock:
            if shared == len(entry.document) and entry in self._entries:
                self._entries.remove(entry)
        return back

    @contextmanager
    def _in_transit(self, nbytes: int) -> Iterator[None]:
        """While so many bytes are, or are going to be, where the engine keeps them, and nobody finds them there."""
        with self.lock:
            self._moving += nbytes
        try:
            yield
        finally:
            with self.lock:
                self._moving -= nbytes

    def add(self, prefix: Prefix, document: TokenizedDocument) -> Entry:
        """Take a prefix in as an entry that holds, or is going to hold, ``document``."""
        entry = Entry(document, prefix, planned=prefix.tokens)
        with self.lock:
            entry.used = next(self._clock)
            self._entries.append(entry)
        return entry

    # -- making way, with the door closed -----------------------------------------------------------------------------

    def _demote(self, entry: Entry) -> None:
        """Pack an entry that was taken out of the list, into the host's memory or a file; or let it go."""
        packed = self._pack(entry) if self.budget.host or self.budget.folder is not None else None
        if packed is None:
            return
        if packed.packed is not None and packed.packed.nbytes > self.budget.host:
            self._to_disk(packed)
            return
        with self.lock:
            self._entries.append(packed)
        while True:
            with self.lock:
                others = [e for e in self._entries if e.prefix is None and e is not packed]
                if self.host_nbytes <= self.budget.host or not others:
                    return
                oldest = min(others, key=lambda e: e.used)
                self._entries.remove(oldest)
            self._to_disk(oldest)

    def _pack(self, entry: Entry) -> Entry | None:
        """What an entry has read whole, packed; None if that is nothing, or cannot be packed."""
        with self.lock:
            document = entry.document.part(range(entry.read))
        if entry.packed is not None:
            return entry
        if not len(document) or entry.prefix is None:
            return None
        try:
            packed = self.engine.pack(entry.prefix, document.total)
        except (TypeError, KeyError) as error:  # a layer's state that is no plain data
            logger.info(
                "A reading that has to make way cannot be packed, and is read again when needed: %s", error
            )
            return None
        return Entry(document, packed=packed, used=entry.used, hits=entry.hits)

    def _to_disk(self, entry: Entry) -> bool:
        """Write an entry to the folder, if there is one and it has room; whether it is there now."""
        folder = self.budget.folder
        packed = self._pack(entry) if folder is not None else None
        if folder is None or packed is None or packed.packed is None:
            return False
        return folder.keep(packed.document, packed.packed, self.engine.identity())

    def _size(self, entry: Entry) -> int:
        if entry.prefix is None:
            return entry.packed.nbytes if entry.packed is not None else 0
        return self.engine.prefix_bytes(max(entry.planned, entry.prefix.tokens))
