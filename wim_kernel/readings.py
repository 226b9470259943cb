"""Live readings: prefixes that hold documents, found again by what they hold, within a byte budget."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from wim_kernel.engines.base import AnyEngine, Prefix
from wim_kernel.errors import MemoryBudgetError
from wim_kernel.margins import BranchRecord

Pieces = Sequence[tuple[int, ...]]
"""Token ids of a reading: its head, then one tuple for each chunk."""


@dataclass(eq=False)
class Entry:
    """A live prefix.

    Attributes:
        prefix: the engine's cache.
        pieces: what it holds and what its holders are going to read, in order.
        planned: tokens that there is room for.
        users: calls that hold it now.
        used: when it was last held, as a count.
    """

    prefix: Prefix
    pieces: list[tuple[int, ...]]
    planned: int = 0
    users: int = 0
    used: int = 0

    @property
    def read(self) -> int:
        """How many chunks are read whole."""
        ends = itertools.accumulate(map(len, self.pieces))
        return max(0, sum(end <= self.prefix.tokens for end in ends) - 1)

    def shared(self, pieces: Pieces) -> int:
        """How many leading pieces are the same."""
        pairs = zip(self.pieces, pieces, strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


@dataclass(frozen=True)
class LiveReading:
    """What `Readings.held` tells of one live prefix."""

    tokens: int
    chunks: int
    nbytes: int
    in_use: bool


class Readings:
    """The kernel's live readings.

    Args:
        engine: opens and extends prefixes.
        budget_bytes: bytes that live prefixes may take together. The least recently used go first, never one in use;
            while all that is held is in use, it may take more.
    """

    def __init__(self, engine: AnyEngine, budget_bytes: int) -> None:
        self.engine = engine
        self.budget_bytes = budget_bytes
        self._entries: list[Entry] = []
        self._lock = threading.RLock()
        self._clock = itertools.count(1)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes that live prefixes take, room allocated ahead included."""
        with self._lock:
            return sum(self.engine.prefix_bytes(entry.planned) for entry in self._entries)

    @property
    def held(self) -> list[LiveReading]:
        """The live prefixes, least recently used first."""
        with self._lock:
            return [
                LiveReading(
                    entry.prefix.tokens,
                    entry.read,
                    self.engine.prefix_bytes(entry.planned),
                    entry.users > 0,
                )
                for entry in sorted(self._entries, key=lambda entry: entry.used)
            ]

    def clear(self) -> None:
        """Forget every reading that is not in use."""
        with self._lock:
            self._entries = [entry for entry in self._entries if entry.users]

    def forget(self, pieces: Pieces) -> None:
        """Forget readings that hold just these pieces or fewer of them and are not in use."""
        with self._lock:
            self._entries = [
                entry for entry in self._entries if entry.users or entry.shared(pieces) < len(entry.pieces)
            ]

    def hold(self, pieces: Pieces) -> Lease:
        """Hold the prefix that shares most leading pieces, or a new one, until the lease is given back."""
        needed = self.engine.prefix_bytes(sum(map(len, pieces)))
        if needed > self.budget_bytes:
            raise MemoryBudgetError(needed, self.budget_bytes)
        with self._lock:
            lease = Lease(self, pieces)
            best = max(self._entries, key=lambda entry: (entry.shared(pieces), entry.used), default=None)
            if best is None or best.shared(pieces) < 2:  # a head alone is run again sooner than copied
                best = self._add(self.engine.open(), [])
            if best.shared(pieces) == len(
                best.pieces
            ):  # so that whoever comes meanwhile reads it together with us
                best.pieces.extend(pieces[len(best.pieces) :])
            lease.take(best)
            return lease

    def _add(self, prefix: Prefix, pieces: list[tuple[int, ...]]) -> Entry:
        entry = Entry(prefix, pieces, planned=prefix.tokens)
        self._entries.append(entry)
        return entry

    def _trim(self) -> None:
        """Forget the least recently used, not in use, until the rest is within the budget."""
        idle = sorted((entry for entry in self._entries if not entry.users), key=lambda entry: entry.used)
        for entry in idle:
            if self.nbytes <= self.budget_bytes:
                return
            self._entries.remove(entry)


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
            self.close()
            self.entry, self._same = entry, entry.shared(self.pieces)

    def close(self) -> None:
        """Give the prefix back; it stays live while the budget allows."""
        with self.readings._lock:
            if self.entry is not None:
                self.entry.users -= 1
                self.entry = None
                self.readings._trim()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def prefix(self) -> Prefix:
        """The engine's cache."""
        return self._held.prefix

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
            ran = self.readings.engine.extend(
                self.prefix, self.pieces[first : piece + 1], self.end(first - 1)
            )
            for read in {first, piece}:
                self.prefilled[read] += max(
                    0, min(ran.stop, self.end(read)) - max(ran.start, self.end(read - 1))
                )
            yield

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
            readings._trim()
        if grows:
            engine.reserve(entry.prefix, total)

    def _must_part(self, piece: int) -> bool:
        """Whether others hold or have read something else than ``piece`` here. What was only planned is dropped."""
        with self.readings._lock:
            entry = self._held
            if self._agreed() != piece or len(entry.pieces) <= piece:
                return False
            if entry.users > 1 or entry.prefix.tokens > self.end(piece - 1):
                return True
            del entry.pieces[piece:]
            return False


def prefix_digest(pieces: Pieces, tokens: int) -> int:
    """A digest of the first tokens of a reading."""
    return hash(tuple(itertools.islice(itertools.chain.from_iterable(pieces), tokens)))
