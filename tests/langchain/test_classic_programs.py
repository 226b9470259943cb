"""Programs as langchain-classic's users have them, with the map-reduce chain replaced; on the embedded model."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from asking import FEW, QUESTION, Fixed
from langchain_classic.chains import (
    AnalyzeDocumentChain,
    ConversationalRetrievalChain,
    LLMChain,
    RetrievalQA,
    create_retrieval_chain,
)
from langchain_classic.chains.combine_documents.base import BaseCombineDocumentsChain
from langchain_classic.memory import ConversationBufferMemory
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.language_models.fake import FakeListLLM
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import Runnable
from langchain_text_splitters import CharacterTextSplitter

from wim_integrations.langchain import create_wim_documents_chain, create_wim_map_reduce_chain
from wim_kernel import EmptyDocumentError, MissingInputError, WimKernel

pytestmark = pytest.mark.slow


class Chains(BaseCallbackHandler):
    """The names of chains that began and ended."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.ended = 0

    def on_chain_start(self, serialized: Any, inputs: Any, *, name: str = "", **kwargs: Any) -> None:
        self.began.append(name)

    def on_chain_end(self, outputs: Any, **kwargs: Any) -> None:
        self.ended += 1


@pytest.fixture(autouse=True)
def _old_chains_are_deprecated() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


# -- whole programs ----------------------------------------------------------------------------------------------------


async def test_analyze_document_chain_takes_the_replacement(real_kernel: WimKernel) -> None:
    text = "The gull sat on the mast.\n\nElsa Brandt owned the ship Aurora.\n\nThe fog was thick."
    splitter = CharacterTextSplitter(chunk_size=40, chunk_overlap=0)
    summary = AnalyzeDocumentChain(
        combine_docs_chain=create_wim_map_reduce_chain(real_kernel, task="summarise", **FEW),
        text_splitter=splitter,
    )
    said = summary.invoke({"input_document": text})
    assert said["output_text"].strip()
    assert said["input_document"] == text
    asks = AnalyzeDocumentChain(
        combine_docs_chain=create_wim_map_reduce_chain(real_kernel, **FEW, return_map_steps=True),
        text_splitter=splitter,
    )
    answered = asks.invoke({"input_document": text, "question": QUESTION})
    assert len(answered["intermediate_steps"]) == 3
    assert (await asks.ainvoke({"input_document": text, "question": QUESTION})) == answered


async def test_retrieval_qa_takes_the_replacement(real_kernel: WimKernel, documents: list[Document]) -> None:
    chain = RetrievalQA(
        combine_documents_chain=create_wim_map_reduce_chain(real_kernel, **FEW),
        retriever=Fixed(documents=documents),
        return_source_documents=True,
    )
    said = chain.invoke({"query": QUESTION})
    assert said["result"].strip()
    assert said["source_documents"] == documents
    assert await chain.ainvoke({"query": QUESTION}) == said


async def test_conversational_retrieval_chain_takes_the_replacement(
    real_kernel: WimKernel, documents: list[Document]
) -> None:
    rewriting = LLMChain(
        llm=FakeListLLM(responses=[QUESTION]),
        prompt=PromptTemplate.from_template("{chat_history} {question}"),
    )
    memory = ConversationBufferMemory(memory_key="chat_history", return_messages=True)
    chain = ConversationalRetrievalChain(
        combine_docs_chain=create_wim_map_reduce_chain(real_kernel, **FEW),
        question_generator=rewriting,
        retriever=Fixed(documents=documents),
        memory=memory,
    )
    first = chain.invoke({"question": QUESTION})
    second = chain.invoke({"question": "Who was it again?"})
    assert first["answer"] == second["answer"]
    assert first["answer"].strip()
    assert len(memory.chat_memory.messages) == 4
    assert (await chain.ainvoke({"question": "Who?"}))["answer"] == first["answer"]


