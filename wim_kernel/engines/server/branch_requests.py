"""Runs a branch as requests: one that scores or decides, if the branch asks for it, and one that generates."""

from __future__ import annotations

import statistics
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import GenerationConfig

from wim_kernel.engines.base import Branch, Decoded, Progress, Scores
from wim_kernel.engines.server.codecs import TokenizerCodec
from wim_kernel.engines.server.deltas import StreamDelta, UsageReport, name_of
from wim_kernel.engines.server.prefixes import Claim, ServerPrefix
from wim_kernel.engines.server.replies import choice_probabilities, schema_fields, without_decision
from wim_kernel.engines.server.requests import READ, CompletionSpec, Requests
from wim_kernel.engines.server.reuse import Cost, Reuse
from wim_kernel.engines.server.sampling import STANDARD, ends_of, sampling_fields
from wim_kernel.engines.server.transport import Emit


@dataclass(eq=False)
class BranchState:
    """The state of a branch in flight.

    Attributes:
        index: index of the branch among those decoded together.
        branch: the branch.
        suffix: ids of its prompt.
        scores: measurements so far.
        cost: cost of its requests so far.
    """

    index: int
    branch: Branch
    suffix: tuple[int, ...]
    scores: Scores = field(default_factory=Scores)
    cost: Cost = field(default_factory=Cost)

    def done(self, text: str = "", token_ids: Sequence[int] = (), *, generated: bool = False) -> Progress:
        """The progress with which the branch ends."""
        return Progress(
            self.index,
            done=Decoded(
                self.scores,
                self.suffix,
                tuple(token_ids),
                text,
                generated=generated,
                prompt_tokens=self.cost.prompt,
                output_tokens=self.cost.output,
                recomputed=self.cost.recomputed,
            ),
        )


