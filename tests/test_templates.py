"""Prompts in the chat templates of many families: head, suffix, and no reasoning before a reply."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence

import pytest
from chat_templates import FAMILIES, Family
from helpers import FREE
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from wim_kernel import WimKernel
from wim_kernel.engines.codec import ChatCodec
from wim_kernel.text.run_text import Text

SYSTEM = "Read {with} care."
DATE = re.compile(r"\d{4}-\d\d-\d\d|[A-Z][a-z]+ \d\d, \d{4}|\d\d [A-Z][a-z]+ \d{4}")


def codec_of(template: str | dict[str, str], special: Sequence[str] = ()) -> ChatCodec:
    """A codec on a tokenizer of bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in ("<s>", "</s>", *special)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return ChatCodec(tokenizer)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def test_at_least_twenty_families_are_tested():
    assert len(FAMILIES) >= 20


def test_the_head_is_the_template_s_up_to_the_document(family):
    codec = codec_of(family.template, family.special)
    assert codec.seam.chat
    ids = codec.head(SYSTEM, "Document:\n")
    found = codec.backend.decode(ids, skip_special_tokens=False)
    date = DATE.search(found)
    begins = family.begins.replace("{system}", SYSTEM).replace("{date}", date[0] if date else "")
    assert found == begins + "Document:\n"
    assert ("{date}" in family.begins) == bool(date)
    assert ids.count(codec.tokenizer.bos_token_id) == begins.count("<s>")


def test_the_suffix_ends_where_the_reply_begins_and_not_its_reasoning(family):
    codec = codec_of(family.template, family.special)
    runs = codec.suffix((Text("\n\nWho", trusted=True), Text(" <s>kept it?")), "")
    ids = [token for run in runs for token in run]
    assert codec.backend.decode(ids, skip_special_tokens=False) == "\n\nWho <s>kept it?" + family.after
    marks = [token for token in codec.encode(Text(family.after, trusted=True)) if token in codec.control_ids]
    assert [token for token in ids if token in codec.control_ids] == marks


def test_a_conversation_of_several_turns_ends_in_the_same_way(family):
    codec = codec_of(family.template, family.special)
    turns = [("user", "one?"), ("assistant", "two."), ("user", "three?")]
    prompt = codec.conversation([{"role": role, "content": text} for role, text in turns])
    assert prompt.endswith("three?" + family.after)
    assert prompt.index("one?") < prompt.index("two.") < prompt.index("three?")


@pytest.mark.parametrize(
    ("template", "after"),
    [
        ("{{ messages[-1].content }}{% if enable_reasoning %}A{% else %}B{% endif %}", "B"),
        ("{{ messages[-1].content }}{{ 'A' if reasoning is not defined or reasoning else 'B' }}", "B"),
        (
            "{{ messages[-1].content }}{{ 'A' if thinking_mode | default('thinking') == 'thinking' else 'B' }}",
            "B",
        ),
        ("{{ messages[-1].content }}{{ messages[-1].thinking is defined }}", "False"),
        (
            "{{ messages[-1].content }}{% if add_generation_prompt %}:<thought>{% endif %}",
            ":<thought>\n</thought>\n\n",
        ),
        ("{{ messages[-1].content }}[THINK]on[/THINK]", "[THINK]on[/THINK]"),
    ],
)
def test_reasoning_is_turned_off_by_other_switches(template, after):
    assert (
        codec_of(
            "{% if messages[0].role == 'system' %}{{ raise_exception('') }}{% endif %}" + template
        ).seam.after
        == after
    )


def test_of_several_templates_the_default_is_taken():
    template = FAMILIES["qwen3"].template
    codec = codec_of({"default": template, "tool_use": "{{ raise_exception('tools') }}"})
    assert codec.seam.after == FAMILIES["qwen3"].after


def test_without_a_default_the_model_gets_plain_text():
    assert not codec_of({"one": "{{ messages }}", "other": "{{ messages }}"}).seam.chat


def test_template_that_cannot_be_split_is_warned_of(recwarn):
    codec = codec_of("{% for m in messages %}{{ m.role }}{% endfor %}")
    assert not codec.seam.chat
    assert "plain text" in str(recwarn.pop(UserWarning).message)


def test_margins_relevance_and_answers_begin_behind_the_reasoning(tiny_model, smollm2):
    tokenizer = copy.deepcopy(smollm2[1])
    tokenizer.chat_template = FAMILIES["qwen3-thinking"].template
    kernel = WimKernel(tiny_model("llama"), tokenizer)
    reading = kernel.read(["A zebra kept the ledger.", "A gull sat on the mast."])
    result = reading.ask("Who kept it?", threshold=0, relevance="decision", **FREE)
    closed = tokenizer.encode("</think>\n\n", add_special_tokens=False)
    for of in (*result.margins, result):
        ids = reading.prompt_ids(of)
        decided = ids if of is result else ids[: -len(kernel.engine.encode(Text("YES:")))]
        assert decided[-len(closed) :] == closed
