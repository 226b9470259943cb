"""The server engine: a reading is a prefix that the server has in its cache, and a branch is a request behind it."""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import threading
import warnings
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import PurePath
from typing import Any

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from wim_kernel.engines.base import Branch, Decoded, Gate, Progress, Scores, Text
from wim_kernel.engines.server.families import FAMILIES, Family, FamilyName, Route, sampling_fields
from wim_kernel.engines.server.probing import family_of, window_of
from wim_kernel.engines.server.replies import chances, schema_fields, without_decision
from wim_kernel.engines.server.transport import Piece, Put, Said, Server, gathered, wait_for
from wim_kernel.engines.server.words import Characters, Tokens, Words
from wim_kernel.errors import ServerError
from wim_kernel.storage import Packed

logger = logging.getLogger(__name__)

ENOUGH_TO_JUDGE = 4096
"""Shared tokens after which too little reuse is worth a warning."""
TOP = 20  # likeliest first tokens that are asked for


class ServerPrefix:
    """Tokens that a server has read.

    Attributes:
        ids: what stands for the tokens.
        server: who has them.
        counted: the server's own count of tokens at chunk boundaries, where it gave one.
        lock: one caller reads on at a time.
    """

    def __init__(self, server: Server | None = None, ids: Sequence[int] = ()) -> None:
        self.ids = list(ids)
        self.server = server
        self.counted: dict[int, int] = {}
        self.lock = threading.Lock()

    @property
    def tokens(self) -> int:
        """How many there are."""
        return len(self.ids)


