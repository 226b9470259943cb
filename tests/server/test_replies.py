"""What is taken from servers' replies, whatever family they are of."""

from __future__ import annotations

import math

import pytest
from transformers import GenerationConfig

from wim_kernel.engines.base import Branch, Text
from wim_kernel.engines.server.families import FAMILIES, sampling_fields
from wim_kernel.engines.server.replies import chances, without_decision
from wim_kernel.engines.server.words import Characters

CHOICES = ("YES:", "NO")


def test_chances_are_those_of_the_first_tokens():
    top = {"YES": math.log(0.6), "NO": math.log(0.2), "Y": math.log(0.1), " yes": math.log(0.1)}
    assert chances(CHOICES, top, "", ["YES", "NO"]) == pytest.approx((0.75, 0.25))
    assert chances(CHOICES, top, "", None) == pytest.approx((0.8, 0.2))
    assert chances(CHOICES, {"The": 0.0}, "", None) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("NO", (0.0, 1.0)),
        (" No, it says", (0.0, 1.0)),
        ("YES: the gull", (1.0, 0.0)),
        ("Nobody sailed", (1.0, 0.0)),
        ("Note: the gull", (1.0, 0.0)),
        ("The gull", (1.0, 0.0)),
    ],
)
def test_without_probabilities_the_reply_decides_by_whole_words(text, wanted):
    assert chances(CHOICES, {}, text, None) == wanted


@pytest.mark.parametrize(
    ("reply", "note"),
    [
        ("YES: the gull sat", "the gull sat"),
        ("yes the gull", "the gull"),
        ("Yesterday the gull", "Yesterday the gull"),
        ("The gull", "The gull"),
        ("YES", ""),
        ("Ye", "Ye"),
    ],
)
def test_a_note_stands_without_its_decision_however_it_is_streamed(reply, note):
    branch = Branch(0, (Text("?"),), choices=CHOICES)
    shown = [without_decision(reply[:end], branch, decided=False) for end in range(len(reply) + 1)]
    whole = without_decision(reply, branch, decided=False, whole=True)
    assert whole == note
    assert all(whole.startswith(part) for part in shown)
    assert without_decision(reply, branch, decided=True) == reply


def test_settings_that_cannot_be_sent_are_refused():
    greedy = GenerationConfig(max_new_tokens=5, do_sample=False, min_new_tokens=2)
    assert sampling_fields(FAMILIES["vllm"], greedy) == {"max_tokens": 5, "temperature": 0.0, "min_tokens": 2}
    for name in ("transformers", "llama.cpp", "openai"):
        with pytest.raises(ValueError, match="cannot be asked"):
            sampling_fields(FAMILIES[name], greedy)
    with pytest.raises(ValueError, match="no_repeat_ngram_size"):
        sampling_fields(FAMILIES["vllm"], GenerationConfig(max_new_tokens=5, no_repeat_ngram_size=2))
    sampled = GenerationConfig(max_new_tokens=5, do_sample=True, temperature=0.5, top_p=0.9, top_k=7)
    wanted = {"max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 7}
    assert sampling_fields(FAMILIES["sglang"], sampled) == wanted


@pytest.mark.parametrize("text", ["", "a", "abc", "abcd", "🐦‍⬛ and \x00 and \n\n", "<|im_end|>{}"])
def test_runs_of_characters_keep_every_character(text):
    words = Characters()
    ids = [*words.head("Be brief.", "Document:\n"), *words.encode(Text(text))]
    assert words.messages(ids) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Document:\n" + text},
    ]
