"""The runnable as LangChain calls it: every way in, streams, batches, configuration, schemas, bad input."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest
from asking import QUESTION, asked, without_times
from helpers import spying
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage
from langchain_core.runnables import ConfigurableField, RunnableLambda

from wim_integrations.langchain import WimRunnable
from wim_kernel import ContextOverflowError, EmptyDocumentError, WimKernel


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
