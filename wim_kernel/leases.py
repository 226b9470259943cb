"""Leases: what a caller holds a live prefix by while it reads on in it and branches from it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

from wim_kernel import forks
from wim_kernel.engines.base import Prefix
from wim_kernel.errors import DeviceMemoryError
from wim_kernel.margins import BranchRecord
from wim_kernel.readings import Entry, PrefixCache
from wim_kernel.storage import Pieces

logger = logging.getLogger(__name__)


class Lease:
    """The right to read on in a prefix, and to branch from it, until `close`.

    Args:
        cache: holds the prefix; the one that shares most leading pieces, or a new one.
        pieces: what the holder wants read.

    Attributes:
        prefilled: tokens of each piece that were run on behalf of this lease.
        entry: the prefix held. It changes if another reader went on differently: then this one goes on in a copy.

    Raises:
        MemoryBudgetError: if the pieces alone need more than the cache's budget.
    """

    def __init__(self, cache: PrefixCache, pieces: Pieces) -> None:
        self.cache = cache
        self.pieces = pieces
        self.prefilled = [0] * len(pieces)
        self._born = forks.generation()
        self._ends = [0, *itertools.accumulate(map(len, pieces))]
        self.entry: Entry | None = cache.acquire(pieces)
        self._same = self.entry.shared(pieces)  # leading pieces of the entry known to be these

    def close(self) -> None:
        """Give the prefix back; it stays live while the budget allows."""
        entry, self.entry = self.entry, None
        if entry is not None:
            self.cache.release(entry)

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
        # Another thread of the parent may have been writing to the prefix when the process was forked.
        forks.check_same_process(self._born)
        assert self.entry is not None, "the lease was given back"
        return self.entry

    def end(self, piece: int) -> int:
        """How many tokens there are once ``piece`` is read."""
        return self._ends[piece + 1]

    def has(self, piece: int) -> bool:
        """Whether a piece is read already."""
        self._same = self._held.shared(self.pieces, self._same)
        return piece < self._same and self.prefix.tokens >= self.end(piece)

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

    def record(self, piece: int, suffix_ids: tuple[int, ...]) -> BranchRecord:
        """What a branch saw that continues behind ``piece``."""
        return BranchRecord(self.end(piece), suffix_ids, prefix_digest(self.pieces, self.end(piece)))

    def _extend(self, pieces: Pieces, start: int) -> range:
        """Run a block; again, once everything that is not in use has made way, if the device has no memory for it."""
        engine = self.cache.engine
        try:
            return engine.extend(self.prefix, pieces, start)
        except DeviceMemoryError as error:
            logger.warning("%s Trying again without what is not in use.", error)
            self.cache.make_way()
            return engine.extend(self.prefix, pieces, start)

    def _claim(self, piece: int) -> None:
        """See that the prefix held goes on with ``piece``, in a copy if others go on with something else."""
        if self.cache.must_fork(self._held, self.pieces, piece, self._same):
            self.entry = self.cache.fork(self._held, self.pieces, piece)
            self._same = piece + 1
        self.cache.reserve(self._held, self.end(len(self.pieces) - 1))


def prefix_digest(pieces: Pieces, tokens: int) -> int:
    """A digest of the first tokens of a reading."""
    return hash(tuple(itertools.islice(itertools.chain.from_iterable(pieces), tokens)))
