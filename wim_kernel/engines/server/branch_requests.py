"""Runs a branch as requests: one that scores or decides, if the branch asks for it, and one that generates."""

from __future__ import annotations

import statistics
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from wim_kernel.engines.base import Branch, Progress
from wim_kernel.engines.generation import Generation
from wim_kernel.engines.server.branch_state import BranchState
from wim_kernel.engines.server.choices import Choices
from wim_kernel.engines.server.codecs import TokenizerCodec
from wim_kernel.engines.server.deciding import BranchGate, Reply
from wim_kernel.engines.server.deltas import StreamDelta, UsageReport
from wim_kernel.engines.server.loop import Emit
from wim_kernel.engines.server.prefixes import Claim, ServerPrefix
from wim_kernel.engines.server.replies import schema_fields, without_decision
from wim_kernel.engines.server.requests import READ, CompletionSpec, Requests
from wim_kernel.engines.server.reuse import CacheHits, Cost
from wim_kernel.engines.server.sampling import STANDARD, ends_of, sampling_fields


class BranchRequests:
    """Runs branches.

    Args:
        requests: sends requests to servers.
        reuse: counts the cache hits that servers report.
    """

    def __init__(self, requests: Requests, reuse: CacheHits) -> None:
        self.requests = requests
        self.reuse = reuse
        self.family = requests.family
        self.codec = requests.codec
        self.choices = Choices(requests.family, requests.codec, requests.route)
        self._decided_by: set[str] = set()

    @property
    def decides_by(self) -> str:
        """See `Engine.decides_by`: as the requests so far went or, before the first, as the family suggests."""
        expected = "first token" if self.family.logprobs > 0 else "text"
        return " or the ".join(sorted(self._decided_by or {expected}))

    def check(self, generation: Generation) -> None:
        """Check that the settings can be sent to the server.

        Raises:
            ValueError: if a setting cannot.
        """
        sampling_fields(self.family, generation, self.choices.end)

    async def decide(self, prefix: ServerPrefix, state: BranchState, emit: Emit[BranchState]) -> None:
        """Measure the probability of each choice as the beginning of the reply."""
        reply = Reply()
        if self.decides_by != "text":
            reply = await self._reply_start(prefix, state, self.choices.request(state.branch))
        if not reply.top:
            reply = await self._reply_start(prefix, state, REPLY_START)
        self._decide_by(state, reply)
        emit(state)

    def _decide_by(self, state: BranchState, reply: Reply) -> None:
        """Set the probabilities of a branch's choices."""
        self._decided_by.add("first token" if reply.top else "text")
        chances = self.choices.probabilities(state.branch, reply.top, reply.text)
        state.scores = replace(state.scores, choices=chances)

    async def score(self, prefix: ServerPrefix, state: BranchState, emit: Emit[BranchState]) -> None:
        """Measure the likelihood of the scored run of the prompt."""
        assert isinstance(self.codec, TokenizerCodec)
        likelihood, run = 0.0, self.codec.scored(state.branch)
        if run:
            claim = Claim()
            async for attempt in self.requests.attempts():
                with attempt:
                    measured = await self.requests.measure(
                        prefix, state.branch.at, state.suffix[: run.stop], len(run), claim
                    )
            likelihood = statistics.fmean(measured.likelihoods)
            state.cost += self._cost(prefix, state, measured.usage, claim)
        state.scores = replace(state.scores, likelihood=likelihood)
        emit(state)

    async def _reply_start(self, prefix: ServerPrefix, state: BranchState, spec: CompletionSpec) -> Reply:
        """The beginning of a reply, with log-probabilities of its first token if the server reports them."""
        claim = Claim()
        async for attempt in self.requests.attempts():
            with attempt:
                reply = Reply()
                async with aclosing(self._complete(prefix, state, spec, claim)) as deltas:
                    async for delta in deltas:
                        reply.add(delta)
        state.cost += self._cost(prefix, state, reply.usage, claim)
        return reply

    def _complete(
        self, prefix: ServerPrefix, state: BranchState, spec: CompletionSpec, claim: Claim
    ) -> AsyncGenerator[StreamDelta, None]:
        return self.requests.complete(prefix, state.branch.at, state.suffix, spec, claim)

    async def write(
        self,
        prefix: ServerPrefix,
        state: BranchState,
        emit: Emit[Progress],
        gate: BranchGate | None = None,
    ) -> None:
        """Generate, and emit new text as it comes.

        If the stream breaks off, the request is sent again, and only what goes beyond the text so far is emitted.

        Args:
            prefix: the prefix.
            state: the branch.
            emit: takes progress.
            gate: is asked about the branch if the reply's own first words decide about it; see `deciding`. If the
                branch is to go on although its reply begins otherwise, it is generated once more behind the decided
                choice. None if the branch goes on already.
        """
        decides = gate is not None
        branch, sent, claim, decided = state.branch, "", Claim(), self.choices.decided(state.branch)
        if not decides:
            state.suffix = (*state.suffix, *decided)
        spec = self._completion_spec(branch, decided if decides else None)
        goes_on: bool | None = None if decides else True
        async for attempt in self.requests.attempts():
            with attempt:
                reply, begins = Reply(), "not yet" if decides and decided else "yes"
                async with aclosing(self._complete(prefix, state, spec, claim)) as deltas:
                    async for delta in deltas:
                        reply.add(delta)
                        if gate is not None and goes_on is None and reply.has_decided:
                            self._decide_by(state, reply)
                            goes_on = await gate.lets(state)
                        if goes_on and begins == "not yet":
                            begins = reply.begins_with(decided, branch.choices[0])
                        if goes_on is False or (goes_on and begins == "no"):
                            break
                        if goes_on and begins == "yes":
                            sent = self._show(prefix, state, reply, sent, emit, decides=decides)
        state.cost += self._cost(prefix, state, reply.usage, claim, len(reply.ends))
        if not goes_on:
            emit(state.done())
            return
        if begins != "yes":
            if sent:
                raise self.requests.error(prefix, _DIFFERENT_RETRY)
            await self.write(prefix, state, emit)
            return
        if branch.json_schema is not None and reply.finish == "length":
            raise self.requests.error(prefix, "the JSON did not end within max_new_tokens")
        whole = self._show(prefix, state, reply, sent, emit, decides=decides, whole=True)
        if decides:
            state.suffix = (*state.suffix, *decided)
        own = reply.token_ids[len(decided) :] if decides else reply.token_ids
        emit(state.done(whole, self.choices.without_end(own), generated=True))

    def _show(
        self,
        prefix: ServerPrefix,
        state: BranchState,
        reply: Reply,
        sent: str,
        emit: Emit[Progress],
        *,
        decides: bool,
        whole: bool = False,
    ) -> str:
        """Emit the text that goes beyond what was sent; returns all text sent so far."""
        decided = self.choices.decided(state.branch)
        if decides and decided:
            shown = reply.text[len(self.choices.text(decided)) :]
        else:
            shown = without_decision(reply.text, state.branch, decided=bool(decided), whole=whole)
        if len(shown) > len(sent) or whole:
            if not shown.startswith(sent):
                raise self.requests.error(prefix, _DIFFERENT_RETRY)
            if shown != sent:
                emit(Progress(state.index, shown[len(sent) :]))
            return shown
        return sent

    def _completion_spec(self, branch: Branch, deciding: Sequence[int] | None = None) -> CompletionSpec:
        """The request for a branch's text.

        Args:
            branch: the branch.
            deciding: token ids of the choice that the reply begins with by itself, for which there has to be room; None
                if it need not decide.
        """
        assert branch.generation is not None
        fields = sampling_fields(self.family, branch.generation, self.choices.end)
        extra = {key: fields.pop(key) for key in list(fields) if key not in STANDARD}
        if branch.json_schema is not None:
            extra |= schema_fields(self.family, branch.json_schema)
        if self.family.name in ("vllm", "sglang") and self.codec.exact:
            extra["return_token_ids"] = True
        if deciding is not None:
            fields["max_tokens"] += len(deciding)
            if "min_tokens" in extra:
                extra["min_tokens"] += len(deciding)
            if self.decides_by != "text":
                decision = self.choices.request(branch)
                fields, extra = {**decision.fields, **fields}, {**extra, **decision.extra}
        return CompletionSpec(fields, extra, ends_of(branch.generation))

    def _cost(
        self,
        prefix: ServerPrefix,
        state: BranchState,
        usage: UsageReport | None,
        claim: Claim,
        written: int = 0,
    ) -> Cost:
        """The cost of a request by the server's report; without one, by what was sent and ``written``, in tokens."""
        at = state.branch.at
        if claim.apart and usage is not None:
            apart = self.reuse.record(usage, 0) or 0
            return Cost(max(0, usage.prompt_tokens - apart), usage.output_tokens)
        found = self._found(prefix, at, len(state.suffix), usage, claim)
        recomputed = claim.recomputed(at, found)
        if usage is None:
            return Cost(len(state.suffix), written, recomputed, claim.charged)
        before = max(at, found or 0) if self.codec.exact else prefix.server_counts.get(at, at)
        return Cost(max(0, usage.prompt_tokens - before), usage.output_tokens, recomputed, claim.charged)

    def _found(
        self, prefix: ServerPrefix, at: int, more: int, usage: UsageReport | None, claim: Claim
    ) -> int | None:
        """Count a request's cache hits; returns how many tokens of its prompt were in the cache, if that is known."""
        expected = claim.expected
        if not self.codec.exact:
            if usage is not None and at + more:  # as near as can be known
                prefix.server_counts[at] = usage.prompt_tokens * at // (at + more)
            expected = prefix.server_counts.get(expected, 0)
        return self.reuse.record(usage, expected)

    async def read(self, prefix: ServerPrefix) -> int:
        """Make the server prefill the whole prefix; returns how many tokens it ran. See `Engine.settle`."""
        at, usage, claim = prefix.tokens, None, Claim()
        async for attempt in self.requests.attempts():
            with attempt:
                async with aclosing(self.requests.complete(prefix, at, (), READ, claim)) as deltas:
                    async for delta in deltas:
                        usage = delta.usage or usage
        return claim.charged + claim.recomputed(at, self._found(prefix, at, 0, usage, claim))


REPLY_START = CompletionSpec({"max_tokens": 4, "temperature": 0.0})
"""A request for the first words of a reply, from which choices are decided without log-probabilities."""
_DIFFERENT_RETRY = "an answer broke off, and a second request gave another text"
