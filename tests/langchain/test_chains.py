"""Each replaced chain and its replacement, given the same inputs; differences that are improvements are said here."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asking import FEW, QUESTION, Fixed
from langchain_classic.chains import create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_classic.chains.question_answering import load_qa_chain
from langchain_classic.chains.summarize import load_summarize_chain
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import LLMChainExtractor
from langchain_core.documents import Document
from langchain_core.language_models.fake import FakeListLLM
from langchain_core.output_parsers import CommaSeparatedListOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import Runnable

from wim_integrations.langchain import (
    WimDocumentCompressor,
    WimRunnable,
    create_wim_documents_chain,
    create_wim_map_reduce_chain,
)
from wim_kernel import WimKernel


def old_model() -> FakeListLLM:
    return FakeListLLM(responses=["a note"] * 3 + ["an answer"])


@pytest.fixture(autouse=True)
def _old_chains_are_deprecated() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


# -- map-reduce ------------------------------------------------------------------------------------------------------


def old_qa(**options: Any) -> Runnable[Any, Any]:
    # a whole document's tokens are counted by a tokenizer that is not here; nothing is collapsed in these tests
    model = old_model()
    chain = load_qa_chain(model, chain_type="map_reduce", **options)
    object.__setattr__(model, "get_num_tokens", lambda text: len(text.split()))
    return chain


def old_summary(**options: Any) -> Runnable[Any, Any]:
    model = old_model()
    chain = load_summarize_chain(model, chain_type="map_reduce", **options)
    object.__setattr__(model, "get_num_tokens", lambda text: len(text.split()))
    return chain


Make = Callable[[WimKernel, bool], tuple[Any, Any]]


def qa_pair(kernel: WimKernel, steps: bool) -> tuple[Any, Any]:
    old = old_qa(return_map_steps=True) if steps else old_qa()
    return old, create_wim_map_reduce_chain(kernel, return_intermediate_steps=steps, **FEW)


def summary_pair(kernel: WimKernel, steps: bool) -> tuple[Any, Any]:
    old = old_summary(return_intermediate_steps=True) if steps else old_summary()
    return old, create_wim_map_reduce_chain(kernel, task="summarise", return_intermediate_steps=steps, **FEW)


@pytest.fixture(params=[qa_pair, summary_pair], ids=["qa", "summarise"])
def make(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


def given_to(make: Make, documents: list[Document]) -> dict[str, Any]:
    return {"input_documents": documents, "other": 1, **({"question": QUESTION} if make is qa_pair else {})}


@pytest.mark.parametrize("steps", [False, True])
async def test_map_reduce_keys_types_echo_and_order(
    make: Make, steps: bool, kernel: WimKernel, documents: list[Document]
) -> None:
    old, new = make(kernel, steps)
    given = given_to(make, documents)
    for before, after in (
        (old.invoke(given), new.invoke(given)),
        (await make(kernel, steps)[0].ainvoke(given), await new.ainvoke(given)),
    ):
        assert list(after) == list(before) or set(after) == set(before)
        assert {name: type(value) for name, value in after.items()} == {
            name: type(value) for name, value in before.items()
        }
        assert all(after[name] == before[name] for name in given)
        if steps:
            assert len(after["intermediate_steps"]) == len(before["intermediate_steps"]) == len(documents)
            assert all(isinstance(step, str) for step in after["intermediate_steps"])
    assert new.output_keys == old.output_keys
    assert new.input_keys == old.input_keys
    assert set(new.get_output_schema().model_fields) == set(old.get_output_schema().model_fields)
    before, after = (
        make(kernel, steps)[0].invoke(given, return_only_outputs=True),
        new.invoke(given, return_only_outputs=True),
    )
    assert set(before) == set(after)


def test_map_reduce_steps_are_each_documents_own(kernel: WimKernel, documents: list[Document]) -> None:
    given = {"input_documents": documents, "question": QUESTION}
    fields = {"chunk_tokens": 6, **FEW}
    chain = create_wim_map_reduce_chain(kernel, return_intermediate_steps=True, **fields)
    margins = WimRunnable(kernel=kernel, **fields).invoke(given)["margins"]
    assert len(margins) > 3  # documents make several chunks
    texts = [
        [margin["text"].strip() for margin in margins if margin["document"] == index] for index in range(3)
    ]
    assert chain.invoke(given)["intermediate_steps"] == ["\n".join(each) for each in texts]
    picky = create_wim_map_reduce_chain(
        kernel, return_intermediate_steps=True, relevance=_about_elsa, **_few()
    )
    relevant = picky.invoke({"input_documents": documents, "question": QUESTION})["intermediate_steps"]
    assert [bool(step) for step in relevant] == [False, True, False]


def _about_elsa(evidence: Any) -> float:
    return float("Elsa" in evidence.chunk.text)


def _few() -> dict[str, Any]:
    return {name: value for name, value in FEW.items() if name != "threshold"}


async def test_map_reduce_stream_adds_up_to_one_old_dict(
    make: Make, kernel: WimKernel, documents: list[Document]
) -> None:
    """The old chain streams one dict at its end; the new one streams the answer."""
    old, new = make(kernel, True)
    given = given_to(make, documents)
    together = {
        "margin_batch": len(documents)
    }  # as invoke writes them: sentences are chosen by what was read
    (before,) = old.stream(given)
    for chunks in (
        list(new.stream(given, **together)),
        [chunk async for chunk in new.astream(given, **together)],
    ):
        assert len(chunks) > 3
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole = whole + chunk
        assert set(whole) == {*before, *given}
        assert {name: whole[name] for name in new.output_keys} == new.invoke(given, return_only_outputs=True)


def test_map_reduce_names_missing_inputs(kernel: WimKernel, documents: list[Document]) -> None:
    """Both raise KeyError for what is missing; the new one says what there is."""
    old, new = qa_pair(kernel, False)
    for chain in (old, new):
        with pytest.raises((KeyError, ValueError)):
            chain.invoke({"question": QUESTION})
        with pytest.raises((KeyError, ValueError)):
            chain.invoke({"input_documents": documents})
    with pytest.raises(KeyError, match="nothing called question or input or query"):
        new.invoke({"input_documents": documents})
    with pytest.raises(KeyError, match="nothing called input_documents"):
        new.invoke({"question": QUESTION})


def test_map_reduce_batch_prefills_once(kernel: WimKernel, documents: list[Document]) -> None:
    old, new = qa_pair(kernel, False)
    given = [
        {"input_documents": documents, "question": question} for question in (QUESTION, "How was the fog?")
    ]
    before, after = old.batch(given), new.batch(given)
    assert [set(output) for output in before] == [set(output) for output in after]
    assert [output["question"] for output in after] == [item["question"] for item in given]
    assert after == [new.invoke(item) for item in given]


@pytest.mark.in_process
def test_map_reduce_takes_the_prompts_of_the_old_chains(kernel: WimKernel, documents: list[Document]) -> None:
    question_prompt = PromptTemplate.from_template("Text: {context}\nCopy what is about: {question}")
    combine_prompt = PromptTemplate.from_template("{summaries}\n\nQ: {question}\nA:")
    assert old_qa(question_prompt=question_prompt, combine_prompt=combine_prompt).invoke(
        {"input_documents": documents, "question": QUESTION}
    )
    chain = create_wim_map_reduce_chain(
        kernel, question_prompt=question_prompt, combine_prompt=combine_prompt, **FEW
    )
    given = {"input_documents": documents, "question": QUESTION}
    request = chain._request(given)
    result = request.reading.ask(QUESTION, **request.options)
    note = kernel.tokenizer.decode(result.margins[0].branch.suffix_ids)
    assert f"Text: the last passage above\nCopy what is about: {QUESTION}" in note
    answer = kernel.tokenizer.decode(result.branch.suffix_ids)
    assert f"- {result.margins[0].text.strip()}" in answer
    assert f"\n\nQ: {QUESTION}\nA:" in answer
    assert "Passages of the document" not in answer
    assert chain.invoke(given)["output_text"] == result.answer
    named = create_wim_map_reduce_chain(
        kernel,
        map_prompt=PromptTemplate.from_template("Note {docs}"),
        combine_prompt=PromptTemplate.from_template("All: {doc_summaries}"),
        map_reduce_document_variable_name="docs",
        combine_document_variable_name="doc_summaries",
        return_map_steps=True,
        **FEW,
    )
    assert len(named.invoke(given)["intermediate_steps"]) == 3
    summary_prompt = PromptTemplate.from_template('Write a concise summary of:\n\n"{text}"\n\nSUMMARY:')
    summary = create_wim_map_reduce_chain(kernel, task="summarise", combine_prompt=summary_prompt, **FEW)
    assert summary.invoke({"input_documents": documents})["output_text"]
    assert old_summary().invoke(documents)["output_text"]
    assert (
        summary.invoke(documents)["output_text"]
        == summary.invoke({"input_documents": documents})["output_text"]
    )
    assert summary.invoke({"input_documents": documents, "input": 3})["output_text"]


# -- stuff and retrieval ---------------------------------------------------------------------------------------------

PROMPT = ChatPromptTemplate.from_messages(
    [("system", "Answer from this:\n\n{context}"), ("human", "{input}")]
)


async def test_documents_chain_gives_and_streams_text(kernel: WimKernel, documents: list[Document]) -> None:
    """The old chain's model here streams by characters, the new one by tokens; both stream strings."""
    old, new = (
        create_stuff_documents_chain(old_model(), PROMPT),
        create_wim_documents_chain(kernel, PROMPT, **FEW),
    )
    given = {"input": QUESTION, "context": documents}
    before, after = old.invoke(given), new.invoke(given)
    assert type(before) is type(after) is str
    assert await new.ainvoke(given) == after
    for chunks in (list(new.stream(given)), [chunk async for chunk in new.astream(given)]):
        assert all(type(chunk) is str for chunk in chunks)
        assert len(chunks) > 3
        assert "".join(chunks) == after
    assert new.batch([given, given]) == [after, after]
    for chain in (old, new):
        with pytest.raises(KeyError):
            chain.invoke({"input": QUESTION})


