"""Runs a tiny model through the kernel and through its own generate, and says what came out."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers import config, generated, spying
from tiny_configs import WINDOW, build_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wim_kernel import Frame, Margin, Reading, UnsupportedModelError, WimKernel, WimResult
from wim_kernel.engines.codec import ChatCodec
from wim_kernel.engines.local import engine

_WORDS = "zebra harbour rope night sail brass lamp fog gull moon sea ship wind tide map stone"
WORDS = _WORDS.split()
"""Each is one token, with the space before it."""
QUESTIONS = ("Which zebra kept the ledger?", "Where did the gull sit?")
TIE = 1e-4
OPTIONS: dict[str, Any] = {
    "margin_style": "free",
    "threshold": 0,
    "margin_config": config(3),
    "answer_config": config(4),
}
BOUNDARIES = (WINDOW - 7, WINDOW, WINDOW + 1, 3 * WINDOW - 4)
"""Positions of the chunks' ends: before a window's end, at it, behind it, and windows later."""


@dataclass(frozen=True)
class Outcome:
    """What the kernel makes of a model.

    Attributes:
        path: ``"shared"``, ``"shared with states"``, ``"own cache"`` or ``"refused"``.
        reason: why the prefix is not shared, or why the model is refused; empty if it is shared.
        faults: what differs from the model's own generate, or was run twice; empty if nothing.
        gap: the largest difference of the logits of two tokens of which generate writes the other.
        tokens: number of tokens that the kernel ran for all questions.
        plain_tokens: number of tokens that generate ran for the same texts.
    """

    path: str
    reason: str = ""
    faults: tuple[str, ...] = ()
    gap: float = 0.0
    tokens: int = 0
    plain_tokens: int = 0


def outcome_of(kind: str, tokenizer: PreTrainedTokenizerBase) -> Outcome:
    """Build the tiny model of a kind, ask two questions about a document, and compare."""
    return outcome_of_model(build_model(kind), tokenizer)


def outcome_of_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tie: float = TIE) -> Outcome:
    """Ask a model two questions about a document, the first again at the end, and compare with generate.

    Args:
        model: a causal language model.
        tokenizer: without a chat template, so that the document begins at the first positions.
        tie: the largest difference of two tokens' logits for which either may be written.
    """
    with warnings.catch_warnings(record=True) as said, pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("always")
        patch.setattr(engine, "ChatCodec", _codec)
        try:
            kernel = WimKernel(model, tokenizer, frame=Frame("", "", ""))
        except UnsupportedModelError as error:
            return Outcome("refused", str(error))
    slower = [str(item.message) for item in said if "one branch at a time" in str(item.message)]
    reading = kernel.read(_chunks(kernel), separator="")
    faults: list[str] = []
    gaps: list[float] = []
    with spying(kernel.model) as run:
        first, second = (reading.ask(question, **OPTIONS) for question in QUESTIONS)
    tokens = run.tokens
    if second.usage.prefill_tokens or first.usage.prefill_tokens != reading.tokens:
        faults.append("a document token was run more than once")
    again = reading.margins(QUESTIONS[0], **OPTIONS)
    if [margin.token_ids for margin in again] != [margin.token_ids for margin in first.margins]:
        faults.append("a branch changed the reading")
    with spying(kernel.model) as plain:
        for question, result in zip(("first", "second"), (first, second), strict=True):
            for of in (*result.margins, result):
                gaps.append(_gap(reading, of))
                if gaps[-1] > tie:
                    what = f"margin {of.index}" if isinstance(of, Margin) else "the answer"
                    faults.append(f"{what} to the {question} question")
    why = slower[0] if slower else ""
    return Outcome(_path(kernel), why, tuple(faults), max(gaps), tokens, plain.tokens)


def _gap(reading: Reading, of: Margin | WimResult) -> float:
    """The difference of the logits of the first two tokens where generate writes another; 0 if it writes the same."""
    wanted = generated(reading, of, OPTIONS["margin_config" if isinstance(of, Margin) else "answer_config"])
    pairs = list(itertools.zip_longest(of.token_ids, wanted))
    at = next((place for place, (one, other) in enumerate(pairs) if one != other), None)
    if at is None:
        return 0.0
    if None in pairs[at]:
        return math.inf
    with torch.inference_mode():
        logits = reading.kernel.model(
            input_ids=torch.tensor([[*reading.prompt_ids(of), *wanted[:at]]])
        ).logits[0, -1]
    return float((logits[pairs[at][0]] - logits[pairs[at][1]]).abs())


_codec = functools.cache(ChatCodec)  # made once a tokenizer, since that takes most of the time


def _chunks(kernel: WimKernel) -> list[str]:
    """Chunks of so many tokens that they end at the boundaries."""
    ends, chunks = [len(kernel.engine.head("", "")), *BOUNDARIES], []
    for start, end in itertools.pairwise(ends):
        chunks.append("".join(f" {WORDS[(5 * place + end) % len(WORDS)]}" for place in range(start, end)))
    return chunks


def _path(kernel: WimKernel) -> str:
    made = kernel.engine
    assert isinstance(made, engine.LocalEngine)
    if made.cache_mode == "snapshot":
        return "own cache"
    return "shared" if made.runner.state_layout is None else "shared with states"
