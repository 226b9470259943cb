"""Generation configs as fields of requests, family by family."""

from __future__ import annotations

import pytest
from transformers import GenerationConfig

from wim_kernel.engines.generation import Greedy
from wim_kernel.engines.server.families import FAMILIES
from wim_kernel.engines.server.sampling import sampling_fields

END = 2


def fields(family: str, end: int | None = END, **settings) -> dict:
    return sampling_fields(FAMILIES[family], GenerationConfig(max_new_tokens=5, **settings), end)


@pytest.mark.parametrize("family", ["vllm", "sglang"])
def test_sampling_fields_of_vllm_and_sglang(family):
    plain = {"max_tokens": 5, "temperature": 0.0}
    assert fields(family, min_new_tokens=2) == {**plain, "min_tokens": 2}
    assert fields(family, repetition_penalty=1.2) == {**plain, "repetition_penalty": 1.2}
    ignored = {"ignore_eos": True} if family == "vllm" else {}  # SGLang would ignore all of them
    assert fields(family, eos_token_id=[7, END]) == {**plain, "stop_token_ids": [7, END], **ignored}
    assert fields(family, stop_strings="\n\n") == {**plain, "stop": ["\n\n"]}
    sampled = fields(family, do_sample=True, temperature=0.5, top_p=0.9, top_k=7, min_p=0.1)
    assert sampled == {"max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1}


def test_sampling_fields_of_llama_cpp():
    assert fields("llama.cpp", min_new_tokens=5) == {"max_tokens": 5, "temperature": 0.0, "ignore_eos": True}
    penalised = fields("llama.cpp", repetition_penalty=1.2)
    assert penalised["repeat_penalty"] == 1.2
    assert penalised["repeat_last_n"] > 100_000
    assert fields("llama.cpp", do_sample=True, typical_p=0.9, min_p=0.1) == {
        "max_tokens": 5,
        "temperature": 1.0,
        "typical_p": 0.9,
        "min_p": 0.1,
    }


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama.cpp", {"min_new_tokens": 2}),
        ("openai", {"min_new_tokens": 5}),
        ("transformers", {"min_new_tokens": 2}),
        ("llama.cpp", {"eos_token_id": [7]}),
        ("openai", {"eos_token_id": [END, 7]}),
        ("sglang", {"eos_token_id": [7]}),
        ("vllm", {"do_sample": True, "typical_p": 0.9}),
        ("openai", {"do_sample": True, "min_p": 0.1}),
        ("openai", {"repetition_penalty": 1.2}),
        ("vllm", {"no_repeat_ngram_size": 2}),
        ("vllm", {"min_length": 9}),
        ("vllm", {"forced_eos_token_id": 7}),
        ("sglang", {"forced_bos_token_id": 7}),
        ("llama.cpp", {"exponential_decay_length_penalty": (3, 1.5)}),
        ("vllm", {"guidance_scale": 2.0}),
        ("vllm", {"do_sample": True, "epsilon_cutoff": 0.1}),
        ("transformers", {"do_sample": True}),
    ],
)
def test_unsupported_generation_settings_are_refused_by_name(family, settings):
    with pytest.raises(ValueError, match=rf"{list(settings)[-1]}|do_sample.* cannot be asked"):
        fields(family, **settings)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_neutral_generation_settings_are_left_out(family):
    nothing = {"typical_p": 1.0, "min_length": 0, "no_repeat_ngram_size": 0}
    sent = fields(family, **nothing, top_k=7, min_p=0.1)  # the last two do nothing to greedy decoding
    assert set(sent) <= {"max_tokens", "temperature"}
    if family not in ("vllm", "sglang"):
        assert set(fields(family, eos_token_id=END)) <= {"max_tokens", "temperature"}


def test_sampling_fields_refuse_ends_without_a_tokenizer():
    for family in ("transformers", "llama.cpp", "openai", "sglang"):
        with pytest.raises(ValueError, match="eos_token_id"):
            fields(family, end=None, eos_token_id=END)


@pytest.mark.parametrize(
    ("family", "sent"),
    [
        ("vllm", {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}),
        ("sglang", {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}),
        ("llama.cpp", {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0, "typical_p": 1.0}),
        ("openai", {}),
    ],
)
def test_sampling_fields_send_explicit_settings(family, sent):
    stated = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "typical_p": 1.0}
    found = fields(family, do_sample=True, **stated)
    assert {name: value for name, value in found.items() if name in sent} == sent
    assert set(found) - set(sent) <= {"max_tokens", "temperature", "repeat_last_n"}


@pytest.mark.parametrize("name", FAMILIES)
def test_sampling_fields_are_greedy_by_default(name):
    greedy = GenerationConfig.from_dict({"do_sample": False, "max_new_tokens": 7})
    assert sampling_fields(FAMILIES[name], Greedy(7)) == sampling_fields(FAMILIES[name], greedy)
