"""The runnable as LangChain calls it: every way in, streams, batches, configuration, schemas, bad input."""

from __future__ import annotations

import asyncio
import json
from datetime import date
from typing import Any

import pytest
from asking import QUESTION
from helpers import spying
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate, FewShotPromptTemplate, PromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda

from wim_integrations.langchain import WimAnswer, WimMargins, WimRunnable
from wim_kernel import ContextOverflowError, EmptyDocumentError, WimKernel
from wim_kernel.run.margin_prompts import question_lead
from wim_kernel.run.options import parse_options


def asked(documents: Any, question: str = QUESTION) -> dict[str, Any]:
    return {"question": question, "documents": documents}


def without_times(output: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in output.items() if name not in ("timings", "usage")}


def test_the_output_is_plain_json_and_says_where_margins_stand(
    runnable: WimRunnable, documents: list[Document]
) -> None:
    documents[0].metadata["when"] = date(1902, 5, 1)
    loop: list[Any] = []
    loop.append(loop)
    documents[1].metadata.update(thumb=b"\xff\xd8", score=float("nan"), loop=loop)
    output = runnable.invoke(asked(documents))
    assert json.loads(json.dumps(output, allow_nan=False)) == output
    assert [margin["document"] for margin in output["margins"]] == [0, 1, 2]
    assert output["margins"][0]["metadata"] == {"source": "log", "day": 1, "when": "1902-05-01"}
    for margin, document in zip(output["margins"], documents, strict=True):
        assert margin["kept"]
        assert 0 <= margin["relevance"] <= 1
        assert document.page_content[margin["start"] : margin["end"]] == document.page_content
    assert output["usage"]["output_tokens"] > 0
    assert output["stopped_early"] is False


async def test_runnable_calls_agree(runnable: WimRunnable, documents: list[Document]) -> None:
    given = asked(documents)
    wanted = without_times(runnable.invoke(given))
    assert without_times(await runnable.ainvoke(given)) == wanted
    assert [without_times(output) for output in runnable.batch([given, given])] == [wanted, wanted]
    assert [without_times(output) for output in await runnable.abatch([given, given])] == [wanted, wanted]
    for chunks in (
        list(runnable.stream(given)),
        [chunk async for chunk in runnable.astream(given)],
        list(runnable.transform(iter([given]))),
    ):
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole = whole + chunk
        whole["margins"].sort(key=lambda margin: margin["index"])
        assert without_times(dict(whole)) == wanted
        assert sum("answer" in chunk for chunk in chunks) > 2


@pytest.mark.in_process
def test_the_first_margin_is_streamed_before_the_last_chunk_is_read(
    runnable: WimRunnable, documents: list[Document]
) -> None:
    stream = runnable.stream(asked(documents))
    with spying(runnable.kernel.model) as spy:
        next(chunk for chunk in stream if chunk.get("margins"))
    assert spy.tokens
    live = runnable.kernel.cache.held[-1]
    assert live.chunks < len(documents)
    stream.close()


@pytest.mark.parametrize(
    "names",
    [
        {},
        {"question": "input", "documents": "context"},
        {"question": "query", "documents": "input_documents"},
    ],
)
def test_inputs_take_langchains_names(
    runnable: WimRunnable, documents: list[Document], names: dict[str, str]
) -> None:
    given = {names.get(name, name): value for name, value in asked(documents).items()}
    assert runnable.invoke(given)["answer"] == runnable.invoke(asked(documents))["answer"]


def test_inputs_take_the_callers_names(kernel: WimKernel, documents: list[Document]) -> None:
    runnable = WimRunnable(
        kernel=kernel, question_key="ask", documents_key="of", answer_tokens=2, margin_tokens=2
    )
    assert runnable.invoke({"ask": QUESTION, "of": documents, "question": "Another?", "documents": []})[
        "answer"
    ]
    assert set(runnable.get_input_schema().model_fields) == {"ask", "of"}
    with pytest.raises(KeyError, match="ask"):
        runnable.invoke({"question": QUESTION, "of": documents})


