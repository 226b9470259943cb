"""A prefix in the prefix cache of a server, or on its way there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from wim_kernel.common import forks
from wim_kernel.engines.server.transport import Server


class ServerPrefix:
    """A prefix that a server prefills with the first request that needs it.

    Attributes:
        ids: ids of the prefix.
        server: server of the last request; None before the first.
        tokens_on_server: number of tokens that this server has prefilled for the prefix; 0 after a move to another
            server.
        charged: number of tokens that some request has been charged for. No request has needed those behind them yet.
        server_counts: the server's own count of tokens at boundaries, estimated, where ids are not its tokens.
        lock: held by the caller that extends the prefix.
        reading_lock: held by the request that makes the server prefill more of the prefix, until its reply begins.
    """

    def __init__(
        self, server: Server | None = None, ids: Sequence[int] = (), tokens_on_server: int = 0
    ) -> None:
        self.ids = list(ids)
        self.server = server
        self.tokens_on_server = tokens_on_server
        self.charged = tokens_on_server
        self.server_counts: dict[int, int] = {}
        self.renew_after_fork()
        forks.register(self)

    def renew_after_fork(self) -> None:
        """Make new locks: the holders of the old ones live in the parent process."""
        self.lock = threading.Lock()
        self.reading_lock = asyncio.Lock()

    @property
    def tokens(self) -> int:
        """The number of tokens."""
        return len(self.ids)

    def mark_read(self, server: Server, tokens: int) -> tuple[int, int]:
        """Note that a server has prefilled the first ``tokens`` tokens.

        Returns:
            How many of them the server had not prefilled, and how many no request was charged for yet.
        """
        new = 0
        if server is self.server:
            new = max(0, tokens - self.tokens_on_server)
            self.tokens_on_server = max(self.tokens_on_server, tokens)
        charged, self.charged = max(0, tokens - self.charged), max(self.charged, tokens)
        return new, charged

    def fork(self, tokens: int) -> ServerPrefix:
        """A copy of the first ``tokens`` tokens, on the same server."""
        other = ServerPrefix(self.server, self.ids[:tokens], min(self.tokens_on_server, tokens))
        other.charged = min(self.charged, tokens)
        other.server_counts = {end: count for end, count in self.server_counts.items() if end <= tokens}
        return other

    def move_to(self, server: Server) -> None:
        """Use this server from now on."""
        if server is not self.server:
            self.server, self.tokens_on_server = server, 0


@dataclass
class Claim:
    """What a request expects of the server's cache, and what it is charged for.

    Attributes:
        expected: number of prefix tokens that the server should have in its cache.
        new: number of prefix tokens that the server had not prefilled before.
        charged: number of prefix tokens that this request is the first to need; see `ServerPrefix.charged`.
        apart: whether the request takes nothing of the prefix from where the document is, so that all of its prompt is
            its own.
    """

    apart: bool = False
    expected: int = 0
    new: int = 0
    charged: int = 0

    def recomputed(self, at: int, found: int | None) -> int:
        """How many prefix tokens the server prefilled beyond those charged; below 0 if it had more.

        Args:
            at: number of prefix tokens with which the request's prompt begins.
            found: how many tokens of the prompt were in the server's cache; None if it is unknown.
        """
        return (self.new if found is None else max(0, at - found)) - self.charged


class ReadingTurn:
    """A request's turn to make the server prefill more of a prefix. Others that need the same part wait for it.

    Servers share what they have computed, not what they are computing. So the turn lasts until the request's reply
    begins. Requests that need nothing new take no turn.

    Args:
        prefix: the prefix.
        server: the server.
        known: number of prefix tokens that the request needs.
        claim: is set to what the request expects and is charged for.
    """

    def __init__(self, prefix: ServerPrefix, server: Server, known: int, claim: Claim) -> None:
        self.prefix = prefix
        self.server = server
        self.known = known
        self.claim = claim
        self._holds = False

    async def __aenter__(self) -> ReadingTurn:
        if self._expected < self.known:
            await self.prefix.reading_lock.acquire()
            self._holds = True
            if self._expected == self.known:
                self._end()
        self.claim.expected = self._expected
        return self

    async def __aexit__(self, *_: object) -> None:
        self._end()

    @property
    def _expected(self) -> int:
        return min(self.known, self.prefix.tokens_on_server)

    def reply_begins(self) -> None:
        """End the turn: the server has prefilled what the request needed."""
        new, charged = self.prefix.mark_read(self.server, self.known)
        self.claim.new, self.claim.charged = self.claim.new + new, self.claim.charged + charged
        self._end()

    def _end(self) -> None:
        if self._holds:
            self._holds = False
            self.prefix.reading_lock.release()
