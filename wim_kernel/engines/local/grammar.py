"""Answers that are JSON of a given schema: at every step only tokens that the schema allows can be chosen.

The grammar is llguidance's. What is added here is an end: a small model may never close a string or a number by itself,
so when the tokens that are left run short, the shortest way to a complete value is taken.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import FloatTensor, LongTensor, Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from wim_kernel.errors import WimError

# What brings a value to its end the soonest, the most wanted first: within a string, and elsewhere.
_IN_STRING = ('"',)
_ELSEWHERE = ("}", "]", "null", ",", "1", "0", "false", '"', "{", "[")
SLACK = 8  # tokens to finish what is under way when the shortest way begins


class SchemaError(WimError, ValueError):
    """A JSON schema that no grammar can be made of."""


class Grammars:
    """Makes grammars over one tokenizer.

    Args:
        tokenizer: of the model.
        vocabulary: how many logits the model has.
        eos: the tokens that end a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, eos: frozenset[int]) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.eos = eos
        self._lengths: dict[str, int] = {}

    def processor(self, schema: str, prompt_tokens: int, room: int) -> JsonGrammar:
        """What lets a branch choose only tokens of JSON that fits ``schema``, complete within ``room`` tokens.

        Raises:
            SchemaError: if there is no such grammar, or nothing that fits it is so short.
        """
        grammar = JsonGrammar(self, self._matcher(schema), prompt_tokens)
        grammar.closing_from = room - self._shortest(schema, room) - SLACK
        return grammar

    def _matcher(self, schema: str) -> Any:
        library = _library()
        grammar = library.LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": False})
        matcher = library.LLMatcher(self.tokens, grammar, log_level=0)
        if matcher.is_error():
            raise SchemaError(f"No grammar can be made of this JSON schema: {matcher.get_error()}")
        return matcher

    def _shortest(self, schema: str, room: int) -> int:
        """How many tokens the shortest way through a schema takes; walked once."""
        if schema not in self._lengths:
            grammar = JsonGrammar(self, self._matcher(schema), 0)
            for taken in range(room + 1):
                allowed = grammar.shortest_way(grammar.allowed(self.vocabulary))
                token = int(allowed.int().argmax())
                if token in self.eos:
                    self._lengths[schema] = taken
                    break
                grammar.take([token])
        if self._lengths.get(schema, room + 1) <= room:
            return self._lengths[schema]
        raise SchemaError(
            f"What this JSON schema asks for takes more than {room} tokens at the least: give more answer_tokens."
        )

    def closing(self, in_string: bool) -> list[int]:
        """Tokens that bring a value to its end, the most wanted first."""
        return self._in_string if in_string else self._elsewhere

    @cached_property
    def _in_string(self) -> list[int]:
        return self._single(_IN_STRING)

    @cached_property
    def _elsewhere(self) -> list[int]:
        return [*self.eos, *self._single(_ELSEWHERE)]

    def _single(self, texts: Sequence[str]) -> list[int]:
        found = (self.tokens.greedy_tokenize(text) for text in texts)
        return [ids[0] for ids in found if len(ids) == 1]

    @cached_property
    def tokens(self) -> Any:
        """Llguidance's view of the tokenizer; takes a second to make."""
        import llguidance.hf

        tokenizer: Any = self.tokenizer
        return llguidance.hf.from_tokenizer(tokenizer, n_vocab=self.vocabulary, eos_token=sorted(self.eos))


class JsonGrammar(LogitsProcessor):
    """Masks what the grammar forbids; from the token ``closing_from`` on, all but the way to the end."""

    def __init__(self, grammars: Grammars, matcher: Any, prompt_tokens: int) -> None:
        self.grammars = grammars
        self.matcher = matcher
        self.prompt_tokens = prompt_tokens
        self.closing_from = 0
        self._taken = 0
        self._in_string = False
        self._escaped = False
        self._warned = False

    def __call__(self, input_ids: LongTensor, scores: FloatTensor) -> FloatTensor:
        """Scores (1, vocabulary) with minus infinity for every token that cannot come next."""
        self.take(input_ids[0, self.prompt_tokens + self._taken :].tolist())
        allowed = self.allowed(scores.shape[-1])
        if self._taken >= self.closing_from and not any(allowed[token] for token in self.grammars.eos):
            self._warn()
            allowed = self.shortest_way(allowed)
        masked: FloatTensor = scores.masked_fill(~allowed.to(scores.device), -torch.inf)  # type: ignore[assignment]
        return masked

    def take(self, tokens: list[int]) -> None:
        """Take in the tokens that were chosen."""
        if tokens and not self.matcher.consume_tokens(tokens):
            raise SchemaError(
                f"A token was chosen that the schema does not allow: {self.matcher.get_error()}"
            )
        self._taken += len(tokens)
        for byte in self.grammars.tokens.decode_bytes(tokens):
            if self._escaped:
                self._escaped = False
            elif self._in_string and byte == ord("\\"):
                self._escaped = True
            elif byte == ord('"'):
                self._in_string = not self._in_string

    def allowed(self, vocabulary: int) -> Tensor:
        """Which tokens can come next, (vocabulary,)."""
        bits = np.unpackbits(np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        allowed = torch.zeros(vocabulary, dtype=torch.bool)
        count = min(len(bits), vocabulary)
        allowed[:count] = torch.from_numpy(bits[:count].astype(bool))
        return allowed

    def shortest_way(self, allowed: Tensor) -> Tensor:
        """Of the allowed tokens the one that leads to the end the soonest, or all if none does more than others."""
        for token in self.grammars.closing(self._in_string):
            if allowed[token]:
                only = torch.zeros_like(allowed)
                only[token] = True
                return only
        return allowed

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                "The answer ran short of tokens: what its schema still asks for is filled with the shortest values. "
                "Give it more answer_tokens.",
                stacklevel=2,
            )


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise ImportError(
            "Answers that fit a schema need llguidance: pip install 'wim-integrations[structured]'."
        ) from error
    return llguidance
