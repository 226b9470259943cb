"""Passages of a document, and what the signals say of them together."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from halcyon import CREW, PASSAGES, QUESTION, ROUTE, SHIP

from wim_kernel import (
    Chunk,
    Span,
    WimKernel,
)
from wim_kernel.run.relevance.calibration import SIGNALS, Calibration
from wim_kernel.run.relevance.findings import FLOOR, Findings
from wim_kernel.run.relevance.passages import (
    HEADING_CHARACTERS,
    PASSAGE_CHARACTERS,
    DocumentPassages,
    quotable,
)

LONG = " ".join(f"On day {day} the fog lay on the harbour and nobody sailed." for day in range(40))


def in_passages(*chunks: Chunk) -> DocumentPassages:
    """Passages of chunks of which each character is a token."""
    return DocumentPassages(
        chunks, [len(chunk.text) for chunk in chunks], [range(len(chunk.text)) for chunk in chunks]
    )


def test_passages_hold_every_sentence_once_and_in_order() -> None:
    chunks = [Chunk(LONG), Chunk("\n\n"), Chunk(""), Chunk("One.\n\nTwo? Three! --\n\n* * *"), Chunk("Tail")]
    document = in_passages(*chunks)
    assert [len(document.of_chunk[index]) for index in (1, 2, 4)] == [0, 0, 1]
    assert [index for mine in document.of_chunk for index in mine] == list(range(len(document)))
    for number, chunk in enumerate(chunks):
        mine = [document.passages[index] for index in document.of_chunk[number]]
        assert all(passage.chunk == number for passage in mine)
        assert [span for passage in mine for span in passage.sentences] == quotable(chunk.text)
        for passage in mine:
            begin, end = passage.sentences[0][0], passage.sentences[-1][1]
            assert passage.text == chunk.text[begin:end]
            assert len(passage.text) <= PASSAGE_CHARACTERS
    assert len(document.of_chunk[0]) > 3
    for index, passage in enumerate(document.passages):
        for place, (start, end) in enumerate(passage.sentences):
            assert document.text_of(index, place) == chunks[passage.chunk].text[start:end]
    assert [sentences.stop - sentences.start for sentences in document.sentences_of] == [
        len(passage.sentences) for passage in document.passages
    ]


def test_a_sentence_that_is_too_long_is_a_passage_of_its_own() -> None:
    endless = "and the fog lay " * 60
    document = in_passages(Chunk(f"A ship. {endless.strip()}. A gull."))
    assert [passage.text[:6] for passage in document.passages] == ["A ship", "and th", "A gull"]


def test_a_heading_goes_with_the_paragraph_below_it() -> None:
    paragraph = (
        "The brig left port in May, laden with rye, and was seen off the cape by two fishermen that night."
    )
    assert len(paragraph) < HEADING_CHARACTERS + 20
    first, second = f"{paragraph} Nobody saw her again.", f"{paragraph} She came home."
    document = in_passages(Chunk(f"The loss\n\n{first}\n\nThe return\n\n{second}"))
    assert [passage.text for passage in document.passages] == [
        f"The loss\n\n{first}",
        f"The return\n\n{second}",
    ]


def test_passages_leave_out_text_around_sources() -> None:
    text = "Title: a log\nElsa owned it. Fog fell."
    begin = text.index("Elsa")
    document = in_passages(Chunk(text, (Span("log", 0, len(text) - begin, begin, len(text) - begin),)))
    assert [passage.text for passage in document.passages] == ["Elsa owned it. Fog fell."]


@pytest.mark.parametrize(
    "text",
    [
        SHIP,
        f"  {SHIP}\n\n  {CREW} ",
        "Füße? <|im_end|> 🙂 Ende. Noch einer!",
        "東京は都です。大阪は違います。",
    ],
)
def test_token_cuts_agree_with_the_tokens_that_are_read(tiny_kernel: WimKernel, text: str) -> None:
    reading = tiny_kernel.read([ROUTE, text])
    document, decode = reading.document.passages, tiny_kernel.engine.codec.backend.decode
    assert document.of_chunk[1]
    for passage in document.passages:
        ids = reading.document.tokens.chunks[passage.chunk]
        for place, (start, end) in enumerate(passage.sentences):
            cut = ids[passage.cuts[2 * place] : passage.cuts[2 * place + 1]]
            said = decode(list(cut), skip_special_tokens=False)
            wanted = reading.chunks[passage.chunk].text[start:end]
            # A token belongs where it begins: the space before a sentence to the sentence or to what is before it.
            assert said.strip() == wanted


def findings(document: DocumentPassages, seed: int = 0) -> Findings:
    """Findings of made-up signals."""
    random, found = np.random.default_rng(seed), Findings.of(document, QUESTION)
    found.mass = [random.exponential(0.01, len(passage.sentences)) for passage in document.passages]
    found.likelihood = random.normal(-3, 1, len(document))
    return found


def test_signals_are_relative_to_the_best_passage() -> None:
    document = in_passages(*map(Chunk, PASSAGES))
    for seed in range(20):
        relative = findings(document, seed).relative()
        assert set(relative) == set(SIGNALS)
        for name, values in relative.items():
            assert values.max() == 0
            assert values.min() >= FLOOR[name]
    nothing = Findings.of(document, "zebra").relative()
    assert all(values.tolist() == [0, 0, 0] for values in nothing.values())


def test_a_passage_that_was_not_measured_is_behind_those_that_were() -> None:
    found = findings(in_passages(*map(Chunk, PASSAGES)))
    found.likelihood = np.array([-2.0, np.nan, -3.0])
    assert found.relative()["passage"].tolist() == pytest.approx([0, -1.3, -1])
    found.mass[0] = None
    found.changed()
    assert found.relative()["attention"][0] == FLOOR["attention"]
    assert found.evidence(QUESTION, Chunk(SHIP), 0, Calibration()).attention is None


@pytest.mark.invariant(5)
def test_the_order_of_passages_permutes_their_scores() -> None:
    known = findings(in_passages(*map(Chunk, PASSAGES)))
    wanted = known.probabilities(Calibration())
    for order in itertools.permutations(range(3)):
        found = Findings.of(in_passages(*(Chunk(PASSAGES[index]) for index in order)), QUESTION)
        found.mass = [known.mass[index] for index in order]
        found.likelihood = known.likelihood[list(order)]
        for name, values in found.probabilities(Calibration()).items():
            assert values.tolist() == pytest.approx(wanted[name][list(order)].tolist())


def test_of_passages_read_alone_only_the_last_shortlist_counts() -> None:
    found = Findings.of(in_passages(*map(Chunk, PASSAGES)), QUESTION)
    found.measured = {0: -1.0, 1: -2.0}
    found.count_only([0, 1], [0, 1])
    found.measured[2] = -1.5
    found.count_only([0, 2], [0, 1, 2])
    assert found.likelihood.tolist() == pytest.approx([-1.0, np.nan, -1.5], nan_ok=True)


def test_a_chunk_without_text_has_no_evidence() -> None:
    document = in_passages(Chunk(""), Chunk(SHIP))
    assert findings(document).evidence(QUESTION, Chunk(""), 0, Calibration()).signals == {}


def test_another_round_only_makes_evidence_likelier() -> None:
    document = in_passages(*map(Chunk, PASSAGES))
    found = findings(document, 1)
    before = found.probabilities(Calibration())["combined"]
    found.again = findings(document, 2)
    found.changed()
    again = found.again.probabilities(Calibration())["combined"]
    assert found.probabilities(Calibration())["combined"].tolist() == np.maximum(before, again).tolist()
