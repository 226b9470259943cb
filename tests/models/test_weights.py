"""Quantised, adapted, compiled and offloaded models write what their own generate writes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import weights
from checking import OPTIONS, outcome_of_model
from models_page import PAGE, ROUNDED_TIE, rounds_activations, weights_row
from transformers import PreTrainedTokenizerBase

from wim_kernel import ModelNotFoundError, ReadingFileError, UnsupportedModelError, WimKernel
from wim_kernel.engines.local.model.identity import rounded_digest, weights_digest

KINDS = {kind.name: kind for kind in weights.WEIGHTS}
CHUNKS = [" gull moon rope night", " zebra sea lamp"]


@pytest.fixture(scope="module")
def base(plain_tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint that all others are made of."""
    return weights.save_base(tmp_path_factory.mktemp("base"), plain_tokenizer)


def make(name: str, folder: Path) -> Any:
    """The model with weights of a kind; the test is skipped where the package is not installed."""
    if not KINDS[name].here:
        pytest.skip(f"{KINDS[name].package} is not installed")
    return KINDS[name].make(folder)


def answer(kernel: WimKernel) -> str:
    return kernel.read(CHUNKS, separator="").ask("Which zebra?", **OPTIONS).answer


@pytest.mark.invariant(1)
@pytest.mark.invariant(2)
@pytest.mark.invariant(3)
@pytest.mark.parametrize("name", KINDS)
def test_branches_write_what_generate_writes(name, base, plain_tokenizer):
    rounded = rounds_activations(KINDS[name])
    found = outcome_of_model(make(name, base), plain_tokenizer, ROUNDED_TIE if rounded else 1e-4)
    assert found.path == "shared"
    assert not found.faults
    assert found.tokens < found.plain_tokens
    if not rounded:  # whose results differ between processors
        assert weights_row(KINDS[name], found) in PAGE.read_text().splitlines()


@pytest.mark.parametrize("name", KINDS)
def test_weights_of_every_kind_are_identified(name, base):
    model = make(name, base)
    if name == "compiled":
        model = model._orig_mod
    before = weights_digest(model), rounded_digest(model)
    assert before == (weights_digest(model), rounded_digest(model))
    norm = model.get_input_embeddings()
    if next(norm.parameters()).device.type != "meta":
        with torch.no_grad():
            next(norm.parameters()).mul_(1.5)
        assert weights_digest(model) != before[0]


def test_offloaded_weights_have_the_identity_of_loaded_ones(base):
    assert weights_digest(make("offloaded by accelerate", base)) == weights_digest(weights.load(base))
    assert weights_digest(make("partly on disk", base)) == weights_digest(weights.load(base))


def test_a_model_compiled_in_place_is_not_compiled_by_the_kernel(base, plain_tokenizer):
    def never(_module: object, _inputs: object) -> Any:
        raise AssertionError("compiled")

    model = weights.load(base)
    expected = answer(WimKernel(model, plain_tokenizer))
    model.compile(backend=never)
    assert answer(WimKernel(model, plain_tokenizer)) == expected


@pytest.mark.filterwarnings("ignore:.*cannot share a prefix")
def test_quantised_activations_do_not_hide_a_wrong_model(base, plain_tokenizer):
    model = make("torchao int8, int8 activations", base)

    def see_the_position(_module: object, _inputs: object, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * torch.linspace(0.5, 1.5, hidden.shape[1])[:, None]  # depends on how a text is cut up

    model.model.layers[0].mlp.register_forward_hook(see_the_position)
    with pytest.raises(UnsupportedModelError, match="differ"):
        WimKernel(model, plain_tokenizer)


# Adapters


@pytest.fixture
def lora(base: Path, tmp_path: Path) -> Path:
    pytest.importorskip("peft")
    copied = weights.saved_with_tokenizer(base, tmp_path)
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        (copied / name).write_bytes((base / name).read_bytes())
    return weights.saved_lora(copied)


def test_readings_of_one_adapter_are_not_taken_for_those_of_another(base, plain_tokenizer, tmp_path):
    pytest.importorskip("peft")
    adapted = weights.with_lora(base)
    kernel = WimKernel(adapted, plain_tokenizer)
    reading = kernel.read(CHUNKS)
    reading.margins("Which zebra?", **OPTIONS)
    reading.save(tmp_path / "reading")
    assert kernel.load(tmp_path / "reading").chunks
    with adapted.disable_adapter(), pytest.raises(ReadingFileError, match="its weights is"):
        kernel.load(tmp_path / "reading")


def test_virtual_tokens_are_refused(base, plain_tokenizer):
    peft = pytest.importorskip("peft")
    prompt = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(UnsupportedModelError, match="virtual tokens in front of the text"):
        WimKernel(peft.get_peft_model(weights.load(base), prompt), plain_tokenizer)


def test_an_adapter_with_pickled_weights_is_refused(lora):
    (lora / "adapter_model.safetensors").rename(lora / "adapter_model.bin")
    with pytest.raises(ModelNotFoundError, match="Pickled weights are not loaded"):
        weights.load(lora)


def test_an_adapter_without_its_base_model_says_what_is_missing(lora):
    (lora.parent / "config.json").unlink()
    with pytest.raises((ModelNotFoundError, UnsupportedModelError), match="cannot be loaded"):
        weights.load(lora)


def test_an_adapter_needs_its_package(lora, monkeypatch):
    monkeypatch.setattr("wim_kernel.engines.adapters.is_peft_available", lambda: False)
    with pytest.raises(ModelNotFoundError, match="pip install peft"):
        weights.load(lora)


# What cannot be loaded


@pytest.mark.parametrize(("method", "package"), [("gptq", "optimum|gptqmodel"), ("awq", "gptqmodel")])
def test_a_package_for_quantised_weights_that_is_missing_is_named(method, package, base):
    with pytest.raises(ModelNotFoundError, match=package):
        weights.load(weights.unavailable(method, base))


def test_what_is_no_transformers_model_is_refused(plain_tokenizer):
    with pytest.raises(UnsupportedModelError, match="Linear is no causal language model of transformers"):
        WimKernel(torch.nn.Linear(2, 2), plain_tokenizer)


def test_a_copied_kernel_with_adapters_answers_the_same(base, plain_tokenizer):
    pytest.importorskip("peft")
    kernel = WimKernel(weights.with_lora(base), plain_tokenizer)
    assert answer(copy.deepcopy(kernel)) == answer(kernel)
