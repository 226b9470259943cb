"""What holds on vLLM and SGLang: in float32 they write what the kernel in this process writes, token for token."""

from __future__ import annotations

import pytest
from helpers import config
from transformers import GenerationConfig

pytestmark = pytest.mark.slow

QUESTION = "Who owned the ship?"
OPTIONS = {"threshold": 0, "margin_style": "free", "margin_config": config(8), "answer_config": config(12)}


def relevance(kernel) -> str:
    """The default there."""
    return "lexical+passage" if kernel.engine.measures_likelihood else "lexical+decision"


@pytest.fixture
def kernel(server, real_kernel):
    if server.program.family not in ("vllm", "sglang"):
        pytest.skip("about vLLM and SGLang")
    return server.kernel(calibration=real_kernel.find_calibration())


@pytest.mark.invariant(3)
@pytest.mark.parametrize(
    "question", [QUESTION, "Whose property was that vessel?"], ids=["words", "other words"]
)
def test_margins_answer_and_prompts_equal_the_in_process_kernels(kernel, real_kernel, fresh, question):
    document = fresh()
    there, here = kernel.read(document), real_kernel.read(document)
    theirs = there.ask(question, **OPTIONS)
    ours = here.ask(question, relevance=relevance(kernel), **OPTIONS)
    if kernel.engine.measures_likelihood and question != QUESTION:
        assert any("passage" in margin.evidence for margin in ours.margins)
    for their, our in zip([*theirs.margins, theirs], [*ours.margins, ours], strict=True):
        assert there.prompt_ids(their) == here.prompt_ids(our)
        assert their.token_ids == our.token_ids
    assert [margin.text for margin in theirs.margins] == [margin.text for margin in ours.margins]
    assert theirs.answer == ours.answer
    relevances = [margin.relevance for margin in ours.margins]
    assert [margin.relevance for margin in theirs.margins] == pytest.approx(relevances, abs=1e-3)
    for their, our in zip(theirs.margins, ours.margins, strict=True):
        assert {name: their.evidence[name] for name in our.evidence} == pytest.approx(our.evidence, abs=1e-3)


@pytest.mark.invariant(3)
def test_decisions_and_verbatim_margins_equal_the_in_process_kernels(kernel, real_kernel, fresh):
    if not kernel.engine.measures_likelihood:
        pytest.skip("it tells no likelihoods")
    document = fresh()
    there, here = kernel.read(document), real_kernel.read(document)
    verbatim = {"margin_style": "verbatim", "relevance": "likelihood"}
    for options in ({"relevance": "decision"}, {"relevance": "likelihood"}, verbatim):
        theirs, ours = (reading.margins(QUESTION, **{**OPTIONS, **options}) for reading in (there, here))
        if "margin_style" not in options:  # here attention chooses sentences
            assert [margin.text for margin in theirs] == [margin.text for margin in ours]
        else:
            assert all(their.text in their.chunk.text for their in theirs if "[" not in their.text)
        relevances = [margin.relevance for margin in ours]
        assert [margin.relevance for margin in theirs] == pytest.approx(relevances, abs=1e-4)


def test_likelihood_measurements_leave_the_cache_as_it_is(server, kernel, fresh):
    if not kernel.engine.measures_likelihood:
        pytest.skip("it tells no likelihoods")
    reading = kernel.read(fresh())
    reading.prefill()
    before = server.counted()
    margins = reading.margins(QUESTION, **{**OPTIONS, "threshold": 1, "relevance": "likelihood"})
    counted = server.counted() - before
    assert not any(margin.kept for margin in margins)
    if server.program.block == 1:
        assert 0 < counted.computed <= 5 * 16  # the question, behind the document's beginning and each chunk
    assert counted.cached > 3 * reading.tokens // 2


@pytest.mark.invariant(3)
def test_joint_questions_equal_single_ones(kernel, fresh):
    reading, questions = kernel.read(fresh()), [QUESTION, "Where did gull 3 sit?"]
    together = reading.ask_many(questions, **OPTIONS)
    alone = [reading.ask(question, **OPTIONS) for question in questions]
    assert [result.answer for result in together] == [result.answer for result in alone]
    texts = [[margin.text for margin in result.margins] for result in (*together, *alone)]
    assert texts[:2] == texts[2:]


def test_min_length_ends_and_penalty_equal_transformers(kernel, real_kernel, fresh):
    document = fresh()[:2]
    there, here = kernel.read(document), real_kernel.read(document)
    margins = here.margins(QUESTION, relevance=relevance(kernel), **OPTIONS)
    period = kernel.engine.codec.chat_codec.backend.encode(".", add_special_tokens=False).ids[-1]
    plain = here.answer(QUESTION, margins, **OPTIONS)
    sglang = kernel.engine.family.name == "sglang"
    ends = [kernel.engine.codec.chat_codec.tokenizer.eos_token_id] if sglang else []  # which it always has
    for settings in (
        {"min_new_tokens": len(plain.token_ids) + 6, "max_new_tokens": 40},
        {"eos_token_id": [period, *ends], "max_new_tokens": 40},
        {"eos_token_id": [plain.token_ids[2], *ends], "max_new_tokens": 40},
        {
            "repetition_penalty": 1.0 if sglang else 1.3,
            "max_new_tokens": 20,
        },  # it spares what the prompt holds
        {"stop_strings": ["ship"], "max_new_tokens": 20},
    ):
        generation = GenerationConfig(do_sample=False, **settings)
        options = {**OPTIONS, "answer_config": generation}
        theirs, ours = there.answer(QUESTION, margins, **options), here.answer(QUESTION, margins, **options)
        if "stop_strings" not in settings:  # of which transformers keeps the one that it stops at
            assert (theirs.answer, theirs.token_ids) == (ours.answer, ours.token_ids), settings
        else:
            assert ours.answer.startswith(theirs.answer)
            assert "ship" not in theirs.answer
