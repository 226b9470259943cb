"""A prefix in the prefix cache of a server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

from wim_kernel.common import forks
from wim_kernel.engines.server.transport import Server


class ServerPrefix:
    """A prefix that a server has prefilled.

    Attributes:
        ids: ids of the prefix.
        server: server of the last request; None before the first.
        tokens_on_server: number of tokens that this server has prefilled for the prefix; 0 after a move to another
            server, until that catches up.
        server_counts: the server's own count of tokens at chunk boundaries, if reported.
        lock: held by the caller that extends the prefix.
        catch_up_lock: held by the request that makes a new server prefill the prefix.
        recomputed: number of tokens that new servers prefilled again and no branch has been charged for yet.
    """

    def __init__(
        self, server: Server | None = None, ids: Sequence[int] = (), tokens_on_server: int = 0
    ) -> None:
        self.ids = list(ids)
        self.server = server
        self.tokens_on_server = tokens_on_server
        self.server_counts: dict[int, int] = {}
        self.recomputed = 0
        self.renew_after_fork()
        forks.register(self)

    def renew_after_fork(self) -> None:
        """Make new locks: the holders of the old ones live in the parent process."""
        self.lock = threading.Lock()
        self.catch_up_lock = asyncio.Lock()

    @property
    def tokens(self) -> int:
        """The number of tokens."""
        return len(self.ids)

    def expected_cached(self, at: int, exact: bool) -> int:
        """The number of tokens that the server's cache should have of a prompt, in the server's units.

        Args:
            at: number of prefix tokens with which the prompt begins.
            exact: whether the server counts the same tokens as this prefix. If not, the server's own counts are used.
        """
        tokens_on_server = min(at, self.tokens_on_server)
        return tokens_on_server if exact else self.server_counts.get(tokens_on_server, 0)

    def pop_recomputed(self) -> int:
        """Return `recomputed`, and set it to 0."""
        tokens, self.recomputed = self.recomputed, 0
        return tokens

    def fork(self, tokens: int) -> ServerPrefix:
        """A copy of the first ``tokens`` tokens, on the same server."""
        other = ServerPrefix(self.server, self.ids[:tokens], min(self.tokens_on_server, tokens))
        other.server_counts = {end: count for end, count in self.server_counts.items() if end <= tokens}
        return other

    def move_to(self, server: Server) -> None:
        """Use this server from now on."""
        if server is not self.server:
            self.server, self.tokens_on_server = server, 0
