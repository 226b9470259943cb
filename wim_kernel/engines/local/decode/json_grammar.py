"""Answers that are JSON of a given schema: at every step only tokens that the schema allows can be chosen.

The grammar is llguidance's. What is added here is an end: a small model may never close a string or a number by
itself, so when the tokens that are left run short, the shortest way to a complete value is taken. How long that is, is
found out now and then, the more often the fewer tokens are left.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import FloatTensor, LongTensor, Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from wim_kernel.common.errors import SchemaError
from wim_kernel.engines.local.decode.pattern_samples import samples
from wim_kernel.engines.local.decode.shortest_end import Place, ShortestWays
from wim_kernel.text.schema_sizes import Sizes

SLACK = 8  # tokens by which one token may put off the end beyond what `Sizes.jump` says


@dataclass(frozen=True)
class Ends:
    """What is known of how texts of one schema end.

    Attributes:
        ways: finds the shortest one from any state.
        whole: the shortest whole text's tokens; None if it was not found.
        jump: by how many tokens one token may put off the end.
    """

    ways: ShortestWays
    whole: list[int] | None
    jump: int


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
        self._ends: dict[str, Ends] = {}

    def processor(self, schema: str, prompt_tokens: int, room: int) -> JsonGrammar:
        """What lets a branch choose only tokens of JSON that fits ``schema``, complete within ``room`` tokens.

        Raises:
            SchemaError: if there is no such grammar, or nothing that fits it is so short.
        """
        matcher = self._matcher(schema)
        ends = self._ends_of(schema, matcher)
        if ends.whole is not None and len(ends.whole) > room:
            raise SchemaError(
                f"What this JSON schema asks for takes {len(ends.whole)} tokens and there are {room}: give more "
                "answer_tokens."
            )
        return JsonGrammar(self, matcher, ends, prompt_tokens, room)

    def _ends_of(self, schema: str, matcher: Any) -> Ends:
        """Looked into once for each schema."""
        if schema not in self._ends:
            plain = json.loads(schema)
            ways = ShortestWays(self.tokens, samples(plain))
            sizes = Sizes(plain, cost=lambda text: len(self.tokens.tokenize_str(text)))
            self._ends[schema] = Ends(ways, ways.find(matcher, Place()), sizes.jump + SLACK)
        return self._ends[schema]

    def _matcher(self, schema: str) -> Any:
        library = _library()
        grammar = library.LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": False})
        matcher = library.LLMatcher(self.tokens, grammar, log_level=0)
        if matcher.is_error():
            reason = " ".join(matcher.get_error().split())
            raise SchemaError(f"No grammar can be made of this JSON schema, so change it: {reason}")
        return matcher

    @cached_property
    def tokens(self) -> Any:
        """Llguidance's view of the tokenizer; takes a second to make."""
        import llguidance.hf

        tokenizer: Any = self.tokenizer
        return llguidance.hf.from_tokenizer(tokenizer, n_vocab=self.vocabulary, eos_token=sorted(self.eos))


class JsonGrammar(LogitsProcessor):
    """Masks what the grammar forbids; once the tokens run short, all but the shortest way to the end.

    Args:
        grammars: whose it is.
        matcher: the grammar's state.
        ends: what is known of the schema's ends.
        prompt_tokens: how many tokens stand before the text.
        room: most tokens of the text.
    """

    def __init__(self, grammars: Grammars, matcher: Any, ends: Ends, prompt_tokens: int, room: int) -> None:
        self.grammars = grammars
        self.matcher = matcher
        self.ends = ends
        self.prompt_tokens = prompt_tokens
        self.room = room
        self.place = Place()
        self._taken = 0
        self._way = (
            list(ends.whole) if ends.whole is not None else None
        )  # known to lead to the end, when last looked
        self._closing = False
        self._look_at = 0
        self._warned = False

    def __call__(self, input_ids: LongTensor, scores: FloatTensor) -> FloatTensor:
        """Scores (1, vocabulary) with minus infinity for every token that cannot come next."""
        self.take(input_ids[0, self.prompt_tokens + self._taken :].tolist())
        allowed = self.allowed(scores.shape[-1])
        if not self._closing and self._taken >= self._look_at:
            self._look_ahead()
        if self._closing:
            allowed = self._next_of_the_way(allowed)
        masked: FloatTensor = scores.masked_fill(~allowed.to(scores.device), -torch.inf)  # type: ignore[assignment]
        return masked

    def take(self, tokens: list[int]) -> None:
        """Take in the tokens that were chosen."""
        if tokens and not self.matcher.consume_tokens(tokens):
            raise SchemaError(
                f"A token was chosen that the schema does not allow: {self.matcher.get_error()}"
            )
        self._taken += len(tokens)
        self.place = self.place.after(self.grammars.tokens.decode_bytes(tokens))
        if self._closing and self._way is not None:
            del self._way[: len(tokens)]

    def allowed(self, vocabulary: int) -> Tensor:
        """Which tokens can come next, (vocabulary,)."""
        bits = np.unpackbits(np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        allowed = torch.zeros(vocabulary, dtype=torch.bool)
        count = min(len(bits), vocabulary)
        allowed[:count] = torch.from_numpy(bits[:count].astype(bool))
        return allowed

    def _look_ahead(self) -> None:
        """See how far the end is, and whether the way there has to be taken now; if not, when to look again."""
        left = self.room - self._taken
        if not self._still_leads_to_the_end():
            self._way = self.ends.ways.find(self.matcher, self.place)
        if self._way is None:  # too far to be found: half of the tokens are for a blind try
            self._closing = left <= self.room // 2
            self._look_at = self.room - self.room // 2
            return
        spare = left - len(self._way) - self.ends.jump
        self._closing = spare <= 0
        self._look_at = self._taken + 1 + max(0, spare) // (self.ends.jump + 1)

    def _still_leads_to_the_end(self) -> bool:
        """Whether the way that was found last does so from here, too, as within a string it does."""
        if self._way is None:
            return False
        ahead = self.matcher.deep_copy()
        return bool(ahead.try_consume_tokens(self._way) == len(self._way) and ahead.is_accepting())

    def _next_of_the_way(self, allowed: Tensor) -> Tensor:
        """The one token that is allowed on the way to the end; an end of the text as soon as there can be one."""
        ends = [token for token in self.grammars.eos if allowed[token]]
        if not ends:
            self._warn()
        way = self._way[:1] if self._way else self.ends.ways.ending(self.matcher, self.place)
        only = torch.zeros_like(allowed)
        only[ends or way] = True
        return only if bool(only.any()) else allowed

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