async def test_retrieval_chain_streams_its_answer(kernel: WimKernel, documents: list[Document]) -> None:
    retriever = Fixed(documents=documents)
    old = create_retrieval_chain(retriever, create_stuff_documents_chain(old_model(), PROMPT))
    new = create_retrieval_chain(retriever, create_wim_documents_chain(kernel, **FEW))
    before, after = old.invoke({"input": QUESTION}), new.invoke({"input": QUESTION})
    assert {name: type(value) for name, value in before.items()} == {
        name: type(value) for name, value in after.items()
    }
    assert after["context"] == documents
    assert (await new.ainvoke({"input": QUESTION}))["answer"] == after["answer"]
    for chunks in (
        list(new.stream({"input": QUESTION})),
        [chunk async for chunk in new.astream({"input": QUESTION})],
    ):
        answers = [chunk["answer"] for chunk in chunks if "answer" in chunk]
        assert len(answers) > 3
        assert "".join(answers) == after["answer"]
    assert [output["answer"] for output in new.batch([{"input": QUESTION}] * 3)] == [after["answer"]] * 3


def test_retrieval_chain_without_documents_answers_all_the_same(kernel: WimKernel) -> None:
    old = create_retrieval_chain(Fixed(documents=[]), create_stuff_documents_chain(old_model(), PROMPT))
    new = create_retrieval_chain(Fixed(documents=[]), create_wim_documents_chain(kernel))
    assert isinstance(old.invoke({"input": QUESTION})["answer"], str)
    assert new.invoke({"input": QUESTION})["answer"] == "No documents were found that could answer this."


