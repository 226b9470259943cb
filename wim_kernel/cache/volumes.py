"""Volumes: a document that is longer than the model's window, read one window after another.

Each volume is a prefix of its own, with the same head, and cached like any other. Margins come from all volumes.
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
"""Divisors of the window: 1/8, 1/4 or 1/2 of it is reserved for prompts and notes behind a volume, the smallest that
suffices. There are only three, so that different questions have the same volumes and find them cached."""


def capacity(window: int, head: int, need: int) -> int:
    """Most tokens of a volume, head not counted, that leave at least ``need`` tokens of the window."""
    reserve = next((window // share for share in SHARES if window // share >= need), need)
    return window - head - reserve


def longest_chunk(window: int, head: int) -> int:
    """Most tokens of a chunk that fits a volume, as long as prompts and notes need at most half the window."""
    return window - head - window // SHARES[-1]


def divide(sizes: Sequence[int], room: int) -> list[range]:
    """Divide chunks into runs of at most ``room`` tokens; a longer chunk gets a run of its own.

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
    """A lease of a document in volumes, one volume at a time, until `close`.

    Chunks and boundaries are counted through the whole document (see `TokenizedDocument`). Positions are counted from
    the beginning of a volume, which begins with the head.

    Args:
        cache: the prefix cache.
        document: the token ids of the document.
        volumes: the chunks of each volume.

    """

    def __init__(self, cache: PrefixCache, document: TokenizedDocument, volumes: Sequence[range]) -> None:
        self.cache = cache
        self.document = document
        self.volumes = volumes
        self._prefilled = [0] * len(document)  # in volumes before the current one
        self._prefilled_head = 0
        self._starts = [volume.start for volume in volumes]
        self._volume = volumes[0]
        self._lease: Lease | None = Lease(cache, document.part(self._volume))

    def close(self) -> None:
        """Release the current volume; it stays cached while the budget allows."""
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.close()
            self._prefilled_head += lease.prefilled_head
            for chunk, tokens in zip(self._volume, lease.prefilled, strict=True):
                self._prefilled[chunk] += tokens

    @property
    def prefilled_head(self) -> int:
        """Tokens of the head that this lease ran, in all volumes."""
        return self._prefilled_head + (0 if self._lease is None else self._lease.prefilled_head)

    @property
    def prefilled(self) -> int:
        """Tokens of chunks that this lease ran."""
        return sum(self._prefilled) + (0 if self._lease is None else sum(self._lease.prefilled))

    def has_prefilled(self, chunk: int) -> bool:
        """Whether this lease ran tokens of a chunk."""
        current = self._lease is not None and chunk in self._volume
        return bool(
            self._prefilled[chunk] or (current and self._open_lease.prefilled[chunk - self._volume.start])
        )

    @property
    def prefix(self) -> Prefix:
        """The engine's prefix of the current volume."""
        return self._open_lease.prefix

    def volume_of(self, chunk: int) -> range:
        """The chunks of the volume that holds ``chunk``."""
        return self.volumes[bisect.bisect_right(self._starts, chunk) - 1]

    def ends_volume(self, chunk: int) -> bool:
        """Whether ``chunk`` is the last of its volume."""
        return chunk + 1 == self.volume_of(chunk).stop

    def end(self, boundary: int) -> int:
        """The position of a boundary in its volume: how many tokens stand before it there, head included."""
        document, first = self.document, self.volume_of(boundary - 1).start if boundary else 0
        return len(document.head) + document.ends[boundary] - document.ends[first]

    def begin(self, chunk: int) -> int:
        """The position of a chunk's first token in its volume."""
        return self.end(chunk + 1) - self.document.size(chunk)

    def has(self, chunk: int) -> bool:
        """Whether a chunk of the current volume is prefilled; False for chunks of other volumes."""
        volume = self.volume_of(chunk)
        return volume is self._volume and self._open_lease.has(chunk - volume.start)

    def read(self, chunk: int, last: int | None = None) -> Iterator[None]:
        """Prefill a chunk, all chunks before it in its volume being prefilled; yields after every block.

        Args:
            chunk: the chunk.
            last: the last chunk of the volume whose tokens may be in the same blocks; by default ``chunk`` itself.
        """
        self._switch_to(self.volume_of(chunk))
        yield from self._read(chunk, last)

    def return_to(self, boundary: int) -> Iterator[None]:
        """Make a boundary's volume the current one, and prefill its chunks again up to there if they were evicted."""
        volume = self.volume_of(boundary - 1) if boundary else self._volume
        self._switch_to(volume)
        for chunk in range(volume.start, boundary):
            yield from self._read(chunk, boundary - 1)

    def record(self, boundary: int, suffix_ids: tuple[int, ...]) -> BranchRecord:
        """A record of the tokens that a branch behind the first ``boundary`` chunks saw."""
        volume, end = self.volume_of(boundary - 1) if boundary else self._volume, self.end(boundary)
        return BranchRecord(end, suffix_ids, self.document.part(volume).digest(end), volume.start)

    def _read(self, chunk: int, last: int | None = None) -> Iterator[None]:
        first = self._volume.start
        yield from self._open_lease.read(chunk - first, None if last is None else last - first)

    def _switch_to(self, volume: range) -> None:
        if volume is not self._volume:
            self.close()
            self._lease = Lease(self.cache, self.document.part(volume))
            self._volume = volume

    @property
    def _open_lease(self) -> Lease:
        assert self._lease is not None, "the lease is closed"
        return self._lease