@pytest.mark.parametrize("found", [[], [""], [" \n", ""]], ids=repr)
async def test_programs_whose_retriever_finds_nothing(kernel: WimKernel, found: list[str]) -> None:
    documents = [Document(text) for text in found]
    combine = create_wim_map_reduce_chain(kernel, empty_response="Nothing.", **FEW)
    retrieval = RetrievalQA(combine_documents_chain=combine, retriever=Fixed(documents=documents))
    assert retrieval.invoke({"query": QUESTION})["result"] == "Nothing."
    assert (await retrieval.ainvoke({"query": QUESTION}))["result"] == "Nothing."
    steps = create_wim_map_reduce_chain(kernel, empty_response="Nothing.", return_map_steps=True, **FEW)
    analyze = AnalyzeDocumentChain(combine_docs_chain=steps)
    said = analyze.invoke({"input_document": "".join(found), "question": QUESTION})
    assert (said["output_text"], said["intermediate_steps"]) == ("Nothing.", [])
    assert (await combine.acombine_docs(documents, question=QUESTION))[0] == "Nothing."
    silent = create_wim_map_reduce_chain(kernel, **FEW)
    with pytest.raises(EmptyDocumentError, match="empty_response="):
        RetrievalQA(combine_documents_chain=silent, retriever=Fixed(documents=documents)).invoke(QUESTION)
    conversation = ConversationalRetrievalChain(
        combine_docs_chain=combine,
        question_generator=LLMChain(
            llm=FakeListLLM(responses=["x"]), prompt=PromptTemplate.from_template("{question}")
        ),
        retriever=Fixed(documents=documents),
    )
    assert conversation.invoke({"question": QUESTION, "chat_history": []})["answer"] == "Nothing."


# -- the chain is one of theirs ----------------------------------------------------------------------------------------


async def test_classic_chain_is_a_combine_documents_chain(
    kernel: WimKernel, documents: list[Document]
) -> None:
    chain = create_wim_map_reduce_chain(
        kernel, input_key="papers", output_key="said", return_intermediate_steps=True, **FEW
    )
    assert isinstance(chain, BaseCombineDocumentsChain)
    assert (chain.input_key, chain.output_key) == ("papers", "said")
    assert (chain.input_keys, chain.output_keys) == (["papers"], ["said", "intermediate_steps"])
    text, more = chain.combine_docs(documents, question=QUESTION)
    assert (text, more) == await chain.acombine_docs(documents, question=QUESTION)
    assert len(more["intermediate_steps"]) == 3
    assert chain.invoke({"papers": documents, "question": QUESTION})["said"] == text
    called = chain({"papers": documents, "question": QUESTION}, return_only_outputs=True)
    assert called == {"said": text, **more}
    one = create_wim_map_reduce_chain(kernel, **FEW)
    assert one.run(input_documents=documents, question=QUESTION) == text


class Ways:
    """Each way to call a chain, with its whole output."""

    @staticmethod
    async def invoke(chain: Any, given: Any, config: Any) -> Any:
        return chain.invoke(given, config)

    @staticmethod
    async def ainvoke(chain: Any, given: Any, config: Any) -> Any:
        return await chain.ainvoke(given, config)

    @staticmethod
    async def stream(chain: Any, given: Any, config: Any) -> Any:
        return _joined(list(chain.stream(given, config)))

    @staticmethod
    async def astream(chain: Any, given: Any, config: Any) -> Any:
        return _joined([chunk async for chunk in chain.astream(given, config)])

    @staticmethod
    async def batch(chain: Any, given: Any, config: Any) -> Any:
        return chain.batch([given], config)[0]

    @staticmethod
    async def abatch(chain: Any, given: Any, config: Any) -> Any:
        return (await chain.abatch([given], config))[0]


def _joined(chunks: list[Any]) -> Any:
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    return whole


WAYS = [Ways.invoke, Ways.ainvoke, Ways.stream, Ways.astream, Ways.batch, Ways.abatch]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_memory_and_callbacks_work_in_every_call(
    way: Any, kernel: WimKernel, documents: list[Document]
) -> None:
    memory = ConversationBufferMemory(input_key="question", output_key="output_text")
    mine, given = Chains(), Chains()
    prompt = PromptTemplate.from_template("{history} {question} {summaries}")
    chain = create_wim_map_reduce_chain(
        kernel, combine_prompt=prompt, memory=memory, callbacks=[mine], tags=["old"], verbose=False, **FEW
    )
    output = await way(chain, {"input_documents": documents, "question": QUESTION}, {"callbacks": [given]})
    assert output["history"] == ""
    assert [message.content for message in memory.chat_memory.messages] == [QUESTION, output["output_text"]]
    assert mine.began[0] == given.began[0] == "WimMapReduceDocumentsChain"
    assert given.ended == len(given.began)
    again = await way(chain, {"input_documents": documents, "question": QUESTION}, {})
    assert QUESTION in again["history"]