def test_documents_chain_names_parser_and_document_prompt(
    kernel: WimKernel, documents: list[Document]
) -> None:
    old = create_stuff_documents_chain(
        FakeListLLM(responses=["a, b"]),
        PromptTemplate.from_template("{docs} {question}"),
        output_parser=CommaSeparatedListOutputParser(),
        document_prompt=PromptTemplate.from_template("{source}: {page_content}"),
        document_separator="\n--\n",
        document_variable_name="docs",
    )
    new = create_wim_documents_chain(
        kernel,
        PromptTemplate.from_template("{docs} {question}"),
        output_parser=CommaSeparatedListOutputParser(),
        document_prompt=PromptTemplate.from_template("{source}: {page_content}"),
        document_separator="\n--\n",
        document_variable_name="docs",
        **FEW,
    )
    given = {"docs": documents, "question": QUESTION}
    assert type(old.invoke(given)) is type(new.invoke(given)) is list


# -- compression -----------------------------------------------------------------------------------------------------


@pytest.mark.in_process
async def test_compressor_in_a_contextual_compression_retriever(
    kernel: WimKernel, documents: list[Document]
) -> None:
    compressor = WimDocumentCompressor(kernel=kernel, options={"relevance": _about_elsa})
    old = ContextualCompressionRetriever(
        base_compressor=LLMChainExtractor.from_llm(
            FakeListLLM(responses=["NO_OUTPUT", "Elsa Brandt owned the ship Aurora.", "NO_OUTPUT"])
        ),
        base_retriever=Fixed(documents=documents),
    )
    new = ContextualCompressionRetriever(
        base_compressor=compressor, base_retriever=Fixed(documents=documents)
    )
    (before,) = old.invoke(QUESTION)
    for found in (new.invoke(QUESTION), await new.ainvoke(QUESTION)):
        (after,) = found
        assert after.page_content == before.page_content
        assert before.metadata.items() <= after.metadata.items()
        assert after.metadata["relevance_score"] == 1.0
        place = after.metadata["wim"]
        quote = place["quotes"][0]
        assert documents[place["document"]].page_content[quote["start"] : quote["end"]] == after.page_content
    assert list(compressor.compress_documents([], QUESTION)) == []
    assert list(compressor.compress_documents([Document(page_content=" ")], QUESTION)) == []
    assert list(await compressor.acompress_documents([], QUESTION)) == []


