"""Constrains answers to JSON of a schema: at each step only tokens that the schema allows can be chosen.

The grammar is llguidance's. This module adds an end: a small model may never close a string or a number by itself, so
when few tokens are left, the shortest end to a complete value is forced. The length of that end is computed from time
to time, more often when fewer tokens are left.
"""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import FloatTensor, LongTensor, Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from wim_kernel.common.errors import SchemaError
from wim_kernel.engines.local.decode.grammar_maker import GrammarMaker
from wim_kernel.engines.local.decode.pattern_samples import multiples, samples
from wim_kernel.engines.local.decode.shortest_end import JsonPosition, ShortestEnds
from wim_kernel.text.schema_sizes import Sizes

SLACK = 8
"""Tokens by which one token may lengthen the shortest end, beyond what `Sizes.jump` says."""


@dataclass(frozen=True)
class SchemaEnds:
    """Data about the ends of texts of one schema.

    Attributes:
        shortest: finds the shortest end from any state.
        whole: tokens of the shortest complete text; None if the search did not find it.
        jump: number of tokens by which one token may lengthen the shortest end.
        least: number of tokens that a complete text has at least.
    """

    shortest: ShortestEnds
    whole: list[int] | None
    jump: int
    least: int


class Grammars(GrammarMaker):
    """Makes the grammars of JSON schemas; see `GrammarMaker`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, eos: frozenset[int]) -> None:
        super().__init__(tokenizer, vocabulary, eos)
        self._ends: dict[str, SchemaEnds] = {}

    def processor(self, schema: str, prompt_tokens: int, max_tokens: int) -> JsonGrammar:
        """A logits processor that constrains a branch to JSON of ``schema``, complete within ``max_tokens`` tokens.

        Raises:
            SchemaError: if there is no grammar for the schema, or its shortest text has more tokens.
        """
        matcher = self._matcher(schema)
        ends = self._ends_of(schema, matcher)
        if ends.least > max_tokens:
            about = "" if ends.whole is not None else "at least "
            raise SchemaError(
                f"The shortest JSON of this schema takes {about}{ends.least} tokens and the limit is {max_tokens}: "
                "give more answer_tokens."
            )
        return JsonGrammar(self, matcher, ends, prompt_tokens, max_tokens)

    def _ends_of(self, schema: str, matcher: Any) -> SchemaEnds:
        """The ends of a schema; computed once."""
        if schema not in self._ends:
            plain = json.loads(schema)
            shortest = ShortestEnds(self.tokens, samples(plain), multiples(plain))
            sizes = Sizes(plain, cost=lambda text: len(self.tokens.tokenize_str(text)))
            whole = shortest.find(matcher, JsonPosition())
            least = len(whole) if whole is not None else int(Sizes(plain).of(plain)) // self._longest_token
            self._ends[schema] = SchemaEnds(shortest, whole, sizes.jump + SLACK, least)
        return self._ends[schema]

    @cached_property
    def _longest_token(self) -> int:
        """The most bytes that a token stands for."""
        return max(len(self.tokens.decode_bytes([token])) for token in range(self.vocabulary))

    def _matcher(self, schema: str) -> Any:
        library = _llguidance()
        grammar = library.LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": False})
        matcher = library.LLMatcher(self.tokens, grammar, log_level=0)
        if matcher.is_error():
            raise SchemaError(f"No grammar can be made of this JSON schema, so {_cure(matcher.get_error())}")
        return matcher

    @cached_property
    def tokens(self) -> Any:
        """The tokenizer as llguidance's object; takes a second to make."""
        import llguidance.hf

        tokenizer: Any = self.tokenizer
        return llguidance.hf.from_tokenizer(tokenizer, n_vocab=self.vocabulary, eos_token=sorted(self.eos))


