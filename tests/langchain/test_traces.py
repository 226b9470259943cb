"""What a tracer sees: the prompts, with the document elided, and every margin as a run of its own."""

from __future__ import annotations

from typing import Any

import pytest
from asking import FEW, QUESTION, Fixed
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import Document
from langchain_core.prompts import PromptTemplate
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from langchain_core.tracers.schemas import Run

from wim_integrations.langchain import (
    WimAnswer,
    WimDocumentCompressor,
    WimMargins,
    WimRunnable,
    create_wim_documents_chain,
    create_wim_map_reduce_chain,
    create_wim_tool,
)
from wim_kernel import WimKernel


def traced(part: Any, given: Any) -> Run:
    collector = RunCollectorCallbackHandler()
    part.invoke(given, {"callbacks": [collector]})
    (run,) = collector.traced_runs
    return run


def below(run: Run) -> list[Run]:
    return [found for child in run.child_runs for found in (child, *below(child))]


def prompt(run: Run) -> str:
    """What a chat model's run shows that it was asked: the system's turn and the user's."""
    (shown,) = run.inputs["prompts"]
    return str(shown)


def elided(kernel: WimKernel, documents: list[Document], chunks: str = "3 chunks") -> str:
    tokens = kernel.read([document.page_content for document in documents]).tokens
    return f"[document: {chunks}, {tokens:,} tokens]"


PARTS = {
    "runnable": lambda kernel: WimRunnable(kernel=kernel, margin_style="free", **FEW),
    "documents chain": lambda kernel: create_wim_documents_chain(kernel, margin_style="free", **FEW),
    "map-reduce chain": lambda kernel: create_wim_map_reduce_chain(kernel, margin_style="free", **FEW),
}


@pytest.mark.in_process
@pytest.mark.parametrize("name", PARTS)
async def test_the_models_run_shows_what_was_asked(
    kernel: WimKernel, documents: list[Document], name: str
) -> None:
    given = {"question": QUESTION, "input": QUESTION}
    key = {"runnable": "documents", "documents chain": "context", "map-reduce chain": "input_documents"}[name]
    part = PARTS[name](kernel)
    root = traced(part, {**given, key: documents})
    margins = [run for run in below(root) if run.name == "WimMargin"]
    (model,) = (run for run in below(root) if run.run_type == "llm")
    assert elided(kernel, documents) in prompt(model)
    assert f"Question: {QUESTION}" in prompt(model)
    assert len(margins) == 3
    for index, run in enumerate(margins):
        assert run.parent_run_id == model.parent_run_id
        assert f"[document: {'3' if index == 2 else f'{index + 1} of 3'} chunks" in run.inputs["prompt"]
        assert QUESTION in run.inputs["prompt"]
        assert "Copy from the last passage above" in run.inputs["prompt"]
        said = run.outputs or {}
        assert f"- {said['margin'].strip()}" in prompt(model)
        assert said["kept"] is True
        assert 0 <= said["relevance"] <= 1
    assert documents[1].page_content not in prompt(model)
    assert (await part.ainvoke({**given, key: documents})) is not None


@pytest.mark.in_process
def test_the_prompt_shown_is_the_one_the_model_saw(kernel: WimKernel, documents: list[Document]) -> None:
    part = WimRunnable(kernel=kernel, **FEW)
    given = {"question": QUESTION, "documents": documents}
    (model,) = (run for run in below(traced(part, given)) if run.run_type == "llm")
    request = part._request(given)
    result = request.reading.ask(QUESTION, **request.options)
    seen = kernel.tokenizer.decode(request.reading.prompt_ids(result))
    _, _, shown = prompt(model).partition("tokens]")
    assert shown in seen
    assert prompt(model).startswith(
        f"System: {kernel.frame.system}\nHuman: {kernel.frame.document}[document: "
    )


