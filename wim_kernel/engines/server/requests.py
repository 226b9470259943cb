"""Requests behind a prefix: what is sent, to which server, and which other one takes over where that one fails."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass, field
from typing import Any

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)
from transformers import GenerationConfig

from wim_kernel.common.errors import ServerError
from wim_kernel.engines.server.codecs import Tokens, Words
from wim_kernel.engines.server.deltas import Piece, Said
from wim_kernel.engines.server.families import Family, Route
from wim_kernel.engines.server.prefixes import ServerPrefix
from wim_kernel.engines.server.reuse import Reuse
from wim_kernel.engines.server.slots import Slot
from wim_kernel.engines.server.transport import Server

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """What is asked for behind a prompt.

    Attributes:
        fields: of the API that all servers share.
        extra: fields of the family's own.
        ends: the caller's own ends of the text; by default the tokenizer's.
        reads: whether all of the prompt is a document's, which is to be kept.
        scored: of how many of the prompt's last tokens the likelihood is wanted, and no text.
        coming: tokens that may come next of which it is wanted, likewise.
    """

    fields: dict[str, Any]
    extra: dict[str, Any] = field(default_factory=dict)
    ends: Sequence[int] = ()
    reads: bool = False
    scored: int = 0
    coming: Sequence[int] = ()


READ = Wanted({"max_tokens": 1, "temperature": 0.0}, reads=True)
"""So little that the prompt is all that counts."""


class Requests:
    """Asks servers.

    Args:
        servers: that run the same model.
        model_id: the model's name there.
        family: what kind of servers they are.
        words: from tokens to what is sent.
        route: how prompts are sent.
        retries: how often what is safe to try again is tried again.
        reuse: takes in what servers say of their caches where a document is read again.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        model_id: str,
        family: Family,
        words: Words,
        route: Route,
        retries: int,
        reuse: Reuse,
    ) -> None:
        self.servers = servers
        self.model_id = model_id
        self.family = family
        self.words = words
        self.route = route
        self.retries = retries
        self.reuse = reuse
        one_prompt = family.in_order and words.exact
        self._slots = {server: Slot(server) for server in servers} if one_prompt else {}

    def attempts(self) -> AsyncRetrying:
        """Tries of one request: again after what may pass."""
        return AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, ServerError) and error.passing),
            stop=stop_after_attempt(1 + self.retries),
            wait=_pause,
            reraise=True,
        )

    async def ask(
        self, prefix: ServerPrefix, known: int, more: Sequence[int], wanted: Wanted
    ) -> AsyncGenerator[Piece, None]:
        """A completion, from the prefix's server or, if that fails before it has begun, from another.

        Where the prefix has moved to another server, that reads it first, in one request for all that come.

        Args:
            prefix: whose beginning the prompt begins with.
            known: how much of it.
            more: what stands behind that.
            wanted: what is asked for.
        """
        ids = [*prefix.ids[:known], *more]
        document = len(ids) if wanted.reads else known
        tried: set[Server] = set()
        while True:
            server = self._server_for(prefix, more, tried)
            begun = False
            try:
                if known and not wanted.reads:
                    await self.catch_up(prefix, server)
                stream = self._stream(server, ids, known, wanted)
                async with self._turn(server, ids, document) as is_read, aclosing(stream) as pieces:
                    async for piece in pieces:
                        if not begun:
                            is_read()
                        begun = True
                        yield piece
                return
            except ServerError as error:
                away = error.status is None or error.status >= 500  # one that is busy is asked again
                if error.passing and away and len(self.servers) > 1:
                    server.failed()
                    tried.add(server)
                    if not begun and len(tried) < len(self.servers):
                        logger.warning("%s Trying another server.", error)
                        continue
                raise

    def error(self, prefix: ServerPrefix, what: str) -> ServerError:
        """What went wrong with an answer, which another try would not mend."""
        server = prefix.server or self.servers[0]
        return ServerError(server.name, what, passing=False)

    async def catch_up(self, prefix: ServerPrefix, server: Server) -> None:
        """Have a server to which a prefix has moved read it, while all others that want it read wait."""
        async with prefix.moving:
            if prefix.server is not server or prefix.held > 0:
                return
            ids, said = list(prefix.ids), None
            stream = self._stream(server, ids, len(ids), READ)
            async with self._turn(server, ids, len(ids)) as is_read, aclosing(stream) as pieces:
                async for piece in pieces:
                    said = piece.usage or said
                is_read()
            if prefix.server is server:
                prefix.held = max(prefix.held, len(ids))
            prefix.read_again += self._ran(ids, said)

    def _ran(self, ids: Sequence[int], said: Said | None) -> int:
        """How many tokens a server ran that had read none of them for us; all, if it does not say."""
        found = self.reuse.heard(said, 0)
        return max(0, len(ids) - (found or 0))

    def _stream(
        self, server: Server, ids: Sequence[int], known: int, wanted: Wanted
    ) -> AsyncGenerator[Piece, None]:
        if wanted.scored or wanted.coming:
            return server.likelihoods(ids, wanted.scored, wanted.coming)
        return server.stream(*self._fields(ids, known, wanted))

    def _fields(
        self, ids: Sequence[int], known: int, wanted: Wanted
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """A request: the fields of the API that all servers share, and those of the family's own."""
        body = {**self._prompt(ids, known), **wanted.fields, "model": self.model_id}
        extra = {**self.family.extra, **wanted.extra}
        if self.family.name == "transformers":
            body.pop("temperature", None)
            if isinstance(self.words, Tokens):
                extra["generation_config"] = self._greedy(wanted, self.words)
        else:
            body["stream_options"] = {"include_usage": True}
        return body, extra

    def _turn(
        self, server: Server, ids: Sequence[int], document: int
    ) -> AbstractAsyncContextManager[Callable[[], None]]:
        """A server's one slot, where it has one, and what is to be called once the prompt is read."""
        slot = self._slots.get(server)
        return nullcontext(lambda: None) if slot is None else slot.turn(ids, document)

    def _greedy(self, wanted: Wanted, words: Tokens) -> str:
        """What `transformers serve` is told of generation; without an end there, its texts would have none."""
        ends = list(wanted.ends) or words.codec.tokenizer.eos_token_id
        tokens = wanted.fields["max_tokens"]
        config = GenerationConfig(do_sample=False, max_new_tokens=tokens, eos_token_id=ends)  # type: ignore[no-untyped-call]
        return str(config.to_json_string())

    def _prompt(self, ids: Sequence[int], known: int) -> dict[str, Any]:
        if self.route == "tokens":
            return {"prompt": list(ids)}
        if self.route == "chat":
            return {"messages": self.words.messages(ids)}
        return {"prompt": self.words.text(ids, known)}

    def _server_for(self, prefix: ServerPrefix, more: Sequence[int], tried: set[Server]) -> Server:
        """The prefix's own server; for a fresh prefix by what it begins with, so that all processes choose alike."""
        able = [server for server in self.servers if server not in tried and not server.away]
        able = able or [server for server in self.servers if server not in tried] or list(self.servers)
        if prefix.server not in able:
            begins = repr((prefix.ids or list(more))[:4096])
            prefix.move_to(max(able, key=lambda server: _rank(server.name + begins)))
        assert prefix.server is not None
        return prefix.server


def _pause(state: RetryCallState) -> float:
    """Growing pauses, and what a server asks for."""
    error = state.outcome.exception() if state.outcome is not None else None
    return max(getattr(error, "retry_after", 0.0), _growing(state))


_growing = wait_random_exponential(multiplier=0.2, max=5.0)


def _rank(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
