"""Branches decoded together write what the model alone would write, and no document token is run twice."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from helpers import FREE, config, generated, scored_alone, spying
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, PreTrainedModel

from wim_kernel import WimKernel
from wim_kernel.text.run_text import Text

pytestmark = pytest.mark.slow

SHARED = ["llama", "mistral", "qwen2", "qwen3", "gemma3", "gemma2", "gpt_neox"]
HYBRID = ["lfm2", "qwen3_next"]
"""Some layers keep states in place of keys and values."""
ALSO_SHARED = ["phi3", "cohere", "stablelm", "starcoder2", "gpt2", "opt", "gpt_oss", "deepseek_v3"]
ALSO_SNAPSHOT = ["bloom", "mpt", "falcon", "gptj", "llama4"]
DECODERS = ["bart", "mbart", "pegasus", "marian", "blenderbot", "plbart"]
"""Decoders of encoder-decoder models, whose configs force an end at the last token."""
SAID = "zebra harbour ledger night rope gull keel 17 sail, brass. lamp; fog? oar crate moon"
WORDS = SAID.split()


@pytest.fixture(scope="module")
def kernels(tiny_model, smollm2):
    """Kernels on tiny models, made once each."""
    made: dict[str, WimKernel] = {}

    def get(kind: str) -> WimKernel:
        if kind not in made:
            made[kind] = WimKernel(tiny_model(kind), smollm2[1])
        return made[kind]

    return get


def check(kernel: WimKernel, chunks: list[str], question: str, **options: Any) -> None:
    """Every margin and the answer equal generate on the tokens their branches saw; relevance equals plain passes."""
    options = {**FREE, "threshold": 0, **options}
    reading = kernel.read(chunks)
    result = reading.ask(question, **options)
    assert [margin.index for margin in result.margins] == list(range(len(chunks)))
    for margin in result.margins:
        assert list(margin.token_ids) == generated(reading, margin, options["margin_config"])
    assert list(result.token_ids) == generated(reading, result, options["answer_config"])


@pytest.mark.invariant(3)
@pytest.mark.parametrize("kind", [*SHARED, *HYBRID])
def test_margins_and_answer_equal_generate(kernels, kind):
    chunks = [" ".join(WORDS[i:] + WORDS[:i]) for i in (0, 4, 9, 2, 7)]
    check(kernels(kind), chunks, "Which zebra kept the ledger?")


@pytest.mark.invariant(3)
@pytest.mark.parametrize("kind", [*ALSO_SHARED, *ALSO_SNAPSHOT, *DECODERS])
def test_architectures_get_their_cache_mode_and_are_exact(kernels, kind):
    kernel = kernels(kind)
    assert kernel.engine.cache_mode == ("shared" if kind in ALSO_SHARED else "snapshot")
    check(kernel, [" ".join(WORDS), "A zebra.", " ".join(WORDS[6:])], "Which zebra kept the ledger?")


@pytest.mark.invariant(3)
@pytest.mark.parametrize("kind", ["llama", "qwen2", "bloom", "bart"])
@pytest.mark.parametrize("end", [[7], [2], [11, 13]])
def test_end_that_is_forced_stands_where_generate_puts_it(kernels, kind, end):
    forced = GenerationConfig(do_sample=False, max_new_tokens=6, forced_eos_token_id=end)
    options = {"margin_config": forced, "answer_config": forced}
    check(kernels(kind), [" ".join(WORDS), "A zebra."], "Which zebra kept the ledger?", **options)


@pytest.mark.parametrize("kind", ["bloom", "llama4"])
def test_slower_path_is_taken_with_a_warning(tiny_model, smollm2, kind):
    with pytest.warns(UserWarning, match="one branch at a time"):
        kernel = WimKernel(tiny_model(kind), smollm2[1])
    assert kernel.engine.cache_mode == "snapshot"


@pytest.mark.invariant(3)
@given(
    kind=st.sampled_from([*SHARED, "lfm2"]),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=7),
    question=st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join),
    batch=st.integers(1, 9),
    new=st.integers(1, 7),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_exactness_for_any_chunking_and_batch(kernels, kind, sizes, question, batch, new):
    kernel = kernels(kind)
    chunks = [" ".join(WORDS[(size + i) % len(WORDS)] for i in range(size)) for size in sizes]
    most, kernel.engine.max_branches = kernel.engine.max_branches, batch
    try:
        check(
            kernel,
            chunks,
            question,
            margin_config=config(new, new),
            answer_config=config(new),
            margin_batch=batch,
        )
    finally:
        kernel.engine.max_branches = most


@pytest.mark.invariant(3)
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
@pytest.mark.parametrize("most", [1, 3, 16])
def test_relevance_equals_plain_passes(kernels, kind, most):
    kernel, question = kernels(kind), "Which zebra kept the ledger?"
    kernel.engine.max_branches, before = most, kernel.engine.max_branches
    reading = kernel.read([" ".join(WORDS * 2), "The ledger was kept by a zebra.", " ".join(WORDS[3:])])
    evidence = reading.evidence(question, relevance="likelihood")
    kernel.engine.max_branches = before
    lead = kernel.engine.encode(Text("\n\nQuestion about the document above:", trusted=True))
    asked = kernel.engine.encode(Text(" " + question))
    prefix: list[int] = list(reading.document.tokens.head)
    alone = [scored_alone(kernel.model, prefix + lead, asked)]
    for piece in reading.document.tokens.chunks:
        prefix += piece
        alone.append(scored_alone(kernel.model, prefix + lead, asked))
    for index, item in enumerate(evidence):
        assert item.likelihood_before == pytest.approx(alone[index], abs=1e-4)
        assert item.likelihood == pytest.approx(alone[index + 1], abs=1e-4)


def test_relevance_does_not_depend_on_how_many_devices_the_model_is_on(kernels, monkeypatch):
    """On several, logits are kept from the first that is wanted on; here of a model on one, taken to be on several."""
    kernel, chunks = kernels("llama"), [" ".join(WORDS), "A zebra.", " ".join(WORDS[6:])]
    options = {**FREE, "relevance": "likelihood", "threshold": 0}
    kernel.cache.clear()  # chunks read before, in other blocks, differ by rounding
    wanted = kernel.read(chunks).ask("Which zebra kept the ledger?", **options)
    kernel.cache.clear()
    monkeypatch.setattr(kernel.engine.runner, "spread", True)
    found = kernel.read(chunks).ask("Which zebra kept the ledger?", **options)
    assert [margin.relevance for margin in found.margins] == [margin.relevance for margin in wanted.margins]
    assert [margin.token_ids for margin in found.margins] == [margin.token_ids for margin in wanted.margins]


@pytest.mark.invariant(3)
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_a_decision_is_part_of_the_prompt_and_equals_a_plain_pass(kernels, kind):
    kernel = kernels(kind)
    reading = kernel.read(["The ledger was kept by a zebra.", " ".join(WORDS)])
    margins = reading.margins("Who kept it?", relevance="decision", threshold=0, **FREE)
    yes, no = (kernel.engine.encode(Text(word)) for word in ("YES:", "NO"))
    for margin in margins:
        ids = reading.prompt_ids(margin)
        assert ids[-len(yes) :] == yes
        with torch.inference_mode():
            logits = kernel.model(torch.tensor([ids[: -len(yes)]])).logits[0, -1]
        assert margin.relevance == pytest.approx(float(logits[[yes[0], no[0]]].softmax(-1)[0]), abs=1e-4)
        assert list(margin.token_ids) == generated(reading, margin, FREE["margin_config"])


@pytest.mark.invariant(3)
def test_sentences_are_chosen_as_one_alone_would_be(tiny_model, smollm2):
    """Where attention cannot be seen, by the question's likelihood."""
    kernel, question = (
        WimKernel(tiny_model("llama"), smollm2[1], cache_mode="snapshot"),
        "Which zebra kept the ledger?",
    )
    text = (
        "A gull sat on the rope. The zebra kept a ledger of brass! Fog came in at night. Oars lay in a crate."
    )
    reading = kernel.read([" ".join(WORDS), text])
    (_, margin) = reading.margins(question, margin_style="verbatim", threshold=0, margin_config=config(1))
    lead = kernel.engine.encode(Text("\n\nQuestion about the document above:", trusted=True))
    asked, head = kernel.engine.encode(Text(" " + question)), list(reading.document.tokens.head)
    sentences = [
        "A gull sat on the rope.",
        "The zebra kept a ledger of brass!",
        "Fog came in at night.",
        "Oars lay in a crate.",
    ]
    alone = {
        s: scored_alone(kernel.model, head + kernel.engine.encode(Text(s)) + lead, asked) for s in sentences
    }
    assert margin.text == max(alone, key=alone.__getitem__)  # one token of room: the best sentence alone
    (span,) = margin.spans
    assert text[span.start : span.end] == margin.text
    assert span.source_id == "1"


