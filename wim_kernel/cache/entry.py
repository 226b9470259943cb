"""Values of the prefix cache: its budget, its entries, and what it reports of an entry."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Literal

from wim_kernel.cache.folder import ReadingFolder
from wim_kernel.engines.base import Prefix
from wim_kernel.engines.document import TokenizedDocument
from wim_kernel.engines.packed import Packed

Where = Literal["engine", "host"]


@dataclass(frozen=True)
class Budget:
    """The budget of each cache level.

    Attributes:
        engine: bytes of keys and values in the engine's memory. Prefixes in use are never evicted, so that these may
            exceed the budget.
        host: bytes of prefixes evicted to the host's memory; 0 if the engine's memory is the host's.
        folder: the level on disk, which other processes may share; None for no such level.
    """

    engine: int
    host: int = 0
    folder: ReadingFolder | None = None


@dataclass(eq=False)
class Entry:
    """A cached prefix: in the engine's memory, or packed in the host's.

    Attributes:
        document: the chunks that the prefix holds and, if it is in use, the chunks that its users will read next.
        prefix: the prefix in the engine's memory; None if it is packed.
        packed: the prefix packed in the host's memory; None if it is in the engine's.
        reserved: how many tokens the prefix has room for.
        users: how many calls use the entry now.
        last_used: the cache's clock when the entry was last acquired.
        hits: how often a call found leading chunks of its document in the entry.
    """

    document: TokenizedDocument
    prefix: Prefix | None = None
    packed: Packed | None = None
    reserved: int = 0
    users: int = 0
    last_used: int = 0
    hits: int = 0

    @property
    def tokens(self) -> int:
        """How many tokens the entry holds."""
        if self.prefix is not None:
            return self.prefix.tokens
        return self.packed.tokens if self.packed is not None else 0

    @property
    def chunks_read(self) -> int:
        """How many chunks the entry holds whole."""
        return max(0, bisect.bisect_right(self.document.ends, self.tokens) - 1)


@dataclass(frozen=True)
class LiveReading:
    """A report on one entry of `PrefixCache.held`.

    Attributes:
        tokens: how many tokens the entry holds, head included.
        chunks: how many chunks the entry holds whole.
        nbytes: the entry's bytes, including room reserved for tokens to come.
        in_use: whether a call uses the entry now.
        where: the cache level: ``"engine"``, ready for use, or ``"host"``, to be moved back before use.
        hits: how often a call found leading chunks of its document in the entry.
    """

    tokens: int
    chunks: int
    nbytes: int
    in_use: bool
    where: Where = "engine"
    hits: int = 0
