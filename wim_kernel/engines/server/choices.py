"""Choices as the tokens that begin a reply, and the requests that tell their probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wim_kernel.engines.base import Branch
from wim_kernel.engines.server.codecs import PromptCodec, TokenizerCodec
from wim_kernel.engines.server.deltas import name_of
from wim_kernel.engines.server.families import Family, Route
from wim_kernel.engines.server.replies import choice_probabilities
from wim_kernel.engines.server.requests import CompletionSpec


class Choices:
    """Tokens of choices.

    Args:
        family: the family of the servers.
        codec: converts text to ids.
        route: form in which prompts are sent.
    """

    def __init__(self, family: Family, codec: PromptCodec, route: Route) -> None:
        self.family = family
        self.codec = codec
        self.route = route

    @property
    def end(self) -> int | None:
        """The EOS token; None without a tokenizer."""
        if not isinstance(self.codec, TokenizerCodec):
            return None
        end: int | None = self.codec.chat_codec.tokenizer.eos_token_id
        return end

    def request(self, branch: Branch) -> CompletionSpec:
        """The request for a reply's first token with its log-probabilities, from which choices are decided."""
        most, fields = self.family.logprobs, {"max_tokens": 1, "temperature": 0.0}
        if self.route == "chat":
            return CompletionSpec({**fields, "logprobs": True, "top_logprobs": min(most, 20)})
        first = self.first_tokens(branch)
        if self.family.tells_candidates and self.route == "tokens":
            return CompletionSpec({}, candidates=first or ())
        extra: dict[str, Any] = {}
        if self.family.name == "vllm" and first is not None:
            extra = {"logprob_token_ids": first, "return_tokens_as_token_ids": True}
        return CompletionSpec({**fields, "logprobs": most}, extra)

    def probabilities(self, branch: Branch, top: dict[str, float], text: str) -> tuple[float, ...]:
        """The probability of each choice, by a reply's first log-probabilities or, without any, by its text."""
        first = self.first_tokens(branch)
        names = None if first is None else [self._names(token) for token in first]
        return choice_probabilities(branch.choices, top, text, names)

    def first_tokens(self, branch: Branch) -> list[int] | None:
        """The first token of each choice; None without a tokenizer."""
        if not isinstance(self.codec, TokenizerCodec):
            return None
        return [ids[0] for ids in self.codec.chat_codec.choices(branch.choices)]

    def decided(self, branch: Branch) -> list[int]:
        """Tokens of the choice with which the reply begins, if they can be put into the prompt; else empty."""
        if not branch.choices or self.route == "chat" or not isinstance(self.codec, TokenizerCodec):
            return []
        return self.codec.chat_codec.choices(branch.choices)[0]

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        assert isinstance(self.codec, TokenizerCodec)
        text: str = self.codec.chat_codec.backend.decode(list(ids), skip_special_tokens=False)
        return text

    def without_end(self, ids: list[int]) -> list[int]:
        """Token ids without the EOS token at their end."""
        return ids[:-1] if ids and ids[-1] == self.end else ids

    def _names(self, token: int) -> tuple[str, ...]:
        """A token's names in server replies: its text or, with vLLM, its id, since tokens may share a text."""
        return (self.text([token]), name_of(token))
