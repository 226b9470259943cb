"""The kernel's model as a language model: chat engines, selectors, question generators, structured predictions."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from llama_index.core import Document, SummaryIndex
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.chat_engine import CondenseQuestionChatEngine
from llama_index.core.llms import CustomLLM, MockLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RouterQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.selectors import LLMMultiSelector, LLMSingleSelector
from llama_index.core.tools import QueryEngineTool
from pydantic import BaseModel

from wim_integrations.llama_index import WimLLM, WimNodePostprocessor, WimSynthesizer, create_wim_tool
from wim_kernel import ContextOverflowError, UnknownOptionError, WimKernel

QUESTION = "Who owned the ship?"
FEW: dict[str, Any] = {"threshold": 0, "margin_tokens": 4, "answer_tokens": 6}


def engine(synthesizer: WimSynthesizer, text: str) -> Any:
    index = SummaryIndex.from_documents([Document(text=text)])
    return index.as_query_engine(llm=synthesizer.llm, response_synthesizer=synthesizer)


def generated(kernel: WimKernel, messages: list[dict[str, str]], tokens: int) -> str:
    """What the model itself says by its chat template."""
    ids = kernel.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = kernel.model.generate(**ids, max_new_tokens=tokens, do_sample=False)
    return str(kernel.tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))


# -- it is the model ---------------------------------------------------------------------------------------------------


def test_wim_llm_equals_generate(real_kernel: WimKernel) -> None:
    llm = WimSynthesizer(real_kernel).llm
    assert isinstance(llm, CustomLLM)
    system = {"role": "system", "content": "You are a helpful assistant."}
    asked = {"role": "user", "content": "Name the capital of France."}
    wanted = generated(real_kernel, [system, asked], 12)
    assert llm.complete(asked["content"], max_tokens=12).text == wanted
    assert llm.complete(asked["content"], max_tokens=12).text != asked["content"]
    turns = [
        {"role": "system", "content": "Answer in French."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Bonjour."},
        asked,
    ]
    messages = [ChatMessage(role=MessageRole(turn["role"]), content=turn["content"]) for turn in turns]
    said = llm.chat(messages, max_tokens=12)
    assert said.message.content == generated(real_kernel, turns, 12)
    assert said.message.role == MessageRole.ASSISTANT


async def test_wim_llm_calls_agree(kernel: WimKernel) -> None:
    llm = WimLLM(kernel, max_tokens=8)
    messages = [ChatMessage(role=MessageRole.USER, content="Hello")]
    text = llm.complete("Hello").text
    assert text
    assert (await llm.acomplete("Hello")).text == text
    pieces = list(llm.stream_complete("Hello"))
    apieces = [piece async for piece in await llm.astream_complete("Hello")]
    for found in (pieces, apieces):
        assert "".join(piece.delta or "" for piece in found) == found[-1].text == text
        assert found[-1].raw["usage"]["completion_tokens"] == 8
    assert llm.chat(messages).message.content == text
    assert (await llm.achat(messages)).message.content == text
    assert [piece.message.content for piece in llm.stream_chat(messages)][-1] == text
    assert [piece.message.content async for piece in await llm.astream_chat(messages)][-1] == text
    assert llm.predict(PromptTemplate("{word}"), word="Hello") == text
    assert await llm.apredict(PromptTemplate("{word}"), word="Hello") == text


@pytest.mark.in_process
def test_wim_llm_metadata_and_options(kernel: WimKernel) -> None:
    llm = WimLLM(kernel, max_tokens=8)
    assert llm.metadata.context_window == kernel.engine.window
    assert llm.metadata.is_chat_model
    assert llm.metadata.model_name == kernel.engine.model_name
    assert llm.metadata.num_output == 8
    with pytest.raises(UnknownOptionError, match="max_tokens"):
        llm.complete("Hello", max_token=3)
    with pytest.raises(ContextOverflowError, match="conversation"):
        llm.complete("word " * 9000)
    assert llm.complete("word " * (kernel.engine.window - 60)).text  # as many tokens as there is room for
    assert not any(live.in_use for live in kernel.cache.held)


def test_wim_llm_stops_when_its_stream_is_closed(kernel: WimKernel) -> None:
    with contextlib.closing(WimLLM(kernel, max_tokens=500).stream_complete("Hello")) as pieces:  # type: ignore[type-var]
        assert next(pieces).delta
    assert WimLLM(kernel, max_tokens=2).complete("Hello").text


# -- engines that want one ---------------------------------------------------------------------------------------------

SHIP = "Elsa Brandt owned the ship Aurora. She bought it in Bergen."
BREAD = "Bread is made of flour, water and salt. It is baked in an oven."


def tools(synthesizer: WimSynthesizer) -> list[QueryEngineTool]:
    return [
        QueryEngineTool.from_defaults(engine(synthesizer, SHIP), name="ships", description="About ships."),
        QueryEngineTool.from_defaults(engine(synthesizer, BREAD), name="bread", description="About bread."),
    ]


@pytest.mark.in_process
async def test_router_query_engine_selects_with_wim_llm(kernel: WimKernel) -> None:
    synthesizer = WimSynthesizer(kernel, **FEW)
    for selector in (
        LLMSingleSelector.from_defaults(llm=synthesizer.llm),
        LLMMultiSelector.from_defaults(llm=synthesizer.llm, max_outputs=1),
    ):
        router = RouterQueryEngine.from_defaults(
            tools(synthesizer), llm=synthesizer.llm, selector=selector, summarizer=None
        )
        assert str(router.query(QUESTION)).strip()
        assert str(await router.aquery(QUESTION)).strip()
    by_default = RouterQueryEngine.from_defaults(tools(synthesizer), llm=synthesizer.llm)
    response = by_default.query(QUESTION)
    assert response.metadata["selector_result"].selections[0].index in (0, 1)


def test_condense_question_chat_engine_asks_a_whole_question(real_kernel: WimKernel) -> None:
    synthesizer = WimSynthesizer(real_kernel, **FEW)
    chat = CondenseQuestionChatEngine.from_defaults(engine(synthesizer, SHIP), llm=synthesizer.llm)
    assert chat.chat(QUESTION).response.strip()
    second = chat.chat("Where did she buy it?")
    assert second.response.strip()
    asked = second.sources[0].raw_input["query"]
    assert "<Chat History>" not in asked
    assert asked.strip()


@pytest.mark.in_process
async def test_condense_question_chat_engine_streams_and_awaits(kernel: WimKernel) -> None:
    synthesizer = WimSynthesizer(kernel, llm=WimLLM(kernel, max_tokens=16), **FEW)
    chat = CondenseQuestionChatEngine.from_defaults(engine(synthesizer, SHIP), llm=synthesizer.llm)
    assert (await chat.achat("When?")).response.strip()
    streamed = chat.stream_chat("And then?")
    assert "".join(streamed.response_gen).strip()


@pytest.mark.in_process
def test_sub_question_engine_generates_with_wim_llm(kernel: WimKernel) -> None:
    synthesizer = WimSynthesizer(kernel, llm=WimLLM(kernel, max_tokens=400), **FEW)
    sub = SubQuestionQueryEngine.from_defaults(
        query_engine_tools=tools(synthesizer),
        question_gen=LLMQuestionGenerator.from_defaults(llm=synthesizer.llm),
        response_synthesizer=synthesizer,
        llm=synthesizer.llm,
        use_async=False,
        verbose=False,
    )
    assert str(sub.query("Compare ships and bread.")).strip()


class Owner(BaseModel):
    name: str
    year: int


@pytest.mark.in_process
async def test_structured_predictions_fit_their_class(kernel: WimKernel) -> None:
    llm = WimLLM(kernel, max_tokens=64)
    prompt = PromptTemplate("Who owned {what}?")
    assert isinstance(llm.structured_predict(Owner, prompt, what="it"), Owner)
    assert isinstance(await llm.astructured_predict(Owner, prompt, what="it"), Owner)
    assert isinstance(llm.as_structured_llm(Owner).complete("Who?").raw, Owner)


# -- what is no kernel -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [None, "embedded", object()])
@pytest.mark.parametrize(
    "make", [WimSynthesizer, WimNodePostprocessor, WimLLM, lambda kernel: create_wim_tool(kernel, "A text.")]
)
def test_objects_that_are_no_kernel_are_refused(make: Any, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"WimKernel, not a \w+: make one with"):
        make(wrong)


def test_a_language_model_makes_a_kernel_and_no_wim_llm() -> None:
    assert WimSynthesizer(MockLLM()).kernel.engine.model_name == "MockLLM"
    with pytest.raises(TypeError, match="WimKernel, not a MockLLM"):
        WimLLM(MockLLM())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("treshold", "did you mean 'threshold'"),
        ("refine_template", "margin_template"),
        ("token_max", "threshold or top_k"),
        ("collapse_prompt", "never collapsed"),
        ("refine_prompt", "not refined"),
        ("verbose", "callbacks"),
    ],
)
@pytest.mark.parametrize(
    "make",
    [
        WimSynthesizer,
        WimNodePostprocessor,
        lambda kernel, **options: create_wim_tool(kernel, "A text.", **options),
    ],
)
def test_misspelt_and_retired_options_are_named(kernel: WimKernel, make: Any, name: str, said: str) -> None:
    with pytest.raises(UnknownOptionError) as caught:
        make(kernel, **{name: 1})
    assert all(word in str(caught.value) for word in (name, said, "margin_tokens"))
