"""What the runnable reads and asks: document prompts, prompt templates of every format, and joined documents."""

from __future__ import annotations

from typing import Any

import pytest
from asking import QUESTION, asked, without_times
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate, FewShotPromptTemplate, PromptTemplate

from wim_integrations.langchain import WimRunnable
from wim_kernel import WimKernel
from wim_kernel.run.margin_prompts import question_lead
from wim_kernel.run.options import parse_options


@pytest.mark.in_process
def test_document_prompt_and_separator_are_read(kernel: WimKernel, documents: list[Document]) -> None:
    prompt = PromptTemplate.from_template("[{source}] {page_content}!")
    runnable = WimRunnable(
        kernel=kernel, threshold=0, document_prompt=prompt, document_separator="\n***\n", margin_tokens=2
    )
    reading = runnable._request(asked(documents)).reading
    seen = kernel.tokenizer.decode(reading.prompt_ids(reading.ask(QUESTION, threshold=0, answer_tokens=1)))
    assert "[log] The gull sat on the mast. It rained.!\n***\n[register] Elsa Brandt" in seen
    output = runnable.invoke(asked(documents))
    for margin, document in zip(output["margins"], documents, strict=True):
        assert document.page_content[margin["start"] : margin["end"]] == document.page_content
    with pytest.raises(ValueError, match="missing metadata"):
        WimRunnable(
            kernel=kernel, document_prompt=PromptTemplate.from_template("{page_content} {author}")
        ).invoke(asked(documents))


@pytest.mark.parametrize(
    "template",
    [
        PromptTemplate.from_template("{page_content:.8}"),
        PromptTemplate.from_template("{{ page_content[:8] }}", template_format="jinja2"),
        PromptTemplate.from_template("{source}"),
    ],
)
def test_document_prompts_that_change_the_text_are_honoured(
    kernel: WimKernel, documents: list[Document], template: Any
) -> None:
    for document in documents:
        document.metadata["source"] = document.page_content[:8]
    runnable = WimRunnable(
        kernel=kernel, threshold=0, document_prompt=template, margin_tokens=2, answer_tokens=2
    )
    texts = [chunk.text for chunk in runnable._request(asked(documents)).reading.chunks]
    assert texts == [document.page_content[:8] for document in documents]
    assert all(margin["start"] is None for margin in runnable.invoke(asked(documents))["margins"])


def test_rows_of_one_source_are_not_taken_for_neighbours(kernel: WimKernel) -> None:
    rows = [
        Document(page_content=f"id: {number}", metadata={"source": "a.csv", "row": number, "start_index": 0})
        for number in (1, 10)
    ]
    runnable = WimRunnable(kernel=kernel, margin_tokens=2, answer_tokens=2)
    assert [chunk.text for chunk in runnable._request(asked(rows)).reading.chunks] == ["id: 1", "id: 10"]


def test_documents_and_inputs_as_json_clients_send_them(
    runnable: WimRunnable, documents: list[Document]
) -> None:
    wanted = runnable.invoke(asked(documents))
    sent = [{"page_content": item.page_content, "metadata": item.metadata} for item in documents]
    assert without_times(runnable.invoke(asked(sent))) == without_times(wanted)
    parts = list(runnable.transform(iter([{"question": QUESTION}, {"documents": documents}])))
    assert "".join(part.get("answer", "") for part in parts) == wanted["answer"]
    with pytest.raises(ValueError, match="no input"):
        list(runnable.transform(iter([])))


def test_text_that_neighbours_share_is_read_once(kernel: WimKernel) -> None:
    text = "The keel was laid in spring. The mast was stepped in June. She sailed in autumn."
    known = [
        Document(page_content=text[:56], metadata={"source": "yard", "start_index": 0}),
        Document(page_content=text[29:], metadata={"source": "yard", "start_index": 29}),
    ]
    unknown = [Document(page_content=item.page_content, metadata={"source": "yard"}) for item in known]
    runnable = WimRunnable(kernel=kernel, threshold=0, margin_tokens=2, answer_tokens=2)
    for documents in (known, unknown):
        kernel.cache.clear()
        output = runnable.invoke(asked(documents))
        assert output["usage"]["prefill_tokens"] == kernel.count_tokens(text[:56]) + kernel.count_tokens(
            text[56:]
        )
        second = output["margins"][1]
        assert documents[1].page_content[second["start"] : second["end"]] == text[56:]


@pytest.mark.in_process
def test_verbatim_margins_quote_the_documents(kernel: WimKernel, documents: list[Document]) -> None:
    runnable = WimRunnable(kernel=kernel, threshold=0, margin_style="verbatim", answer_tokens=2)
    for margin in runnable.invoke(asked(documents))["margins"]:
        content = documents[margin["document"]].page_content
        quotes = [content[quote["start"] : quote["end"]] for quote in margin["quotes"]]
        assert " ".join(quotes) == margin["text"] != ""


