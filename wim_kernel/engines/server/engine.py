"""The server engine: a reading is a prefix that the server has in its cache, and a branch is a request behind it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from pathlib import PurePath
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from wim_kernel.common.copying import Shared
from wim_kernel.common.errors import ServerError
from wim_kernel.engines.base import Branch, Gate, Head, Progress
from wim_kernel.engines.loading import load_tokenizer
from wim_kernel.engines.packed import Packed
from wim_kernel.engines.server.branch_requests import Branches, Running
from wim_kernel.engines.server.codecs import Characters, Tokens, Words
from wim_kernel.engines.server.deltas import Said
from wim_kernel.engines.server.families import FAMILIES, Family, FamilyName, Route
from wim_kernel.engines.server.prefixes import ServerPrefix
from wim_kernel.engines.server.probing import family_of, window_of
from wim_kernel.engines.server.requests import READ, Requests
from wim_kernel.engines.server.reuse import Reuse
from wim_kernel.engines.server.transport import Server, gathered, wait_for
from wim_kernel.text.run_text import Text


class ServerEngine(Shared):
    """Drives servers over the OpenAI-compatible API; their prefix caches take the place of a cache of our own.

    Args:
        base_url: of the API, with ``/v1``; several for servers that run the same model. A document's questions go to
            the server that read it.
        model: the model's name there; by default the only one it serves.
        tokenizer: that of the model: an object, a folder or a hub id. With it prompts are sent as tokens, or as text
            that makes the same tokens; without it as messages, to which the server applies its template: then text of
            control tokens in a document is read as such, sizes are estimates, and a boundary may fall within a token.
        family: what kind of server it is, by name or as a `Family` of your own; by default it is asked.
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

    heads: tuple[Head, ...] = ()  # servers do not report attention
    budget_bytes = 2**30  # what is held here is ids
    host_budget_bytes = 0

    def __init__(
        self,
        base_url: str | Sequence[str],
        model: str | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | str | None = None,
        family: Family | FamilyName | None = None,
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
        if isinstance(family, str) and family not in FAMILIES:
            raise ValueError(f"family is one of {', '.join(FAMILIES)}, not {family!r}.")
        self.servers = [Server(url, api_key, timeout, 1) for url in urls]
        first, models = self._first_that_answers(model)
        self.model_id = _chosen(model, models)
        self.model_name = PurePath(self.model_id).name
        about = next((entry for entry in models if entry.get("id") == self.model_id), {})
        kind = wait_for(family_of(first, about)) if family is None else family
        self.family: Family = FAMILIES[kind] if isinstance(kind, str) else kind
        for server in self.servers:
            server.concurrency = concurrency or self.family.concurrency
        self.words: Words = Characters() if tokenizer is None else Tokens(_loaded(tokenizer))
        self.route = _route(route, self.family, self.words)
        self.window = window or wait_for(window_of(first, self.family, about))
        self.margin_batch = 1 if self.family.in_order else 4
        self.max_branches = 1 if self.family.in_order else 256
        self.writes_as_it_reads = self.family.in_order
        self.shows_tokens = self.route == "tokens"
        self.measures_likelihood = self.shows_tokens and self.family.likelihoods
        self._reuse = Reuse(self.family.advice, self.words.exact)
        self._requests = Requests(
            self.servers, self.model_id, self.family, self.words, self.route, retries, self._reuse
        )
        self._branches = Branches(self._requests, self._reuse)

    @property
    def decides_by(self) -> str:
        """What decisions were taken from, or will be if there were none."""
        return self._branches.decides_by

    @property
    def says_cached(self) -> bool | None:
        """Whether the server says how many tokens it found in its cache; None before anything was asked."""
        return self._reuse.said

    # -- text ---------------------------------------------------------------------------------------------------------

    def head(self, system: str, lead: str) -> list[int]:
        """What stands before every document."""
        return self.words.head(system, lead)

    def placed(self, text: str) -> tuple[list[int], list[int]]:
        """Not to be had: servers do not report attention, so that nobody needs it."""
        raise NotImplementedError

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
        return prefix.fork(tokens)

    def identity(self) -> dict[str, str]:
        """What a prefix depends on beside its tokens."""
        return {"model": self.model_id, "server": self.servers[0].name}

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
        """Have the server read the next of ``pieces``; says which positions it ran, as far as it told.

        Those may begin before the pieces: what it had lost, or had in part of a block, it runs again.
        """
        wanted = list(itertools.chain.from_iterable(pieces))
        with prefix.lock:
            before, end = prefix.tokens, start + len(wanted)
            if before >= end:
                return range(before, before)
            more = wanted[before - start :]
            said = wait_for(self._read(prefix, more))
            found = self._reuse.heard(said, prefix.shared(before, self.words.exact))
            prefix.ids += more
            prefix.held = end
            if said is not None:
                prefix.counted[end] = said.prompt
            return range(before if found is None else min(end, found), end)

    async def _read(self, prefix: ServerPrefix, more: Sequence[int]) -> Said | None:
        """Have everything of a prefix read, and more."""
        said = None
        async for attempt in self._requests.attempts():
            with attempt:
                async with aclosing(self._requests.ask(prefix, prefix.tokens, more, READ)) as pieces:
                    async for piece in pieces:
                        said = piece.usage or said
        return said

    # -- branches -----------------------------------------------------------------------------------------------------

    def decode(
        self, prefix: ServerPrefix, branches: Sequence[Branch], gate: Gate | None = None
    ) -> Iterator[list[Progress]]:
        """Run branches as requests, together or in order; see `wim_kernel.engines.base.Engine.decode`."""
        for branch in branches:
            if branch.generation is not None:
                self._branches.check(branch.generation)  # mistakes are said before anything is done
        running = [
            Running(place, branch, tuple(self.words.suffix(branch))) for place, branch in enumerate(branches)
        ]
        longest_first = sorted(running, key=lambda each: -each.branch.at)
        finding_out = [
            functools.partial(find_out, prefix, each)
            for each in longest_first
            for find_out, wanted in (
                (self._branches.score, each.branch.scored is not None and self.measures_likelihood),
                (self._branches.decide, bool(each.branch.choices)),
            )
            if wanted
        ]
        for _ in gathered(finding_out):
            yield []
        passing = gate([each.scores for each in running]) if gate is not None else [True] * len(running)
        going = [each for each in longest_first if passing[each.place] and each.branch.generation is not None]
        yield [each.done() for each in running if each not in going]
        writing = [functools.partial(self._branches.write, prefix, each) for each in going]
        for progress in gathered(writing):
            yield [progress]

    # -- starting -----------------------------------------------------------------------------------------------------

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


def _loaded(tokenizer: PreTrainedTokenizerBase | str) -> Any:
    return load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer


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
