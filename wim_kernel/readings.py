"""Live readings: prefixes that hold documents, found again by what they hold, within a byte budget."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from wim_kernel.engines.base import AnyEngine, Prefix
from wim_kernel.errors import DeviceMemoryError, MemoryBudgetError, ReadingFileError
from wim_kernel.margins import BranchRecord
from wim_kernel.storage import Packed, Pieces, ReadingFolder

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
        pieces: what it holds and what its holders are going to read, in order; just what it holds if it is packed.
        prefix: the engine's cache; None if it is packed.
        packed: its data in the host's memory; None if it is not there.
        planned: tokens that there is room for.
        users: calls that hold it now.
        used: when it was last held, as a count.
        hits: how often a call found what it wanted in it.
    """

    pieces: list[tuple[int, ...]]
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
        ends = itertools.accumulate(map(len, self.pieces))
        return max(0, sum(end <= self.tokens for end in ends) - 1)

    def shared(self, pieces: Pieces) -> int:
        """How many leading pieces are the same."""
        pairs = zip(self.pieces, pieces, strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


@dataclass(frozen=True)
class LiveReading:
    """What `Readings.held` tells of one reading.

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


class Readings:
    """The kernel's live readings: found by what they hold, moved down a level when they have to make way.

    Args:
        engine: opens and extends prefixes.
        budget: bytes that they may take. The least recently used make way, never one in use.
    """

    def __init__(self, engine: AnyEngine, budget: Budget) -> None:
        self.engine = engine
        self.budget = budget
        self._entries: list[Entry] = []
        self._lock = (
            threading.RLock()
        )  # for the entries' fields; never held while anything is computed or moved
        self._door = (
            threading.RLock()
        )  # one finds or moves a reading at a time; taken before the lock, never under it
        self._clock = itertools.count(1)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes that live prefixes take where the engine keeps them, room allocated ahead included."""
        with self._lock:
            return sum(self._size(entry) for entry in self._entries if entry.prefix is not None)

    @property
    def host_nbytes(self) -> int:
        """Bytes that packed ones take in the host's memory."""
        with self._lock:
            return sum(self._size(entry) for entry in self._entries if entry.prefix is None)

    @property
    def held(self) -> list[LiveReading]:
        """The live readings, least recently used first; what lies on disk is not listed."""
        with self._lock:
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
        with self._lock:
            self._entries = [entry for entry in self._entries if entry.users]

    def forget(self, pieces: Pieces) -> None:
        """Forget readings that hold just these pieces or fewer of them and are not in use. Files stay."""
        with self._lock:
            self._entries = [
                entry for entry in self._entries if entry.users or entry.shared(pieces) < len(entry.pieces)
            ]

    def flush(self) -> int:
        """Write every reading to the folder, if there is one; says how many were written.

        Raises:
            ReadingFileError: if one cannot be written.
        """
        written = 0
        with self._door:
            for entry in list(self._entries):
                if self._to_disk(entry):
                    written += 1
        return written

    def hold(self, pieces: Pieces) -> Lease:
        """Hold the prefix that shares most leading pieces, or a new one, until the lease is given back."""
        needed = self.engine.prefix_bytes(sum(map(len, pieces)))
        if needed > self.budget.engine:
            raise MemoryBudgetError(needed, self.budget.engine)
        with self._door:
            entry = self._found(pieces)
            with self._lock:
                lease = Lease(self, pieces)
                # so that whoever comes meanwhile reads it together with us
                if entry.shared(pieces) == len(entry.pieces):
                    entry.pieces.extend(pieces[len(entry.pieces) :])
                lease.take(entry)
            return lease

    def adopt(self, pieces: Pieces, packed: Packed) -> None:
        """Take in a reading that was packed elsewhere, unless it is here.

        Raises:
            MemoryBudgetError: if it alone needs more than the budget.
        """
        needed = self.engine.prefix_bytes(sum(map(len, pieces)))
        if needed > self.budget.engine:
            raise MemoryBudgetError(needed, self.budget.engine)
        with self._door:
            if not any(
                entry.shared(pieces) == len(pieces) and entry.read + 1 >= len(pieces)
                for entry in self._entries
            ):
                self._bring_back(Entry(list(pieces), packed=packed), pieces)

    def trim(self, coming: int = 0) -> None:
        """Move down the least recently used, not in use, until the rest and ``coming`` bytes are within the budget."""
        with self._door:
            while True:
                with self._lock:
                    idle = [entry for entry in self._entries if not entry.users and entry.prefix is not None]
                    if self.nbytes + coming <= self.budget.engine or not idle:
                        return
                    entry = min(idle, key=lambda entry: entry.used)
                    self._entries.remove(entry)  # nobody finds it meanwhile; they wait at the door
                self._move_down(entry)

    def make_way(self) -> None:
        """Move down everything that is not in use: the device ran out of memory."""
        self.trim(self.budget.engine)

    # -- finding, with the door closed --------------------------------------------------------------------------------

    def _found(self, pieces: Pieces) -> Entry:
        """The entry that holds most of what is wanted, brought back if it was packed; or a new one."""
        with self._lock:
            best = max(
                self._entries, key=lambda e: (e.shared(pieces), e.prefix is not None, e.used), default=None
            )
            shared = best.shared(pieces) if best is not None else 0
        folder = self.budget.folder
        if folder is not None and shared < len(pieces):
            path, more = folder.best(pieces, self.engine.identity())
            if path is not None and more > max(1, shared):
                saved = folder.load(path, self.engine.identity())
                if saved is not None:
                    best, shared = Entry(saved.pieces, packed=saved.packed), more
        if best is None or shared < 2:  # a head alone is run again sooner than copied
            return self._add(self.engine.open(), [])
        if best.prefix is None:
            best = self._bring_back(best, pieces)
        best.hits += 1
        return best

    def _bring_back(self, entry: Entry, pieces: Pieces) -> Entry:
        """A packed entry's leading pieces that are wanted, where the engine can use them."""
        shared, total = entry.shared(pieces), sum(map(len, pieces))
        assert entry.packed is not None
        self.trim(self.engine.prefix_bytes(total))
        ids = list(itertools.chain.from_iterable(pieces[:shared]))
        prefix = self.engine.unpack(entry.packed, ids, total)
        back = self._add(prefix, list(pieces[:shared]))
        back.planned, back.hits = total, entry.hits
        with self._lock:
            if shared == len(entry.pieces) and entry in self._entries:
                self._entries.remove(entry)
        return back

    def _add(self, prefix: Prefix, pieces: list[tuple[int, ...]]) -> Entry:
        entry = Entry(pieces, prefix, planned=prefix.tokens)
        with self._lock:
            entry.used = next(self._clock)
            self._entries.append(entry)
        return entry

    # -- making way, with the door closed -----------------------------------------------------------------------------

    def _move_down(self, entry: Entry) -> None:
        """Pack an entry that was taken out of the list, into the host's memory or a file; or let it go."""
        packed = self._pack(entry) if self.budget.host or self.budget.folder is not None else None
        if packed is None:
            return
        if packed.packed is not None and packed.packed.nbytes > self.budget.host:
            self._to_disk(packed)
            return
        with self._lock:
            self._entries.append(packed)
        while True:
            with self._lock:
                others = [e for e in self._entries if e.prefix is None and e is not packed]
                if self.host_nbytes <= self.budget.host or not others:
                    return
                oldest = min(others, key=lambda e: e.used)
                self._entries.remove(oldest)
            self._to_disk(oldest)

    def _pack(self, entry: Entry) -> Entry | None:
        """What an entry has read whole, packed; None if that is nothing, or cannot be packed."""
        with self._lock:
            pieces = entry.pieces[: entry.read + 1]
        if entry.packed is not None:
            return entry
        if len(pieces) < 2 or entry.prefix is None:
            return None
        try:
            packed = self.engine.pack(entry.prefix, sum(map(len, pieces)))
        except (TypeError, KeyError) as error:  # a layer's state that is no plain data
            logger.info(
                "A reading that has to make way cannot be packed, and is read again when needed: %s", error
            )
            return None
        return Entry(pieces, packed=packed, used=entry.used, hits=entry.hits)

    def _to_disk(self, entry: Entry) -> bool:
        """Write an entry to the folder, if there is one and it has room; whether it is there now."""
        folder = self.budget.folder
        packed = self._pack(entry) if folder is not None else None
        if folder is None or packed is None or packed.packed is None:
            return False
        if packed.packed.nbytes > folder.budget_bytes:
            return False
        try:
            folder.put(packed.pieces, packed.packed, self.engine.identity())
        except ReadingFileError as error:
            logger.warning("%s", error)
            return False
        return True

    def _size(self, entry: Entry) -> int:
        if entry.prefix is None:
            return entry.packed.nbytes if entry.packed is not None else 0
        return self.engine.prefix_bytes(max(entry.planned, entry.prefix.tokens))


class Lease:
    """The right to read on in a prefix, and to branch from it, until `close`.

    Attributes:
        pieces: what the holder wants read.
        prefilled: tokens of each piece that were run on behalf of this lease.
        entry: the prefix held. It changes if another reader went on differently: then this one goes on in a copy.
    """

    def __init__(self, readings: Readings, pieces: Pieces) -> None:
        self.readings = readings
        self.pieces = pieces
        self.prefilled = [0] * len(pieces)
        self.entry: Entry | None = None
        self._ends = [0, *itertools.accumulate(map(len, pieces))]
        self._same = 0  # leading pieces of the entry known to be these; it only ever grows at its end

    def take(self, entry: Entry) -> None:
        """Hold ``entry`` in place of what is held now."""
        with self.readings._lock:
            entry.users += 1
            entry.used = next(self.readings._clock)
            self._release()
            self.entry, self._same = entry, entry.shared(self.pieces)

    def close(self) -> None:
        """Give the prefix back; it stays live while the budget allows."""
        if self._release():
            self.readings.trim()

    def _release(self) -> bool:
        with self.readings._lock:
            if self.entry is None:
                return False
            self.entry.users -= 1
            self.entry = None
            return True

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def prefix(self) -> Prefix:
        """The engine's cache."""
        prefix = self._held.prefix
        assert prefix is not None, "what is held is never packed"
        return prefix

    @property
    def _held(self) -> Entry:
        assert self.entry is not None, "the lease was given back"
        return self.entry

    def end(self, piece: int) -> int:
        """How many tokens there are once ``piece`` is read."""
        return self._ends[piece + 1]

    def has(self, piece: int) -> bool:
        """Whether a piece is read already."""
        return piece < self._agreed() and self.prefix.tokens >= self.end(piece)

    def read(self, piece: int) -> Iterator[None]:
        """Have ``piece`` read, the ones before it being read; yields after every block.

        The head is read along with the first chunk. Several holders may read the same piece at once: each block is run
        by one of them.
        """
        self._claim(piece)
        first = 0 if piece == 1 and not self.has(0) else piece
        while not self.has(piece):
            ran = self._extend(self.pieces[first : piece + 1], self.end(first - 1))
            for read in {first, piece}:
                self.prefilled[read] += max(
                    0, min(ran.stop, self.end(read)) - max(ran.start, self.end(read - 1))
                )
            yield

    def _extend(self, pieces: Pieces, start: int) -> range:
        """Run a block; again, once everything that is not in use has made way, if the device has no memory for it."""
        engine = self.readings.engine
        try:
            return engine.extend(self.prefix, pieces, start)
        except DeviceMemoryError as error:
            logger.warning("%s Trying again without what is not in use.", error)
            self.readings.make_way()
            return engine.extend(self.prefix, pieces, start)

    def _agreed(self) -> int:
        """How many leading pieces of the entry are these."""
        theirs = self._held.pieces
        while (
            self._same < min(len(theirs), len(self.pieces)) and theirs[self._same] == self.pieces[self._same]
        ):
            self._same += 1
        return self._same

    def record(self, piece: int, suffix_ids: tuple[int, ...]) -> BranchRecord:
        """What a branch saw that continues behind ``piece``."""
        return BranchRecord(self.end(piece), suffix_ids, prefix_digest(self.pieces, self.end(piece)))

    def _claim(self, piece: int) -> None:
        """See that the prefix held goes on with ``piece``, in a copy if others go on with something else.

        The engine is never waited for under the lock: giving a lease back must not wait for somebody's forward pass.
        """
        readings, engine, start = self.readings, self.readings.engine, self.end(piece - 1)
        if self._must_part(piece):
            fork = engine.fork(self.prefix, start)  # held by us, so it stays
            with readings._lock:
                self.take(readings._add(fork, self._held.pieces[:piece]))
        with readings._lock:
            entry, total = self._held, self.end(len(self.pieces) - 1)
            entry.pieces.extend(self.pieces[len(entry.pieces) : piece + 1])
            grows = total > entry.planned
            entry.planned = max(total, entry.planned)
        if grows:
            readings.trim()
            engine.reserve(self.prefix, total)

    def _must_part(self, piece: int) -> bool:
        """Whether others hold or have read something else than ``piece`` here. What was only planned is dropped."""
        with self.readings._lock:
            entry = self._held
            if self._agreed() != piece or len(entry.pieces) <= piece:
                return False
            if entry.users > 1 or self.prefix.tokens > self.end(piece - 1):
                return True
            del entry.pieces[piece:]
            return False


def prefix_digest(pieces: Pieces, tokens: int) -> int:
    """A digest of the first tokens of a reading."""
    return hash(tuple(itertools.islice(itertools.chain.from_iterable(pieces), tokens)))
