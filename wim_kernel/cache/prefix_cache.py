"""The prefix cache: prefixes of documents, found by their leading chunks, on three levels within byte budgets.

Prefixes in the engine's memory are evicted to the host's memory, and from there to a folder on disk. A prefix in use is
never evicted.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from wim_kernel.cache.entry import Budget, Entry, LiveReading
from wim_kernel.cache.folder import ReadingFolder
from wim_kernel.common import forks
from wim_kernel.common.copying import Shared
from wim_kernel.common.errors import MemoryBudgetError
from wim_kernel.engines.base import AnyEngine, Prefix
from wim_kernel.engines.document import TokenizedDocument
from wim_kernel.engines.packed import Packed

logger = logging.getLogger(__name__)


class PrefixCache(Shared):
    """The kernel's cache of prefixes. Entries are shared: several calls may use one at once.

    Args:
        engine: the engine that opens, copies and packs prefixes.
        budget: the budget of each level. The least recently used idle entries are evicted first.
    """

    def __init__(self, engine: AnyEngine, budget: Budget) -> None:
        self.engine = engine
        self.budget = budget
        self._entries: list[Entry] = []
        self._clock = itertools.count(1)
        self.renew_after_fork()
        forks.register(self)

    def renew_after_fork(self) -> None:
        """Make new locks, and drop entries in use at the fork: a thread of the parent may have been writing to them."""
        # Guards the entries and their fields; never held while anything is computed or moved.
        self.lock = threading.RLock()
        # Held while an entry is looked up below the first level or moved; acquired before `lock`, never under it.
        self._move_lock = threading.RLock()
        self._bytes_in_transit = 0  # engine memory of entries that are being moved
        self._entries = [entry for entry in self._entries if not entry.users]

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes of prefixes in the engine's memory, including room reserved for tokens to come."""
        with self.lock:
            return sum(self._size(entry) for entry in self._entries if entry.prefix is not None)

    @property
    def host_nbytes(self) -> int:
        """Bytes of packed prefixes in the host's memory."""
        with self.lock:
            return sum(self._size(entry) for entry in self._entries if entry.prefix is None)

    @property
    def held(self) -> list[LiveReading]:
        """The entries in memory, least recently used first; files are not listed."""
        with self.lock:
            return [
                LiveReading(
                    entry.tokens,
                    entry.chunks_read,
                    self._size(entry),
                    entry.users > 0,
                    "host" if entry.prefix is None else "engine",
                    entry.hits,
                )
                for entry in sorted(self._entries, key=lambda entry: entry.last_used)
            ]

    def clear(self) -> None:
        """Drop every idle entry. Files stay."""
        with self.lock:
            self._entries = [entry for entry in self._entries if entry.users]

    def forget(self, document: TokenizedDocument) -> None:
        """Drop idle entries that hold this document or leading chunks of it. Files stay."""
        with self.lock:
            self._entries = [
                entry
                for entry in self._entries
                if entry.users or entry.document.common_chunks(document) < len(entry.document)
            ]

    def flush(self) -> int:
        """Write every entry to the folder, if there is one; returns how many of the entries the folder holds.

        An entry that cannot be written is left out, with a warning.
        """
        forks.check(self.engine)
        written = 0
        with self._move_lock:
            for entry in list(self._entries):
                if self._write_to_folder(entry):
                    written += 1
        return written

    def keep_in(self, path: Path, most_bytes: int | None = None) -> None:
        """Use a folder as the level on disk from now on.

        Args:
            path: the folder; created if it does not exist.
            most_bytes: most bytes of its files, besides the limit of half of the disk's free space.

        Raises:
            ReadingFileError: if the folder cannot be created.
        """
        folder = ReadingFolder(path)
        if most_bytes is not None:
            folder.budget_bytes = min(folder.budget_bytes + folder.nbytes, most_bytes)
        self.budget = replace(self.budget, folder=folder)

    def acquire(self, document: TokenizedDocument) -> Entry:
        """Acquire the entry that shares most leading chunks, or a new one, in the engine's memory; see `release`.

        Raises:
            MemoryBudgetError: if the document alone needs more than the engine's budget.
        """
        self._check_budget(document)
        with self.lock:
            entry = self._find_complete(document)
            # Fast path: a complete entry needs no move, so that a slow move of another entry does not delay it.
            if entry is not None:
                entry.hits += 1
                return self._add_user(entry, document)
        with self._move_lock:
            entry = self._find_or_open(document)
            with self.lock:
                return self._add_user(entry, document)

    def _add_user(self, entry: Entry, document: TokenizedDocument) -> Entry:
        """Add a user who will read ``document`` to an entry; called under the lock."""
        # Another caller with the same document finds the whole of it here, and both prefill it together.
        if entry.document.common_chunks(document) == len(entry.document):
            entry.document = entry.document.then(document.chunks[len(entry.document) :])
        entry.users += 1
        entry.last_used = next(self._clock)
        return entry

    def release(self, entry: Entry) -> None:
        """Release an entry; it stays cached while the budget allows."""
        with self.lock:
            entry.users -= 1
        self.trim()

    def plan(self, entry: Entry, document: TokenizedDocument, chunk: int, known: int = 0) -> bool:
        """Record ``chunk`` as the entry's next chunk; returns False if the entry continues differently.

        Then the caller has to `fork` it.

        Chunks of another document that are recorded and not yet prefilled are discarded if nobody else uses the entry.
        That is safe, because the lock is held until the caller's chunk is recorded.

        Args:
            entry: an entry that the caller uses.
            document: the document that the caller reads.
            chunk: the chunk to read next.
            known: a number of leading chunks known to be equal.
        """
        with self.lock:
            planned = entry.document
            if planned.common_chunks(document, known) == chunk and len(planned) > chunk:
                if entry.users > 1 or entry.tokens > document.ends[chunk]:
                    return False
                planned = planned.part(range(chunk))
            entry.document = planned.then(document.chunks[len(planned) : chunk + 1])
            return True

    def fork(self, entry: Entry, document: TokenizedDocument, chunk: int) -> Entry:
        """Release an entry, and acquire a copy of its leading chunks that continues with ``chunk``.

        The engine copies outside the lock: releasing an entry must not wait for a forward pass.
        """
        assert entry.prefix is not None, "an entry in use is never packed"
        prefix = self.engine.fork(
            entry.prefix, document.ends[chunk]
        )  # we use the entry, so it is not evicted
        planned = document.part(range(chunk + 1))
        with self.lock:
            other = self._add_user(self.add(prefix, planned), planned)
            entry.users -= 1
        return other

    def reserve(self, entry: Entry, tokens: int) -> None:
        """Make room for ``tokens`` tokens in all in an entry that the caller uses."""
        with self.lock:
            grows = tokens > entry.reserved
            entry.reserved = max(tokens, entry.reserved)
        if grows:
            self.trim()
            assert entry.prefix is not None, "an entry in use is never packed"
            self.engine.reserve(entry.prefix, tokens)

    def _find_complete(self, document: TokenizedDocument) -> Entry | None:
        """An entry in the engine's memory that holds, or will hold, the whole document; None if there is none."""
        ready = (entry for entry in self._entries if entry.prefix is not None)
        whole = (entry for entry in ready if entry.document.common_chunks(document) == len(document))
        return max(whole, key=lambda e: e.last_used, default=None)

    def adopt(self, document: TokenizedDocument, packed: Packed) -> None:
        """Add a packed prefix, such as a saved reading, unless the cache holds it already.

        Raises:
            MemoryBudgetError: if the document alone needs more than the engine's budget.
        """
        self._check_budget(document)
        with self._move_lock:
            cached = (
                entry.document.common_chunks(document) == len(document) <= entry.chunks_read
                for entry in self._entries
            )
            if not any(cached):
                self._unpack_entry(Entry(document, packed=packed), document)

    def trim(self, incoming: int = 0) -> None:
        """Evict least recently used idle entries until the rest and ``incoming`` bytes fit the engine's budget."""
        if self._is_within_budget(incoming):
            return
        with self._move_lock:
            while True:
                with self.lock:
                    idle = [entry for entry in self._entries if not entry.users and entry.prefix is not None]
                    if self._is_within_budget(incoming) or not idle:
                        return
                    entry = min(idle, key=lambda entry: entry.last_used)
                    self._entries.remove(entry)  # a caller who wants it waits for the move lock
                with self._in_transit(self._size(entry)):
                    self._demote(entry)

    def evict_idle(self) -> None:
        """Evict every idle entry from the engine's memory, after the device ran out of memory."""
        self.trim(self.budget.engine)

    def _is_within_budget(self, incoming: int) -> bool:
        with self.lock:
            return self.nbytes + self._bytes_in_transit + incoming <= self.budget.engine

    def _check_budget(self, document: TokenizedDocument) -> None:
        forks.check(self.engine)
        needed = self.engine.prefix_bytes(document.total, len(document) + 1)
        if needed > self.budget.engine:
            raise MemoryBudgetError(needed, self.budget.engine)

    # -- finding, under the move lock ---------------------------------------------------------------------------------

    def _find_or_open(self, document: TokenizedDocument) -> Entry:
        """The entry, in memory or on disk, that shares most leading chunks, moved to the engine; or a new one."""
        with self.lock:
            best = max(
                self._entries,
                key=lambda e: (e.document.common_chunks(document), e.prefix is not None, e.last_used),
                default=None,
            )
            shared = best.document.common_chunks(document) if best is not None else 0
        folder = self.budget.folder
        if folder is not None and shared < len(document):
            identity = self.engine.identity()
            path, shared_on_disk = folder.best(document, identity)
            if path is not None and shared_on_disk > max(0, shared):
                saved = folder.load(path, identity)
                if saved is not None:
                    best, shared = Entry(saved.document, packed=saved.packed), shared_on_disk
        if best is None or shared < 1:  # running a head again is faster than copying it
            return self.add(self.engine.open(), document.part(range(0)))
        if best.prefix is None:
            best = self._unpack_entry(best, document)
        best.hits += 1
        return best

    def _unpack_entry(self, entry: Entry, document: TokenizedDocument) -> Entry:
        """Move the leading chunks that a packed entry shares with ``document`` to the engine, as a new entry."""
        shared, total = entry.document.common_chunks(document), document.total
        assert entry.packed is not None
        wanted = document.part(range(shared))
        with self._in_transit(self.engine.prefix_bytes(total, len(document) + 1)):
            self.trim()
            prefix = self.engine.unpack(entry.packed, list(wanted.ids()), total)
            with self.lock:
                unpacked = self.add(prefix, wanted)
                unpacked.reserved, unpacked.hits = total, entry.hits
        with self.lock:
            if shared == len(entry.document) and entry in self._entries:
                self._entries.remove(entry)
        return unpacked

    @contextmanager
    def _in_transit(self, nbytes: int) -> Iterator[None]:
        """Count bytes against the engine's budget while an entry is being moved, and is in no list."""
        with self.lock:
            self._bytes_in_transit += nbytes
        try:
            yield
        finally:
            with self.lock:
                self._bytes_in_transit -= nbytes

    def add(self, prefix: Prefix, document: TokenizedDocument) -> Entry:
        """Add a prefix as an entry that holds, or will hold, ``document``."""
        entry = Entry(document, prefix, reserved=prefix.tokens)
        with self.lock:
            entry.last_used = next(self._clock)
            self._entries.append(entry)
        return entry

    # -- evicting, under the move lock --------------------------------------------------------------------------------

    def _demote(self, entry: Entry) -> None:
        """Move an entry that is in no list down a level, to the host's memory or the folder; otherwise drop it."""
        packed = self._pack(entry) if self.budget.host or self.budget.folder is not None else None
        if packed is None:
            return
        if packed.packed is not None and packed.packed.nbytes > self.budget.host:
            self._write_to_folder(packed)
            return
        with self.lock:
            self._entries.append(packed)
        while True:
            with self.lock:
                others = [e for e in self._entries if e.prefix is None and e is not packed]
                if self.host_nbytes <= self.budget.host or not others:
                    return
                oldest = min(others, key=lambda e: e.last_used)
                self._entries.remove(oldest)
            self._write_to_folder(oldest)

    def _pack(self, entry: Entry) -> Entry | None:
        """Pack the chunks that an entry holds whole; None if there are none, or if they cannot be packed."""
        with self.lock:
            document = entry.document.part(range(entry.chunks_read))
        if entry.packed is not None:
            return entry
        if not len(document) or entry.prefix is None:
            return None
        try:
            packed = self.engine.pack(entry.prefix, document.total)
        except (TypeError, KeyError) as error:  # the state of some layer is no plain data
            logger.info("An evicted reading cannot be packed, and will be read again when needed: %s", error)
            return None
        return Entry(document, packed=packed, last_used=entry.last_used, hits=entry.hits)

    def _write_to_folder(self, entry: Entry) -> bool:
        """Write an entry to the folder, if there is one with room; returns whether the folder holds the entry."""
        folder = self.budget.folder
        packed = self._pack(entry) if folder is not None else None
        if folder is None or packed is None or packed.packed is None:
            return False
        return folder.keep(packed.document, packed.packed, self.engine.identity())

    def _size(self, entry: Entry) -> int:
        if entry.prefix is None:
            return entry.packed.nbytes if entry.packed is not None else 0
        tokens = max(entry.reserved, entry.prefix.tokens)
        return self.engine.prefix_bytes(tokens, len(entry.document) + 1)
