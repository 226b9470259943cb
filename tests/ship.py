"""A short document and a question about it, for the tests of servers."""

from __future__ import annotations

from helpers import config

TEXTS = [
    "The gull sat on the mast of the old ship, and the rain fell on the harbour all day long.",
    "Elsa Brandt owned the ship, they say, all of it, since the year when the fog lay on the town.",
    "Nobody sailed that night, and the gull was gone in the morning.",
]
QUESTION = "Who owned the ship?"
OPTIONS = {"threshold": 0, "margin_config": config(4), "answer_config": config(8)}


def always(evidence) -> float:
    """A relevance that asks for nothing."""
    return 0.9


def same(result, expected) -> bool:
    """Whether two results have the same notes and answer."""
    texts = [[margin.text for margin in each.margins] for each in (result, expected)]
    return texts[0] == texts[1] and result.answer == expected.answer