def test_documents_may_be_strings_or_one_long_string(
    runnable: WimRunnable, documents: list[Document]
) -> None:
    texts = [document.page_content for document in documents]
    wanted = runnable.invoke(asked(documents))["answer"]
    assert runnable.invoke(asked(texts))["answer"] == wanted
    assert runnable.invoke(asked(documents[0]))["margins"][0]["document"] == 0
    long = " ".join(f"The mate wrote down sentence number {number}." for number in range(80))
    output = WimRunnable(kernel=runnable.kernel, chunk_tokens=100, threshold=0, margin_tokens=2).invoke(
        asked(long)
    )
    places = [(margin["start"], margin["end"]) for margin in output["margins"]]
    assert len(places) > 5
    assert "".join(long[start:end] for start, end in places) == long


def test_the_question_may_be_a_message(runnable: WimRunnable, documents: list[Document]) -> None:
    wanted = runnable.invoke(asked(documents))["answer"]
    assert runnable.invoke({"question": HumanMessage(QUESTION), "documents": documents})["answer"] == wanted


@pytest.mark.in_process
@pytest.mark.invariant(1)
def test_two_questions_in_a_row_prefill_once(runnable: WimRunnable, documents: list[Document]) -> None:
    first = runnable.invoke(asked(documents))["usage"]
    second = runnable.invoke(asked(documents, "What sat on the mast?"))["usage"]
    assert first["prefill_tokens"] > 0
    assert (second["prefill_tokens"], second["cached_tokens"]) == (0, first["prefill_tokens"])


@pytest.mark.in_process
@pytest.mark.invariant(1)
@pytest.mark.parametrize("way", ["batch", "abatch"])
async def test_a_batch_prefills_once_and_decodes_questions_together(
    runnable: WimRunnable, documents: list[Document], way: str
) -> None:
    questions = [QUESTION, "What sat on the mast?", "How was the fog?"]
    given = [asked(documents, question) for question in questions]
    with spying(runnable.kernel.model) as spy:
        outputs = runnable.batch(given) if way == "batch" else await runnable.abatch(given)
    together = len(spy.batches)
    assert (
        sum(output["usage"]["prefill_tokens"] for output in outputs)
        == outputs[0]["usage"]["prefill_tokens"]
        > 0
    )
    with spying(runnable.kernel.model) as spy:
        alone = [runnable.invoke(item) for item in given]
    assert together < len(spy.batches)
    assert [without_times(output) for output in outputs] == [without_times(output) for output in alone]


def test_a_batch_over_different_documents_keeps_its_order_and_its_errors(
    runnable: WimRunnable, documents: list[Document]
) -> None:
    given = [
        asked(documents),
        asked(documents[:1]),
        {"question": QUESTION},
        asked(documents, " "),
        asked(documents, "How was the fog?"),
    ]
    outputs = runnable.batch(given, return_exceptions=True)
    assert [type(output).__name__ for output in outputs] == [
        "dict",
        "dict",
        "MissingInputError",
        "ValueError",
        "dict",
    ]
    for output, item in zip(outputs, given, strict=True):
        if isinstance(output, dict):
            assert without_times(output) == without_times(runnable.invoke(item))
    with pytest.raises(KeyError):
        runnable.batch(given)


def test_a_batch_that_may_stop_early_stops_each_where_it_would_alone(
    kernel: WimKernel, documents: list[Document]
) -> None:
    runnable = WimRunnable(
        kernel=kernel,
        stop_after=1,
        margin_batch=1,
        margin_tokens=2,
        answer_tokens=2,
        relevance=lambda evidence: float(evidence.question == QUESTION),
    )
    given = [asked(documents), asked(documents, "Another?")]
    outputs = runnable.batch(given)
    assert [output["stopped_early"] for output in outputs] == [True, False]
    assert [without_times(output) for output in outputs] == [
        without_times(runnable.invoke(item)) for item in given
    ]