def test_documents_chain_asks_what_its_prompt_asks(kernel: WimKernel, documents: list[Document]) -> None:
    """The old function's own example has no question beside the prompt."""
    prompt = ChatPromptTemplate.from_messages(
        [("system", "What are everyone's favorite colors:\n\n{context}")]
    )
    assert create_stuff_documents_chain(old_model(), prompt).invoke({"context": documents})
    chain = create_wim_documents_chain(kernel, prompt, **FEW)
    assert chain.invoke({"context": documents})
    about = create_wim_documents_chain(
        kernel, PromptTemplate.from_template("{context} Tell of {topic}."), **FEW
    )
    reader: Any = about.bound.first
    assert reader._request({"context": documents, "topic": "fog"}).question == "Tell of fog."
    for create in (
        lambda prompt: create_stuff_documents_chain(old_model(), prompt),
        lambda prompt: create_wim_documents_chain(kernel, prompt),
    ):
        with pytest.raises(ValueError, match="context"):
            create(PromptTemplate.from_template("{question}"))


async def test_compressor_takes_templates_and_checks_its_options(
    kernel: WimKernel, documents: list[Document]
) -> None:
    prompts = {"margin": PromptTemplate.from_template("Copy from {context} what is about {question}.")}
    compressor = WimDocumentCompressor(
        kernel=kernel,
        options={"threshold": 0, "margin_style": "free", "margin_tokens": 3, "prompts": prompts},
    )
    assert len(await compressor.acompress_documents(documents, QUESTION)) == 3
    with pytest.raises(TypeError, match="treshold"):
        WimDocumentCompressor(kernel=kernel, options={"treshold": 1})


@pytest.mark.in_process
def test_compressor_stops_early(kernel: WimKernel, documents: list[Document]) -> None:
    compressor = WimDocumentCompressor(kernel=kernel, options={"threshold": 0, "stop_after": 1})
    (margin,) = compressor.compress_documents(documents, QUESTION)
    assert margin.metadata["wim"]["document"] == 0
    assert kernel.cache.held[-1].chunks == 1
