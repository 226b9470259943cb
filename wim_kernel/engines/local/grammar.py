"""Answers that are JSON of a given schema: at every step only tokens that the schema allows can be chosen.

The grammar is llguidance's. What is added here is an end: a small model may never close a string or a number by itself,
so when the tokens that are left run short, the shortest way to a complete value is taken.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import FloatTensor, LongTensor, Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from wim_kernel.errors import WimError

# What ends values, in the order of preference, and then what is a shortest value.
_CLOSING = ('"', "}", "]", '"}', ",", "null", "0", "false", "{", "[")


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

    def processor(self, schema: str, prompt_tokens: int, room: int) -> JsonGrammar:
        """What lets a branch choose only tokens of JSON that fits ``schema``, complete within ``room`` tokens.

        Raises:
            SchemaError: if there is no such grammar.
        """
        library = _library()
        grammar = library.LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": False})
        matcher = library.LLMatcher(self._tokens, grammar, log_level=0)
        if matcher.is_error():
            raise SchemaError(f"No grammar can be made of this JSON schema: {matcher.get_error()}")
        least = len(self.tokenizer.encode(json.dumps(json.loads(schema)), add_special_tokens=False))
        return JsonGrammar(self, matcher, prompt_tokens, room - min(least, 3 * room // 4))

    @cached_property
    def closing(self) -> list[int]:
        """Tokens that bring a value to its end, the most wanted first."""
        encoded = (self.tokenizer.encode(text, add_special_tokens=False) for text in _CLOSING)
        return [*self.eos, *(ids[0] for ids in encoded if len(ids) == 1)]

    @cached_property
    def _tokens(self) -> Any:
        import llguidance.hf

        tokenizer: Any = self.tokenizer
        return llguidance.hf.from_tokenizer(tokenizer, n_vocab=self.vocabulary, eos_token=sorted(self.eos))


class JsonGrammar(LogitsProcessor):
    """Masks what the grammar forbids; from the token ``closing_from`` on, all but the way to the end."""

    def __init__(self, grammars: Grammars, matcher: Any, prompt_tokens: int, closing_from: int) -> None:
        self.grammars = grammars
        self.matcher = matcher
        self.prompt_tokens = prompt_tokens
        self.closing_from = closing_from
        self._taken = 0

    def __call__(self, input_ids: LongTensor, scores: FloatTensor) -> FloatTensor:
        """Scores (1, vocabulary) with minus infinity for every token that cannot come next."""
        new = input_ids[0, self.prompt_tokens + self._taken :].tolist()
        self.matcher.consume_tokens(new)
        self._taken += len(new)
        allowed = self._allowed(scores)
        if self._taken >= self.closing_from:
            allowed = self._closing(allowed)
        masked: FloatTensor = scores.masked_fill(~allowed, -torch.inf)  # type: ignore[assignment]
        return masked

    def _allowed(self, scores: Tensor) -> Tensor:
        bits = np.unpackbits(np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        allowed = torch.zeros(scores.shape[-1], dtype=torch.bool)
        count = min(len(bits), len(allowed))
        allowed[:count] = torch.from_numpy(bits[:count].astype(bool))
        return allowed.to(scores.device)

    def _closing(self, allowed: Tensor) -> Tensor:
        for token in self.grammars.closing:
            if allowed[token]:
                only = torch.zeros_like(allowed)
                only[token] = True
                return only
        return allowed


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise ImportError(
            "Answers that fit a schema need llguidance: pip install 'wim-integrations[structured]'."
        ) from error
    return llguidance