def test_a_batchs_documents_are_split_and_encoded_once(
    kernel: WimKernel, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    original = kernel.read
    monkeypatch.setattr(kernel, "read", lambda *args, **kwargs: read.append(1) or original(*args, **kwargs))
    runnable = WimRunnable(kernel=kernel, margin_tokens=2, answer_tokens=2)
    runnable.batch([asked(documents, f"Who owned ship {number}?") for number in range(5)])
    assert len(read) == 1


@pytest.mark.in_process
def test_max_concurrency_bounds_how_many_are_answered_together(
    runnable: WimRunnable, documents: list[Document]
) -> None:
    given = [asked(documents, f"Who owned ship {number}?") for number in range(4)]
    runnable = runnable.model_copy(update={"margin_style": "free"})
    with spying(runnable.kernel.model) as spy:
        runnable.batch(given, {"max_concurrency": 1})
    one_by_one = max(batch.shape[0] for batch in spy.batches)
    with spying(runnable.kernel.model) as spy:
        runnable.batch(given)
    assert one_by_one <= len(documents) + 1 < max(batch.shape[0] for batch in spy.batches)


@pytest.mark.in_process
def test_options_are_fields_that_can_be_configured(kernel: WimKernel, documents: list[Document]) -> None:
    runnable = WimRunnable(kernel=kernel, threshold=0, margin_tokens=5, answer_tokens=6).configurable_fields(
        threshold=ConfigurableField(id="threshold"),
        answer_tokens=ConfigurableField(id="answer_tokens"),
        prompts=ConfigurableField(id="prompts"),
        stop_after=ConfigurableField(id="stop_after"),
    )
    plain = runnable.invoke(asked(documents))
    assert all(margin["kept"] for margin in plain["margins"])
    strict = runnable.with_config(configurable={"threshold": 1.0}).invoke(asked(documents))
    assert not any(margin["kept"] for margin in strict["margins"])
    assert strict["usage"]["prefill_tokens"] == 0  # the reading is the kernel's, not the object's
    short = runnable.with_config(configurable={"answer_tokens": 1}).invoke(asked(documents))
    assert len(short["answer"]) < len(plain["answer"])
    early = runnable.with_config(configurable={"stop_after": 1}).invoke(asked(documents))
    assert early["stopped_early"]
    prompted = runnable.with_config(configurable={"prompts": {"answer": "\n\nName the owner: {question}"}})
    assert prompted.invoke(asked(documents))["answer"] != plain["answer"]


def test_wrong_options_are_refused_when_the_runnable_is_made(kernel: WimKernel) -> None:
    with pytest.raises(ValueError, match="top_k"):
        WimRunnable(kernel=kernel, top_k=0)
    with pytest.raises(ValueError, match="Extra inputs"):
        WimRunnable(kernel=kernel, treshold=0.5)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="no prompts called"):
        WimRunnable(kernel=kernel, prompts={"reply": "Say it."})
    with pytest.raises(ValueError, match="WimKernel"):
        WimRunnable(kernel="embedded")  # type: ignore[arg-type]


def test_runnable_has_schemas_and_a_name(runnable: WimRunnable, documents: list[Document]) -> None:
    schema = runnable.get_input_jsonschema()
    assert set(schema["properties"]) == {"question", "documents"}
    assert set(runnable.get_output_jsonschema()["properties"]) == set(runnable.invoke(asked(documents)))
    runnable.get_input_schema().model_validate(asked(documents))
    runnable.get_output_schema().model_validate(runnable.invoke(asked(documents)))
    assert runnable.get_name() == "WimRunnable"


def test_runnables_compose(runnable: WimRunnable, documents: list[Document]) -> None:
    chain = (
        RunnableLambda(lambda question: asked(documents, question)) | runnable | (lambda out: out["answer"])
    )
    assert chain.invoke(QUESTION) == runnable.invoke(asked(documents))["answer"]
    assert "".join(runnable.pick("answer").stream(asked(documents))) == chain.invoke(QUESTION)