@pytest.mark.parametrize("task", ["answer", "summarise"])
def test_a_summary_and_prompts_of_ones_own_are_shown(
    kernel: WimKernel, documents: list[Document], task: str
) -> None:
    own = {"answer": PromptTemplate.from_template("In {tone} words, from {summaries}: go. {question}")}
    given = {"question": "" if task == "summarise" else QUESTION, "documents": documents, "tone": "two"}
    (model,) = (
        run
        for run in below(traced(WimRunnable(kernel=kernel, task=task, **FEW), given))
        if run.run_type == "llm"
    )
    wanted = "Write a short summary" if task == "summarise" else "Answer the question from the document"
    assert wanted in prompt(model)
    (model,) = (
        run
        for run in below(traced(WimRunnable(kernel=kernel, task=task, prompts=own, **FEW), given))
        if run.run_type == "llm"
    )
    assert "In two words, from - " in prompt(model)


@pytest.mark.in_process
def test_wim_margins_and_wim_answer_are_traced(kernel: WimKernel, documents: list[Document]) -> None:
    given = {"question": QUESTION, "documents": documents}
    for style, asked in (
        ("free", True),
        ("verbatim", False),
    ):  # nothing but the question stands behind a quotation
        root = traced(
            WimMargins(kernel=kernel, threshold=0, margin_tokens=4, margin_style=style, margin_batch=1), given
        )
        (model,) = (run for run in below(root) if run.run_type == "llm")
        margins = [run for run in below(root) if run.name == "WimMargin"]
        assert len(margins) == 3
        for text in (prompt(model), *(run.inputs["prompt"] for run in margins)):
            assert ("Copy from the last passage above" in text) == asked
            assert QUESTION in text
    source = kernel.read([document.page_content for document in documents])
    (*_, last) = source.margins(QUESTION, threshold=0, margin_batch=1, relevance="attention")
    shown = margins[-1].inputs["prompt"].partition("tokens]")[2]
    assert shown in kernel.tokenizer.decode(source.prompt_ids(last))
    root = traced(WimAnswer(kernel=kernel, answer_tokens=4), {**given, "margins": ["She owned it."]})
    (model,) = (run for run in below(root) if run.run_type == "llm")
    assert "- She owned it." in prompt(model)
    assert elided(kernel, documents) in prompt(model)


@pytest.mark.in_process
def test_retriever_and_tool_traces_hold_margins_and_prompt(
    kernel: WimKernel, documents: list[Document]
) -> None:
    retriever = ContextualCompressionRetriever(
        base_compressor=WimDocumentCompressor(kernel=kernel, threshold=0),
        base_retriever=Fixed(documents=documents),
    )
    tool = create_wim_tool(kernel, documents, **FEW)
    for root in (traced(retriever, QUESTION), traced(tool, {"question": QUESTION})):
        assert sum(run.name == "WimMargin" for run in below(root)) == 3
        (model,) = (run for run in below(root) if run.run_type == "llm")
        assert elided(kernel, documents) in prompt(model)


def test_each_run_of_a_batch_shows_its_own_question(kernel: WimKernel, documents: list[Document]) -> None:
    collectors = [RunCollectorCallbackHandler(), RunCollectorCallbackHandler()]
    questions = [QUESTION, "How was the fog?"]
    WimRunnable(kernel=kernel, **FEW).batch(
        [{"question": question, "documents": documents} for question in questions],
        [{"callbacks": [collector]} for collector in collectors],
    )
    for collector, question, other in zip(collectors, questions, reversed(questions), strict=True):
        (root,) = collector.traced_runs
        texts = [prompt(run) if run.run_type == "llm" else run.inputs["prompt"] for run in root.child_runs]
        assert len(texts) == 4
        assert all(question in text and other not in text for text in texts)


def test_elided_document_says_how_much_was_read(kernel: WimKernel, documents: list[Document]) -> None:
    part = WimRunnable(kernel=kernel, stop_after=1, **FEW)
    root = traced(part, {"question": QUESTION, "documents": documents})
    (model,) = (run for run in below(root) if run.run_type == "llm")
    assert "[document: 1 of 3 chunks, " in prompt(model)