@pytest.mark.invariant(1)
@pytest.mark.parametrize("kind", ["llama", "gemma3", "lfm2"])
def test_each_document_token_is_run_once(kernels, kind):
    kernel = kernels(kind)
    chunks = [" zebra" * 30, " zebra" * 7, "", " zebra" * 41]
    (zebra,) = kernel.engine.encode(Text(" zebra"))
    kernel.cache.clear()
    with spying(kernel.model) as spy:
        reading = kernel.read(chunks)
        usage = reading.prefill()
        assert usage.prefill_tokens == reading.tokens
        assert spy.tokens == reading.tokens + usage.prompt_tokens  # the head, which is not the document's
        reading.ask("Who?", threshold=0, **FREE)
        reading.ask("Where?", **FREE)
        reading.ask_many(["Which?", "When was it?"], threshold=0, **FREE)
        again = kernel.read(chunks).ask("Who?", threshold=1, **FREE)
        assert again.usage.prefill_tokens == 0
        assert again.usage.cached_tokens == reading.tokens
    assert spy.count(zebra) == 78


@pytest.mark.invariant(2)
def test_a_branch_never_changes_the_reading(kernels):
    kernel = kernels("llama")
    kernel.cache.clear()
    reading = kernel.read([" ".join(WORDS), " ".join(WORDS[5:])])
    reading.prefill()
    (entry,) = kernel.cache._entries
    before = {
        index: (layer.keys.clone(), layer.values.clone()) for index, layer in entry.prefix.layers.items()
    }
    ids = list(entry.prefix.ids)
    reading.ask("Who kept the ledger?", threshold=0, **FREE)
    reading.margins("Where?", relevance="second-call", threshold=0, **FREE)
    assert entry.prefix.ids == ids
    for index, layer in entry.prefix.layers.items():
        used = len(ids)
        assert torch.equal(layer.keys[:, :used], before[index][0][:, :used])
        assert torch.equal(layer.values[:, :used], before[index][1][:, :used])


