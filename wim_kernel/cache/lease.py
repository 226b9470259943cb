"""Leases: what a caller holds a live prefix by while it reads on in it and branches from it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from wim_kernel.cache.prefix_cache import Entry, PrefixCache
from wim_kernel.common import forks
from wim_kernel.common.errors import DeviceMemoryError
from wim_kernel.common.margins import BranchRecord
from wim_kernel.engines.base import Prefix
from wim_kernel.engines.document import TokenizedDocument

logger = logging.getLogger(__name__)


class Lease:
    """The right to read on in a prefix, and to branch from it, until `close`.

    Args:
        cache: holds prefixes; the lease is of the one that shares most leading chunks, or of a new one.
        document: what the holder wants read.

    Attributes:
        prefilled: tokens of each chunk that were run on behalf of this lease.
        prefilled_head: the same of the head.
        entry: the prefix held. It changes if another reader went on differently: then this one goes on in a copy.

    Raises:
        MemoryBudgetError: if the document alone needs more than the cache's budget.
    """

    def __init__(self, cache: PrefixCache, document: TokenizedDocument) -> None:
        self.cache = cache
        self.document = document
        self.prefilled = [0] * len(document)
        self.prefilled_head = 0
        self._born = forks.generation()
        self.entry: Entry | None = cache.acquire(document)
        self._same = 0  # leading chunks of the entry known to be this document's

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

    def has(self, chunk: int) -> bool:
        """Whether a chunk is read already."""
        self._same = self._held.document.common_chunks(self.document, self._same)
        return chunk < self._same and self.prefix.tokens >= self.document.ends[chunk + 1]

    def read(self, chunk: int) -> Iterator[None]:
        """Have a chunk read, the ones before it being read; yields after every block.

        The head is read along with the first chunk. Several holders may read the same chunk at once: each block is run
        by one of them.
        """
        self._claim(chunk)
        document, ends = self.document, self.document.ends
        with_head = chunk == 0 and self.prefix.tokens < len(document.head)
        parts, start = [document.chunks[chunk]], ends[chunk]
        if with_head:
            parts, start = [document.head, *parts], 0
        while not self.has(chunk):
            ran = self._extend(parts, start)
            self.prefilled_head += max(0, min(ran.stop, ends[0]) - ran.start) if with_head else 0
            # a server may have run earlier tokens again, and those count for this chunk
            begin = max(ran.start, ends[0]) if with_head else ran.start
            self.prefilled[chunk] += max(0, min(ran.stop, ends[chunk + 1]) - begin)
            yield

    def record(self, boundary: int, suffix_ids: tuple[int, ...]) -> BranchRecord:
        """What a branch saw that continues behind the first ``boundary`` chunks."""
        end = self.document.ends[boundary]
        return BranchRecord(end, suffix_ids, self.document.digest(end))

    def _extend(self, parts: Sequence[Sequence[int]], start: int) -> range:
        """Run a block; again, once everything that is not in use has made way, if the device has no memory for it."""
        engine = self.cache.engine
        try:
            return engine.extend(self.prefix, parts, start)
        except DeviceMemoryError as error:
            logger.warning("%s Trying again without what is not in use.", error)
            self.cache.evict_idle()
            return engine.extend(self.prefix, parts, start)

    def _claim(self, chunk: int) -> None:
        """See that the prefix held goes on with a chunk, in a copy if others go on with something else."""
        if self.cache.must_fork(self._held, self.document, chunk, self._same):
            self.entry = self.cache.fork(self._held, self.document, chunk)
            self._same = chunk + 1
        self.cache.reserve(self._held, self.document.total)
