"""Options: every one that the kernel has, in every part; set with a call; misspelt and retired ones named."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from asking import FEW, QUESTION, Fixed
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import Document
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import ToolException

from wim_integrations.langchain import (
    WimAnswer,
    WimDocumentCompressor,
    WimMargins,
    WimRunnable,
    create_wim_documents_chain,
    create_wim_map_reduce_chain,
    create_wim_tool,
)
from wim_kernel import Options, UnknownOptionError, WimKernel

Make = Callable[..., Any]

PARTS: dict[str, Make] = {
    "runnable": lambda kernel, **options: WimRunnable(kernel=kernel, **options),
    "margins": lambda kernel, **options: WimMargins(kernel=kernel, **options),
    "answer": lambda kernel, **options: WimAnswer(kernel=kernel, **options),
    "documents chain": create_wim_documents_chain,
    "map-reduce chain": create_wim_map_reduce_chain,
    "compressor": lambda kernel, **options: WimDocumentCompressor(kernel=kernel, **options),
    "tool": lambda kernel, **options: create_wim_tool(kernel, "A text.", **options),
}


def asked(documents: list[Document]) -> dict[str, Any]:
    return {"question": QUESTION, "documents": documents}


@pytest.mark.parametrize("kind", [WimRunnable, WimMargins, WimAnswer, WimDocumentCompressor])
def test_every_option_of_the_kernel_is_a_field(kind: Any) -> None:
    assert set(Options.__annotations__) <= set(kind.model_fields)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_takes_every_option(kernel: WimKernel, part: str) -> None:
    some: dict[str, Any] = {
        "variables": {"tone": "kind"},
        "answer_schema": {"type": "object", "properties": {"owner": {"type": "string"}}},
        "margin_batch": 2,
        "answer_volume": "last",
    }
    assert some.keys() <= Options.__annotations__.keys()
    assert PARTS[part](kernel, **some)


@pytest.mark.in_process
def test_a_schema_and_variables_reach_the_model(kernel: WimKernel, documents: list[Document]) -> None:
    schema = {
        "type": "object",
        "properties": {"owner": {"type": "string", "maxLength": 5}},
        "required": ["owner"],
    }
    reader = WimRunnable(kernel=kernel, answer_schema=schema, **{**FEW, "answer_tokens": 40})
    assert set(json.loads(reader.invoke(asked(documents))["answer"])) == {"owner"}
    told = WimRunnable(
        kernel=kernel, prompts={"answer": "\n\nBe {tone}: {question}"}, variables={"tone": "kind"}, **FEW
    )
    request = told._request(asked(documents))
    result = request.reading.ask(QUESTION, **request.options)
    assert f"Be kind: {QUESTION}" in kernel.tokenizer.decode(request.reading.prompt_ids(result))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("treshold", "did you mean 'threshold'"),
        ("token_max", "threshold or top_k"),
        ("collapse_prompt", "never collapsed"),
        ("refine_prompt", "not refined"),
        ("llm_chain", "kernel is the model"),
    ],
)
def test_misspelt_and_retired_options_are_named(kernel: WimKernel, part: str, name: str, said: str) -> None:
    with pytest.raises(UnknownOptionError) as caught:
        PARTS[part](kernel, **{name: 0.5})
    assert name in str(caught.value)
    assert said in str(caught.value)
    assert "margin_tokens" in str(caught.value)


@pytest.mark.parametrize("part", [part for part in PARTS if part != "map-reduce chain"])
def test_verbose_is_langchain_classics(kernel: WimKernel, part: str) -> None:
    with pytest.raises(UnknownOptionError, match="'verbose'"):
        PARTS[part](kernel, verbose=True)


# -- options that are set with a call ----------------------------------------------------------------------------------


async def test_bind_sets_options_for_a_call(kernel: WimKernel, documents: list[Document]) -> None:
    reader = WimRunnable(kernel=kernel, **FEW)
    strict = reader.bind(threshold=1.0)
    given = asked(documents)
    outputs = [
        strict.invoke(given),
        await strict.ainvoke(given),
        list(strict.stream(given)),
        [chunk async for chunk in strict.astream(given)],
        strict.batch([given])[0],
        (await strict.abatch([given]))[0],
        reader.invoke(given, threshold=1.0),
    ]
    for output in outputs:
        chunks = output if isinstance(output, list) else [output]
        margins = [margin for chunk in chunks for margin in chunk.get("margins", [])]
        assert len(margins) == 3
        assert not any(margin["kept"] for margin in margins)
    assert all(margin["kept"] for margin in reader.invoke(given)["margins"])


@pytest.mark.parametrize("part", ["runnable", "margins", "map-reduce chain", "documents chain"])
async def test_bind_names_what_does_not_exist(
    kernel: WimKernel, documents: list[Document], part: str
) -> None:
    chain = PARTS[part](kernel, **FEW)
    given = {**asked(documents), "input_documents": documents, "context": documents}
    chain = chain.bind(treshold=1.0) if part != "documents chain" else chain
    if part == "documents chain":
        with pytest.raises(UnknownOptionError, match="threshold"):
            create_wim_documents_chain(kernel, treshold=1.0)
        return
    with pytest.raises(UnknownOptionError, match="did you mean 'threshold'"):
        chain.invoke(given)
    with pytest.raises(UnknownOptionError, match="did you mean 'threshold'"):
        list(chain.stream(given))
    with pytest.raises(UnknownOptionError, match="did you mean 'threshold'"):
        await chain.abatch([given])


async def test_bound_map_reduce_chains_keep_their_keys(kernel: WimKernel, documents: list[Document]) -> None:
    chain = create_wim_map_reduce_chain(kernel, return_intermediate_steps=True, **FEW)
    given = {"input_documents": documents, "question": QUESTION}
    assert chain.bind(threshold=1.0).invoke(given)["intermediate_steps"] == ["", "", ""]
    new = chain.bind(return_only_outputs=True)
    for output in (new.invoke(given), *(await new.abatch([given])), *new.batch([given])):
        assert set(output) == {"output_text", "intermediate_steps"}
    assert {name for chunk in new.stream(given) for name in chunk} == {"output_text", "intermediate_steps"}


# -- the compressor ----------------------------------------------------------------------------------------------------


@pytest.mark.in_process
def test_the_compressor_is_made_as_the_others_are(kernel: WimKernel, documents: list[Document]) -> None:
    made = [
        WimDocumentCompressor(kernel=kernel, threshold=0),
        WimDocumentCompressor(kernel=kernel, options={"threshold": 0}),
        WimDocumentCompressor.from_kernel(kernel, threshold=0),
        WimDocumentCompressor.from_llm(kernel, threshold=0),
    ]
    texts = [[d.page_content for d in each.compress_documents(documents, QUESTION)] for each in made]
    assert all(len(each) == 3 for each in texts)
    assert texts.count(texts[0]) == len(made)
    retriever = ContextualCompressionRetriever(
        base_compressor=made[-1], base_retriever=Fixed(documents=documents)
    )
    assert [document.page_content for document in retriever.invoke(QUESTION)] == texts[0]


def test_the_compressor_takes_a_prompt_as_the_replaced_one_does(
    kernel: WimKernel, documents: list[Document]
) -> None:
    prompt = PromptTemplate.from_template("Copy from {context} what helps with {question}.")
    compressor = WimDocumentCompressor.from_llm(kernel, prompt, threshold=0, margin_tokens=4)
    options = compressor._options(QUESTION, None)
    assert options["margin_style"] == "free"
    assert "Copy from the last passage above" in str(options["variables"])
    assert len(compressor.compress_documents(documents, QUESTION)) == 3
    with pytest.raises(TypeError, match="WimKernel"):
        WimDocumentCompressor.from_llm(object())  # type: ignore[arg-type]


# -- a retriever for the tool ------------------------------------------------------------------------------------------


async def test_the_tool_takes_a_retriever(kernel: WimKernel, documents: list[Document]) -> None:
    retriever = Fixed(documents=documents)
    search = RunnableLambda(lambda question: documents if question else [])
    for tool in (
        create_wim_tool(kernel, retriever, **FEW),
        create_wim_tool(kernel, retriever=retriever, **FEW),
        create_wim_tool(kernel, retriever=search, **FEW),
    ):
        assert set(tool.tool_call_schema.model_json_schema()["properties"]) == {"question"}
        call = {"type": "tool_call", "id": "1", "name": tool.name, "args": {"question": QUESTION}}
        message = tool.invoke(call)
        assert len(message.artifact["margins"]) == 3
        assert (await tool.ainvoke(call)).artifact["margins"] == message.artifact["margins"]


async def test_a_search_that_finds_nothing_is_said_to_the_agent(kernel: WimKernel) -> None:
    for found in ([], [Document(page_content=" ")]):
        tool = create_wim_tool(kernel, retriever=Fixed(documents=found))
        assert "Nothing was found" in tool.invoke({"question": QUESTION})
        assert "Nothing was found" in await tool.ainvoke({"question": QUESTION})
    with pytest.raises(TypeError, match="retriever is"):
        create_wim_tool(kernel, retriever=lambda question: [])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="either documents=, folder= or retriever="):
        create_wim_tool(kernel, "A text.", retriever=Fixed(documents=[]))
    assert issubclass(ToolException, Exception)