def test_the_model_stays_free_for_other_use(tiny_model, smollm2):
    model: PreTrainedModel = tiny_model("qwen2")
    ids = torch.arange(40, 80)[None]
    plain = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=10)
    kernel = WimKernel(model, smollm2[1])
    stream = kernel.read([" ".join(WORDS * 3)] * 3).stream("Who?", threshold=0, **FREE)
    next(stream)  # in the middle of a call
    during = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=10)
    rest = list(stream)
    assert torch.equal(plain, during)
    assert rest
    model.set_attn_implementation("eager")  # a user's change between calls
    check(kernel, [" ".join(WORDS), "A zebra."], "Who kept it?")


@pytest.mark.parametrize(
    ("rope", "window"),
    [
        (
            {
                "rope_type": "dynamic",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 512,
            },
            512,
        ),
        ({"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}, 2048),
    ],
)
def test_the_window_ends_where_rotary_frequencies_would_change(smollm2, rope, window):
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=2048,
        rope_parameters=rope,
    )
    with pytest.warns(UserWarning, match="rotary") if window < 2048 else contextlib.nullcontext():
        kernel = WimKernel(AutoModelForCausalLM.from_config(config), smollm2[1])
    assert kernel.engine.window == window


def test_relevance_in_bfloat16_is_close_to_float32(smollm2):
    """In bfloat16 nothing is promised token for token, but relevance stays close to float32's."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.1,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    chunks = [" ".join(WORDS), "A zebra kept the ledger.", " ".join(WORDS[4:])]
    exact = WimKernel(model, smollm2[1]).read(chunks).evidence("Who kept it?", relevance="likelihood")
    half = (
        WimKernel(model.to(torch.bfloat16), smollm2[1])
        .read(chunks)
        .evidence("Who kept it?", relevance="likelihood")
    )
    for one, other in zip(exact, half, strict=True):
        assert one.likelihood == pytest.approx(other.likelihood, abs=0.1)


def test_unsupported_model_is_refused_by_name(smollm2):
    from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

    from wim_kernel import UnsupportedModelError

    config = RecurrentGemmaConfig(
        vocab_size=49152,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        lru_width=32,
        attention_window_size=16,
    )
    with pytest.raises(UnsupportedModelError, match=r"RecurrentGemma.* keeps states in its modules"):
        WimKernel(RecurrentGemmaForCausalLM(config).eval(), smollm2[1])


def test_penalties_equal_generate_and_sampling_follows_the_seed(kernels):
    """A penalty and a ban are honoured exactly as generate honours them; sampling follows the seed."""
    from transformers import GenerationConfig

    kernel = kernels("llama")
    strict = GenerationConfig(
        do_sample=False, max_new_tokens=12, repetition_penalty=1.7, no_repeat_ngram_size=2
    )
    check(kernel, [" ".join(WORDS), "A zebra."], "Who kept it?", margin_config=strict, answer_config=strict)
    drawn = GenerationConfig(do_sample=True, max_new_tokens=8, temperature=1.5, top_k=50)
    reading = kernel.read([" ".join(WORDS)])
    answers = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        answers.append(reading.answer("Who?", [], answer_config=drawn).token_ids)
    assert answers[0] == answers[1] != answers[2]


def test_beams_are_refused(kernels):
    from transformers import GenerationConfig

    reading = kernels("llama").read(["A zebra."])
    with pytest.raises(ValueError, match="num_beams"):
        reading.ask("Who?", answer_config=GenerationConfig(num_beams=3, max_new_tokens=4))
