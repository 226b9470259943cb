"""Every method on a tiny model: what the model is asked, and what is counted."""

from __future__ import annotations

import copy
import sys

import pytest
from helpers import Loaded, TinyModel, spying

from wim_integrations.evaluation.errors import EvaluationError
from wim_integrations.evaluation.generation import Generator
from wim_integrations.evaluation.methods import Limits, make_method, references_of
from wim_integrations.evaluation.outcomes import Outcome, Reference
from wim_integrations.evaluation.specs import NAMES, parse_methods
from wim_integrations.evaluation.tasks import Document, Question
from wim_kernel import Chunk, Margin, Timings, Usage, WimKernel, WimResult
from wim_kernel.run.citing import citations_of

pytestmark = pytest.mark.slow

CHUNKS = ("The gull sat on the mast.", "Elsa Brandt owned the ship.", "Fog stood on the river until noon.")
QUESTION = Question("ships", "1", "Who owned the ship?", ("Elsa Brandt",), CHUNKS, (1,), "any-answer")
DOCUMENT = Document(CHUNKS, (False, True, False), ("", CHUNKS[1], ""))
LIMITS = Limits(answer_tokens=6, margin_tokens=5)


def answer(kernel: WimKernel, method: str, limits: Limits = LIMITS) -> Outcome:
    return make_method(parse_methods(method)[0], kernel, limits)(QUESTION, DOCUMENT)


@pytest.mark.parametrize("method", NAMES)
def test_all_answer_and_count_what_the_model_ran(kernel: WimKernel, method: str) -> None:
    with spying(kernel.model) as spy:
        outcome = answer(kernel, method)
    tokens = outcome.tokens
    assert outcome.answer == outcome.calls[-1].output
    assert tokens.output > 0
    assert tokens.cached == 0
    assert bool(tokens.prefill) == (method not in ("map-reduce", "refine", "tree-summarize"))
    if method in ("plain", "gold", "rag", "refine", "tree-summarize"):  # the others pad batches
        # Everything was run but the last token of each text.
        run = tokens.prefill + tokens.prompt + tokens.output
        assert run - len(outcome.calls) <= spy.tokens <= run
    assert len(kernel.tokenizer.encode(outcome.answer)) <= 8


@pytest.mark.parametrize("method", NAMES)
def test_a_method_finds_nothing_read_by_the_one_before(kernel: WimKernel, method: str) -> None:
    first = answer(kernel, method)
    assert answer(kernel, method) == first


def test_plain_and_gold_prompts(kernel: WimKernel) -> None:
    (call,) = answer(kernel, "plain").calls
    document = "Document:\n[chunk 0][chunk 1][chunk 2]\n\nAnswer the question"
    assert document in call.prompt
    assert "<|im_start|>system" in call.prompt
    assert "Who owned the ship?" in call.prompt
    assert "Elsa" not in call.prompt
    (call,) = answer(kernel, "gold").calls
    assert "- Elsa Brandt owned the ship.\n" in call.prompt


def test_margins_are_judged_and_their_prompts_kept(kernel: WimKernel) -> None:
    outcome = answer(kernel, "wim-free:threshold=0")
    assert [(chunk.index, chunk.kept) for chunk in outcome.chunks] == [(0, True), (1, True), (2, True)]
    assert outcome.calibrated
    assert [call.output for call in outcome.calls[:-1]] == [chunk.text for chunk in outcome.chunks]
    assert "[chunk 0][chunk 1]\n" in outcome.calls[1].prompt
    assert "[chunk 2]" not in outcome.calls[1].prompt


def test_references_are_checked_against_the_document(kernel: WimKernel) -> None:
    margins = tuple(
        Margin(index, text, 0.9, True, Chunk.of(chunk, f"page {index}"))
        for index, (text, chunk) in enumerate(
            [("Made up by a model.", CHUNKS[0]), ("elsa brandt owned the ship", CHUNKS[1])]
        )
    )
    text = "Elsa Brandt [2], they say [1]."
    result = WimResult(text, margins, Usage(), Timings(), citations=citations_of(text, margins))
    assert references_of(result, DOCUMENT) == (
        Reference("Elsa Brandt owned the ship", 1, True, "exact", True),
        Reference("Made up by a model.", 0, False, "unlocated", True),
    )
    assert answer(kernel, "wim-verbatim:threshold=0").references is None
    assert answer(kernel, "wim-verbatim:threshold=0,citations=true").references is not None


