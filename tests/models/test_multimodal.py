"""A multimodal checkpoint loads as its text part, which writes what the whole model's generate writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checking import OPTIONS, QUESTIONS, WORDS
from tiny_configs import MOST_PARAMETERS, TOWERS, tiny_multimodal
from transformers import AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerBase

from wim_kernel import Margin, Reading, UnsupportedModelError, WimKernel, WimResult

LIKE_A_PREFIX = {"paligemma"}
"""Their text sees all of the prompt, also what follows."""


def build(kind: str) -> PreTrainedModel:
    config = tiny_multimodal(kind)
    with torch.device("meta"):
        empty = AutoModelForImageTextToText.from_config(config)
    assert sum(weight.numel() for weight in empty.parameters()) < MOST_PARAMETERS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(kind))
        return AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()


def written(whole: PreTrainedModel, reading: Reading, of: Margin | WimResult) -> list[int]:
    ids = torch.tensor([reading.prompt_ids(of)])
    settings = OPTIONS["margin_config" if isinstance(of, Margin) else "answer_config"]
    new = whole.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    ended = new[0, ids.shape[1] :].tolist()
    return ended[:-1] if ended and ended[-1] == whole.generation_config.eos_token_id else ended


@pytest.fixture
def folder(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerBase) -> Path:
    plain_tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.invariant(3)
@pytest.mark.parametrize("kind", sorted(TOWERS.keys() - LIKE_A_PREFIX))
def test_the_text_part_writes_what_the_whole_writes(folder, kind):
    whole = build(kind)
    whole.save_pretrained(folder)
    kernel = WimKernel.from_pretrained(str(folder), device="cpu")
    names = [name for name, _ in kernel.model.named_parameters()]
    assert not [name for name in names if "vision" in name or "visual" in name or "projector" in name]
    reading = kernel.read([" " + " ".join(WORDS), " gull moon rope"])
    for question in QUESTIONS:
        result = reading.ask(question, **OPTIONS)
        for of in (*result.margins, result):
            assert list(of.token_ids) == written(whole, reading, of)


@pytest.mark.parametrize("kind", sorted(LIKE_A_PREFIX))
def test_a_model_that_sees_what_follows_is_refused(folder, kind):
    build(kind).save_pretrained(folder)
    with pytest.raises(UnsupportedModelError):
        WimKernel.from_pretrained(str(folder), device="cpu")
