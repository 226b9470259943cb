"""Leases: a caller's hold on a cached prefix while it prefills chunks and branches from it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from wim_kernel.cache.entry import Entry
from wim_kernel.cache.prefix_cache import PrefixCache
from wim_kernel.common import forks
from wim_kernel.common.errors import DeviceMemoryError
from wim_kernel.common.margins import BranchRecord
from wim_kernel.engines.base import Prefix
from wim_kernel.engines.document import TokenizedDocument

logger = logging.getLogger(__name__)


class Lease:
    """Keeps one cached prefix from being evicted, until `close`.

    The prefix is the one that shares most leading chunks with the document, or a new one.

    Args:
        cache: the prefix cache.
        document: the document to read.

    Attributes:
        prefilled: tokens of each chunk that this lease ran.
        prefilled_head: tokens of the head that this lease ran.
        entry: the cache entry. If another lease continues it with other chunks, this lease changes to a copy.

    Raises:
        MemoryBudgetError: if the document alone needs more than the cache's budget.
    """

    def __init__(self, cache: PrefixCache, document: TokenizedDocument) -> None:
        self.cache = cache
        self.document = document
        self.prefilled = [0] * len(document)
        self.prefilled_head = 0
        self._fork_generation = forks.generation()
        self.entry: Entry | None = cache.acquire(document)
        self._known_shared = 0  # leading chunks known to be equal in the entry and the document

    def close(self) -> None:
        """Release the prefix; it stays cached while the budget allows."""
        entry, self.entry = self.entry, None
        if entry is not None:
            self.cache.release(entry)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def prefix(self) -> Prefix:
        """The engine's prefix."""
        prefix = self._open_entry.prefix
        assert prefix is not None, "an entry in use is never packed"
        return prefix

    @property
    def _open_entry(self) -> Entry:
        # Another thread of the parent may have been writing to the prefix when the process was forked.
        forks.check_same_process(self._fork_generation)
        assert self.entry is not None, "the lease is closed"
        return self.entry

    def has(self, chunk: int) -> bool:
        """Whether a chunk is prefilled."""
        self._known_shared = self._open_entry.document.common_chunks(self.document, self._known_shared)
        return chunk < self._known_shared and self.prefix.tokens >= self.document.ends[chunk + 1]

    def read(self, chunk: int, last: int | None = None) -> Iterator[None]:
        """Prefill a chunk, all chunks before it being prefilled; yields after every block.

        The head is prefilled with the first chunk. Several leases may read the same chunk at once: then each block is
        run by one of them.

        Args:
            chunk: the chunk.
            last: the last chunk whose tokens may be in the same blocks; by default ``chunk`` itself.
        """
        self._claim(chunk)
        if self.has(chunk):
            return
        document, ends = self.document, self.document.ends
        with_head = chunk == 0 and self.prefix.tokens < len(document.head)
        parts, start = list(document.chunks[chunk : self._claim_more(chunk, last) + 1]), ends[chunk]
        if with_head:
            parts, start = [document.head, *parts], 0
        while not self.has(chunk):
            ran = self._extend(parts, start)
            self.prefilled_head += max(0, min(ran.stop, ends[0]) - ran.start) if with_head else 0
            # Tokens before the chunk that a server ran again count for this chunk.
            begin = max(ran.start, ends[0]) if with_head else ran.start
            for index in range(chunk, len(parts) + chunk - with_head):
                first = begin if index == chunk else max(begin, ends[index])
                self.prefilled[index] += max(0, min(ran.stop, ends[index + 1]) - first)
            yield

    def record(self, boundary: int, suffix_ids: tuple[int, ...]) -> BranchRecord:
        """A record of the tokens that a branch behind the first ``boundary`` chunks saw."""
        end = self.document.ends[boundary]
        return BranchRecord(end, suffix_ids, self.document.digest(end))

    def _extend(self, parts: Sequence[Sequence[int]], start: int) -> range:
        """Run a block. If the device has no memory for it, evict all idle prefixes and run it again."""
        engine = self.cache.engine
        try:
            return engine.extend(self.prefix, parts, start)
        except DeviceMemoryError as error:
            logger.warning("%s Trying again without idle readings.", error)
            self.cache.evict_idle()
            return engine.extend(self.prefix, parts, start)

    def _claim(self, chunk: int) -> None:
        """Make the entry continue with a chunk, in a copy if other leases continue it with another chunk."""
        if not self.cache.plan(self._open_entry, self.document, chunk, self._known_shared):
            self.entry = self.cache.fork(self._open_entry, self.document, chunk)
            self._known_shared = chunk + 1
        self.cache.reserve(self._open_entry, self.document.total)

    def _claim_more(self, chunk: int, last: int | None) -> int:
        """Plan the chunks behind a claimed chunk, up to ``last``; returns the last that the entry continues with."""
        if last is None:
            return chunk
        chunk = max(chunk, min(last, self._known_shared - 1))
        while chunk < last:
            if not self.cache.plan(self._open_entry, self.document, chunk + 1, self._known_shared):
                break
            chunk += 1
        return chunk
