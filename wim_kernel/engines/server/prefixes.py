"""A prefix on a server: which tokens it has read, and which server that is."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from wim_kernel.engines.server.transport import Server


class ServerPrefix:
    """Tokens that a server has read.

    Attributes:
        ids: what stands for the tokens.
        server: who was last asked about them.
        held: how many of them it has read on behalf of this prefix; another server, to which they move when one fails,
            has none yet.
        counted: the servers' own count of tokens at chunk boundaries, where they gave one.
        lock: one caller reads on at a time.
    """

    def __init__(self, server: Server | None = None, ids: Sequence[int] = (), held: int = 0) -> None:
        self.ids = list(ids)
        self.server = server
        self.held = held
        self.counted: dict[int, int] = {}
        self.lock = threading.Lock()

    @property
    def tokens(self) -> int:
        """How many there are."""
        return len(self.ids)

    def fork(self, tokens: int) -> ServerPrefix:
        """The first ``tokens`` of them, on the same server."""
        other = ServerPrefix(self.server, self.ids[:tokens], min(self.held, tokens))
        other.counted = {end: count for end, count in self.counted.items() if end <= tokens}
        return other

    def move_to(self, server: Server) -> None:
        """Ask this server from now on."""
        if server is not self.server:
            self.server, self.held = server, 0
