"""Branches as requests: one that decides, where a decision is asked, and one that writes."""

from __future__ import annotations

import statistics
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import GenerationConfig

from wim_kernel.engines.base import Branch, Decoded, Progress, Scores
from wim_kernel.engines.server.codecs import Tokens
from wim_kernel.engines.server.deltas import Piece, Said, name_of
from wim_kernel.engines.server.prefixes import ServerPrefix
from wim_kernel.engines.server.replies import chances, schema_fields, without_decision
from wim_kernel.engines.server.requests import Requests, Wanted
from wim_kernel.engines.server.reuse import Cost, Reuse
from wim_kernel.engines.server.sampling import STANDARD, ends_of, sampling_fields
from wim_kernel.engines.server.transport import Put


@dataclass(eq=False)
class Running:
    """A branch on its way.

    Attributes:
        place: which of those decoded together it is.
        branch: what was asked.
        suffix: the tokens of its prompt.
        scores: what its prompt told.
        cost: of its requests so far.
    """

    place: int
    branch: Branch
    suffix: tuple[int, ...]
    scores: Scores = field(default_factory=Scores)
    cost: Cost = field(default_factory=Cost)

    def done(self, text: str = "", token_ids: Sequence[int] = (), *, generated: bool = False) -> Progress:
        """Its end."""
        return Progress(
            self.place,
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


class Branches:
    """Runs branches of prefixes.

    Args:
        requests: how servers are asked.
        reuse: takes in what they say of their caches.
    """

    def __init__(self, requests: Requests, reuse: Reuse) -> None:
        self.requests = requests
        self.reuse = reuse
        self.family = requests.family
        self.words = requests.words
        self._decided_by: set[str] = set()

    @property
    def decides_by(self) -> str:
        """What decisions were taken from, or will be if there were none: a server may not do as its family does."""
        expected = "first token" if self.family.logprobs > 0 else "text"
        return " or the ".join(sorted(self._decided_by or {expected}))

    def check(self, generation: GenerationConfig) -> None:
        """See that it can be asked for; raises ValueError if not."""
        sampling_fields(self.family, generation, self._end)

    async def decide(self, prefix: ServerPrefix, running: Running, put: Put[Running]) -> None:
        """Find out the probability of each choice as the reply's beginning."""
        branch, top, text = running.branch, dict[str, float](), ""
        if self.decides_by != "text":
            top, text = await self._begin(prefix, running, self._decision(branch))
        if not top:
            top, text = await self._begin(prefix, running, BEGINNING)
        self._decided_by.add("first token" if top else "text")
        first = self._first_tokens(branch)
        names = None if first is None else [self._names(token) for token in first]
        running.scores = replace(running.scores, choices=chances(branch.choices, top, text, names))
        put(running)

    async def score(self, prefix: ServerPrefix, running: Running, put: Put[Running]) -> None:
        """Find out how likely the scored run of the prompt is."""
        assert isinstance(self.words, Tokens)
        likelihood, run = 0.0, self.words.scored(running.branch)
        if run:
            prompt, wanted = running.suffix[: run.stop], Wanted({}, scored=len(run))
            async for attempt in self.requests.attempts():
                with attempt:
                    asked = self.requests.ask(prefix, running.branch.at, prompt, wanted)
                    async with aclosing(asked) as pieces:
                        found = [piece async for piece in pieces]
            likelihood = statistics.fmean(found[0].likelihoods)
            running.cost += self._cost(prefix, running, found[0].usage)
        running.scores = replace(running.scores, likelihood=likelihood)
        put(running)

    async def _begin(
        self, prefix: ServerPrefix, running: Running, wanted: Wanted
    ) -> tuple[dict[str, float], str]:
        """How a reply begins: its likeliest first tokens, where they are told, and its text."""
        async for attempt in self.requests.attempts():
            with attempt:
                top, text, said = dict[str, float](), "", None
                async with aclosing(self._ask(prefix, running, wanted)) as pieces:
                    async for piece in pieces:
                        top, text, said = top or piece.top, text + piece.text, piece.usage or said
        running.cost += self._cost(prefix, running, said)
        return top, text

    def _ask(self, prefix: ServerPrefix, running: Running, wanted: Wanted) -> AsyncGenerator[Piece, None]:
        return self.requests.ask(prefix, running.branch.at, running.suffix, wanted)

    async def write(self, prefix: ServerPrefix, running: Running, put: Put[Progress]) -> None:
        """Generate, and tell what is new as it comes. Where the stream breaks off it is begun again, and told once."""
        branch, told = running.branch, ""
        decided = self._decided(branch)
        running.suffix = (*running.suffix, *decided)
        wanted = self._wanted(branch)
        async for attempt in self.requests.attempts():
            with attempt:
                text, token_ids, said, finish = "", list[int](), None, None
                async with aclosing(self._ask(prefix, running, wanted)) as pieces:
                    async for piece in pieces:
                        text, said, finish = text + piece.text, piece.usage or said, piece.finish or finish
                        token_ids += piece.token_ids
                        shown = without_decision(text, branch, decided=bool(decided))
                        if len(shown) > len(told):
                            if not shown.startswith(told):
                                raise self.requests.error(prefix, _ANOTHER_WAY)
                            put(Progress(running.place, shown[len(told) :]))
                            told = shown
        whole = without_decision(text, branch, decided=bool(decided), whole=True)
        if not whole.startswith(told):
            raise self.requests.error(prefix, _ANOTHER_WAY)
        if branch.json_schema is not None and finish == "length":
            raise self.requests.error(prefix, "the JSON did not end within max_new_tokens")
        if whole != told:
            put(Progress(running.place, whole[len(told) :]))
        running.cost += self._cost(prefix, running, said)
        put(running.done(whole, self._without_end(token_ids), generated=True))

    def _wanted(self, branch: Branch) -> Wanted:
        assert branch.generation is not None
        fields = sampling_fields(self.family, branch.generation, self._end)
        extra = {key: fields.pop(key) for key in list(fields) if key not in STANDARD}
        if branch.json_schema is not None:
            extra |= schema_fields(self.family, branch.json_schema)
        if self.family.name in ("vllm", "sglang") and self.words.exact:
            extra["return_token_ids"] = True
        return Wanted(fields, extra, ends_of(branch.generation))

    def _cost(self, prefix: ServerPrefix, running: Running, said: Said | None) -> Cost:
        """What a request cost, as the server says; without its word, what was sent."""
        at, exact, moved = running.branch.at, self.words.exact, prefix.take_read_again()
        found = self.reuse.heard(said, prefix.shared(at, exact))
        if said is None:
            return Cost(len(running.suffix), recomputed=moved)
        before = at if exact else prefix.counted.get(at)
        prompt = len(running.suffix) if before is None else max(0, said.prompt - before)
        return Cost(prompt, said.output, moved + (0 if found is None else max(0, at - found)))

    @property
    def _end(self) -> int | None:
        """The token that ends a text, where that is known."""
        if not isinstance(self.words, Tokens):
            return None
        end: int | None = self.words.codec.tokenizer.eos_token_id
        return end

    def _decision(self, branch: Branch) -> Wanted:
        """A reply's first token, and the probabilities that a decision can be taken from."""
        most, fields = self.family.logprobs, {"max_tokens": 1, "temperature": 0.0}
        if self.requests.route == "chat":
            return Wanted({**fields, "logprobs": True, "top_logprobs": min(most, 20)})
        first = self._first_tokens(branch)
        if self.family.likelihoods and self.requests.route == "tokens":
            return Wanted({}, coming=first or ())
        asked: dict[str, Any] = {}
        if self.family.name == "vllm" and first is not None:
            asked = {"logprob_token_ids": first, "return_tokens_as_token_ids": True}
        return Wanted({**fields, "logprobs": most}, asked)

    def _first_tokens(self, branch: Branch) -> list[int] | None:
        """Each choice's first token, where it is known."""
        if not isinstance(self.words, Tokens):
            return None
        return [ids[0] for ids in self.words.codec.choices(branch.choices)]

    def _names(self, token: int) -> tuple[str, ...]:
        """What servers call a token: by its text, and vLLM by its number, since several may have the same text."""
        assert isinstance(self.words, Tokens)
        return (self.words.codec.backend.decode([token], skip_special_tokens=False), name_of(token))

    def _decided(self, branch: Branch) -> list[int]:
        """The choice that is taken as decided, where it can be put into the model's mouth."""
        if not branch.choices or self.requests.route == "chat" or not isinstance(self.words, Tokens):
            return []
        return self.words.codec.choices(branch.choices)[0]

    def _without_end(self, ids: list[int]) -> list[int]:
        return ids[:-1] if ids and ids[-1] == self._end else ids


BEGINNING = Wanted({"max_tokens": 4, "temperature": 0.0})
"""So much of a reply that a decision can be taken from its text."""
_ANOTHER_WAY = "an answer broke off, and went another way when it was begun again"