class ServerEngine:
    """Drives servers over the OpenAI-compatible API; their prefix caches take the place of a cache of our own.

    Args:
        base_url: of the API, with ``/v1``; several for servers that run the same model. A document's questions go to
            the server that read it.
        model: the model's name there; by default the only one it serves.
        tokenizer: that of the model: an object, a folder or a hub id. With it prompts are sent as tokens, or as text
            that makes the same tokens; without it as messages, to which the server applies its template: then text of
            control tokens in a document is read as such, sizes are estimates, and a boundary may fall within a token.
        family: what kind of server it is; by default it is asked.
        route: how prompts are sent; by default what the family and the tokenizer allow.
        window: most tokens of a prompt and its answer; by default what the server says.
        api_key: by default the environment's ``OPENAI_API_KEY``.
        concurrency: most requests at a time, of each server; by default the family's.
        timeout: seconds without a sign of life after which a request has failed.
        retries: how often what is safe to try again is tried again, with growing pauses.

    Raises:
        ServerError: if none of the servers can be asked.
        ValueError: if the model is not among those served, or the family is unknown.
    """

    budget_bytes = 2**30  # what is held here is ids
    host_budget_bytes = 0
    measures_likelihood = False

    def __init__(
        self,
        base_url: str | Sequence[str],
        model: str | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | str | None = None,
        family: FamilyName | None = None,
        route: Route | None = None,
        window: int | None = None,
        api_key: str | None = None,
        concurrency: int | None = None,
        timeout: float = 120.0,
        retries: int = 2,
    ) -> None:
        urls = [base_url] if isinstance(base_url, str) else list(base_url)
        if not urls:
            raise ValueError("base_url names no server.")
        if family is not None and family not in FAMILIES:
            raise ValueError(f"family is one of {', '.join(FAMILIES)}, not {family!r}.")
        self.servers = [Server(url, api_key, timeout, 1) for url in urls]
        self.retries = retries
        first, models = self._first_that_answers(model)
        self.model_id = _chosen(model, models)
        self.model_name = PurePath(self.model_id).name
        about = next((entry for entry in models if entry.get("id") == self.model_id), {})
        self.family: Family = FAMILIES[family if family is not None else wait_for(family_of(first, about))]
        for server in self.servers:
            server.concurrency = concurrency or self.family.concurrency
        self.words: Words = Characters() if tokenizer is None else Tokens(_loaded(tokenizer))
        self.route = _route(route, self.family, self.words)
        self.window = window or wait_for(window_of(first, self.family, about))
        self.margin_batch = 1 if self.family.in_order else 4
        self.max_branches = 256
        self.writes_as_it_reads = self.family.in_order
        self.shows_tokens = self.route == "tokens"
        self.decides_by = "first token" if self.family.logprobs else "text"
        self.says_cached: bool | None = None
        self._shared, self._found, self._warned = 0, 0, False

    # -- text ---------------------------------------------------------------------------------------------------------

    def head(self, system: str, lead: str) -> list[int]:
        """What stands before every document."""
        return self.words.head(system, lead)

    def encode(self, text: Text) -> list[int]:
        """What stands for a run of text."""
        return self.words.encode(text)

    def suffix(self, branch: Branch) -> list[int]:
        """What stands for a branch's prompt, to the point where the reply begins."""
        return self.words.suffix(branch)

    def check_schema(self, json_schema: str, generation: GenerationConfig) -> None:
        """See that the server can be asked for JSON of a schema.

        Raises:
            ValueError: if its family cannot.
        """
        if self.family.name == "transformers":
            raise ValueError("transformers serve does not write JSON to a schema.")

    # -- prefixes -----------------------------------------------------------------------------------------------------

    def open(self) -> ServerPrefix:
        """An empty prefix."""
        return ServerPrefix()

    def prefix_bytes(self, tokens: int) -> int:
        """Bytes that are held here."""
        return 64 * tokens

    def reserve(self, prefix: ServerPrefix, tokens: int) -> None:
        """Nothing to do: the server makes room."""

    def fork(self, prefix: ServerPrefix, tokens: int) -> ServerPrefix:
        """The first ``tokens`` tokens of another."""
        other = ServerPrefix(prefix.server, prefix.ids[:tokens])
        other.counted = {end: count for end, count in prefix.counted.items() if end <= tokens}
        return other

    def identity(self) -> dict[str, str]:
        """What a prefix depends on beside its tokens."""
        return {"model": self.model_id, "server": self.servers[0].base_url}

    def pack(self, prefix: ServerPrefix, tokens: int) -> Packed:
        """Servers keep their caches themselves.

        Raises:
            TypeError: always.
        """
        raise TypeError("The keys and values are on the server, which keeps them itself.")

    def unpack(self, packed: Packed, ids: Sequence[int], room: int) -> ServerPrefix:
        """See `pack`."""
        raise TypeError("The keys and values are on the server, which keeps them itself.")

    def extend(self, prefix: ServerPrefix, pieces: Sequence[Sequence[int]], start: int) -> range:
        """Have the server read the next of ``pieces``; says which positions it ran, as far as it told."""
        wanted = list(itertools.chain.from_iterable(pieces))
        with prefix.lock:
            before, end = prefix.tokens, start + len(wanted)
            if before >= end:
                return range(before, before)
            ids = [*prefix.ids, *wanted[before - start :]]
            said = wait_for(self._warm(prefix, ids))
            prefix.ids = ids
            if said is None:
                return range(before, end)
            prefix.counted[end] = said.prompt
            cached = said.cached if self.words.exact else before  # other counts than ours
            return range(max(before, min(end, before if cached is None else cached)), end)

    async def _warm(self, prefix: ServerPrefix, ids: list[int]) -> Said | None:
        said = None
        async for attempt in self._attempts():
            with attempt:
                async for piece in self._asked(prefix, ids, {"max_tokens": 1, "temperature": 0.0}, {}):
                    said = piece.usage or said
        self._heard(said, 0)
        return said

    # -- branches -----------------------------------------------------------------------------------------------------

    def decode(
        self, prefix: ServerPrefix, branches: Sequence[Branch], gate: Gate | None = None
    ) -> Iterator[list[Progress]]:
        """Run branches as requests, together or in order; see `wim_kernel.engines.base.Engine.decode`."""
        if not branches:
            return
        for branch in branches:
            if branch.generation is not None:
                sampling_fields(self.family, branch.generation)  # mistakes are said before anything is done
        order = sorted(range(len(branches)), key=lambda place: -branches[place].at)
        found: dict[int, Scores] = {place: Scores() for place in order}
        suffixes = [tuple(self.words.suffix(branch)) for branch in branches]
        deciding = [
            functools.partial(self._decide, prefix, place, branches[place], suffixes[place])
            for place in order
            if branches[place].choices
        ]
        for place, scores in gathered(deciding):
            found[place] = scores
            yield []
        scored = [found[place] for place in range(len(branches))]
        passing = gate(scored) if gate is not None else [True] * len(branches)
        going = [place for place in order if passing[place] and branches[place].generation is not None]
        yield [
            Progress(place, done=Decoded(scored[place], suffixes[place]))
            for place in range(len(branches))
            if place not in going
        ]
        writing = [
            functools.partial(self._write, prefix, place, branches[place], suffixes[place], scored[place])
            for place in going
        ]
        for progress in gathered(writing):
            yield [progress]

    async def _decide(
        self,
        prefix: ServerPrefix,
        place: int,
        branch: Branch,
        suffix: tuple[int, ...],
        put: Put[tuple[int, Scores]],
    ) -> None:
        """The probability of each choice as the reply's beginning."""
        ids = [*prefix.ids[: branch.at], *suffix]
        asked: dict[str, Any] = {"max_tokens": 1 if self.family.logprobs else 4, "temperature": 0.0}
        if self.family.logprobs:
            asked |= {"logprobs": True, "top_logprobs": TOP} if self.route == "chat" else {"logprobs": TOP}
        async for attempt in self._attempts():
            with attempt:
                top, text, said = dict[str, float](), "", None
                async for piece in self._asked(prefix, ids, asked, {}):
                    top, text, said = top or piece.top, text + piece.text, piece.usage or said
        self._heard(said, branch.at)
        first = self._first_tokens(branch) if self.family.logprobs else None
        put((place, Scores(choices=chances(branch.choices, top, text, first))))

    async def _write(
        self,
        prefix: ServerPrefix,
        place: int,
        branch: Branch,
        suffix: tuple[int, ...],
        scores: Scores,
        put: Put[Progress],
    ) -> None:
        """Generate, and tell what is new as it comes. Where the stream breaks off it is begun again, and told once."""
        assert branch.generation is not None
        told = ""
        decided = self._decided(branch)
        suffix = (*suffix, *decided)
        fields = sampling_fields(self.family, branch.generation)
        extra = {key: fields.pop(key) for key in list(fields) if key not in _STANDARD}
        if branch.json_schema is not None:
            extra |= schema_fields(self.family, branch.json_schema)
        if self.family.name == "vllm" and self.words.exact:
            extra["return_token_ids"] = True
        ids = [*prefix.ids[: branch.at], *suffix]
        async for attempt in self._attempts():
            with attempt:
                text, token_ids, said, finish = "", list[int](), None, None
                async for piece in self._asked(prefix, ids, fields, extra):
                    text, said, finish = text + piece.text, piece.usage or said, piece.finish or finish
                    token_ids += piece.token_ids
                    shown = without_decision(text, branch, decided=bool(decided))
                    if len(shown) > len(told):
                        if not shown.startswith(told):
                            raise self._went_another_way(prefix)
                        put(Progress(place, shown[len(told) :]))
                        told = shown
        whole = without_decision(text, branch, decided=bool(decided), whole=True)
        if not whole.startswith(told):
            raise self._went_another_way(prefix)
        if branch.json_schema is not None and finish == "length":
            raise ServerError(self._url(prefix), "the JSON did not end within max_new_tokens", passing=False)
        if whole != told:
            put(Progress(place, whole[len(told) :]))
        recomputed = self._heard(said, branch.at)
        counted = prefix.counted.get(branch.at)
        put(
            Progress(
                place,
                done=Decoded(
                    scores,
                    suffix,
                    tuple(self._without_end(token_ids)),
                    whole,
                    generated=True,
                    prompt_tokens=None if said is None or counted is None else max(0, said.prompt - counted),
                    output_tokens=None if said is None else said.output,
                    recomputed=recomputed,
                ),
            )
        )

    def _first_tokens(self, branch: Branch) -> list[str] | None:
        """The text of each choice's first token, where it is known."""
        if not isinstance(self.words, Tokens):
            return None
        codec = self.words.codec
        return [
            codec.backend.decode(ids[:1], skip_special_tokens=False) for ids in codec.choices(branch.choices)
        ]

    def _url(self, prefix: ServerPrefix) -> str:
        return prefix.server.base_url if prefix.server is not None else self.servers[0].base_url

    def _went_another_way(self, prefix: ServerPrefix) -> ServerError:
        what = "an answer broke off, and went another way when it was begun again"
        return ServerError(self._url(prefix), what, passing=False)

    def _decided(self, branch: Branch) -> list[int]:
        """The choice that is taken as decided, where it can be put into the model's mouth."""
        if not branch.choices or self.route == "chat" or not isinstance(self.words, Tokens):
            return []
        return self.words.codec.choices(branch.choices)[0]

    def _without_end(self, ids: list[int]) -> list[int]:
        if isinstance(self.words, Tokens):
            end = self.words.codec.tokenizer.eos_token_id
            while ids and ids[-1] == end:
                ids = ids[:-1]
        return ids

    # -- requests -----------------------------------------------------------------------------------------------------

    async def _asked(
        self, prefix: ServerPrefix, ids: Sequence[int], fields: dict[str, Any], extra: dict[str, Any]
    ) -> AsyncIterator[Piece]:
        """A completion behind ids, from the prefix's server or, if that fails before it has begun, from another."""
        body = {**self._prompt(ids), **fields, "model": self.model_id}
        if self.family.name == "transformers":
            body.pop("temperature", None)
            if isinstance(self.words, Tokens):
                extra = {**extra, "generation_config": self._greedy(fields["max_tokens"])}
        else:
            body["stream_options"] = {"include_usage": True}
        tried: set[Server] = set()
        while True:
            server = self._server_for(prefix, ids, tried)
            begun = False
            try:
                async for piece in server.stream(body, {**self.family.extra, **extra}):
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

    def _greedy(self, tokens: int) -> str:
        """What `transformers serve` is told of generation; without an end there, its texts would have none."""
        assert isinstance(self.words, Tokens)
        end = self.words.codec.tokenizer.eos_token_id
        config = GenerationConfig(do_sample=False, max_new_tokens=tokens, eos_token_id=end)  # type: ignore[no-untyped-call]
        return str(config.to_json_string())

    def _prompt(self, ids: Sequence[int]) -> dict[str, Any]:
        if self.route == "tokens":
            return {"prompt": list(ids)}
        if self.route == "chat":
            return {"messages": self.words.messages(ids)}
        return {"prompt": self.words.text(ids)}

    def _server_for(self, prefix: ServerPrefix, ids: Sequence[int], tried: set[Server]) -> Server:
        """The prefix's own server; for a fresh prefix by what it begins with, so that all processes choose alike."""
        able = [server for server in self.servers if server not in tried and not server.away]
        able = able or [server for server in self.servers if server not in tried] or self.servers
        if prefix.server not in able:
            begins = repr((prefix.ids or list(ids))[:4096])
            prefix.server = max(able, key=lambda server: _rank(server.base_url + begins))
        assert prefix.server is not None
        return prefix.server

    def _attempts(self) -> AsyncRetrying:
        """Tries of one branch: again after what may pass."""
        return AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, ServerError) and error.passing),
            stop=stop_after_attempt(1 + self.retries),
            wait=_pause,
            reraise=True,
        )

    def _first_that_answers(self, model: str | None) -> tuple[Server, list[dict[str, Any]]]:
        """A server that can be asked, and the models it lists; a named model need not be listed."""
        for place, server in enumerate(self.servers):
            try:
                return server, wait_for(server.models())
            except ServerError as error:
                if model is not None and error.status is not None and error.status not in (401, 403):
                    return server, []  # it is there, and lists nothing
                server.failed()
                if place == len(self.servers) - 1:
                    raise
        raise AssertionError

    # -- what servers say of reuse ------------------------------------------------------------------------------------

    def _heard(self, said: Said | None, shared: int) -> int:
        """Take in what a server said of a branch behind ``shared`` tokens; how many of them it ran again."""
        if said is None or said.cached is None or not self.words.exact:
            self.says_cached = bool(self.says_cached)
            return 0
        self.says_cached = True
        self._shared += shared
        self._found += min(said.cached, shared)
        if not self._warned and self._shared > ENOUGH_TO_JUDGE and self._found < self._shared // 2:
            self._warned = True
            warnings.warn(
                f"The server found only {self._found} of {self._shared} shared tokens in its prefix cache, so "
                f"documents are read again and again: {self.family.advice}.",
                stacklevel=2,
            )
        return max(0, shared - said.cached)


