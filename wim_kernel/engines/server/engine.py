"""The server engine: prefixes are in the prefix cache of a server, and a branch is a request that continues one."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from wim_kernel.common.copying import Shared
from wim_kernel.common.margins import Usage
from wim_kernel.engines.base import Branch, Gate, Head, Progress, Scores
from wim_kernel.engines.generation import Generation
from wim_kernel.engines.hub import load_tokenizer
from wim_kernel.engines.packed import Packed
from wim_kernel.engines.server.branch_requests import BranchRequests
from wim_kernel.engines.server.branch_state import BranchState
from wim_kernel.engines.server.codecs import CharacterCodec, PromptCodec, TokenizerCodec
from wim_kernel.engines.server.deciding import BranchGate
from wim_kernel.engines.server.families import FAMILIES, Family, FamilyName, Route
from wim_kernel.engines.server.loop import run_concurrently, wait_for
from wim_kernel.engines.server.ordering import decode_one_by_one, sequential_order
from wim_kernel.engines.server.prefixes import ServerPrefix
from wim_kernel.engines.server.probing import family_of, window_of
from wim_kernel.engines.server.requests import Requests
from wim_kernel.engines.server.reuse import CacheHits
from wim_kernel.engines.server.starting import chosen_model, chosen_route, first_that_answers
from wim_kernel.engines.server.transport import Server
from wim_kernel.engines.server.trial import LikelihoodTrial
from wim_kernel.text.run_text import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ServerEngine(Shared):
    """Drives servers over the OpenAI-compatible API and relies on their prefix caches.

    Args:
        base_url: URL of the API, with ``/v1``; several for servers that run the same model. All requests on a document
            go to the server that prefilled it.
        model: name of the model on the server; by default the only one it serves.
        tokenizer: tokenizer of the model: an object, a folder or a hub id. With it, prompts are sent as tokens, or as
            text that makes the same tokens. Without it, they are sent as messages, to which the server applies its
            template: then the text of a control token in a document becomes that token, sizes are estimates, and a
            boundary may fall within a token.
        family: the kind of server, by name or as a `Family` of your own; by default the server is probed.
        route: form in which prompts are sent; by default the most exact one that family and tokenizer allow.
        window: most tokens of a prompt and its answer; by default what the server reports.
        api_key: key of the API; by default the environment's ``OPENAI_API_KEY``.
        concurrency: most requests at a time to each server; by default the family's.
        timeout: seconds without data after which a request has failed.
        retries: number of retries after a transient error, with exponential back-off.

    Raises:
        ServerError: if no server answers.
        ValueError: if ``model`` is needed to choose among several, or ``family`` or ``route`` is not possible.
    """

    heads: tuple[Head, ...] = ()  # servers do not report attention
    joins_chunks = False
    reads_text = True
    rates = False
    max_calls: int | None = None
    first_look = False
    reads_on_demand = True
    budget_bytes = 2**30  # of ids: keys and values are on the server
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
        first, models = first_that_answers(self.servers, model)
        self.model_id = chosen_model(model, models)
        self.model_name = PurePath(self.model_id).name
        about = next((entry for entry in models if entry.get("id") == self.model_id), {})
        kind = wait_for(family_of(first, about)) if family is None else family
        self.family: Family = FAMILIES[kind] if isinstance(kind, str) else kind
        for server in self.servers:
            server.concurrency = concurrency or self.family.concurrency
        self.codec: PromptCodec = (
            CharacterCodec() if tokenizer is None else TokenizerCodec(_loaded(tokenizer))
        )
        self.route = chosen_route(route, self.family, self.codec)
        self.window = window or wait_for(window_of(first, self.family, {**about, "id": self.model_id}))
        self.margin_batch = 1 if self.family.sequential else 4
        self.max_branches = self.family.max_branches
        self.writes_as_it_reads = self.family.sequential
        self.shows_tokens = self.route == "tokens"
        self._reuse = CacheHits(self.family.advice, self.codec.exact)
        self._requests = Requests(
            self.servers,
            self.model_id,
            self.family,
            self.codec,
            self.route,
            retries,
            self._reuse,
            self.window,
        )
        self._branches = BranchRequests(self._requests, self._reuse)
        self._trial = LikelihoodTrial(self._requests, self.encode)

    @property
    def measures_likelihood(self) -> bool:
        """See `Engine.measures_likelihood`: found out by a trial on the server, at the first access.

        Raises:
            ServerError: if the trial fails for a reason that will pass.
        """
        return self.shows_tokens and self._trial.succeeds()

    @property
    def decides_by(self) -> str:
        """See `Engine.decides_by`."""
        return self._branches.decides_by

    @property
    def reports_cached(self) -> bool | None:
        """See `Engine.reports_cached`."""
        return self._reuse.reported

    # -- text ---------------------------------------------------------------------------------------------------------

    def head(self, system: str, lead: str) -> list[int]:
        """Ids that precede every document."""
        return self.codec.head(system, lead)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[int]]:
        """Never called, since servers do not report attention."""
        raise NotImplementedError

    def encode(self, text: Text) -> list[int]:
        """Ids of a text."""
        return self.codec.encode(text)

    def suffix(self, branch: Branch) -> list[int]:
        """Ids of a branch's prompt, up to where the reply begins."""
        return self.codec.suffix(branch)

    def check_schema(self, json_schema: str, generation: Generation) -> None:
        """Check that the server's family can constrain replies to a JSON schema.

        Raises:
            ValueError: if it cannot.
        """
        if self.family.name == "transformers":
            raise ValueError("transformers serve does not write JSON to a schema.")

    # -- prefixes -----------------------------------------------------------------------------------------------------

    def open(self) -> ServerPrefix:
        """An empty prefix."""
        return ServerPrefix()

    def prefix_bytes(self, tokens: int, boundaries: int = 0) -> int:
        """The size in bytes of the ids, which are all that this process holds of a prefix."""
        return 64 * tokens

    def reserve(self, prefix: ServerPrefix, tokens: int) -> None:
        """Do nothing: the server manages its cache."""

    def fork(self, prefix: ServerPrefix, tokens: int) -> ServerPrefix:
        """A copy of the first ``tokens`` tokens of a prefix."""
        return prefix.fork(tokens)

    def identity(self) -> dict[str, str]:
        """See `Engine.identity`."""
        return {"model": self.model_id, "server": self.servers[0].name}

    def calibration_key(self) -> None:
        """None, since servers do not report attention."""

    def pack(self, prefix: ServerPrefix, tokens: int) -> Packed:
        """Not possible: keys and values are on the server.

        Raises:
            TypeError: always.
        """
        raise TypeError("The keys and values are on the server, which keeps them itself.")

    def unpack(self, packed: Packed, ids: Sequence[int], room: int) -> ServerPrefix:
        """See `pack`."""
        raise TypeError("The keys and values are on the server, which keeps them itself.")

    def extend(self, prefix: ServerPrefix, chunks: Sequence[Sequence[int]], start: int) -> range:
        """Take in chunks, and send nothing: the first request that needs them makes the server prefill them.

        That request is charged for them, in its `Decoded.prefilled`. What the server really ran is known when it has
        ended, and the difference is in its `Decoded.recomputed`.
        """
        ids = list(itertools.chain.from_iterable(chunks))
        with prefix.lock:
            before, end = prefix.tokens, start + len(ids)
            prefix.ids += ids[max(0, before - start) :]
            self._requests.assign(prefix)
            return range(before, max(before, end))

    def tokens_read(self, prefix: ServerPrefix) -> int:
        """See `Engine.tokens_read`."""
        return prefix.charged

    def settle(self, prefix: ServerPrefix) -> int:
        """Make the server prefill what no request has needed yet; see `Engine.settle`."""
        return wait_for(self._branches.read(prefix)) if prefix.tokens_on_server < prefix.tokens else 0

    # -- branches -----------------------------------------------------------------------------------------------------

    prices = (1.0, 0.0)

    def foresee(self, prefix: ServerPrefix, branches: Sequence[Branch]) -> Usage:
        """Never called: nothing is billed."""
        raise NotImplementedError

    def holds(self, prefix: ServerPrefix, tokens: int) -> bool:
        """See `Engine.holds`."""
        return prefix.tokens >= tokens

    def decode(
        self, prefix: ServerPrefix, branches: Sequence[Branch], gate: Gate | None = None
    ) -> Iterator[list[Progress]]:
        """Run branches as requests; see `wim_kernel.engines.base.Engine.decode`.

        llama.cpp keeps one prompt per slot, and a shorter prompt truncates it. So for sequential families branches run
        one by one: behind what the server has read, the longest prefix first, then behind the rest as it reads on. If
        likelihoods are measured they run as given, since each is compared with the one at the boundary before.
        """
        for branch in branches:
            if branch.generation is not None:
                self._branches.check(branch.generation)
        if not self.family.sequential or all(self._only_scores(branch) for branch in branches):
            yield from self._decode_together(prefix, branches, gate)
            return
        order = list(range(len(branches)))
        if not any(self._scores(branch) for branch in branches):
            order = sequential_order([branch.at for branch in branches], prefix.tokens_on_server)

        def decode_one(index: int) -> Iterator[list[Progress]]:
            own_gate = None if gate is None else functools.partial(_ask_for, gate, index)
            return self._decode_together(prefix, [branches[index]], own_gate)

        yield from decode_one_by_one(decode_one, order)

    def _decode_together(
        self, prefix: ServerPrefix, branches: Sequence[Branch], gate: Gate | None
    ) -> Iterator[list[Progress]]:
        """Run the requests of branches concurrently: measurements, then the gate, then generation.

        A branch that only decides and generates is one request, and the gate is asked about it alone, when its reply
        begins.
        """
        states = [
            BranchState(index, branch, tuple(self.codec.suffix(branch)))
            for index, branch in enumerate(branches)
        ]
        longest_first = sorted(states, key=lambda state: -state.branch.at)
        deciding = [
            state
            for state in states
            if self._decides_while_writing(state.branch) and not self._scores(state.branch)
        ]
        measurements = [
            functools.partial(measure, prefix, state)
            for state in longest_first
            for measure, needed in (
                (self._branches.score, self._scores(state.branch)),
                (self._branches.decide, bool(state.branch.choices) and state not in deciding),
            )
            if needed
        ]
        for _ in run_concurrently(measurements):
            yield []
        measured = [state for state in states if state not in deciding]
        goes_on = [True] * len(measured)
        if gate is not None and measured:
            goes_on = list(gate([state.index for state in measured], [state.scores for state in measured]))
        active = {
            state.index
            for state, goes in zip(measured, goes_on, strict=True)
            if goes and state.branch.generation is not None
        }
        yield [state.done() for state in measured if state.index not in active]
        branch_gate = BranchGate(gate)
        writing = [
            functools.partial(
                self._branches.write, prefix, state, gate=branch_gate if state in deciding else None
            )
            for state in longest_first
            if state in deciding or state.index in active
        ]
        for item in run_concurrently(writing):
            yield [item]

    def _only_scores(self, branch: Branch) -> bool:
        return self._scores(branch) and not branch.choices and branch.generation is None

    def _scores(self, branch: Branch) -> bool:
        """Whether a branch's likelihood is measured."""
        return branch.scored is not None and self.measures_likelihood

    def _decides_while_writing(self, branch: Branch) -> bool:
        """Whether one request both decides about a branch and writes its text."""
        # Ollama says only at a reply's end whether it read the whole prompt.
        apart = self.family.decides_apart and (self.route != "chat" or self.family.name == "ollama")
        return bool(branch.choices) and branch.generation is not None and not apart


def _ask_for(gate: Gate, index: int, _: Sequence[int], scores: Sequence[Scores]) -> Sequence[bool]:
    """Ask the gate for one branch, by its index in the caller's list."""
    return gate([index], scores)


def _loaded(tokenizer: PreTrainedTokenizerBase | str) -> Any:
    return load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
