"""Constrains answers to cite existing passages: of all markers ``[n]``, only those whose number exists can be written.

A logits processor is enough for that, and all other tokens stay free: at each step only those are masked that would
make a marker of a number without a passage. See `wim_kernel.text.markers`.
"""

from __future__ import annotations

import re
from functools import cached_property

import torch
from torch import FloatTensor, LongTensor, Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from wim_kernel.engines.local.decode.grammar_maker import GrammarMaker
from wim_kernel.text.markers import OPEN, may_become, numbers

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACES = str.maketrans("\u2581\u0120", "  ")  # how SentencePiece and byte-level vocabularies write a space


class MarkerGrammars(GrammarMaker):
    """Makes the masks for markers; see `GrammarMaker`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, eos: frozenset[int]) -> None:
        super().__init__(tokenizer, vocabulary, eos)
        self._masks: dict[tuple[int, str], Tensor] = {}

    def processor(self, count: int, prompt_tokens: int) -> MarkerGrammar:
        """A logits processor for a branch with ``count`` passages to cite."""
        return MarkerGrammar(self, count, prompt_tokens)

    @cached_property
    def texts(self) -> list[str]:
        """What each token adds to a text, as far as brackets and digits are concerned; takes some milliseconds."""
        special = {index for index, added in self.tokenizer.added_tokens_decoder.items() if added.special}
        known = min(len(self.tokenizer), self.vocabulary)
        names = self.tokenizer.convert_ids_to_tokens(list(range(known)))
        texts = ["" if index in special else _text_of(name) for index, name in enumerate(names)]
        return texts + [""] * (self.vocabulary - known)  # some models have more logits than tokens

    def forbidden(self, count: int, begun: str) -> Tensor:
        """True for tokens that cannot come next, (vocabulary,).

        Args:
            count: how many passages there are.
            begun: the marker that has begun at the text's end, such as ``"[1"``; empty if none has.
        """
        key = count, begun
        if key not in self._masks:
            existing = numbers(count)
            mask = torch.zeros(self.vocabulary, dtype=torch.bool)
            for token, text in enumerate(self.texts):
                if (begun or "[" in text) and not may_become(begun + text, existing):
                    mask[token] = True
            if len(begun) > 1:
                mask[list(self.eos)] = True
            self._masks[key] = mask
        return self._masks[key]


class MarkerGrammar(LogitsProcessor):
    """Masks the tokens that would write a marker whose number does not exist.

    Args:
        grammars: the maker of this grammar.
        count: how many passages there are.
        prompt_tokens: number of tokens before the text.
    """

    def __init__(self, grammars: MarkerGrammars, count: int, prompt_tokens: int) -> None:
        self.grammars = grammars
        self.count = count
        self.prompt_tokens = prompt_tokens
        self._taken = 0
        self._begun = ""

    def __call__(self, input_ids: LongTensor, scores: FloatTensor) -> FloatTensor:
        """The scores (1, vocabulary) with minus infinity for each token that is not allowed next."""
        new = input_ids[0, self.prompt_tokens + self._taken :].tolist()
        self._taken += len(new)
        for token in new:
            found = OPEN.search(self._begun + self.grammars.texts[token])
            self._begun = found[0] if found else ""
        mask = self.grammars.forbidden(self.count, self._begun)[: scores.shape[-1]].to(scores.device)
        masked: FloatTensor = scores.masked_fill(mask, -torch.inf)  # type: ignore[assignment]
        # If other processors forbid all that is left, the marker stays broken, and is left out of the text.
        return masked if bool(masked.isfinite().any()) else scores


def _text_of(name: str | None) -> str:
    """The text of a token from its name in the vocabulary; characters outside ASCII may be other ones."""
    if name is None:
        return ""
    byte = _BYTE.fullmatch(name)
    return chr(int(byte[1], 16)) if byte else name.translate(_SPACES)