_STANDARD = ("max_tokens", "temperature", "top_p", "stop")


def _pause(state: RetryCallState) -> float:
    """Growing pauses, and what a server asks for."""
    error = state.outcome.exception() if state.outcome is not None else None
    return max(getattr(error, "retry_after", 0.0), _growing(state))


_growing = wait_random_exponential(multiplier=0.2, max=5.0)


def _rank(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _loaded(tokenizer: PreTrainedTokenizerBase | str) -> Any:
    return AutoTokenizer.from_pretrained(tokenizer) if isinstance(tokenizer, str) else tokenizer


def _chosen(model: str | None, models: Sequence[dict[str, Any]]) -> str:
    names = [str(entry["id"]) for entry in models]
    if model is None and len(names) == 1:
        return names[0]
    if model is None:
        raise ValueError(f"Say which model: the server serves {', '.join(names) or 'none by name'}.")
    return model


def _route(route: Route | None, family: Family, words: Words) -> Route:
    if route is None:
        return "chat" if not words.exact else "tokens" if family.takes_ids else "text"
    if route != "chat" and not words.exact:
        raise ValueError(f"route={route!r} needs the model's tokenizer: give tokenizer=.")
    if route == "chat" and words.exact:
        raise ValueError("route='chat' lets the server apply its own template: give no tokenizer.")
    if route == "tokens" and not family.takes_ids:
        raise ValueError(f"A server of the family {family.name!r} takes no token ids.")
    return route
