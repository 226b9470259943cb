"""Margins as they come back from people and programs: one way in, and errors that say what a margin is."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from helpers import SHORT
from hypothesis import given
from hypothesis import strategies as st

from wim_integrations.langchain.decisions import decided
from wim_kernel import Chunk, ChunkError, Margin, MarginsError, OptionError, WimError, WimKernel
from wim_kernel.run.given_margins import is_approval, margins_in
from wim_kernel.run.quoting import locate_quotes

TEXTS = ["The gull sat on the mast.", "Elsa Brandt owned the ship.", "The fog was thick."]
QUESTION = "Who owned the ship?"
CHUNKS = [Chunk.of(text, str(place), 0) for place, text in enumerate(TEXTS)]


async def test_every_form_of_a_margin_reaches_the_answers_prompt(kernel: WimKernel) -> None:
    reading = kernel.read(TEXTS)
    written = reading.margins(QUESTION, threshold=0, margin_config=SHORT["margin_config"])
    as_data = json.loads(json.dumps([margin.to_dict() for margin in written]))
    wanted = reading.answer(QUESTION, written, **SHORT)
    assert reading.answer(QUESTION, as_data, **SHORT).answer == wanted.answer
    assert (await reading.aanswer(QUESTION, as_data, **SHORT)).answer == wanted.answer
    mixed: list[Any] = [written[0], as_data[1], "My own note.", {"text": "Another.", "index": 0}]
    (*_, last) = reading.stream_answer(QUESTION, mixed, **SHORT)
    seen = kernel.tokenizer.decode(reading.prompt_ids(last.result))  # type: ignore[union-attr]
    assert "- My own note." in seen
    assert "- Another." in seen
    assert reading.answer(QUESTION, ["x"], **SHORT).margins[0].chunk == reading.chunks[-1]


SPAN: dict[str, Any] = {"source_id": "0", "start": 0, "end": 6, "offset": 0, "length": 6}
WRONG: list[tuple[Any, str]] = [
    ("approve", "approves margins"),
    (True, "approves margins"),
    ("a note", "Margins are a list"),
    (None, "Margins are a list"),
    (False, "give \\[\\]"),
    ({"text": "x"}, "Margins are a list"),
    (7, "Margins are a list"),
    ([None], "position 0 is None"),
    ([{}], "no 'text'"),
    (["x", 3], "position 1 is an int"),
    ([["x"]], "position 0 is a list"),
    ([{"text": None}], "text is a string"),
    ([{"text": "x", "kept": "yes"}], "true or false"),
    ([{"text": "x", "relevance": "high"}], "0 to 1"),
    ([{"text": "x", "relevance": 7}], "0 to 1"),
    ([{"text": "x", "relevance": float("nan")}], "0 to 1"),
    ([{"text": "x", "index": "first"}], "number of its chunk"),
    ([{"text": "x", "index": 3}], "chunks 0 to 2"),
    ([{"text": "x", "index": -1}], "chunks 0 to 2"),
    ([{"text": "x", "note": 3}], "note is a string"),
    ([{"text": "x", "keep": False}], "is called 'kept'"),
    ([{"note": "x", "txt": "x"}], "is called 'text'"),
    ([{"text": "x", "chunk": {}}], "leave it out"),
    ([{"text": "x", "chunk": 3}], "leave it out"),
    ([{"text": "x", "relevance": 10**400}], "0 to 1"),
    ([{"text": "x", "evidence": {"lexical": "much"}}], "evidence 'lexical' is a number"),
    ([{"text": "x", "evidence": [1.0]}], "evidence is a dict"),
    ([{"text": "x", "evidence": {"lexical": float("nan")}}], "evidence 'lexical' is a number"),
    ([{"text": "x", "chunk": {"text": 3}}], "leave it out"),
    ([{"text": "x", "chunk": {"text": "x", "metadata": 3}}], "leave it out"),
    ([{"text": "x", "chunk": CHUNKS[0].to_dict(), "spans": [{"a": 1}]}], "leave them out"),
    ([{"text": "x", "chunk": CHUNKS[0].to_dict(), "spans": "0-6"}], "leave them out"),
    ([{"text": "x", "chunk": CHUNKS[0].to_dict(), "spans": [{**SPAN, "start": "a"}]}], "leave them out"),
    ([{"text": "x", "chunk": CHUNKS[0].to_dict(), "spans": [{**SPAN, "length": None}]}], "leave them out"),
]


@pytest.mark.parametrize(("margins", "said"), WRONG)
async def test_items_that_are_no_margin_are_named(kernel: WimKernel, margins: Any, said: str) -> None:
    reading = kernel.read(TEXTS)
    with pytest.raises(MarginsError, match=said) as caught:
        reading.answer(QUESTION, margins, **SHORT)
    assert str(caught.value).endswith(".")
    assert isinstance(caught.value, WimError | ValueError)
    with pytest.raises(MarginsError, match=said):
        await reading.aanswer(QUESTION, margins, **SHORT)
    with pytest.raises(MarginsError, match=said):
        list(reading.stream_answer(QUESTION, margins, **SHORT))
    assert not any(live.in_use for live in kernel.cache.held)


def test_a_margin_of_a_longer_document_is_refused(kernel: WimKernel) -> None:
    margins = kernel.read([*TEXTS, "The sea was calm."]).margins(QUESTION, threshold=0, margin_tokens=2)
    with pytest.raises(MarginsError, match="chunks 0 to 2"):
        kernel.read(TEXTS).answer(QUESTION, margins, **SHORT)


@pytest.mark.parametrize("reply", [True, "approve", "Approved", " accept "])
def test_an_approval_is_the_margins_that_were_written(reply: Any) -> None:
    written = margins_in(["one", "two"], CHUNKS)
    assert is_approval(reply)
    assert margins_in(reply, CHUNKS, written=written) == written


NOTE = {"lexical": 0.2, "support": 0.0, "located": 0.0}
QUOTED = {"lexical": 0.2, "located": 0.0}


@pytest.mark.parametrize(
    ("old", "before"),
    [("The whale swallowed it.", NOTE), ("A whale sang below. [not in the text]", QUOTED)],
)
@pytest.mark.parametrize(
    "text",
    [
        "Elsa Brandt owned the ship.",
        "elsa  brandt owned the ship",
        "Elsa Brandt swallowed the anchor chain.",
        "A whale swallowed the ship.",
        " ",
    ],
)
def test_a_changed_text_is_the_persons_own(old: str, before: dict[str, float], text: str) -> None:
    margin = Margin(1, old, 0.5, True, CHUNKS[1], evidence=before)
    data = margin.to_dict()
    written = {**data, "document": 1}
    edit = {"type": "edit", "edited_action": {"name": "use_margin", "args": {"text": text}}}
    (decision,) = decided([written], {"decisions": [edit]}, ["edit"])
    ways = margins_in([{**data, "text": text}, replace(margin, text=text), decision], CHUNKS)
    for found in (margin.edited(text), *ways):
        assert (found.text, dict(found.evidence)) == (text, {"lexical": 0.2})
        assert not found.found_nowhere
    (same,) = margins_in([data], CHUNKS)
    assert same.evidence == before


def test_a_margin_that_comes_back_as_it_was_keeps_its_evidence(kernel: WimKernel) -> None:
    reading = kernel.read(TEXTS)
    short = {"threshold": 0, "margin_style": "free", "margin_config": SHORT["margin_config"]}
    written = reading.margins(QUESTION, **short)  # type: ignore[arg-type]
    assert any("support" in margin.evidence for margin in written)
    again = margins_in([margin.to_dict() for margin in written], CHUNKS, question=QUESTION)
    assert [margin.evidence for margin in again] == [margin.evidence for margin in written]


def test_quotations_of_a_chat_model_are_located_as_before() -> None:
    quotes = ["Elsa Brandt owned the ship.", "A whale sang below."]
    for some, share in ((quotes, 0.5), (quotes[:1], 1.0), (quotes[1:], 0.0)):
        found = locate_quotes(CHUNKS[1], some)
        margin = Margin(1, found.text, 0.5, True, CHUNKS[1], found.spans, evidence={"located": share})
        assert found.located == share
        assert margins_in([margin], CHUNKS) == [margin]
        (again,) = margins_in([margin.to_dict()], CHUNKS)
        assert (again.evidence, again.spans) == ({"located": share}, found.spans)


SENTENCE = "Elsa Brandt owned the ship."


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (SENTENCE, True),
        (f"{SENTENCE} […] A whale sang below. [not in the text]", True),
        (f"{SENTENCE} […] A whale sang. [not in the text] […] And a crab. [not in the text]", True),
        ("Nobody did.", False),
        (f"{SENTENCE} She also stole it.", False),
        (f"{SENTENCE} She also stole it. […] A whale sang below. [not in the text]", False),
        (f"So it was: {SENTENCE}", False),
    ],
)
def test_spans_are_of_the_margins_own_text(text: str, kept: bool) -> None:
    spans = CHUNKS[1].spans
    data = Margin(1, CHUNKS[1].text, 0.5, True, CHUNKS[1], spans=spans).to_dict()
    assert margins_in([{**data, "text": text}], CHUNKS)[0].spans == (spans if kept else ())


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["text", "kept", "note", "relevance", "index", "chunk", "spans"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
)


@given(anything)
def test_whatever_comes_in_is_margins_or_a_clear_error(margins: Any) -> None:
    try:
        found = margins_in(margins, CHUNKS)
    except MarginsError:
        return
    assert all(isinstance(margin, Margin) for margin in found)


@pytest.mark.parametrize("data", [{}, {"text": "x"}, {"index": 0, "text": "x", "relevance": 1, "kept": True}])
def test_from_dict_says_what_is_missing(data: Any) -> None:
    with pytest.raises(MarginsError, match="to_dict wrote, and this has no"):
        Margin.from_dict(data)


JUNK = [
    *(
        None,
        True,
        -1,
        3.5,
        float("nan"),
        float("inf"),
        "high",
        [],
        [1],
        {},
        {"a": 1},
        [{}],
        [None],
        object(),
        b"x",
    ),
    *(10**400, {"text": 3}, {"text": "x", "spans": 3}, {"text": "x", "metadata": 3}, {"a": float("nan")}),
    *([{**SPAN, "source_id": 1}], [{**SPAN, "offset": None}], [{**SPAN, "end": "x"}]),
]


@pytest.mark.parametrize("name", ["index", "text", "relevance", "kept", "note", "chunk", "spans", "evidence"])
def test_invalid_fields_of_saved_margins_are_named(name: str) -> None:
    (margin,) = margins_in([{"text": "x", "index": 0, "evidence": {"lexical": 0.5}}], CHUNKS)
    refused = []
    for junk in JUNK:
        try:
            read = Margin.from_dict({**margin.to_dict(), name: junk})
        except MarginsError as error:
            refused.append(str(error))
        else:
            assert Margin.from_dict(json.loads(json.dumps(read.to_dict()))) == read
    assert len(refused) > len(JUNK) // 2
    assert all(said.endswith(".") and len(said) < 250 for said in refused)


@pytest.mark.parametrize("data", JUNK, ids=range(len(JUNK)))
def test_saved_margins_and_chunks_are_dicts(data: Any) -> None:
    with pytest.raises(MarginsError, match="to_dict wrote"):
        Margin.from_dict(data)
    with pytest.raises(ChunkError, match="to_dict wrote"):
        Chunk.from_dict(data)


@pytest.mark.parametrize("score", [None, "high", float("nan"), [1]])
def test_a_relevance_of_ones_own_returns_a_number(kernel: WimKernel, score: Any) -> None:
    with pytest.raises(OptionError, match="has to return a number from 0 to 1"):
        kernel.read(TEXTS).margins(QUESTION, relevance=lambda evidence: score)
