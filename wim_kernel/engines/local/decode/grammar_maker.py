"""What makers of grammars know of a model's tokens."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


class GrammarMaker:
    """Makes grammars for one tokenizer.

    Args:
        tokenizer: the model's tokenizer.
        vocabulary: number of logits of the model.
        eos: the EOS tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, eos: frozenset[int]) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.eos = eos
