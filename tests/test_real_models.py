"""The two real models, in float32: branches write together what the models write alone. Loaded here alone: Gemma 3."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from helpers import config, generated, spying

from wim_kernel import MarginWritten, WimKernel
from wim_kernel.engines.codec import ChatCodec
from wim_kernel.run.settings import EVIDENCE_THRESHOLD
from wim_kernel.text.run_text import Text

pytestmark = pytest.mark.slow

STORY = (Path(__file__).parents[1] / "examples" / "data" / "alice-chapters-3-4.txt").read_text()
QUESTION = "What did the Rabbit tell Mary Ann to fetch?"
TOLD = STORY.index("Run home this moment")
PAGE = STORY[TOLD - 1500 : TOLD + 1500]
OPTIONS = {
    "threshold": 0,
    "margin_style": "free",
    "margin_config": config(8),
    "answer_config": config(12),
}


@pytest.fixture(scope="module", params=["smollm2", "gemma3"])
def kernel(request):
    if request.param == "smollm2":
        return request.getfixturevalue("real_kernel")
    return WimKernel(*request.getfixturevalue("gemma3"))


@pytest.mark.invariant(3)
def test_every_margin_and_the_answer_equal_generate(kernel):
    """The chunks differ in length, and the last one makes the text longer than Gemma's window of 512."""
    window = getattr(kernel.model.config, "sliding_window", None)
    text = STORY[TOLD - (2200 if window else 800) : TOLD + 200]
    cuts = [0, 300, 400, 700, len(text)]
    reading = kernel.read([text[a:b] for a, b in itertools.pairwise(cuts)])
    assert reading.tokens > (window or 200)
    with spying(kernel.model) as spy:
        first, second = reading.ask_many([QUESTION, "Who is Dinah?"], **OPTIONS)
    assert max(batch.shape[0] for batch in spy.batches) >= 8  # margins were decoded together
    # `generate` takes seconds behind the last chunk: there, one question's margin and answer have to do.
    for margin in (*first.margins, *second.margins[:-1]):
        assert list(margin.token_ids) == generated(reading, margin, OPTIONS["margin_config"])
    assert list(first.token_ids) == generated(reading, first, OPTIONS["answer_config"])


@pytest.mark.parametrize(("score", "at_least"), [("likelihood", 0.9), ("combined", EVIDENCE_THRESHOLD)])
def test_relevance_finds_the_passage(real_kernel, score, at_least):
    reading = real_kernel.read(PAGE, chunk_tokens=128)
    relevance = reading.relevance(QUESTION, relevance=score)
    (gold,) = [i for i, chunk in enumerate(reading.chunks) if "Run home this moment" in chunk.text]
    assert relevance[gold] == max(relevance)
    assert relevance[gold] > at_least
    assert sorted(relevance)[len(relevance) // 2] < 0.5


def test_spans_of_verbatim_margins_hold_their_text(real_kernel):
    reading = real_kernel.read(PAGE, chunk_tokens=128)
    events = list(reading.stream_margins(QUESTION, margin_style="verbatim"))
    kept = [event.margin for event in events if isinstance(event, MarginWritten) and event.margin.kept]
    assert kept
    for margin in kept:
        assert margin.spans
        for span in margin.spans:
            assert PAGE[span.start : span.end] in margin.text
            assert span.source_id == "document"
    assert any("fetch me a pair of gloves" in margin.text.replace("\n", " ") for margin in kept)


def test_gemma3_is_a_base_model_with_a_sliding_window(gemma3) -> None:
    model, tokenizer = gemma3
    assert tokenizer.chat_template is None
    assert model.config.sliding_window == 512
    assert set(model.config.layer_types) == {"sliding_attention", "full_attention"}
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    assert prompt["input_ids"][0, 0] == tokenizer.bos_token_id
    assert "city in France" in tokenizer.decode(
        model.generate(**prompt, max_new_tokens=20, do_sample=False)[0]
    )


@pytest.mark.slow
def test_a_base_model_gets_plain_text_and_its_own_beginning(gemma3):
    codec = ChatCodec(gemma3[1])
    assert not codec.seam.chat
    head = codec.head("Read.", "Document:\n")
    assert head[0] == gemma3[1].bos_token_id
    assert head.count(gemma3[1].bos_token_id) == 1
    assert codec.decode(head) == "Read.\n\nDocument:\n"
    runs = codec.suffix((Text("\n\nQ:", trusted=True), Text(" who?")), "Answer:")
    assert codec.decode([token for run in runs for token in run]) == "\n\nQ: who?\nAnswer:"
