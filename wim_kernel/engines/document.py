"""A document as token ids: a head, which stands before every document, and chunks behind it."""

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
        head: the chat template's opening and the frame's words.
        chunks: each chunk's ids, what separates it from the chunk before included.
    """

    head: tuple[int, ...]
    chunks: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.chunks)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The position of each boundary: how many tokens stand before it, the head's included."""
        return tuple(itertools.accumulate(map(len, self.chunks), initial=len(self.head)))

    @property
    def total(self) -> int:
        """How many tokens there are, the head's included."""
        return self.ends[-1]

    def size(self, chunk: int) -> int:
        """How many tokens a chunk has."""
        return len(self.chunks[chunk])

    def tokens(self, chunks: int) -> int:
        """How many tokens the first ``chunks`` chunks have, the head's not counted."""
        return self.ends[chunks] - len(self.head)

    def ids(self) -> Iterator[int]:
        """All ids in order, the head's first."""
        return itertools.chain(self.head, *self.chunks)

    def part(self, chunks: range) -> TokenizedDocument:
        """The same head with some consecutive chunks."""
        return TokenizedDocument(self.head, self.chunks[chunks.start : chunks.stop])

    def then(self, chunks: Sequence[tuple[int, ...]]) -> TokenizedDocument:
        """This with more chunks behind it."""
        return TokenizedDocument(self.head, (*self.chunks, *chunks)) if chunks else self

    def common_chunks(self, other: TokenizedDocument, known: int = 0) -> int:
        """How many leading chunks two documents share; -1 if their heads differ.

        Args:
            other: another document.
            known: a number of leading chunks that were compared before and are equal.
        """
        if not known and self.head != other.head:
            return -1
        ours, theirs = (itertools.islice(each.chunks, known, None) for each in (self, other))
        pairs = zip(ours, theirs, strict=False)
        return known + sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    def digest(self, tokens: int) -> int:
        """A digest of the first ``tokens`` ids, for comparisons within this process."""
        return hash(tuple(itertools.islice(self.ids(), tokens)))
