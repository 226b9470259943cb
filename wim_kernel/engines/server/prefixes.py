"""A prefix on a server: which tokens it has read, and which server that is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

from wim_kernel.common import forks
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
        moving: one request at a time has a server to which they have moved read them.
        read_again: how many of them such servers ran, since that was last counted.
    """

    def __init__(self, server: Server | None = None, ids: Sequence[int] = (), held: int = 0) -> None:
        self.ids = list(ids)
        self.server = server
        self.held = held
        self.counted: dict[int, int] = {}
        self.read_again = 0
        self.renew_after_fork()
        forks.register(self)

    def renew_after_fork(self) -> None:
        """Nobody reads on: those threads are the parent's."""
        self.lock = threading.Lock()
        self.moving = asyncio.Lock()

    @property
    def tokens(self) -> int:
        """How many there are."""
        return len(self.ids)

    def shared(self, at: int, exact: bool) -> int:
        """How many tokens of a prompt behind the first ``at`` its server has read before, as far as is known.

        Args:
            at: where the prompt leaves the prefix.
            exact: whether servers count the tokens that are counted here; if not, what they counted is told.
        """
        held = min(at, self.held)
        return held if exact else self.counted.get(held, 0)

    def take_read_again(self) -> int:
        """How many tokens were read again because they moved, once."""
        tokens, self.read_again = self.read_again, 0
        return tokens

    def fork(self, tokens: int) -> ServerPrefix:
        """The first ``tokens`` of them, on the same server."""
        other = ServerPrefix(self.server, self.ids[:tokens], min(self.held, tokens))
        other.counted = {end: count for end, count in self.counted.items() if end <= tokens}
        return other

    def move_to(self, server: Server) -> None:
        """Ask this server from now on."""
        if server is not self.server:
            self.server, self.held = server, 0