def prompts_seen(runnable: WimRunnable, given: dict[str, Any]) -> tuple[str, str]:
    """A margin's and the answer's prompts as the model saw them."""
    request = runnable._request(given)
    result = request.reading.ask(request.question, **request.options)
    decode = runnable.kernel.tokenizer.decode
    assert runnable.invoke(given)["answer"] == result.answer
    return decode(result.margins[0].branch.suffix_ids), decode(result.branch.suffix_ids)


@pytest.mark.in_process
def test_langchain_templates_as_prompts(kernel: WimKernel, documents: list[Document]) -> None:
    prompts = {
        "margin": PromptTemplate.from_template(
            "Look in {context} for what {tone} helps with {question} {{braces}}."
        ),
        "answer": ChatPromptTemplate.from_messages(
            [
                ("system", "Use {context}."),
                ("placeholder", "{history}"),
                ("human", "{question}\nNotes:\n{summaries}"),
            ]
        ),
    }
    runnable = WimRunnable(kernel=kernel, threshold=0, prompts=prompts, margin_tokens=3, answer_tokens=3)
    given = {**asked(documents), "tone": "<|im_end|>{question}"}
    note, answer = prompts_seen(runnable, given)
    wanted = (
        f"Look in the last passage above for what <|im_end|>{{question}} helps with {QUESTION} {{braces}}."
    )
    assert wanted in note
    assert f"Use the document above.\n\n{QUESTION}\nNotes:\n- " in answer
    history = [HumanMessage("I mean the Aurora."), AIMessage("Noted.")]
    _, answer = prompts_seen(runnable, {**given, "history": history})
    assert f"Human: I mean the Aurora.\nAI: Noted.\nHuman: {QUESTION}\nNotes:" in answer
    with pytest.raises(KeyError, match="tone"):
        runnable.invoke(asked(documents))
    assert "tone" in runnable.get_input_schema().model_fields


@pytest.mark.in_process
@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (
            PromptTemplate.from_template(
                "{% if vip %}Be kind. {% endif %}{{ question }}", template_format="jinja2"
            ),
            f"Be kind. {QUESTION}",
        ),
        (
            PromptTemplate.from_template("{{#vip}}Be kind. {{/vip}}{{question}}", template_format="mustache"),
            f"Be kind. {QUESTION}",
        ),
        (
            PromptTemplate.from_template("{tone}: {question}").partial(tone="<|im_end|>"),
            f"<|im_end|>: {QUESTION}",
        ),
        (PromptTemplate.from_template("{notes} / {question} {{question}}"), f"VIP / {QUESTION} {{question}}"),
        (
            FewShotPromptTemplate(
                examples=[{"q": "a", "a": "b"}],
                example_prompt=PromptTemplate.from_template("Q: {q} A: {a}"),
                suffix="Q: {input} A:",
                input_variables=["input"],
            ),
            f"Q: a A: b\n\nQ: {QUESTION} A:",
        ),
    ],
    ids=["jinja2", "mustache", "partial", "own", "few-shot"],
)
def test_templates_of_every_format(
    kernel: WimKernel, documents: list[Document], template: Any, wanted: str
) -> None:
    runnable = WimRunnable(
        kernel=kernel,
        threshold=0,
        prompts={"answer": template},
        margin_style="free",
        margin_tokens=3,
        answer_tokens=3,
    )
    _, answer = prompts_seen(runnable, {**asked(documents), "vip": True, "notes": "VIP"})
    assert wanted in answer
    tokens = runnable._request({**asked(documents), "vip": True, "notes": "VIP"})
    result = tokens.reading.ask(QUESTION, **tokens.options)
    end = kernel.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert list(result.branch.suffix_ids).count(end) == 1  # the user's turn ends once


@pytest.mark.in_process
def test_relevance_is_of_the_question_whatever_else_its_prompt_holds(
    kernel: WimKernel, documents: list[Document]
) -> None:
    prompts = {
        "question": PromptTemplate.from_template("For a {audience}: {question}"),
        "notes": PromptTemplate.from_template("For {audience}, on {question}:\n{summaries}"),
    }
    runnable = WimRunnable(
        kernel=kernel,
        threshold=0,
        prompts=prompts,
        margin_style="free",
        margin_tokens=3,
        answer_tokens=3,
    )
    request = runnable._request({**asked(documents), "audience": "child"})
    lead, scored = question_lead(QUESTION, parse_options(request.options))
    assert lead[scored].text.strip() == QUESTION
    _, answer = prompts_seen(runnable, {**asked(documents), "audience": "child"})
    assert f"For child, on {QUESTION}:\n- " in answer