@pytest.mark.in_process
@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"question": QUESTION}, KeyError),
        ({"documents": ["A text."]}, KeyError),
        ({"question": 3, "documents": ["A text."]}, TypeError),
        ({"question": QUESTION, "documents": {"a": 1}}, TypeError),
        ({"question": QUESTION, "documents": ["A text.", 3]}, TypeError),
        ({"question": QUESTION, "documents": []}, EmptyDocumentError),
        ({"question": QUESTION, "documents": [" \n"]}, EmptyDocumentError),
        ({"question": "  ", "documents": ["A text."]}, ValueError),
        ({"question": QUESTION + " word" * 9000, "documents": "A text."}, ContextOverflowError),
        ("Who?", TypeError),
    ],
)
async def test_bad_input_is_a_clear_error_in_every_way_to_call_it(
    runnable: WimRunnable, given: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        runnable.invoke(given)
    with pytest.raises(error):
        await runnable.ainvoke(given)
    with pytest.raises(error):
        list(runnable.stream(given))
    with pytest.raises(error):
        [chunk async for chunk in runnable.astream(given)]
    with pytest.raises(error):
        runnable.batch([given])
    assert not any(live.in_use for live in runnable.kernel.cache.held)


def test_no_documents_may_have_an_answer_of_their_own(kernel: WimKernel, documents: list[Document]) -> None:
    runnable = WimRunnable(kernel=kernel, empty_response="Nothing to read.", margin_tokens=2, answer_tokens=2)
    assert runnable.invoke(asked([]))["answer"] == "Nothing to read."
    assert "".join(runnable.pick("answer").stream(asked([]))) == "Nothing to read."
    outputs = runnable.batch([asked([]), asked(documents)])
    assert outputs[0]["answer"] == "Nothing to read." != outputs[1]["answer"]


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


# -- margins, a person, the answer ------------------------------------------------------------------------------------


async def test_margins_then_answer_equals_the_whole_run(
    runnable: WimRunnable, documents: list[Document]
) -> None:
    fields = {"kernel": runnable.kernel, "threshold": 0, "margin_tokens": 5, "answer_tokens": 6}
    margins, answer = WimMargins(**fields), WimAnswer(**fields)
    wanted = runnable.invoke(asked(documents))
    noted = margins.invoke(asked(documents))
    assert noted["margins"] == wanted["margins"]
    assert noted["chunks_read"] == 3
    output = answer.invoke({**asked(documents), **noted})
    assert output["answer"] == wanted["answer"]
    assert output["usage"]["prefill_tokens"] == 0
    assert (await answer.ainvoke({**asked(documents), **noted}))["answer"] == wanted["answer"]
    assert (await margins.ainvoke(asked(documents)))["margins"] == wanted["margins"]
    for chunks in (
        list(margins.stream(asked(documents))),
        [c async for c in margins.astream(asked(documents))],
    ):
        written = [margin for chunk in chunks for margin in chunk.get("margins", [])]
        assert sorted(written, key=lambda margin: margin["index"]) == wanted["margins"]
        assert chunks[-1]["chunks_read"] == 3
    pieces = [chunk["answer"] for chunk in answer.stream({**asked(documents), **noted}) if "answer" in chunk]
    assert "".join(pieces) == wanted["answer"]
    outputs = answer.batch([{**asked(documents), **noted}, {**asked(documents), "margins": []}])
    assert outputs[0]["answer"] == wanted["answer"]


@pytest.mark.in_process
def test_what_a_person_did_to_margins_reaches_the_answers_prompt(
    kernel: WimKernel, documents: list[Document]
) -> None:
    margins = WimMargins(kernel=kernel, threshold=0, margin_tokens=5).invoke(asked(documents))["margins"]
    margins[0]["kept"] = False
    margins[1].update(text="Elsa Brandt owned it.", note="this is the one")
    answer = WimAnswer(kernel=kernel, answer_tokens=3)
    request = answer._request({**asked(documents), "margins": [*margins, "She bought it in 1902."]})
    handed, _ = answer._given_margins(request)
    result = request.reading.answer(QUESTION, handed)
    seen = kernel.tokenizer.decode(request.reading.prompt_ids(result))
    assert "- Elsa Brandt owned it. (reader's remark: this is the one)" in seen
    assert "- She bought it in 1902." in seen
    assert f"- {margins[0]['text'].strip()}\n" not in seen
    with pytest.raises(KeyError, match="margins"):
        answer.invoke(asked(documents))
    with pytest.raises(ValueError, match="another document"):
        answer.invoke({**asked(documents), "margins": [{"text": "x", "index": 7}]})
    with pytest.raises(ValueError, match="chunk_tokens"):
        answer.invoke({**asked(documents[:2] + documents[:1]), "margins": [margins[2]]})
    with pytest.raises(ValueError, match="true or false"):
        answer.invoke({**asked(documents), "margins": [{"text": "x", "kept": "false"}]})
    assert {"margins", "chunks_read", "question", "documents"} == set(answer.get_input_schema().model_fields)


@pytest.mark.in_process
def test_quotes_survive_the_way_through_a_person(kernel: WimKernel, documents: list[Document]) -> None:
    margins = WimMargins(kernel=kernel, threshold=0, margin_style="verbatim").invoke(asked(documents))[
        "margins"
    ]
    margins[0]["text"] = "It poured."
    output = WimAnswer(kernel=kernel, answer_tokens=2).invoke({**asked(documents), "margins": margins})
    assert output["margins"][0]["quotes"] == []
    assert output["margins"][1:] == margins[1:]


# -- leaving early ----------------------------------------------------------------------------------------------------


@pytest.mark.invariant(6)
async def test_closing_an_asynchronous_stream_stops_the_work(
    runnable: WimRunnable, documents: list[Document]
) -> None:
    stream = runnable.astream(asked(documents))
    async for chunk in stream:
        if chunk.get("margins"):
            break
    await stream.aclose()
    for _ in range(100):
        if not any(live.in_use for live in runnable.kernel.cache.held):
            break
        await asyncio.sleep(0.02)
    assert not any(live.in_use for live in runnable.kernel.cache.held)


@pytest.mark.invariant(6)
def test_closing_a_stream_stops_the_work(runnable: WimRunnable, documents: list[Document]) -> None:
    stream = runnable.stream(asked(documents))
    next(stream)
    next(stream)
    stream.close()
    assert not any(live.in_use for live in runnable.kernel.cache.held)
    assert runnable.invoke(asked(documents))["answer"]


@pytest.mark.invariant(6)
async def test_a_cancelled_task_stops_the_work(runnable: WimRunnable, documents: list[Document]) -> None:
    async def read() -> None:
        async for _ in runnable.astream(asked(documents)):
            started.set()

    started = asyncio.Event()
    task = asyncio.create_task(read())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(100):
        if not any(live.in_use for live in runnable.kernel.cache.held):
            break
        await asyncio.sleep(0.02)
    assert not any(live.in_use for live in runnable.kernel.cache.held)
    assert (await runnable.ainvoke(asked(documents)))["answer"]


@pytest.mark.invariant(6)
async def test_an_exception_in_keep_reaches_the_caller_and_nothing_is_held(
    kernel: WimKernel, documents: list[Document]
) -> None:
    def keep(margin: object) -> bool:
        raise RuntimeError("no")

    runnable = WimRunnable(kernel=kernel, threshold=0, margin_tokens=2, keep=keep)
    with pytest.raises(RuntimeError, match="no"):
        runnable.invoke(asked(documents))
    with pytest.raises(RuntimeError, match="no"):
        await runnable.ainvoke(asked(documents))
    assert not any(live.in_use for live in kernel.cache.held)


@pytest.mark.in_process
@pytest.mark.invariant(7)
async def test_twenty_tasks_at_once_get_what_each_would_alone(
    runnable: WimRunnable, documents: list[Document]
) -> None:
    given = [asked(documents, f"Who owned ship number {number}?") for number in range(20)]
    wanted = [runnable.invoke(item)["answer"] for item in given]
    runnable.kernel.cache.clear()
    found = await asyncio.gather(*(runnable.ainvoke(item) for item in given))
    assert [output["answer"] for output in found] == wanted
    assert (
        sum(output["usage"]["prefill_tokens"] for output in found)
        == found[0]["usage"]["cached_tokens"] + (found[0]["usage"]["prefill_tokens"])
    )