async def test_missing_inputs_are_named(kernel: WimKernel, documents: list[Document]) -> None:
    chain = create_wim_map_reduce_chain(kernel, **FEW)
    with pytest.raises(MissingInputError, match="nothing called input_documents"):
        chain.invoke({"question": QUESTION})
    with pytest.raises(MissingInputError, match="nothing called question"):
        chain.invoke({"input_documents": documents})
    with pytest.raises(MissingInputError, match="nothing called question"):
        await chain.acombine_docs(documents)
    with pytest.raises(EmptyDocumentError):
        chain.combine_docs([], question=QUESTION)


def test_chain_without_langchain_classic_is_a_runnable(
    kernel: WimKernel, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"input_documents": documents, "question": QUESTION}
    wanted = create_wim_map_reduce_chain(kernel, **FEW).invoke(given)
    for name in [name for name in sys.modules if name.startswith("langchain_classic")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "wim_integrations.langchain.classic")
    chain = create_wim_map_reduce_chain(kernel, **FEW)
    assert not isinstance(chain, BaseCombineDocumentsChain)
    assert chain.invoke(given) == wanted
    assert chain.input_key == "input_documents"


# -- the documents chain -----------------------------------------------------------------------------------------------


PROMPTS = [
    (None, "input"),
    (ChatPromptTemplate.from_messages([("system", "{context}"), ("human", "{input}")]), "input"),
    (PromptTemplate.from_template("{context} {question} {tone}"), "question"),
]


@pytest.mark.parametrize(("prompt", "asked"), PROMPTS)
def test_the_documents_chain_announces_its_inputs_and_its_output(
    kernel: WimKernel, documents: list[Document], prompt: Any, asked: str
) -> None:
    chain = create_wim_documents_chain(kernel, prompt, **FEW)
    wanted = {"context", asked, *({"tone"} if asked == "question" else ())}
    assert set(chain.get_input_jsonschema()["properties"]) == wanted
    assert chain.get_output_jsonschema()["type"] == "string"
    given = {"context": documents, asked: QUESTION, "tone": "kind"}
    chain.get_output_schema().model_validate(chain.invoke(given))
    chain.get_input_schema().model_validate(given)


def test_a_retrieval_chain_announces_input(kernel: WimKernel, documents: list[Document]) -> None:
    chain: Runnable[Any, Any] = create_retrieval_chain(
        Fixed(documents=documents), create_wim_documents_chain(kernel, **FEW)
    )
    assert "input" in chain.get_input_jsonschema()["properties"]
    assert "question" not in chain.get_input_jsonschema()["properties"]
    assert chain.get_output_jsonschema()["properties"]["answer"]["type"] == "string"
    assert chain.invoke({"input": QUESTION})["answer"]


# -- variables as the frameworks' own tutorials call them --------------------------------------------------------------


@pytest.mark.in_process
@pytest.mark.parametrize("name", ["text", "docs", "doc_summaries", "summaries", "context"])
def test_tutorial_variables_become_document_and_notes(
    kernel: WimKernel, documents: list[Document], name: str
) -> None:
    chain = create_wim_map_reduce_chain(
        kernel,
        task="summarise",
        map_prompt=PromptTemplate.from_template("Themes of {" + name + "}:"),
        combine_prompt=PromptTemplate.from_template("Put together: {" + name + "} Go."),
        **FEW,
    )
    request = chain._request({"input_documents": documents})
    result = request.reading.ask("", **request.options)
    seen = kernel.tokenizer.decode(request.reading.prompt_ids(result.margins[0]))
    assert "Themes of the last passage above:" in seen
    answered = kernel.tokenizer.decode(request.reading.prompt_ids(result))
    stood = "the document above" if name == "context" else f"- {result.margins[0].text.strip()}"
    assert f"Put together: {stood}" in answered


@pytest.mark.parametrize("name", ["passages", "all_notes", "chunks"])
def test_unknown_prompt_variables_are_refused_with_a_remedy(
    kernel: WimKernel, documents: list[Document], name: str
) -> None:
    chain = create_wim_map_reduce_chain(
        kernel, combine_prompt=PromptTemplate.from_template("{" + name + "}"), **FEW
    )
    with pytest.raises(MissingInputError, match=f"asks for '{name}'.*give it as an input"):
        chain.invoke({"input_documents": documents, "question": QUESTION})
    told = create_wim_map_reduce_chain(
        kernel,
        combine_prompt=PromptTemplate.from_template("{" + name + "}"),
        combine_document_variable_name=name,
        **FEW,
    )
    assert told.invoke({"input_documents": documents, "question": QUESTION})["output_text"]
    with pytest.raises(ValueError, match="document_variable_name="):
        create_wim_documents_chain(kernel, PromptTemplate.from_template("{" + name + "} {input}"))
