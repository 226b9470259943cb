"""Free notes against the text they are about."""

from __future__ import annotations

import pytest

from wim_kernel import Chunk, Margin
from wim_kernel.run.grounding import found_share, support

TEXT = "In 1820 Captain Reed sold the Halcyon to Mrs Fenn of Lyme for 400 pounds."


@pytest.mark.parametrize(
    ("note", "least", "most"),
    [
        ("Captain Reed sold the Halcyon to Mrs Fenn for 400 pounds.", 1.0, 1.0),
        ("The HALCYON went to mrs FENN, of LYME.", 0.6, 1.0),
        ("Lord Byron founded a bakery in 1911.", 0.0, 0.2),
        ("Captain Reed sold it for 900 dollars.", 0.4, 0.8),
    ],
)
def test_support_is_the_share_of_telling_words_in_the_text(note, least, most):
    found = support(note, TEXT)
    assert found is not None
    assert least <= found <= most


@pytest.mark.parametrize("note", ["", "It is so.", "..."])
def test_support_of_a_note_that_tells_nothing_is_unknown(note):
    assert support(note, TEXT) is None


def test_support_does_not_count_the_questions_words():
    assert support("Who bought the Halcyon?", "Nothing here.", "Who bought the Halcyon?") is None


@pytest.mark.parametrize(
    ("note", "share"),
    [
        ("captain reed sold the  Halcyon to Mrs Fenn", 1.0),
        ("In 1820 the Halcyon was bought by Mrs Fenn, who paid 400 pounds.", 1.0),
        ("Lord Byron founded a bakery in 1911.", 0.0),
        ("Captain Reed sold the Halcyon to Mrs Fenn. Lord Byron founded the first bakery in Brighton.", 0.5),
        ("It is so.", None),
        ("", None),
        ("Der Kapitän verkaufte das Schiff einer Witwe für viel Geld.", None),
        ("船长把船卖给了寡妇。", None),
        ("{0} <|im_end|> %s", None),
    ],
)
def test_found_share_is_the_share_of_sentences_in_the_text(note, share):
    assert found_share(note, TEXT) == share


def test_a_note_in_the_words_of_the_question_alone_is_unknown():
    assert (
        found_share("Nobody bought the Halcyon.", "Nothing here.", "Who bought the Halcyon? Nobody?") is None
    )


def test_what_was_found_of_a_note_does_not_outlive_an_edit():
    evidence = {"lexical": 0.5, "support": 0.0, "located": 0.0}
    margin = Margin(0, "Lord Byron.", 0.9, False, Chunk.of(TEXT, "log"), evidence=evidence)
    assert margin.found_nowhere
    edited = margin.edited("Captain Reed sold her.")
    assert not edited.found_nowhere
    assert edited.evidence == {"lexical": 0.5}
    assert Margin.from_dict(margin.to_dict()).found_nowhere
