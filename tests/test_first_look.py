"""The first look: shared words decide which chunks are asked, and decide nothing where there are none."""

from __future__ import annotations

import random

import numpy as np

from wim_kernel import Chunk
from wim_kernel.run.relevance.examples import packaged_examples
from wim_kernel.run.relevance.first_look import look
from wim_kernel.run.relevance.passages import DocumentPassages

PAGES = [
    "The gull sat on the mast of the Aurora. It rained all night, and the crew slept.",
    "Elsa Brandt bought the Aurora at Emden. She was a merchant of that town.",
    "The fog was thick, and nobody saw the harbour from the mast.",
    "Salt was dear that year, and bread was cheap in the town.",
]


def _passages(texts: list[str]) -> DocumentPassages:
    return DocumentPassages([Chunk(text) for text in texts], [0] * len(texts), [[]] * len(texts))


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