def test_rag_reads_the_best_chunks_in_order(kernel: WimKernel) -> None:
    outcome = answer(kernel, "rag:top_k=1")
    assert [chunk.kept for chunk in outcome.chunks] == [False, True, False]
    assert max(outcome.chunks, key=lambda chunk: chunk.score).index == 1
    assert not outcome.calibrated
    assert "Document:\n[chunk 1]\n" in outcome.calls[0].prompt
    all_of_them = answer(kernel, "rag:top_k=9")
    assert "[chunk 0][chunk 1][chunk 2]" in all_of_them.calls[0].prompt
    assert all_of_them.answer == answer(kernel, "plain").answer


def test_rag_scores_zero_for_a_question_without_words(kernel: WimKernel) -> None:
    question = Question("ships", "1", "?", ("x",), CHUNKS, None, "any-answer")
    outcome = make_method(parse_methods("rag")[0], kernel, LIMITS)(question, DOCUMENT)
    assert [chunk.score for chunk in outcome.chunks] == [0, 0, 0]


def test_map_reduce_asks_once_a_chunk_and_once_more(kernel: WimKernel) -> None:
    calls = answer(kernel, "map-reduce").calls
    assert len(calls) == 4
    for index, call in enumerate(calls[:3]):
        assert f"[chunk {index}]<|im_end|>" in call.prompt
        assert "Return any relevant text verbatim" in call.prompt
        assert call.output in calls[3].prompt
    assert "create a final answer" in calls[3].prompt


def test_refine_goes_on_from_the_answer_before(kernel: WimKernel) -> None:
    calls = answer(kernel, "refine").calls
    assert len(calls) == 3
    assert "[chunk 0]" in calls[0].prompt
    assert "[chunk 1]" in calls[1].prompt
    assert f"Original Answer: {calls[0].output}" in calls[1].prompt


def test_tree_summarize_reads_all_at_once(kernel: WimKernel) -> None:
    (call,) = answer(kernel, "tree-summarize").calls
    assert "[chunk 0]\n\n[chunk 1]\n\n[chunk 2]" in call.prompt


@pytest.fixture(scope="module")
def base_kernel(tiny_model: TinyModel, smollm2: Loaded) -> WimKernel:
    tokenizer = copy.deepcopy(smollm2[1])
    tokenizer.chat_template = None
    return WimKernel(tiny_model("llama"), tokenizer)


@pytest.mark.parametrize("method", NAMES)
def test_prompts_for_models_without_a_chat_template(base_kernel: WimKernel, method: str) -> None:
    outcome = answer(base_kernel, method)
    assert "<|im_start|>" not in outcome.calls[-1].prompt
    assert outcome.tokens.output > 0


def test_prompts_for_templates_without_a_system_role(smollm2: Loaded) -> None:
    tokenizer = copy.deepcopy(smollm2[1])
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    )
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    assert Generator(smollm2[0], tokenizer).render(messages) == "<user>Be brief.\n\nWho?<assistant>"


def test_generation_in_batches_is_the_same_as_one_by_one(kernel: WimKernel) -> None:
    prompts = ["Who owned the ship?", "The gull sat on the mast and looked at the sea.", "Fog"]
    together = Generator(kernel.model, kernel.tokenizer)
    alone = Generator(kernel.model, kernel.tokenizer, batch_size=1)
    assert together.generate(prompts, 5) == alone.generate(prompts, 5)
    assert together.tokens == alone.tokens
    assert together.calls == alone.calls


def test_chunks_that_the_window_cannot_hold_are_an_error(tiny_model: TinyModel, smollm2: Loaded) -> None:
    kernel = WimKernel(tiny_model("llama"), smollm2[1], window=256)
    chunks = ("The gull sat on the mast. " * 60, "Elsa Brandt owned the ship.")
    document = Document(chunks, (False, True), ("", chunks[1]))
    for method in ("wim", "gold"):
        with pytest.raises(EvaluationError, match="use a smaller --chunk-tokens"):
            make_method(parse_methods(method)[0], kernel, LIMITS)(QUESTION, document)


@pytest.mark.parametrize(
    ("method", "module"),
    [
        ("rag", "bm25s"),
        ("map-reduce", "langchain_classic"),
        ("refine", "llama_index.core"),
        ("tree-summarize", "llama_index.core"),
    ],
)
def test_missing_packages_are_named(
    kernel: WimKernel, monkeypatch: pytest.MonkeyPatch, method: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EvaluationError, match=rf"The method {method} needs {module}: pip install .*\[eval\]"):
        answer(kernel, method)
