"""A tokenizer of words, so that no model package is needed, and random words."""

from __future__ import annotations

import functools

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

VOCABULARY = 49_152


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Every word ``w0``, ``w1``, ... is a token."""
    words = {f"w{index}": index for index in range(VOCABULARY - 2)}
    backend = Tokenizer(
        WordLevel({**words, "[UNK]": VOCABULARY - 2, "[END]": VOCABULARY - 1}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token="[END]")


def words(count: int, seed: int = 0) -> str:
    """Random words."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, VOCABULARY - 2, (count,), generator=generator)
    return " ".join(f"w{number}" for number in numbers.tolist())
