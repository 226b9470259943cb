"""Answers cite the margins they come from: markers exist, whatever the model, and lead to characters of the source."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wim_kernel import PROMPTS, AnswerToken, Chunk, Citation, Margin, MarginsError, OptionError, WimKernel
from wim_kernel.run.answer_prompt import answer_prompt
from wim_kernel.run.citing import citations_of
from wim_kernel.run.options import parse_options
from wim_kernel.text.chunks import join_adjacent
from wim_kernel.text.markers import MARKER, MarkerFilter, may_become

TEXTS = [
    "The gull sat on the mast. It rained all night.",
    "Elsa Brandt owned the ship Aurora. The fog came. She bought it in Brill in May.",
    "Nobody saw the harbour.",
]
QUESTION = "Who owned the ship?"
FREE = {"margin_style": "free", "threshold": 0, "margin_tokens": 4}


def margin(index: int, text: str, *quotes: str, relevance: float = 0.5, **fields: Any) -> Margin:
    """A kept margin of one of the texts, which quotes some of its sentences."""
    chunk = fields.pop("chunk", Chunk.of(TEXTS[index], f"page {index}", 100))
    spans = tuple(
        span
        for quote in quotes
        for span in chunk.locate(chunk.text.index(quote), chunk.text.index(quote) + len(quote))
    )
    return Margin(index, text, relevance, True, chunk, spans, **fields)


# -- markers in a text that comes in pieces ---------------------------------------------------------------------------


def pushed(pieces: list[str], count: int) -> tuple[list[str], MarkerFilter]:
    """What a reader sees after each piece, and the filter."""
    markers, seen = MarkerFilter(count), [""]
    for piece in pieces:
        seen.append(seen[-1] + markers.push(piece))
    seen.append(seen[-1] + markers.flush())
    return seen, markers


@given(st.text("[]1234 ,a", max_size=24), st.lists(st.integers(0, 24)), st.integers(0, 3))
def test_no_reader_ever_sees_a_marker_that_is_broken_or_does_not_exist(
    text: str, cuts: list[int], count: int
) -> None:
    ends = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    pieces = [text[start:end] for start, end in pairwise(ends)]
    seen, markers = pushed(pieces, count)
    for shown in seen:
        assert all(0 < int(number) <= count for number in MARKER.findall(shown))
        assert not re.search(r"\[[0-9]*\Z", shown)
    assert seen[-1] == markers.text == pushed([text], count)[0][-1]
    assert markers.dropped == pushed([text], count)[1].dropped
    if "[" not in text:
        assert markers.text == text


@pytest.mark.parametrize(
    ("text", "shown", "dropped"),
    [
        ("She did [1]. So [3].", "She did [1]. So.", 1),
        ("She did [1, 3; 2].", "She did [1][2].", 1),
        ("In [1902] she did[2", "In she did", 1),
        ("a [b] [ 9 ] [[2]", "a [b] [ 9 ] [[2]", 0),
        ("a [01] b", "a b", 1),
        ("an end [", "an end", 0),
        ("[1[4]2] [[4]9]", "[1 2] [ 9]", 2),
    ],
)
def test_dropped_markers_leave_no_gap_in_the_text(text: str, shown: str, dropped: int) -> None:
    _, markers = pushed(list(text), 2)
    assert (markers.text, markers.dropped) == (shown, dropped)


@given(st.text("[]012a ", max_size=10))
def test_begun_markers_can_be_completed(text: str) -> None:
    existing = {"1", "12"}
    begun = re.search(r"\[[0-9]+\Z", text)
    ends = [number[len(begun[0]) - 1 :] + "]" for number in existing] if begun else [""]
    whole = [text + end for end in ends]
    valid = [
        all(number in existing for number, _ in re.findall(r"\[([0-9]+)(\]?)", each))
        and not re.search(r"\[[0-9]+(?![0-9\]])", each)
        and (begun is None or each[begun.start() :] in {f"[{number}]" for number in existing})
        for each in whole
    ]
    assert may_become(text, existing) == any(valid)


# -- from an answer's markers to the document -------------------------------------------------------------------------


def test_a_marker_leads_to_what_its_margin_quotes() -> None:
    kept = [
        margin(0, "It rained all night.", "It rained all night."),
        margin(1, "Elsa Brandt owned the ship Aurora. […] She bought it in Brill in May.",
               "Elsa Brandt owned the ship Aurora.", "She bought it in Brill in May."),
    ]  # fmt: skip
    answer = "Elsa Brandt [2], in the rain [1]."
    found = citations_of(answer, kept)
    assert [(each.number, answer[each.start : each.end]) for each in found] == [
        (2, "[2]"),
        (2, "[2]"),
        (1, "[1]"),
    ]
    assert [each.quote for each in found] == [
        "Elsa Brandt owned the ship Aurora.",
        "She bought it in Brill in May.",
        "It rained all night.",
    ]
    for each in found:
        assert each.located == "exact"
        assert each.document == f"page {each.margin}"
        assert each.source_start is not None
        assert each.source_end is not None
        assert TEXTS[each.margin][each.source_start - 100 : each.source_end - 100] == each.quote
        assert TEXTS[each.margin][each.chunk_start :].startswith(each.quote)


def test_sentences_that_follow_each_other_are_one_quote() -> None:
    sentences = "Elsa Brandt owned the ship Aurora.", "The fog came."
    (found,) = citations_of("So [1].", [margin(1, " ".join(sentences), *sentences)])
    assert found.quote == " ".join(sentences)


def test_free_notes_are_located_or_said_to_be_nowhere() -> None:
    pytest.importorskip("rapidfuzz")
    notes = [
        margin(1, "elsa brandt owned the  ship Aurora"),
        margin(1, "Elsa Brandt owned a ship Aurora"),
        margin(1, "It is said: Elsa did. She bought it in Brill in May."),
        margin(1, "Jan Dekker drowned in a storm at sea."),
        margin(1, "", note="this is the one"),
    ]
    found = citations_of("[1][2][3][4][5]", notes)
    assert [each.located for each in found] == ["exact", "fuzzy", "exact", *["unlocated"] * 3]
    assert [each.quote for each in found] == [
        "Elsa Brandt owned the ship Aurora",
        "Elsa Brandt owned the ship Aurora.",
        "She bought it in Brill in May.",
        "It is said: Elsa did.",
        "Jan Dekker drowned in a storm at sea.",
        "this is the one",
    ]
    assert [each.source_start for each in found] == [100, 100, 149, None, None, None]
    assert found[4].document == "page 1"


def test_a_text_that_no_longer_is_its_quotation_is_located_anew() -> None:
    quoted = margin(1, "The fog came.", "The fog came.")
    (found,) = citations_of("[1]", [replace(quoted, text="Nobody came at all.")])
    assert (found.located, found.quote) == ("unlocated", "Nobody came at all.")


def test_pages_and_titles_come_from_the_chunk() -> None:
    chunk = Chunk.of(TEXTS[1], "a.pdf", 0, {"page_starts": [0, 40], "title": "The register"})
    (found,) = citations_of("[1]", [margin(1, "She bought it in Brill in May.", chunk=chunk)])
    assert (found.document, found.page, found.title) == ("a.pdf", 2, "The register")
    (elsewhere,) = citations_of("[1]", [margin(1, "The fog came.")])
    assert (elsewhere.page, elsewhere.title) == (None, None)


def test_an_answer_without_markers_cites_the_sentences_it_copies_and_no_others() -> None:
    kept = [
        margin(1, "Elsa Brandt owned the ship Aurora.", "Elsa Brandt owned the ship Aurora.", relevance=0.2),
        margin(0, "It rained all night.", "It rained all night.", relevance=0.9),
    ]
    answer = "Yes. Elsa Brandt owned the ship Aurora. Elsa Brandt never owned the ship Aurora. The ship."
    (found,) = citations_of(answer, kept)
    assert answer[found.start : found.end] == "Elsa Brandt owned the ship Aurora."
    assert (found.number, found.margin, found.located) == (None, 1, "exact")
    assert citations_of("[2] Elsa Brandt owned the ship Aurora.", kept)[0].number == 2


def test_citations_are_plain_data_and_back() -> None:
    (found,) = citations_of("[1]", [margin(1, "The fog came.", "The fog came.")])
    assert Citation.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    for wrong in ({}, {**found.to_dict(), "located": "somewhere"}, {**found.to_dict(), "start": -1}, "x"):
        with pytest.raises(MarginsError, match=r"Citation\.from_dict"):
            Citation.from_dict(wrong)  # type: ignore[arg-type]


# -- the prompt -------------------------------------------------------------------------------------------------------


def prompt(**options: Any) -> str:
    notes = [margin(0, "It rained."), margin(1, "Elsa owned it.", note="yes"), margin(2, "")]
    return "".join(run.text for run in answer_prompt(QUESTION, notes, parse_options(options)))


def test_margins_have_numbers_only_if_they_are_to_be_cited() -> None:
    plain = (
        "\n\nPassages of the document that bear on the question:\n- It rained.\n- Elsa owned it. (reader's remark: "
        "yes)\n\nAnswer the question from the document. Be brief.\n\nQuestion: Who owned the ship?"
    )
    assert prompt() == prompt(citations=False) == prompt(citations=None) == plain
    cited = prompt(citations=True)
    assert "question:\n[1] It rained.\n[2] Elsa owned it. (reader's remark: yes)\n\nThese" in cited
    assert cited.endswith(plain[plain.index("\n\nAnswer the") :])
    assert cited.count(PROMPTS["answer"].cite) == 1
    schema = {"type": "object"}
    assert prompt(citations=True, answer_schema=schema) == prompt(answer_schema=schema)
    own = replace(PROMPTS["answer"], answer="Notes: {margins} Now: {question}", cite="\n\nCite {them}.")
    assert prompt(citations=True, prompts=own, variables={"them": "all"}).endswith(
        "Now: Who owned the ship?\n\nCite all."
    )


def test_the_option_is_true_or_false() -> None:
    with pytest.raises(OptionError, match="citations has to be True or False"):
        parse_options({"citations": 1})  # type: ignore[typeddict-item]


# -- answers ----------------------------------------------------------------------------------------------------------


def test_an_answer_without_citations_is_the_same_as_ever(kernel: WimKernel) -> None:
    reading = kernel.read(TEXTS)
    plain = reading.ask(QUESTION, answer_tokens=8, **FREE)
    off = reading.ask(QUESTION, answer_tokens=8, citations=False, **FREE)
    assert (off.answer, off.token_ids, off.citations) == (plain.answer, plain.token_ids, ())
    if kernel.engine.shows_tokens:
        assert reading.prompt_ids(off) == reading.prompt_ids(plain)
    on = reading.ask(QUESTION, answer_tokens=8, citations=True, **FREE)
    assert on.branch != plain.branch


@pytest.mark.in_process
@pytest.mark.invariant(3)
def test_a_random_model_that_loves_markers_writes_only_existing_ones(kernel: WimKernel) -> None:
    """Every token that has to do with markers is made likely, so that without a grammar most numbers are invented."""
    from helpers import generated
    from transformers import GenerationConfig, LogitsProcessorList

    from wim_kernel.engines.local.decode.marker_grammar import MarkerGrammars

    tokenizer = kernel.tokenizer
    loved = [tokenizer.convert_tokens_to_ids(token) for token in ("[", "Ġ[", "]", "1", "2", "3", "9", "0")]
    config = GenerationConfig(
        max_new_tokens=60, do_sample=False, sequence_bias=[[[token], 9.0] for token in loved],
        repetition_penalty=1.05,
    )  # fmt: skip
    reading = kernel.read(TEXTS)
    invented = reading.ask(QUESTION, answer_config=config, **FREE).answer
    assert any(int(number) > 3 for number in re.findall(r"\[([0-9]+)", invented)), (
        "the test would test nothing"
    )
    pieces, result = [], None
    for event in reading.stream(QUESTION, answer_config=config, citations=True, **FREE):
        if isinstance(event, AnswerToken):
            pieces.append(event.text)
            shown = "".join(pieces)
            assert all(1 <= int(number) <= 3 for number in MARKER.findall(shown))
            assert not re.search(r"\[[0-9]*\Z", shown)
        else:
            result = getattr(event, "result", result)
    assert result is not None
    assert "".join(pieces) == result.answer
    assert result.dropped_markers == 0
    assert len({each.number for each in result.citations}) > 1
    vocabulary, ends = kernel.model.config.vocab_size, frozenset([tokenizer.eos_token_id])
    processor = MarkerGrammars(tokenizer, vocabulary, ends).processor(3, len(reading.prompt_ids(result)))
    alone = _generate(kernel, reading.prompt_ids(result), config, LogitsProcessorList([processor]))
    assert alone[: len(result.token_ids)] == list(result.token_ids)
    assert generated(reading, result, config) != list(result.token_ids), "the grammar changed nothing"


def _generate(kernel: WimKernel, prompt_ids: list[int], config: Any, processors: Any) -> list[int]:
    import torch

    ids = torch.tensor([prompt_ids])
    out = kernel.model.generate(
        ids, attention_mask=torch.ones_like(ids), generation_config=config, logits_processor=processors
    )
    new: list[int] = out[0, ids.shape[1] :].tolist()
    return new


@pytest.mark.in_process
@pytest.mark.parametrize("count", [0, 2, 12])
def test_only_what_would_break_a_marker_is_forbidden(kernel: WimKernel, count: int) -> None:
    from wim_kernel.engines.local.decode.marker_grammar import MarkerGrammars
    from wim_kernel.text.markers import numbers

    tokenizer = kernel.tokenizer
    end = tokenizer.eos_token_id
    grammars = MarkerGrammars(tokenizer, len(tokenizer) + 3, frozenset([end]))
    for begun in ("", "[", "[1") if count else ("", "["):
        forbidden = grammars.forbidden(count, begun).tolist()
        assert len(forbidden) == len(tokenizer) + 3
        assert forbidden[end] == (begun == "[1")
        before = tokenizer.encode("x" + begun)
        for token in range(0, len(tokenizer), 7):
            if token != end:
                text = tokenizer.decode([*before, token], skip_special_tokens=True)
                assert forbidden[token] == (not may_become(text, numbers(count))), text


@pytest.mark.in_process
def test_bytes_of_sentencepiece_count_as_their_characters() -> None:
    from wim_kernel.engines.local.decode.marker_grammar import _text_of

    assert [_text_of(name) for name in ("<0x5B>", "▁[1", "Ġ[", "]", None)] == ["[", " [1", " [", "]", ""]


def test_numbers_that_no_margin_has_are_dropped_and_counted() -> None:
    pytest.importorskip("langchain_core")
    from langchain_core.language_models import FakeListChatModel

    rated = '{"relevance": 9, "quotes": ["Elsa Brandt owned the ship Aurora."]}'
    model = FakeListChatModel(responses=[rated, "Elsa Brandt [1], or Jan [2] did [1, 7]."])
    kernel = WimKernel.from_chat_model(model)
    reading = kernel.read([TEXTS[1]])
    pieces, result = [], None
    for event in reading.stream(QUESTION, citations=True):
        if isinstance(event, AnswerToken):
            pieces.append(event.text)
            assert set(MARKER.findall("".join(pieces))) <= {"1"}
        result = getattr(event, "result", result)
    assert result is not None
    assert result.answer == "".join(pieces) == "Elsa Brandt [1], or Jan did [1]."
    assert result.dropped_markers == 2
    assert [each.quote for each in result.citations] == ["Elsa Brandt owned the ship Aurora."] * 2
    assert result.to_dict()["citations"][0]["quote"] == "Elsa Brandt owned the ship Aurora."
    assert result.to_dict()["dropped_markers"] == 2


@pytest.mark.in_process
@pytest.mark.parametrize(
    "config",
    [
        {"do_sample": True, "top_k": 3},
        {"do_sample": True, "top_p": 0.1},
        {"do_sample": False, "no_repeat_ngram_size": 3},
        {"do_sample": False, "min_new_tokens": 24},
    ],
)
def test_other_logits_processors_cannot_force_unknown_markers(
    kernel: WimKernel, config: dict[str, Any]
) -> None:
    from transformers import GenerationConfig

    bracket = kernel.tokenizer.convert_tokens_to_ids("[")
    generation = GenerationConfig(max_new_tokens=24, sequence_bias=[[[bracket], 12.0]], **config)
    result = kernel.ask(QUESTION, TEXTS, answer_config=generation, citations=True, **FREE)
    assert result.token_ids.count(bracket) > 0
    assert set(MARKER.findall(result.answer)) <= {"1", "2", "3"}
    assert result.dropped_markers == 0


def test_a_sentence_found_by_chance_does_not_locate_what_a_note_makes_up() -> None:
    chunk = Chunk.of("It is said: yes. Nobody saw the harbour that night.", "log")
    (found,) = citations_of("[1]", [margin(0, "Yes. Jan Dekker drowned in a storm at sea.", chunk=chunk)])
    assert (found.located, found.source_start) == ("unlocated", None)
    mixed = margin(0, "Nobody saw the harbour that night. Jan Dekker drowned at sea.", chunk=chunk)
    assert [(each.located, each.quote) for each in citations_of("[1]", [mixed])] == [
        ("exact", "Nobody saw the harbour that night."),
        ("unlocated", "Jan Dekker drowned at sea."),
    ]


def test_a_citation_has_text_of_one_document() -> None:
    texts = {"a.txt": "Elsa owned the ship.", "b.txt": "Jan sank the boat."}
    (chunk,) = join_adjacent(
        [Chunk.of(text, name) for name, text in texts.items()], 100, len, separator="\n\n"
    )
    notes = [
        margin(0, "\n\n".join(texts.values()), *texts.values(), chunk=chunk),
        margin(0, "\n\n".join(texts.values()), chunk=chunk),
    ]
    for note in notes:
        found = citations_of("[1]", [note])
        assert {each.document: each.quote for each in found} == texts
        assert all(texts[each.document][each.source_start : each.source_end] == each.quote for each in found)


def test_reference_numbers_of_the_document_are_no_markers() -> None:
    notes = [margin(0, "As shown [2], the gull sat."), margin(2, "Nobody saw it [17].")]
    for cites, wanted in ((True, "As shown (2), the gull sat."), (False, "As shown [2], the gull sat.")):
        settings = parse_options({"citations": cites})
        prompt = answer_prompt(QUESTION, notes, settings)
        assert wanted in "".join(run.text for run in prompt)