class JsonGrammar(LogitsProcessor):
    """Masks the tokens that the grammar forbids; when few tokens are left, all but those of the shortest end.

    Args:
        grammars: the maker of this grammar.
        matcher: the grammar's state.
        ends: data about the schema's ends.
        prompt_tokens: number of tokens before the text.
        max_tokens: most tokens of the text.
    """

    def __init__(
        self, grammars: Grammars, matcher: Any, ends: SchemaEnds, prompt_tokens: int, max_tokens: int
    ) -> None:
        self.grammars = grammars
        self.matcher = matcher
        self.ends = ends
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.position = JsonPosition()
        self._taken = 0
        self._end = list(ends.whole) if ends.whole is not None else None  # the shortest, at the last check
        self._is_closing = False
        self._next_check = 0
        self._warned = False

    def __call__(self, input_ids: LongTensor, scores: FloatTensor) -> FloatTensor:
        """The scores (1, vocabulary) with minus infinity for each token that is not allowed next."""
        self.take(input_ids[0, self.prompt_tokens + self._taken :].tolist())
        allowed = self.allowed(scores.shape[-1])
        if not self._is_closing and self._taken >= self._next_check:
            self._check_room()
        if self._is_closing:
            allowed = self._only_next_of_end(allowed)
        masked: FloatTensor = scores.masked_fill(~allowed.to(scores.device), -torch.inf)  # type: ignore[assignment]
        return masked

    def take(self, tokens: list[int]) -> None:
        """Advance the grammar by the tokens that were chosen."""
        if tokens and not self.matcher.consume_tokens(tokens):
            raise SchemaError(
                f"A token was chosen that the schema does not allow: {self.matcher.get_error()}"
            )
        self._taken += len(tokens)
        self.position = self.position.after(self.grammars.tokens.decode_bytes(tokens))
        if self._is_closing and self._end is not None:
            del self._end[: len(tokens)]

    def allowed(self, vocabulary: int) -> Tensor:
        """True for tokens that are allowed next, (vocabulary,)."""
        bits = np.unpackbits(np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        allowed = torch.zeros(vocabulary, dtype=torch.bool)
        count = min(len(bits), vocabulary)
        allowed[:count] = torch.from_numpy(bits[:count].astype(bool))
        return allowed

    def _check_room(self) -> None:
        """Compute the shortest end, and whether it must be taken now; if not, when to check again."""
        left = self.max_tokens - self._taken
        if not self._still_ends():
            self._end = self.ends.shortest.find(self.matcher, self.position)
        if self._end is None:
            # not found within the search's limit: close without knowing the end when half of the tokens are used
            self._is_closing = left <= self.max_tokens // 2
            self._next_check = self.max_tokens - self.max_tokens // 2
            return
        spare = left - len(self._end) - self.ends.jump
        self._is_closing = spare <= 0
        self._next_check = self._taken + 1 + max(0, spare) // (self.ends.jump + 1)

    def _still_ends(self) -> bool:
        """Whether the end that was found last is valid from here too, as it usually is within a string."""
        if self._end is None:
            return False
        ahead = self.matcher.deep_copy()
        return bool(ahead.try_consume_tokens(self._end) == len(self._end) and ahead.is_accepting())

    def _only_next_of_end(self, allowed: Tensor) -> Tensor:
        """The next token of the end; EOS as soon as it is allowed."""
        ends = [token for token in self.grammars.eos if allowed[token]]
        if not ends:
            self._warn()
        end = self._end[:1] if self._end else self.ends.shortest.ending(self.matcher, self.position)
        only = torch.zeros_like(allowed)
        only[ends or end] = True
        return only if bool(only.any()) else allowed

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                "The answer ran short of tokens: what its schema still asks for is filled with the shortest values. "
                "Give it more answer_tokens.",
                stacklevel=2,
            )


def _cure(reason: str) -> str:
    """What to change in a schema, from what llguidance says of it."""
    keywords = re.search(r"Unimplemented keys: \[(.*?)\]", reason)
    if keywords:
        return f"take {keywords[1]} out of it, and check the answer for that yourself."
    if "oneOf" in reason:
        return "say anyOf in place of oneOf: more than one of its choices may fit."
    return f"change it: {' '.join(reason.split())}"


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise ImportError(
            "Answers that fit a schema need llguidance: pip install 'wim-integrations[structured]'."
        ) from error
    return llguidance
