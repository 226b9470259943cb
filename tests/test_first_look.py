"""The first looks: shared words decide which chunks are asked, and decide nothing where there are none."""

from __future__ import annotations

import random

import numpy as np
import pytest

from wim_kernel import Chunk
from wim_kernel.run.relevance.calibration import WITHOUT_ATTENTION
from wim_kernel.run.relevance.examples import packaged_examples
from wim_kernel.run.relevance.findings import Findings
from wim_kernel.run.relevance.first_look import look
from wim_kernel.run.relevance.passages import DocumentPassages
from wim_kernel.run.relevance.scores import FIRST_LOOK
from wim_kernel.run.relevance.search import RIVALS, SHORTLIST, EvidenceSearch

PAGES = [
    "The gull sat on the mast of the Aurora. It rained all night, and the crew slept.",
    "Elsa Brandt bought the Aurora at Emden. She was a merchant of that town.",
    "The fog was thick, and nobody saw the harbour from the mast.",
    "Salt was dear that year, and bread was cheap in the town.",
]


def _passages(texts: list[str]) -> DocumentPassages:
    return DocumentPassages([Chunk(text) for text in texts], [0] * len(texts), [[]] * len(texts))


def _may_matter(document: DocumentPassages, question: str) -> set[int]:
    """The chunks that a server is asked about."""
    found, chunks = Findings.of(document, question), range(len(document.of_chunk))
    return {chunk for chunk in chunks if found.bound_of(chunk, WITHOUT_ATTENTION) >= FIRST_LOOK}


def _shortlist(texts: list[str], question: str) -> list[int]:
    """The passages that a server is given alone."""
    document = _passages(texts)
    search = EvidenceSearch(
        document, (), WITHOUT_ATTENTION, lambda _: (), lambda _: iter(()), 0, looks_first=True
    )
    return search._shortlist(Findings.of(document, question), range(len(texts)))


SHIPS = [
    "Captain Holm belonged to a family of sailors, and he had seen much of the sea.",
    "Anna Lind bought the schooner in the spring for nine hundred crowns.",
    "The rain fell for a week, and it washed the paint from the boards.",
    "Bread was dear that year in the town, and salt was cheap.",
    "A gull slept on the mast while the fog came in from the north.",
    "The harbour master wrote the names of all vessels in a book.",
]


@pytest.mark.parametrize(
    ("question", "wanted"),
    [
        ("Whose property was it?", None),  # all have other words, but for "it" and "was"
        ("Which woman purchased that vessel?", None),
        ("Who possessed this boat, and what did it cost?", None),
        ("", None),
        ("Who bought the schooner in the spring?", 1),
        ("Who wrote the names of all vessels in a book?", 5),
    ],
)
def test_both_looks_drop_chunks_only_where_the_text_has_the_questions_words(question, wanted):
    document = _passages(SHIPS)
    asked = look(document, question).asked, _may_matter(document, question)
    if wanted is None:
        assert asked == ({0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 4, 5})
    else:
        assert all(wanted in chunks and len(chunks) < len(SHIPS) for chunks in asked)


@pytest.mark.parametrize(
    ("question", "most"), [("Whose property was it?", SHORTLIST), ("Who bought bread?", RIVALS)]
)
def test_the_shortlist_is_cut_only_where_shared_words_can_be_trusted(question, most):
    texts = [f"Page {number}. It was foggy." if number % 3 else "She bought bread." for number in range(40)]
    assert len(_shortlist(texts, question)) == most


def test_no_passage_is_read_where_shared_words_leave_one_chunk():
    texts = [f"Page {number}. It was foggy." for number in range(40)]
    assert _shortlist([*texts, "She bought bread. It was fresh."], "Who bought bread?") == []
    assert (
        _shortlist(["She bought bread. It was fresh."], "Whose property was it?") == []
    )  # nothing to compare
    assert len(_shortlist([*texts, "She bought bread.", "They bought bread."], "Who bought bread?")) == RIVALS


def test_only_chunks_near_the_best_are_asked() -> None:
    found = look(_passages(PAGES), "Who bought the Aurora at Emden?")
    assert found.asked == {1}
    assert found.shares[1] > 0.5 > found.shares[0]


def test_a_question_in_other_words_drops_nothing() -> None:
    assert look(_passages(PAGES), "Which woman purchased that vessel?").asked == {0, 1, 2, 3}
    assert look(_passages(PAGES), "").asked == {0, 1, 2, 3}


def test_a_chunk_without_text_is_never_asked() -> None:
    texts = [*PAGES, " \n"]
    assert look(_passages(texts), "Which woman purchased that vessel?").asked == {0, 1, 2, 3}
    assert look(_passages(texts), "Who bought the Aurora at Emden?", decides=False).asked == {0, 1, 2, 3}


def test_a_limit_takes_those_that_share_most() -> None:
    assert look(_passages(PAGES), "Who bought the Aurora at Emden?", decides=False, most=2).asked == {0, 1}
    assert look(_passages(PAGES), "Who bought the Aurora?", most=0).asked == set()


def test_evidence_is_seldom_left_out() -> None:
    """On the packaged questions, a quarter of them in other words than the text, over all passages in 8 chunks."""
    examples = packaged_examples()
    passages = [
        (number, place) for number, each in enumerate(examples) for place in range(len(each.passages))
    ]
    random.Random(0).shuffle(passages)
    size = -(-len(passages) // 8)
    chunks = [passages[start : start + size] for start in range(0, len(passages), size)]
    where = {item: chunk for chunk, items in enumerate(chunks) for item in items}
    document = _passages(
        ["\n\n".join(examples[number].passages[place] for number, place in items) for items in chunks]
    )
    asked, kept, decided = list[float](), list[float](), list[bool]()
    for number, example in enumerate(examples):
        for question, evidence, _ in example.questions:
            found = look(document, question)
            asked.append(len(found.asked) / len(chunks))
            decided.append(asked[-1] < 1)
            if evidence:
                wanted = {where[number, place] for place in evidence}
                kept.append(len(wanted & found.asked) / len(wanted))
    assert np.mean(kept) > 0.95
    assert 0.25 < np.mean(decided) < 0.6
    assert np.mean([share for share, known in zip(asked, decided, strict=True) if known]) < 0.5


def test_a_servers_look_leaves_out_little_evidence_of_short_documents() -> None:
    """On the packaged questions, each with its own document of about six passages."""
    asked, kept = list[float](), list[bool]()
    for example in packaged_examples():
        document = _passages(list(example.passages))
        for question, evidence, _ in example.questions:
            found = _may_matter(document, question)
            asked.append(len(found) / len(example.passages))
            kept += [place in found for place in evidence]
    assert np.mean(kept) > 0.95  # 0.99; of the question's words that the text has alone, it would be 0.87
    assert np.mean(asked) < 0.9
