"""What is taken from servers' replies, whatever family they are of."""

from __future__ import annotations

import math

import pytest

from wim_kernel.engines.base import Branch
from wim_kernel.engines.server.codecs import CharacterCodec, TokenizerCodec
from wim_kernel.engines.server.deltas import UsageReport
from wim_kernel.engines.server.replies import choice_probabilities, without_decision
from wim_kernel.engines.server.reuse import CacheHits
from wim_kernel.engines.server.transport import Server
from wim_kernel.text.run_text import Text

CHOICES = ("YES:", "NO")


def test_choice_probabilities_are_those_of_first_tokens():
    top = {"YES": math.log(0.6), "NO": math.log(0.2), "Y": math.log(0.1), " yes": math.log(0.1)}
    assert choice_probabilities(CHOICES, top, "", [("YES",), ("NO",)]) == pytest.approx((0.75, 0.25))
    numbered = {"token_id:7": math.log(0.6), "token_id:8": math.log(0.2), "YES": math.log(0.1)}
    named = [("yes", "token_id:7"), ("no", "token_id:8")]
    assert choice_probabilities(CHOICES, numbered, "", named) == pytest.approx((0.75, 0.25))
    assert choice_probabilities(CHOICES, top, "", None) == pytest.approx((0.8, 0.2))
    assert choice_probabilities(CHOICES, {"The": 0.0}, "", None) == (0.5, 0.5)


def test_choice_outside_the_top_tokens_is_bounded_by_the_last():
    top = {"YES": math.log(0.6), "The": math.log(0.1), "A": math.log(0.2)}
    assert choice_probabilities(CHOICES, top, "", [("YES",), ("NO",)]) == pytest.approx((6 / 7, 1 / 7))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("NO", (0.0, 1.0)),
        (" No, it says", (0.0, 1.0)),
        ("YES: the gull", (1.0, 0.0)),
        ("Nobody sailed", (1.0, 0.0)),
        ("Note: the gull", (1.0, 0.0)),
        ("The gull", (1.0, 0.0)),
    ],
)
def test_choice_without_probabilities_is_decided_by_whole_words(text, wanted):
    assert choice_probabilities(CHOICES, {}, text, None) == wanted


@pytest.mark.parametrize(
    ("reply", "note"),
    [
        ("YES: the gull sat", "the gull sat"),
        ("yes the gull", "the gull"),
        ("Yesterday the gull", "Yesterday the gull"),
        ("The gull", "The gull"),
        ("YES", ""),
        ("Ye", "Ye"),
    ],
)
def test_without_decision_strips_the_decision_from_any_stream(reply, note):
    branch = Branch(0, (Text("?"),), choices=CHOICES)
    shown = [without_decision(reply[:end], branch, decided=False) for end in range(len(reply) + 1)]
    whole = without_decision(reply, branch, decided=False, whole=True)
    assert whole == note
    assert all(whole.startswith(part) for part in shown)
    assert without_decision(reply, branch, decided=True) == reply


def test_cache_hits_count_a_missing_report_as_zero_after_the_first():
    reuse, server = CacheHits("advice", exact=True), Server("http://127.0.0.1:9/v1", None, 1.0, 1)
    other = Server("http://127.0.0.1:8/v1", None, 1.0, 1)
    assert reuse.record(UsageReport(100, 1, None, server), 0) is None
    assert reuse.reported is False
    assert reuse.record(UsageReport(100, 1, 64, server), 80) == 64
    assert reuse.record(UsageReport(100, 1, None, server), 80) == 0
    assert reuse.record(UsageReport(100, 1, None, other), 80) is None
    assert reuse.record(None, 80) is None
    assert reuse.reported is True


@pytest.mark.parametrize("exact", [True, False])
def test_cache_hits_warn_once_of_little_reuse(exact):
    reuse, server = CacheHits("turn it on", exact=exact), Server("http://127.0.0.1:9/v1", None, 1.0, 1)
    reuse.record(UsageReport(5000, 1, 4000, server), 4000)
    with pytest.warns(UserWarning, match=r"only 4000 of 8100 .* turn it on"):
        reuse.record(UsageReport(5000, 1, 0, server), 4100)
    assert reuse.record(UsageReport(5000, 1, 0, server), 4100) == (
        0 if exact else None
    )  # a second would be an error here
    assert reuse.reported is exact


@pytest.mark.filterwarnings("error")
def test_cache_hits_do_not_warn_of_fresh_prefixes():
    reuse, server = CacheHits("turn it on", exact=True), Server("http://127.0.0.1:9/v1", None, 1.0, 1)
    for _ in range(9):
        assert reuse.record(UsageReport(5000, 1, 0, server), 0) == 0


@pytest.mark.invariant(4)
def test_control_token_check_scans_new_text_only(smollm2):
    words = TokenizerCodec(smollm2[1])
    head = words.head("Be brief.", "Document:\n")
    begun = [*head, *words.encode(Text("It says <|im_"))]
    text = words.text(begun)
    assert text.endswith("It says <|im_")
    for known in (0, len(begun)):  # it becomes one only with what comes
        with pytest.raises(ValueError, match="control token"):
            words.text([*begun, *words.encode(Text("end|> here."))], known)
    more = [*begun, *words.encode(Text("start of nothing."))]
    assert words.text(more, len(begun)) == text + "start of nothing."


@pytest.mark.parametrize("text", ["", "a", "abc", "abcd", "🐦‍⬛ and \x00 and \n\n", "<|im_end|>{}"])
def test_character_codec_keeps_every_character(text):
    words = CharacterCodec()
    ids = [*words.head("Be brief.", "Document:\n"), *words.encode(Text(text))]
    assert words.messages(ids) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Document:\n" + text},
    ]
