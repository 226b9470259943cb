"""The engine for chat models: a prefix is text here and an entry in the provider's cache, a branch is one request.

Nothing is sent while a document is read. The request that writes a margin sends the document up to the margin's chunk;
the same request rates the chunk and, where the provider caches, writes the cache for those that follow.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from wim_kernel.common import forks
from wim_kernel.common.copying import Shared
from wim_kernel.common.margins import Usage
from wim_kernel.engines.base import Branch, Decoded, Gate, Head, Progress, Scores
from wim_kernel.engines.chat import codec
from wim_kernel.engines.chat.backend import ChatBackend
from wim_kernel.engines.chat.branch_calls import BranchCalls, Item, Reply, suffix_ids
from wim_kernel.engines.chat.calls import Call, run_calls
from wim_kernel.engines.chat.prefixes import ChatPrefix
from wim_kernel.engines.chat.providers import BY_NAME, Provider, provider_of
from wim_kernel.engines.chat.replies import decided, rated
from wim_kernel.engines.chat.reuse import CacheReads
from wim_kernel.engines.packed import Packed
from wim_kernel.text.run_text import Text


class ChatEngine(Shared):
    """Drives a chat model through the integration of its framework.

    Args:
        backend: the chat model.
        provider: the row of `wim_kernel.engines.chat.providers.PROVIDERS`, by name or of your own; by default the one
            that fits the model's class, name and host.
        window: most tokens of a prompt and its reply; by default what the framework knows of the model.
        max_concurrency: most requests at the same time, of all questions together.
        max_calls: most replies to one question, the answer's included; None for no limit. Chunks that share most
            words with the question are asked first. Requests that the provider refuses are not counted.
        first_look: whether shared words decide which chunks are asked at all.
        structured: whether margins are asked for under a JSON schema; by default where that keeps the prompt's prefix.

    Raises:
        ValueError: for an unknown provider, or a limit below 1.
    """

    heads: tuple[Head, ...] = ()
    budget_bytes = 2**30  # of text: nothing else is here
    host_budget_bytes = 0
    margin_batch = 4
    measures_likelihood = False
    writes_as_it_reads = False
    shows_tokens = False
    rates = True
    joins_chunks = False
    reads_on_demand = False
    reads_text = True

    def __init__(
        self,
        backend: ChatBackend,
        *,
        provider: Provider | str | None = None,
        window: int | None = None,
        max_concurrency: int = 8,
        max_calls: int | None = None,
        first_look: bool = True,
        structured: bool | None = None,
    ) -> None:
        if isinstance(provider, str) and provider not in BY_NAME:
            raise ValueError(f"provider is one of {', '.join(BY_NAME)}, or a Provider, not {provider!r}.")
        for name, limit in (("max_concurrency", max_concurrency), ("max_calls", max_calls)):
            if limit is not None and limit < 1:
                raise ValueError(f"{name} is at least 1, not {limit}.")
        self.backend = backend
        self.model_name = backend.name
        known = BY_NAME[provider] if isinstance(provider, str) else provider
        self.provider: Provider = known or provider_of(backend.kind, backend.name, backend.host)
        self.window = window or backend.window
        self.max_branches = 2**31
        self.max_concurrency = max_concurrency
        self.max_calls = max_calls
        self.first_look = first_look
        under_schema = not self.provider.schema_in_prefix if structured is None else structured
        self._reuse = CacheReads(backend.name)
        self._branches = BranchCalls(
            backend, self.provider, self._reuse, structured=under_schema, asks_again=max_calls is None
        )
        self.renew_after_fork()
        forks.register(self)

    def renew_after_fork(self) -> None:
        """Make new slots: their holders are threads of the parent."""
        self._slots = threading.BoundedSemaphore(self.max_concurrency)

    @property
    def decides_by(self) -> str:
        """See `Engine.decides_by`."""
        return "text"

    @property
    def reports_cached(self) -> bool | None:
        """See `Engine.reports_cached`; each branch's own bill says it."""
        return None

    # -- text ---------------------------------------------------------------------------------------------------------

    def head(self, system: str, lead: str) -> list[int]:
        """Ids of the system prompt, its end, and the text before the document."""
        return [*codec.encode(system), codec.SYSTEM_END, *codec.encode(lead)]

    def encode(self, text: Text) -> list[int]:
        """Ids of a text: estimated tokens, see `wim_kernel.engines.chat.codec`."""
        return codec.encode(text.text)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[int]]:
        """Never called, since attention is not seen."""
        raise NotImplementedError

    def suffix(self, branch: Branch) -> list[int]:
        """Ids of a branch's prompt."""
        return list(suffix_ids(branch))

    def check_schema(self, json_schema: str, generation: Any) -> None:
        """Accept every schema: the reply is checked, and asked for again if it does not fit."""

    # -- prefixes -----------------------------------------------------------------------------------------------------

    def open(self) -> ChatPrefix:
        """An empty prefix."""
        return ChatPrefix()

    def prefix_bytes(self, tokens: int, boundaries: int = 0) -> int:
        """The size in bytes of the ids."""
        return 64 * tokens

    def reserve(self, prefix: ChatPrefix, tokens: int) -> None:
        """Do nothing: text needs no room."""

    def fork(self, prefix: ChatPrefix, tokens: int) -> ChatPrefix:
        """A copy of the first ``tokens`` ids of a prefix."""
        return prefix.fork(tokens)

    def identity(self) -> dict[str, str]:
        """See `Engine.identity`."""
        return {"model": self.model_name, "provider": self.provider.name}

    def calibration_key(self) -> str | None:
        """None: there is nothing to calibrate."""
        return None

    def pack(self, prefix: ChatPrefix, tokens: int) -> Packed:
        """Not possible: the provider keeps its cache itself.

        Raises:
            TypeError: always.
        """
        raise TypeError("The prefill is in the provider's cache, which keeps it itself.")

    def unpack(self, packed: Packed, ids: Sequence[int], room: int) -> ChatPrefix:
        """See `pack`."""
        raise TypeError("The prefill is in the provider's cache, which keeps it itself.")

    def extend(self, prefix: ChatPrefix, chunks: Sequence[Sequence[int]], start: int) -> range:
        """See `Engine.extend`. Nothing is sent: the first branch behind a chunk sends it."""
        with prefix.lock:
            before, end = prefix.tokens, start
            for ids in chunks:
                end += len(ids)
                if end > prefix.tokens:
                    prefix.ids += ids[len(ids) - (end - prefix.tokens) :]
                    prefix.ends.append(end)
            return range(before, prefix.tokens)

    def holds(self, prefix: ChatPrefix, tokens: int) -> bool:
        """Whether the provider's cache should hold the first ``tokens`` tokens of a prefix now."""
        return any(end >= tokens for end in self._branches.warm(prefix, prefix.tokens))

    def tokens_read(self, prefix: ChatPrefix) -> int:
        """Never called: a chat model's requests are billed one by one."""
        return prefix.tokens

    def settle(self, prefix: ChatPrefix) -> int:
        """Nothing was counted as run."""
        return 0

    # -- branches -----------------------------------------------------------------------------------------------------

    def decode(
        self, prefix: ChatPrefix, branches: Sequence[Branch], gate: Gate | None = None
    ) -> Iterator[list[Progress]]:
        """Make a request for each branch; see `wim_kernel.engines.base.Engine.decode`.

        A branch that rates or decides does so in the reply that holds its note, so that its gate is asked afterwards.
        Where the provider caches, a request begins once the one that writes its prefix has begun.
        """
        asks = [bool(branch.rates or branch.choices) for branch in branches]
        plain = [index for index, branch in enumerate(branches) if not asks[index]]
        goes_on = {index: branches[index].generation is not None for index in plain}
        if gate is not None and plain:
            for index, allowed in zip(plain, gate(plain, [Scores()] * len(plain)), strict=True):
                goes_on[index] = goes_on[index] and allowed
        yield [
            Progress(
                index, done=Decoded(Scores(), suffix_ids(branches[index]), prompt_tokens=0, output_tokens=0)
            )
            for index in plain
            if not goes_on[index]
        ]
        order = sorted(
            (index for index in range(len(branches)) if asks[index] or goes_on[index]),
            key=lambda index: branches[index].at,
        )
        for item in run_calls(self._calls(prefix, branches, order), self._slots, self.max_concurrency):
            branch = branches[item.index]
            if item.reply is None:
                yield [Progress(item.index, item.text)]
            else:
                yield [Progress(item.index, done=self._decoded(prefix, branch, item, gate))]

    def _calls(
        self, prefix: ChatPrefix, branches: Sequence[Branch], order: Sequence[int]
    ) -> list[Call[Item]]:
        """The calls of branches, shortest prefix first. Behind cold boundaries each waits for the one before it."""
        last = max((branches[index].at for index in order), default=0)
        warm = max(self._branches.warm(prefix, last), default=0)
        calls: list[Call[Item]] = []
        for index in order:
            run = functools.partial(self._branches.call, prefix, index, branches[index])
            waits = self.provider.caches and branches[index].at > warm and bool(calls)
            calls.append(Call(run, calls[-1] if waits else None))
        return calls

    def _decoded(self, prefix: ChatPrefix, branch: Branch, item: Item, gate: Gate | None) -> Decoded:
        reply = item.reply
        assert reply is not None
        scores, text, quotes = Scores(), reply.text, tuple[str, ...]()
        if branch.rates:
            found = rated(reply.data, reply.text, branch.rates)
            if found.is_unreadable:
                warnings.warn(
                    f"{self.model_name} rated a chunk in a way that cannot be read, and it counts as rated 0: "
                    f"{reply.text[:200]!r}",
                    stacklevel=2,
                )
            scores, text, quotes = Scores(rating=found.rating), found.note, found.quotes
        elif branch.choices:
            choices, text = decided(branch.choices, reply.text)
            scores = Scores(choices=choices)
        keeps = True
        if gate is not None and (branch.rates or branch.choices):
            (keeps,) = gate([item.index], [scores])
        return Decoded(
            scores,
            suffix_ids(branch),
            text=text if keeps or branch.rates else "",
            generated=keeps,
            billed=self._usage(branch, reply),
            quotes=quotes,
        )

    # -- cost ---------------------------------------------------------------------------------------------------------

    def _usage(self, branch: Branch, reply: Reply) -> Usage:
        """A request's bill, as tokens of the document and of the prompt. Without one, what was sent, as estimated."""
        prompt = len(suffix_ids(branch))
        if reply.billed is None:
            written = len(codec.encode(reply.text))
            return Usage(branch.at, None, prompt, written, None, calls=reply.calls)
        billed, total = reply.billed, branch.at + prompt
        fresh = billed.input_tokens - (billed.cache_read or 0)
        own = min(fresh, round(prompt * billed.input_tokens / max(1, total)))
        return Usage(
            fresh - own, billed.cache_read, own, billed.output_tokens, billed.cache_write, calls=reply.calls
        )

    @property
    def prices(self) -> tuple[float, float]:
        """See `Engine.prices`."""
        return self.provider.write, self.provider.read

    def foresee(self, prefix: ChatPrefix, branches: Sequence[Branch]) -> Usage:
        """What branches would cost, by the provider's rules and by what its cache should hold now.

        Tokens are the provider's own, once a reply has shown how many it counts for one of ours.
        """
        provider, usage, scale = self.provider, Usage(cache_write_tokens=0), self._reuse.scale
        last = max((branch.at for branch in branches), default=0)
        held = set(self._branches.warm(prefix, last))
        for branch in sorted(branches, key=lambda branch: branch.at):
            read = max((end for end in held if end <= branch.at), default=0) if provider.caches else 0
            fresh, prompt = branch.at - read, len(suffix_ids(branch))
            is_cached = provider.caches and branch.at * scale >= provider.least_tokens
            new = (branch.generation.max_new_tokens or 0) if branch.generation is not None else 0
            usage += Usage(
                round(fresh * scale),
                round(read * scale),
                round(prompt * scale),
                new,
                round(fresh * scale) if is_cached and provider.write > 1 else 0,
                calls=1,
            )
            if is_cached:
                held.add(branch.at)
        return usage