class BranchRequests:
    """Runs branches.

    Args:
        requests: sends requests to servers.
        reuse: counts the cache hits that servers report.
    """

    def __init__(self, requests: Requests, reuse: Reuse) -> None:
        self.requests = requests
        self.reuse = reuse
        self.family = requests.family
        self.codec = requests.codec
        self._decided_by: set[str] = set()

    @property
    def decides_by(self) -> str:
        """See `Engine.decides_by`: as the requests so far went or, before the first, as the family suggests."""
        expected = "first token" if self.family.logprobs > 0 else "text"
        return " or the ".join(sorted(self._decided_by or {expected}))

    def check(self, generation: GenerationConfig) -> None:
        """Check that the settings can be sent to the server.

        Raises:
            ValueError: if a setting cannot.
        """
        sampling_fields(self.family, generation, self._end)

    async def decide(self, prefix: ServerPrefix, state: BranchState, emit: Emit[BranchState]) -> None:
        """Measure the probability of each choice as the beginning of the reply."""
        branch, top, text = state.branch, dict[str, float](), ""
        if self.decides_by != "text":
            top, text = await self._reply_start(prefix, state, self._decision(branch))
        if not top:
            top, text = await self._reply_start(prefix, state, REPLY_START)
        self._decided_by.add("first token" if top else "text")
        first = self._first_tokens(branch)
        names = None if first is None else [self._names(token) for token in first]
        state.scores = replace(state.scores, choices=choice_probabilities(branch.choices, top, text, names))
        emit(state)

    async def score(self, prefix: ServerPrefix, state: BranchState, emit: Emit[BranchState]) -> None:
        """Measure the likelihood of the scored run of the prompt."""
        assert isinstance(self.codec, TokenizerCodec)
        likelihood, run = 0.0, self.codec.scored(state.branch)
        if run:
            prompt, spec, claim = state.suffix[: run.stop], CompletionSpec({}, scored=len(run)), Claim()
            async for attempt in self.requests.attempts():
                with attempt:
                    completion = self.requests.complete(prefix, state.branch.at, prompt, spec, claim)
                    async with aclosing(completion) as deltas:
                        (measured,) = [delta async for delta in deltas]
            likelihood = statistics.fmean(measured.likelihoods)
            state.cost += self._cost(prefix, state, measured.usage, claim)
        state.scores = replace(state.scores, likelihood=likelihood)
        emit(state)

    async def _reply_start(
        self, prefix: ServerPrefix, state: BranchState, spec: CompletionSpec
    ) -> tuple[dict[str, float], str]:
        """The beginning of a reply: log-probabilities of first tokens, empty if not reported, and the text."""
        claim = Claim()
        async for attempt in self.requests.attempts():
            with attempt:
                top, text, usage = dict[str, float](), "", None
                async with aclosing(self._complete(prefix, state, spec, claim)) as deltas:
                    async for delta in deltas:
                        top, text, usage = top or delta.top, text + delta.text, delta.usage or usage
        state.cost += self._cost(prefix, state, usage, claim)
        return top, text

    def _complete(
        self, prefix: ServerPrefix, state: BranchState, spec: CompletionSpec, claim: Claim
    ) -> AsyncGenerator[StreamDelta, None]:
        return self.requests.complete(prefix, state.branch.at, state.suffix, spec, claim)

    async def write(self, prefix: ServerPrefix, state: BranchState, emit: Emit[Progress]) -> None:
        """Generate, and emit new text as it comes.

        If the stream breaks off, the request is sent again, and only what goes beyond the text so far is emitted.
        """
        branch, sent = state.branch, ""
        decided = self._decided(branch)
        state.suffix = (*state.suffix, *decided)
        spec, claim = self._completion_spec(branch), Claim()
        async for attempt in self.requests.attempts():
            with attempt:
                text, token_ids, usage, finish = "", list[int](), None, None
                async with aclosing(self._complete(prefix, state, spec, claim)) as deltas:
                    async for delta in deltas:
                        text, usage, finish = text + delta.text, delta.usage or usage, delta.finish or finish
                        token_ids += delta.token_ids
                        shown = without_decision(text, branch, decided=bool(decided))
                        if len(shown) > len(sent):
                            if not shown.startswith(sent):
                                raise self.requests.error(prefix, _DIFFERENT_RETRY)
                            emit(Progress(state.index, shown[len(sent) :]))
                            sent = shown
        whole = without_decision(text, branch, decided=bool(decided), whole=True)
        if not whole.startswith(sent):
            raise self.requests.error(prefix, _DIFFERENT_RETRY)
        if branch.json_schema is not None and finish == "length":
            raise self.requests.error(prefix, "the JSON did not end within max_new_tokens")
        if whole != sent:
            emit(Progress(state.index, whole[len(sent) :]))
        state.cost += self._cost(prefix, state, usage, claim)
        emit(state.done(whole, self._without_end(token_ids), generated=True))

    def _completion_spec(self, branch: Branch) -> CompletionSpec:
        assert branch.generation is not None
        fields = sampling_fields(self.family, branch.generation, self._end)
        extra = {key: fields.pop(key) for key in list(fields) if key not in STANDARD}
        if branch.json_schema is not None:
            extra |= schema_fields(self.family, branch.json_schema)
        if self.family.name in ("vllm", "sglang") and self.codec.exact:
            extra["return_token_ids"] = True
        return CompletionSpec(fields, extra, ends_of(branch.generation))

    def _cost(
        self, prefix: ServerPrefix, state: BranchState, usage: UsageReport | None, claim: Claim
    ) -> Cost:
        """The cost of a request by the server's report; without a report, by what was sent."""
        at = state.branch.at
        recomputed = self._recomputed(prefix, at, len(state.suffix), usage, claim)
        if usage is None:
            return Cost(len(state.suffix), recomputed=recomputed)
        before = at if self.codec.exact else prefix.server_counts.get(at, at)
        return Cost(max(0, usage.prompt_tokens - before), usage.output_tokens, recomputed)

    def _recomputed(
        self, prefix: ServerPrefix, at: int, more: int, usage: UsageReport | None, claim: Claim
    ) -> int:
        """Count a request's cache hits; returns how many prefix tokens the server prefilled beyond those counted."""
        expected = claim.expected
        if not self.codec.exact:
            if usage is not None and at + more:  # as near as can be known
                prefix.server_counts[at] = usage.prompt_tokens * at // (at + more)
            expected = prefix.server_counts.get(expected, 0)
        return claim.recomputed(at, self.reuse.record(usage, expected))

    async def read(self, prefix: ServerPrefix) -> int:
        """Make the server prefill the whole prefix; see `Engine.settle`."""
        at, usage, claim = prefix.tokens, None, Claim()
        async for attempt in self.requests.attempts():
            with attempt:
                async with aclosing(self.requests.complete(prefix, at, (), READ, claim)) as deltas:
                    async for delta in deltas:
                        usage = delta.usage or usage
        return self._recomputed(prefix, at, 0, usage, claim)

    @property
    def _end(self) -> int | None:
        """The EOS token; None without a tokenizer."""
        if not isinstance(self.codec, TokenizerCodec):
            return None
        end: int | None = self.codec.chat_codec.tokenizer.eos_token_id
        return end

    def _decision(self, branch: Branch) -> CompletionSpec:
        """The request for a reply's first token with its log-probabilities, from which choices are decided."""
        most, fields = self.family.logprobs, {"max_tokens": 1, "temperature": 0.0}
        if self.requests.route == "chat":
            return CompletionSpec({**fields, "logprobs": True, "top_logprobs": min(most, 20)})
        first = self._first_tokens(branch)
        if self.family.likelihoods and self.requests.route == "tokens":
            return CompletionSpec({}, candidates=first or ())
        extra: dict[str, Any] = {}
        if self.family.name == "vllm" and first is not None:
            extra = {"logprob_token_ids": first, "return_tokens_as_token_ids": True}
        return CompletionSpec({**fields, "logprobs": most}, extra)

    def _first_tokens(self, branch: Branch) -> list[int] | None:
        """The first token of each choice; None without a tokenizer."""
        if not isinstance(self.codec, TokenizerCodec):
            return None
        return [ids[0] for ids in self.codec.chat_codec.choices(branch.choices)]

    def _names(self, token: int) -> tuple[str, ...]:
        """A token's names in server replies: its text or, with vLLM, its id, since tokens may share a text."""
        assert isinstance(self.codec, TokenizerCodec)
        return (self.codec.chat_codec.backend.decode([token], skip_special_tokens=False), name_of(token))

    def _decided(self, branch: Branch) -> list[int]:
        """Tokens of the choice with which the reply begins, if they can be put into the prompt; else empty."""
        if not branch.choices or self.requests.route == "chat" or not isinstance(self.codec, TokenizerCodec):
            return []
        return self.codec.chat_codec.choices(branch.choices)[0]

    def _without_end(self, ids: list[int]) -> list[int]:
        return ids[:-1] if ids and ids[-1] == self._end else ids


REPLY_START = CompletionSpec({"max_tokens": 4, "temperature": 0.0})
"""A request for the first words of a reply, from which choices are decided without log-probabilities."""
_DIFFERENT_RETRY = "an answer broke off, and a second request gave another text"
