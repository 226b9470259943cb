"""The synthesizer by itself: objects as answers, prompts, nothing to read, wrong options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from helpers import spying
from llama_index.core import SummaryIndex
from llama_index.core.base.response.schema import (
    PydanticResponse,
)
from llama_index.core.llms import MockLLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate, RichPromptTemplate
from llama_index.core.query_engine import (
    RetrieverQueryEngine,
)
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import NodeWithScore, TextNode
from pieces import FEW, QUESTION
from pydantic import BaseModel
from transformers import GenerationConfig

from wim_integrations.llama_index import WimSynthesizer
from wim_kernel import PROMPTS, WimKernel

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_model_anywhere")]


class Owner(BaseModel):
    name: str
    year: int


@pytest.mark.in_process
async def test_output_cls_answers_are_objects(kernel: WimKernel, nodes: list[NodeWithScore]) -> None:
    few = {"threshold": 0, "margin_tokens": 3, "answer_tokens": 80}
    for synthesizer in (
        WimSynthesizer(kernel, output_cls=Owner, **few),
        WimSynthesizer(kernel, output_cls=Owner, streaming=True, **few),
        WimSynthesizer(kernel, llm=StructuredLLM(llm=MockLLM(), output_cls=Owner), **few),
    ):
        for response in (
            synthesizer.synthesize(QUESTION, nodes),
            await synthesizer.asynthesize(QUESTION, nodes),
        ):
            assert isinstance(response, PydanticResponse)
            assert isinstance(response.response, Owner)
            assert response.metadata["margins"]
    kernel.cache.clear()
    with spying(kernel.model) as spy, pytest.raises(ValueError, match="more answer_tokens"):
        WimSynthesizer(kernel, output_cls=Owner, answer_tokens=2).synthesize(QUESTION, nodes)
    assert not spy.batches


def asked(synthesizer: WimSynthesizer, nodes: list[NodeWithScore], **variables: Any) -> tuple[str, str]:
    """A margin's and the answer's prompts as the model sees them."""
    reading = synthesizer._read(nodes).reading
    result = reading.ask(
        QUESTION, **{**synthesizer._call_options(QUESTION, variables), "margin_style": "free"}
    )
    decode = synthesizer.kernel.tokenizer.decode
    return decode(result.margins[0].branch.suffix_ids), decode(result.branch.suffix_ids)


@pytest.mark.in_process
@pytest.mark.parametrize(
    "template",
    [
        PromptTemplate("Context: {context_str}\nTone: {tone} {{x}}\nQuery: {query_str}"),
        ChatPromptTemplate.from_messages(
            [("system", "Context: {context_str}"), ("user", "Tone: {tone}\nQuery: {query_str}")]
        ),
        RichPromptTemplate("Context: {{ context_str }}\nTone: {{ tone }}\nQuery: {{ query_str }}"),
        PromptTemplate(
            "Context: {c}\nTone: {tone}\nQuery: {q}",
            template_var_mappings={"context_str": "c", "query_str": "q"},
        ),
        PromptTemplate("Context: {context_str}\nTone: {tone}\nQuery: {query_str}").partial_format(
            tone="<|im_end|>{y}"
        ),
    ],
    ids=["text", "chat", "rich", "mapped", "partial"],
)
def test_text_qa_template_replaces_the_answers_prompt(
    kernel: WimKernel, nodes: list[NodeWithScore], template: Any
) -> None:
    synthesizer = WimSynthesizer(kernel, **FEW)
    shown = synthesizer.get_prompts()
    assert set(shown) == {"text_qa_template", "margin_template"}
    _, plain = asked(synthesizer, nodes)
    engine = RetrieverQueryEngine(SummaryIndex([]).as_retriever(), response_synthesizer=synthesizer)
    engine.update_prompts({"response_synthesizer:text_qa_template": template})
    _, answer = asked(synthesizer, nodes, tone="<|im_end|>{y}")
    assert "Context: the document above" in answer
    assert "Tone: <|im_end|>{y}" in answer
    assert f"Query: {QUESTION}" in answer
    assert answer != plain
    assert str(synthesizer.synthesize(QUESTION, nodes, tone="kind"))
    synthesizer.update_prompts(
        {"margin_template": PromptTemplate("Note what {context_str} says of {query_str}.")}
    )
    note, _ = asked(synthesizer, nodes, tone="kind")
    assert f"Note what the last passage above says of {QUESTION}." in note


@pytest.mark.in_process
def test_a_template_that_changes_the_question(kernel: WimKernel, nodes: list[NodeWithScore]) -> None:
    template = RichPromptTemplate("{{ query_str | upper }}\n{{ margins }}")
    synthesizer = WimSynthesizer(kernel, text_qa_template=template, **FEW)
    _, answer = asked(synthesizer, nodes)
    assert QUESTION.upper() in answer
    assert "\n- " in answer
    assert not any("\ue000" <= char <= "\ue002" for char in answer)


@pytest.mark.in_process
def test_variables_fill_the_prompts_of_every_call(kernel: WimKernel, nodes: list[NodeWithScore]) -> None:
    prompts = replace(PROMPTS["answer"], answer="\n\nIn a {tone} tone: {question}")
    _, answer = asked(WimSynthesizer(kernel, prompts=prompts, variables={"tone": "kind"}, **FEW), nodes)
    assert f"In a kind tone: {QUESTION}" in answer
    config = GenerationConfig(max_new_tokens=700, do_sample=False)
    options = WimSynthesizer(kernel, output_cls=Owner, answer_config=config)._call_options(QUESTION, {})
    assert options.get("answer_tokens") is None


@pytest.mark.in_process
def test_texts_that_a_subclass_changed_are_what_is_read(
    kernel: WimKernel, nodes: list[NodeWithScore]
) -> None:
    class Masking(WimSynthesizer):
        def get_response(self, query_str: str, text_chunks: Any, **kwargs: Any) -> Any:
            return super().get_response(
                query_str, [text.replace("Elsa", "****") for text in text_chunks], **kwargs
            )

    kernel.cache.clear()
    mark = kernel.tokenizer.encode(" Elsa", add_special_tokens=False)[0]
    with spying(kernel.model) as spy:
        assert str(Masking(kernel, **FEW).synthesize(QUESTION, nodes))
    assert spy.batches
    assert spy.count(mark) == 0


async def test_synthesizer_without_text_gives_the_empty_response(kernel: WimKernel) -> None:
    blank = [NodeWithScore(node=TextNode(text=" "))]
    for nodes in ([], blank):
        synthesizer = WimSynthesizer(kernel, empty_response="Nothing.")
        assert str(synthesizer.synthesize(QUESTION, nodes)) == "Nothing."
        assert str(await synthesizer.asynthesize(QUESTION, nodes)) == "Nothing."
        streaming = WimSynthesizer(kernel, empty_response="Nothing.", streaming=True)
        assert "".join(streaming.synthesize(QUESTION, nodes).response_gen) == "Nothing."
        stream = await streaming.asynthesize(QUESTION, nodes)
        assert "".join([piece async for piece in stream.async_response_gen()]) == "Nothing."
        shaped = WimSynthesizer(
            kernel, empty_response="Nothing.", llm=StructuredLLM(llm=MockLLM(), output_cls=Owner)
        )
        assert str(shaped.synthesize(QUESTION, nodes)) == "Nothing."


def test_wrong_options_are_refused_at_once(kernel: WimKernel) -> None:
    with pytest.raises(TypeError, match="treshold"):
        WimSynthesizer(kernel, treshold=0.5)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="top_k"):
        WimSynthesizer(kernel, top_k=0)


def test_synthesizer_takes_every_task(kernel: WimKernel, nodes: list[NodeWithScore]) -> None:
    summary = WimSynthesizer(kernel, task="summarise", margin_tokens=3, answer_tokens=5)
    assert isinstance(summary, BaseSynthesizer)
    assert str(summary.synthesize("", nodes))
    early = WimSynthesizer(
        kernel, threshold=0, stop_after=1, margin_tokens=2, answer_tokens=2, margin_batch=1
    )
    response = early.synthesize(QUESTION, nodes)
    assert response.metadata["stopped_early"]
    assert [item.score for item in response.source_nodes][1:] == [item.score for item in nodes][1:]
