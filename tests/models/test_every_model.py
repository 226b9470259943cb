"""What branches write equals what generate writes, for every causal language model that transformers maps.

Thirty kinds run always; the others are marked ``every_model`` (`make test-models`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from checking import Outcome, outcome_of
from models_page import PAGE, row
from tiny_configs import KINDS, UNTRIED
from transformers import PreTrainedTokenizerBase

THIRTY = (
    *(
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "gemma2",
        "gemma3_text",
        "phi3",
        "cohere2",
        "gpt2",
        "opt",
    ),
    *("gpt_neox", "gpt_oss", "deepseek_v3", "afmoe", "olmo2", "glm4_moe"),  # attention alone, shared
    *(
        "lfm2",
        "qwen3_next",
        "qwen3_5_text",
        "jamba",
    ),  # some layers keep states
    *("llama4_text", "bloom", "mpt", "bart", "gptj", "deepseek_v4"),  # by their own cache
    *("mamba", "zamba"),  # scans from a state
    "recurrent_gemma",  # refused
)
assert len(set(THIRTY)) == 30


@pytest.fixture(scope="module")
def outcome(plain_tokenizer: PreTrainedTokenizerBase) -> Callable[[str], Outcome]:
    """The outcome of a kind, found once."""
    return functools.cache(lambda kind: outcome_of(kind, plain_tokenizer))


kinds = pytest.mark.parametrize(
    "kind",
    [
        *THIRTY,
        *(
            pytest.param(kind, marks=pytest.mark.every_model)
            for kind in KINDS
            if kind not in THIRTY and kind not in UNTRIED
        ),
    ],
)


@pytest.mark.invariant(1)
@pytest.mark.invariant(2)
@pytest.mark.invariant(3)
@kinds
def test_branches_write_what_generate_writes_or_the_model_is_refused_with_a_reason(outcome, kind):
    found = outcome(kind)
    assert not found.faults
    if found.path == "refused":
        assert "gives other results on branches" in found.reason or "cannot be used" in found.reason
    else:
        assert found.tokens < found.plain_tokens


@kinds
def test_the_page_says_the_same(outcome, kind):
    assert row(kind, outcome(kind)) in PAGE.read_text().splitlines()


def test_the_page_lists_every_kind():
    listed = [line.split("`")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert listed == sorted(KINDS)


def test_most_kinds_can_be_built():
    assert len(KINDS) - len(UNTRIED) >= 150


def test_the_page_is_in_the_navigation():
    docs = Path(PAGE).parent
    assert "models.md" in (docs / "site" / "mkdocs.yml").read_text()
    assert "](models.md)" in (docs / "index.md").read_text()
