"""Shared words: which count as words, and how rare ones weigh more."""

from __future__ import annotations

import numpy as np
import pytest

from wim_kernel.run.relevance.lexical import LexicalIndex, words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        (" \n-- ... !", []),
        ("Who OWNED the ship?", ["who", "owned", "the", "ship"]),
        ("Straße, 1771!", ["strasse", "1771"]),
        ("cafe\u0301 CAF\u00c9", ["café", "café"]),
        ("Ποιος είχε", ["ποιοσ", "είχε"]),
        ("Кто владел", ["кто", "владел"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("مَن ملك", ["مَن", "ملك"]),
        ("東京都", ["東京", "京都", "都"]),
        ("GPT4は東京", ["gpt4", "は東", "東京", "京"]),
    ],
)
def test_words_of_many_languages(text: str, found: list[str]) -> None:
    assert words(text) == found


def test_words_are_weighted_by_how_rare_they_are() -> None:
    index = LexicalIndex(["the ship the ship the ship", "the harbour", "the ledger of Elsa", "the fog"])
    coverage = index.coverage("the ledger")
    assert coverage.argmax() == 2
    assert coverage[2] > 3 * coverage[[0, 1, 3]].max() > 0
    assert np.all((coverage >= 0) & (coverage <= 1))
    once, often = index.coverage("ship")[0], LexicalIndex(["ship fog", "fog fog"]).coverage("ship")[0]
    assert once != often
    assert index.coverage("ship ship ship").tolist() == index.coverage("ship").tolist()
    for nothing in ("", "?!", "zebra"):
        assert index.coverage(nothing).tolist() == [0, 0, 0, 0]


def test_coverage_is_bm25_over_the_best_that_there_could_be() -> None:
    passages = ["a b a c", "b d", "e e e e e e"]
    lengths, total = [4, 2, 6], 3
    index = LexicalIndex(passages)
    for place, counts in enumerate([{"a": 2, "b": 1}, {"a": 0, "b": 1}, {"a": 0, "b": 0}]):
        scale = 1.2 * (0.25 + 0.75 * lengths[place] / 4)
        rarity = {
            word: np.log(1 + (total - having + 0.5) / (having + 0.5)) for word, having in (("a", 1), ("b", 2))
        }
        wanted = sum(rarity[word] * count / (count + scale) for word, count in counts.items())
        assert index.coverage("a b zebra")[place] == pytest.approx(wanted / sum(rarity.values()))


def test_coverage_without_passages_or_words() -> None:
    assert LexicalIndex([]).coverage("ship").shape == (0,)
    assert LexicalIndex(["", "--"]).coverage("ship").tolist() == [0, 0]
