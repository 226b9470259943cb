"""Volumes: a document that is longer than the model's window, read one window after another.

Each volume is a reading of its own, with the same head, found and kept like any other. Margins come from all of them.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence

from wim_kernel.engines.base import Prefix
from wim_kernel.leases import Lease, prefix_digest
from wim_kernel.margins import BranchRecord
from wim_kernel.readings import PrefixCache
from wim_kernel.storage import Pieces

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

    Takes the place of one `Lease`. Pieces are counted through the whole document: 0 is the head, which every volume
    begins with, and 1 on are the chunks; positions are counted from the beginning of a piece's volume.

    Args:
        cache: where live prefixes are.
        pieces: the document's tokens: the head, then the chunks.
        volumes: which chunks, from 0, each volume has.
    """

    def __init__(self, cache: PrefixCache, pieces: Pieces, volumes: Sequence[range]) -> None:
        self.cache = cache
        self.pieces = pieces
        self.volumes = volumes
        self.prefilled = [0] * len(pieces)
        self._starts = [volume.start for volume in volumes]
        self._ends = [0, *itertools.accumulate(map(len, pieces))]
        self._volume = volumes[0]
        self._lease: Lease | None = Lease(cache, self._of(self._volume))

    def close(self) -> None:
        """Give the volume in hand back; it stays live while the budget allows."""
        if self._lease is not None:
            self._lease.close()
            self._lease = None

    @property
    def prefix(self) -> Prefix:
        """The engine's cache of the volume in hand."""
        return self._held.prefix

    def volume_of(self, piece: int) -> range:
        """Which volume a chunk's piece is in; of the head, the one in hand."""
        if piece == 0:
            return self._volume
        return self.volumes[bisect.bisect_right(self._starts, piece - 1) - 1]

    def is_last(self, piece: int) -> bool:
        """Whether a volume ends with ``piece``."""
        return piece == self.volume_of(piece).stop

    def end(self, piece: int) -> int:
        """How many tokens of its volume, the head included, there are once ``piece`` is read."""
        head = self._ends[1]
        return head + self._ends[piece + 1] - self._ends[self.volume_of(piece).start + 1] if piece else head

    def size(self, piece: int) -> int:
        """How many tokens a piece has."""
        return len(self.pieces[piece])

    def has(self, piece: int) -> bool:
        """Whether a piece is read already; of volumes not in hand that is not known, so it is said not to be."""
        return self.volume_of(piece) is self._volume and self._held.has(self._local(piece))

    def read(self, piece: int) -> Iterator[None]:
        """Have ``piece`` read, the ones before it in its volume being read; yields after every block."""
        self._take(self.volume_of(piece))
        yield from self._read(piece)

    def return_to(self, piece: int) -> Iterator[None]:
        """Take the volume of ``piece`` in hand, read through it; what had to make way meanwhile is read again."""
        volume = self.volume_of(piece)
        self._take(volume)
        for each in range(volume.start + 1, piece + 1):
            yield from self._read(each)

    def record(self, piece: int, suffix_ids: tuple[int, ...]) -> BranchRecord:
        """What a branch saw that continues behind ``piece``."""
        end, volume = self.end(piece), self.volume_of(piece)
        return BranchRecord(end, suffix_ids, prefix_digest(self._of(volume), end), volume.start)

    def _read(self, piece: int) -> Iterator[None]:
        local, lease = self._local(piece), self._held
        head, before = lease.prefilled[0], lease.prefilled[local]
        try:
            yield from lease.read(local)
        finally:
            self.prefilled[0] += lease.prefilled[0] - head
            self.prefilled[piece] += lease.prefilled[local] - before

    def _take(self, volume: range) -> None:
        if volume is not self._volume:
            self.close()
            self._lease = Lease(self.cache, self._of(volume))
            self._volume = volume

    def _of(self, volume: range) -> list[tuple[int, ...]]:
        return volume_pieces(self.pieces, volume)

    def _local(self, piece: int) -> int:
        return piece - self.volume_of(piece).start if piece else 0

    @property
    def _held(self) -> Lease:
        assert self._lease is not None, "the lease was given back"
        return self._lease


def volume_pieces(pieces: Pieces, volume: range) -> list[tuple[int, ...]]:
    """A volume's pieces: the head, then its chunks."""
    return [pieces[0], *pieces[volume.start + 1 : volume.stop + 1]]
