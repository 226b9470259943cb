"""Leases: what a caller holds a live prefix by while it reads on in it and branches from it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from wim_kernel import forks
from wim_kernel.engines.base import Prefix
from wim_kernel.errors import DeviceMemoryError
from wim_kernel.margins import BranchRecord
from wim_kernel.storage import Pieces

if TYPE_CHECKING:
    from wim_kernel.readings import Entry, Readings

logger = logging.getLogger(__name__)


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
        self._born = forks.generation()
        self._ends = [0, *itertools.accumulate(map(len, pieces))]
        self._same = 0  # leading pieces of the entry known to be these; it only ever grows at its end

    def take(self, entry: Entry) -> None:
        """Hold ``entry`` in place of what is held now."""
        with self.readings.lock:
            entry.users += 1
            entry.used = next(self.readings.clock)
            self._release()
            self.entry, self._same = entry, entry.shared(self.pieces)

    def close(self) -> None:
        """Give the prefix back; it stays live while the budget allows."""
        if self._release():
            self.readings.trim()

    def _release(self) -> bool:
        with self.readings.lock:
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
        forks.check_same_process(
            self._born
        )  # another thread may have been writing to the prefix when it was copied
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
                begin = ran.start if read == first else max(ran.start, self.end(read - 1))
                self.prefilled[read] += max(0, min(ran.stop, self.end(read)) - begin)
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
            with readings.lock:
                self.take(readings.add(fork, [*self._held.pieces[:piece], self.pieces[piece]]))
        with readings.lock:
            entry, total = self._held, self.end(len(self.pieces) - 1)
            grows = total > entry.planned
            entry.planned = max(total, entry.planned)
        if grows:
            readings.trim()
            engine.reserve(self.prefix, total)

    def _must_part(self, piece: int) -> bool:
        """Whether others hold or have read something else than ``piece`` here; if not, it is what is read next.

        What somebody only planned is dropped. Nobody else may plan anything in between.
        """
        with self.readings.lock:
            entry = self._held
            if self._agreed() == piece and len(entry.pieces) > piece:
                if entry.users > 1 or self.prefix.tokens > self.end(piece - 1):
                    return True
                del entry.pieces[piece:]
            entry.pieces.extend(self.pieces[len(entry.pieces) : piece + 1])
            return False


def prefix_digest(pieces: Pieces, tokens: int) -> int:
    """A digest of the first tokens of a reading."""
    return hash(tuple(itertools.islice(itertools.chain.from_iterable(pieces), tokens)))
