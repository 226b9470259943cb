"""`WimMargins`, a person, `WimAnswer`: together they are the whole run."""

from __future__ import annotations

import pytest
from asking import QUESTION, asked
from langchain_core.documents import Document

from wim_integrations.langchain import WimAnswer, WimMargins, WimRunnable
from wim_kernel import WimKernel


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
