"""A document as token ids: a head, which precedes every document, and chunks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class TokenizedDocument:
    """The token ids of a document.

    A *chunk* is an index from 0. A *boundary* is a number of chunks: boundary 0 is the head's end, boundary ``n`` the
    end of the first ``n`` chunks, so chunk ``i`` lies between boundaries ``i`` and ``i + 1``.

    Attributes:
        head: token ids of the chat template's opening and of the text before the document.
        chunks: token ids of each chunk, including the separator from the chunk before.
    """

    head: tuple[int, ...]
    chunks: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.chunks)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The position of each boundary: the number of tokens before it, including the head's."""
        return tuple(itertools.accumulate(map(len, self.chunks), initial=len(self.head)))

    @property
    def total(self) -> int:
        """The number of tokens, including the head's."""
        return self.ends[-1]

    def size(self, chunk: int) -> int:
        """The number of tokens of a chunk."""
        return len(self.chunks[chunk])

    def tokens(self, chunks: int) -> int:
        """The number of tokens of the first ``chunks`` chunks, without the head's."""
        return self.ends[chunks] - len(self.head)

    def ids(self) -> Iterator[int]:
        """All ids in order, the head's first."""
        return itertools.chain(self.head, *self.chunks)

    def part(self, chunks: range) -> TokenizedDocument:
        """The document of the same head and some consecutive chunks."""
        if chunks == range(len(self.chunks)):
            return self
        return TokenizedDocument(self.head, self.chunks[chunks.start : chunks.stop])

    def then(self, chunks: Sequence[tuple[int, ...]]) -> TokenizedDocument:
        """The document with more chunks appended."""
        return TokenizedDocument(self.head, (*self.chunks, *chunks)) if chunks else self

    def common_chunks(self, other: TokenizedDocument, known: int = 0) -> int:
        """The number of leading chunks that two documents share; -1 if their heads differ.

        Args:
            other: another document.
            known: number of leading chunks that are known to be equal.
        """
        if not known and self.head != other.head:
            return -1
        count, end = known, min(len(self.chunks), len(other.chunks))
        while count < end and self.chunks[count] == other.chunks[count]:
            count += 1
        return count

    def digest(self, tokens: int) -> int:
        """A digest of the first ``tokens`` ids, for comparisons within this process."""
        if tokens not in self._digests:
            self._digests[tokens] = hash(tuple(itertools.islice(self.ids(), tokens)))
        return self._digests[tokens]

    @cached_property
    def _digests(self) -> dict[int, int]:
        return {}
