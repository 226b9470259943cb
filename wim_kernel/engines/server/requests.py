"""Sends requests that continue a prefix: builds them, chooses the server, and fails over to another."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, nullcontext
from dataclasses import dataclass, field
from typing import Any

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

from wim_kernel.common.errors import ServerError
from wim_kernel.engines.server import ollama
from wim_kernel.engines.server.codecs import PromptCodec, TokenizerCodec
from wim_kernel.engines.server.deltas import StreamDelta
from wim_kernel.engines.server.families import Family, Route
from wim_kernel.engines.server.likelihoods import (
    Measurement,
    Way,
    best_way,
    candidates,
    find_ways,
    measure,
)
from wim_kernel.engines.server.prefixes import Claim, ReadingTurn, ServerPrefix
from wim_kernel.engines.server.probing import slots_of
from wim_kernel.engines.server.reuse import CacheHits
from wim_kernel.engines.server.slots import ScratchSlots, Slot
from wim_kernel.engines.server.transport import Server

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompletionSpec:
    """What a request asks for, apart from its prompt.

    Attributes:
        fields: fields of the common API.
        extra: fields of the family's own.
        ends: EOS tokens of the caller's; by default the tokenizer's.
        reads: whether the whole prompt is a document's, which the server's slot should keep.
        candidates: candidate next tokens whose log-probabilities are needed; no text is generated.
    """

    fields: dict[str, Any]
    extra: dict[str, Any] = field(default_factory=dict)
    ends: Sequence[int] = ()
    reads: bool = False
    candidates: Sequence[int] = ()


SHORT = 1024  # most tokens of a prompt that is measured in another slot than the document's
READ = CompletionSpec({"max_tokens": 1, "temperature": 0.0}, reads=True)
"""A prefill: one token, since servers generate at least one."""


class Requests:
    """Sends requests to servers.

    Args:
        servers: servers that run the same model.
        model_id: name of the model on the servers.
        family: the servers' family.
        codec: converts ids to prompts.
        route: form in which prompts are sent.
        retries: number of retries after a transient error.
        reuse: counts the cache hits that servers report.
        window: most tokens of a prompt and its answer, which Ollama has to be told.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        model_id: str,
        family: Family,
        codec: PromptCodec,
        route: Route,
        retries: int,
        reuse: CacheHits,
        window: int | None,
    ) -> None:
        self.servers = servers
        self.model_id = model_id
        self.family = family
        self.codec = codec
        self.route = route
        self.retries = retries
        self.reuse = reuse
        self.window = window
        has_one_slot = family.name == "llama.cpp" and family.sequential and codec.exact
        self._slots = {server: Slot(server) for server in servers} if has_one_slot else {}
        self._scratch: dict[Server, ScratchSlots] = {}
        self.ways: tuple[Way, ...] = ()

    async def find_ways(self, ids: Sequence[int]) -> tuple[Way, ...]:
        """Find out by a trial in which ways likelihoods can be measured; see `likelihoods`.

        Args:
            ids: token ids of a short text.
        """
        server = next((server for server in self.servers if not server.is_down), self.servers[0])
        slots = await slots_of(server) if server in self._slots else 1
        if slots > 1:
            self._scratch = {each: ScratchSlots(slots) for each in self.servers}
            for each in self.servers:
                each.admit(slots)
        elif server in self._slots and not await self._slots[server].can_save():
            return ()  # measuring a passage would drop the document from the only slot
        async for attempt in self.attempts():
            with attempt:
                self.ways = await find_ways(server, self.family, self.model_id, ids, min(1, slots - 1))
        return self.ways

    def attempts(self) -> AsyncRetrying:
        """Attempts of one request, repeated after transient errors."""
        return AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, ServerError) and error.passing),
            stop=stop_after_attempt(1 + self.retries),
            wait=_pause,
            reraise=True,
        )

    async def complete(
        self, prefix: ServerPrefix, known: int, more: Sequence[int], spec: CompletionSpec, claim: Claim
    ) -> AsyncGenerator[StreamDelta, None]:
        """Stream a completion from the prefix's server or, if that fails before the first delta, from another.

        If the server has not prefilled the prefix so far, this request makes it do so. Others that need the same part
        wait until the reply begins, because servers do not share what they have not computed yet.

        Args:
            prefix: the prefix.
            known: number of prefix tokens with which the prompt begins.
            more: ids of the rest of the prompt.
            spec: what the request asks for.
            claim: is set to what the request expects of the server's cache, and is charged for.
        """
        ids = [*prefix.ids[:known], *more]
        document = len(ids) if spec.reads else known
        tried: set[Server] = set()
        while True:
            server = self._server_for(prefix, tried)
            begun = False
            try:
                stream = self._stream(server, ids, known, spec)
                async with (
                    ReadingTurn(prefix, server, known, claim) as turn,
                    self._hold_slot(server, ids, document) as mark_in_slot,
                    aclosing(stream) as deltas,
                ):
                    async for delta in deltas:
                        if not begun:
                            mark_in_slot()
                            turn.reply_begins()
                        begun = True
                        yield delta
                return
            except ServerError as error:
                # the same server is tried again if it is only busy
                is_broken = error.status is None or error.status >= 500
                if error.passing and is_broken and len(self.servers) > 1:
                    server.mark_failed()
                    tried.add(server)
                    if not begun and len(tried) < len(self.servers):
                        logger.warning("%s Trying another server.", error)
                        continue
                raise

    async def measure(
        self, prefix: ServerPrefix, known: int, more: Sequence[int], scored: int, claim: Claim
    ) -> StreamDelta:
        """Measure the log-probabilities of a prompt's last tokens, in the way that computes least.

        Args:
            prefix: the prefix.
            known: number of prefix tokens with which the prompt begins.
            more: ids of the rest of the prompt.
            scored: how many of the last tokens are measured.
            claim: is set to what the request expects of the server's cache, and is charged for.
        """
        ids, server = [*prefix.ids[:known], *more], self._server_for(prefix, set())
        way = best_way(self.ways, min(known, prefix.tokens_on_server), len(ids), scored)
        scratch = self._scratch.get(server)
        # Neither takes the prefix from the cache: a prompt's own log-probabilities, and llama.cpp's other slots.
        apart = claim.apart = way == "prompt" or (scratch is not None and len(ids) <= SHORT)
        async with AsyncExitStack() as held:
            mark_in_slot, turn, slot = None, None, 0
            if not apart:
                turn = await held.enter_async_context(ReadingTurn(prefix, server, known, claim))
                mark_in_slot = await held.enter_async_context(self._hold_slot(server, ids, known))
            elif scratch is not None:
                slot = await held.enter_async_context(scratch.borrow())
            async for delta in measure(server, way, Measurement(ids, scored, self.model_id, slot)):
                if turn is not None and mark_in_slot is not None:
                    mark_in_slot()
                    turn.reply_begins()
                return delta
        raise AssertionError("a measurement yields one delta")

    def error(self, prefix: ServerPrefix, what: str) -> ServerError:
        """An error in an answer that a retry would not mend."""
        server = prefix.server or self.servers[0]
        return ServerError(server.name, what, passing=False)

    def _stream(
        self, server: Server, ids: Sequence[int], known: int, spec: CompletionSpec
    ) -> AsyncGenerator[StreamDelta, None]:
        if spec.candidates:
            return candidates(server, ids, spec.candidates)
        fields, extra = self._fields(ids, known, spec)
        if self.family.name == "ollama":
            body = ollama.body_of(fields, extra, self.window or ollama.DEFAULT_WINDOW)
            return ollama.stream(server, body, ollama.path_of(fields), len(ids), exact=self.codec.exact)
        return server.stream(fields, extra)

    def _fields(
        self, ids: Sequence[int], known: int, spec: CompletionSpec
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The fields of a request: those of the common API, and those of the family's own."""
        body = {**self._prompt(ids, known), **spec.fields, "model": self.model_id}
        extra = {**self.family.extra, **spec.extra}
        if self.family.name == "transformers":
            body.pop("temperature", None)
            if isinstance(self.codec, TokenizerCodec):
                extra["generation_config"] = self._greedy(spec, self.codec)
        else:
            body["stream_options"] = {"include_usage": True}
        return body, extra

    def _hold_slot(
        self, server: Server, ids: Sequence[int], document: int
    ) -> AbstractAsyncContextManager[Callable[[], None]]:
        """Hold the server's only slot, if it has just one. Gives a function to call once the prompt is prefilled."""
        slot = self._slots.get(server)
        return nullcontext(lambda: None) if slot is None else slot.hold(ids, document)

    def _greedy(self, spec: CompletionSpec, codec: TokenizerCodec) -> str:
        """The generation config for `transformers serve`, which needs an EOS to end a text."""
        from transformers import GenerationConfig

        ends = list(spec.ends) or codec.chat_codec.tokenizer.eos_token_id
        tokens = spec.fields["max_tokens"]
        config = GenerationConfig(do_sample=False, max_new_tokens=tokens, eos_token_id=ends)  # type: ignore[no-untyped-call]
        return str(config.to_json_string())

    def _prompt(self, ids: Sequence[int], known: int) -> dict[str, Any]:
        if self.route == "tokens":
            return {"prompt": list(ids)}
        if self.route == "chat":
            return {"messages": self.codec.messages(ids)}
        return {"prompt": self.codec.text(ids, known)}

    def assign(self, prefix: ServerPrefix) -> None:
        """Choose a new prefix's server by its beginning."""
        self._server_for(prefix, set())

    def _server_for(self, prefix: ServerPrefix, tried: set[Server]) -> Server:
        """The prefix's server. A new prefix gets one by rendezvous hashing of its beginning, equal in all processes."""
        able = [server for server in self.servers if server not in tried and not server.is_down]
        able = able or [server for server in self.servers if server not in tried] or list(self.servers)
        if prefix.server not in able:
            begins = repr(prefix.ids[:4096])
            prefix.move_to(max(able, key=lambda server: _rank(server.name + begins)))
        assert prefix.server is not None
        return prefix.server


def _pause(state: RetryCallState) -> float:
    """Seconds before a retry: exponential back-off, or the server's ``Retry-After`` if that is longer."""
    error = state.outcome.exception() if state.outcome is not None else None
    return max(getattr(error, "retry_after", 0.0), _growing(state))


_growing = wait_random_exponential(multiplier=0.2, max=5.0)


def _rank(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
