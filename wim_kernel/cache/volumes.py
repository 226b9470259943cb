"""Volumes: a document that is longer than the model's window, read one window after another.

Each volume is a reading of its own, with the same head, found and kept like any other. Margins come from all of them.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence

from wim_kernel.cache.lease import Lease
from wim_kernel.cache.prefix_cache import PrefixCache
from wim_kernel.common.margins import BranchRecord
from wim_kernel.engines.base import Prefix
from wim_kernel.engines.document import TokenizedDocument

SHARES = (8, 4, 2)
"""What part of the window is left for prompts and notes behind a volume: the smallest that suffices. There are few, so
that different questions find the same volumes."""


def capacity(window: int, head: int, need: int) -> int:
    """Most tokens of a volume, its head not counted, that leave ``need`` tokens of the window."""
    reserve = next((window // share for share in SHARES if window // share >= need), need)
    return window - head - reserve


def longest_chunk(window: int, head: int) -> int:
    """Most tokens of a chunk that fits a volume, whatever is asked as long as half the window suffices for it."""
    return window - head - window // SHARES[-1]


def divide(sizes: Sequence[int], room: int) -> list[range]:
    """Runs of consecutive chunks of at most ``room`` tokens; one that is longer gets a run of its own.

    >>> divide([3, 3, 3, 9, 1], 7)
    [range(0, 2), range(2, 3), range(3, 4), range(4, 5)]
    """
    starts, filled = [0], 0
    for index, size in enumerate(sizes):
        if filled and filled + size > room:
            starts.append(index)
            filled = 0
        filled += size
    return [range(start, end) for start, end in itertools.pairwise([*starts, len(sizes)])]


class VolumeLease:
    """The right to read in the volumes of a document and to branch from them, one volume at a time, until `close`.

    Takes the place of one `Lease`. Chunks and boundaries are counted through the whole document (see
    `TokenizedDocument`); positions are counted from the beginning of a volume, which begins with the head.

    Args:
        cache: where live prefixes are.
        document: the document's tokens.
        volumes: which chunks each volume has.

    Attributes:
        prefilled: tokens of each chunk that were run on behalf of this lease.
        prefilled_head: the same of the head, in all volumes.
    """

    def __init__(self, cache: PrefixCache, document: TokenizedDocument, volumes: Sequence[range]) -> None:
        self.cache = cache
        self.document = document
        self.volumes = volumes
        self.prefilled = [0] * len(document)
        self.prefilled_head = 0
        self._starts = [volume.start for volume in volumes]
        self._volume = volumes[0]
        self._lease: Lease | None = Lease(cache, document.part(self._volume))

    def close(self) -> None:
        """Give the current volume back; it stays live while the budget allows."""
        if self._lease is not None:
            self._lease.close()
            self._lease = None

    @property
    def prefix(self) -> Prefix:
        """The engine's cache of the current volume."""
        return self._held.prefix

    def volume_of(self, chunk: int) -> range:
        """Which chunks are in one volume with ``chunk``."""
        return self.volumes[bisect.bisect_right(self._starts, chunk) - 1]

    def ends_volume(self, chunk: int) -> bool:
        """Whether ``chunk`` is the last of its volume."""
        return chunk + 1 == self.volume_of(chunk).stop

    def end(self, boundary: int) -> int:
        """The position of a boundary in its volume: how many tokens stand before it there, the head's included."""
        document, first = self.document, self.volume_of(boundary - 1).start if boundary else 0
        return len(document.head) + document.ends[boundary] - document.ends[first]

    def begin(self, chunk: int) -> int:
        """The position of a chunk's first token in its volume."""
        return self.end(chunk + 1) - self.document.size(chunk)

    def has(self, chunk: int) -> bool:
        """Whether a chunk is read already. Of volumes other than the current one that is not known: then False."""
        volume = self.volume_of(chunk)
        return volume is self._volume and self._held.has(chunk - volume.start)

    def read(self, chunk: int) -> Iterator[None]:
        """Have a chunk read, the ones before it in its volume being read; yields after every block."""
        self._open(self.volume_of(chunk))
        yield from self._read(chunk)

    def return_to(self, boundary: int) -> Iterator[None]:
        """Make the volume of a boundary the current one, read through it; chunks that were evicted are read again."""
        volume = self.volume_of(boundary - 1) if boundary else self._volume
        self._open(volume)
        for chunk in range(volume.start, boundary):
            yield from self._read(chunk)

    def record(self, boundary: int, suffix_ids: tuple[int, ...]) -> BranchRecord:
        """What a branch saw that continues behind the first ``boundary`` chunks."""
        volume, end = self.volume_of(boundary - 1) if boundary else self._volume, self.end(boundary)
        return BranchRecord(end, suffix_ids, self.document.part(volume).digest(end), volume.start)

    def _read(self, chunk: int) -> Iterator[None]:
        local, lease = chunk - self.volume_of(chunk).start, self._held
        head, before = lease.prefilled_head, lease.prefilled[local]
        try:
            yield from lease.read(local)
        finally:
            self.prefilled_head += lease.prefilled_head - head
            self.prefilled[chunk] += lease.prefilled[local] - before

    def _open(self, volume: range) -> None:
        if volume is not self._volume:
            self.close()
            self._lease = Lease(self.cache, self.document.part(volume))
            self._volume = volume

    @property
    def _held(self) -> Lease:
        assert self._lease is not None, "the lease was given back"
        return self._lease
