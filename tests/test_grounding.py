"""Free notes against the text they are about."""

from __future__ import annotations

import pytest

from wim_kernel.run.grounding import support

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
