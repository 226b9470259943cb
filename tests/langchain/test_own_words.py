"""A person's own words, told from a text in the same message."""

from __future__ import annotations

import pytest
from langchain_core.messages import HumanMessage
from long_texts import FILE, IMAGE, LONG, QUESTION, TRACEBACK

from wim_integrations.langchain.own_words import ends_of, own_words, split_message

YAML = "services:\n" + "".join(f"  ship{n}:\n    image: gull\n    port: {n}\n" for n in range(40)).rstrip()
FAQ = "\n\n".join(f"Who sails ship {n}?\n\nCaptain {n} sails it, all year round." for n in range(20))


@pytest.mark.parametrize(
    ("text", "before", "after", "asks"),
    [
        (f"{QUESTION}\n\n{LONG}", QUESTION, "", True),
        (f"{LONG}\n\n{QUESTION}", "", QUESTION, True),
        (f"{LONG}\n{QUESTION}\n", "", QUESTION, False),
        (f"{LONG} {QUESTION}", "", QUESTION, False),
        (f"{QUESTION} {LONG}", QUESTION, "", False),
        (f"Summarise this:\n\n{LONG}", "Summarise this:", "", False),
        (f"Summarise this:\n{LONG}", "", "", False),
        (f"Hello!\n\n{QUESTION}\n\n{LONG}\n\n{LONG}", f"Hello!\n\n{QUESTION}", "", True),
        (f"{QUESTION}\n\n{LONG}\n\nAnd when?", QUESTION, "And when?", True),
        (f"Find the owner.\n\n{LONG}\n\nThank you.", "Find the owner.", "Thank you.", False),
        (f"谁拥有这艘船？\n\n{LONG}", "谁拥有这艘船？", "", True),
        (LONG, "", "", False),
        ("x" * 5000, "", "", False),
        (TRACEBACK, "", "", False),
        (YAML, "", "", False),
        (f"{QUESTION}\n\n{TRACEBACK}", QUESTION, "", True),
        (f"{YAML}\n\nWhich port is open?", "", "Which port is open?", True),
    ],
)
def test_words_are_told_from_a_pasted_text(text: str, before: str, after: str, asks: bool) -> None:
    found = split_message(HumanMessage(text))
    assert found is not None
    assert (found.before, found.after, found.asks) == (before, after, asks)
    (document,) = found.documents
    start, end, _ = ends_of(text)
    assert text[start:end] == document.page_content
    assert "".join((before, document.page_content, after)).replace("\n", "").replace(" ", "") == text.replace(
        "\n", ""
    ).replace(" ", "")


@pytest.mark.parametrize(
    "text",
    [
        FAQ,
        f"{FAQ}\n\nAnd who owns them?",
        FAQ.replace("?\n\n", "?\n"),
        f"Contents:\n\n{LONG}",
        f"Contents:\n\n{LONG}\n\nWhy?\n\n{LONG}\n\n{LONG}\n\n{LONG}\n\n{LONG}",
        f"{LONG}\n\n{LONG} Will it ever end? Who knows?",
    ],
)
def test_what_may_be_the_texts_own_words_is_not_sure(text: str) -> None:
    found = split_message(HumanMessage(text))
    assert found is not None
    assert not found.asks
    assert own_words(HumanMessage(text))[1] == (len(text) <= 2000)


@pytest.mark.parametrize("text", ["", " ", "?", "a?\n\nb?", QUESTION, "\n\n\n"])
def test_a_message_of_words_has_no_text(text: str) -> None:
    message = HumanMessage(text)
    found = split_message(message)
    assert found is None or found.documents[0].page_content.strip()
    assert own_words(message) == (text.strip(), True)


def test_blocks_are_words_or_texts_by_their_length() -> None:
    text = {"type": "text", "text": QUESTION}
    for blocks in (
        [text, FILE],
        [FILE, text],
        [text, {"type": "text", "text": LONG}],
        [QUESTION, LONG, IMAGE],
    ):
        found = split_message(HumanMessage(blocks))
        assert found is not None
        assert (found.question, found.asks) == (QUESTION, True)
        assert [document.page_content for document in found.documents] == [LONG]
        assert found.rest == [block for block in blocks if block is IMAGE]
    whole = split_message(HumanMessage([{"type": "text", "text": f"{LONG}\n\n{QUESTION}"}, IMAGE]))
    assert whole is not None
    assert (whole.before, whole.after) == ("", QUESTION)
    alone = split_message(HumanMessage([FILE]))
    assert alone is not None
    assert (alone.question, alone.asks) == ("", False)
    assert split_message(HumanMessage([IMAGE])) is None
