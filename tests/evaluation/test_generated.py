"""Tasks that are made up: the answers are in the documents, where the gold paragraphs say."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial

import pytest

from wim_integrations.evaluation.errors import EvaluationError
from wim_integrations.evaluation.generated import GENERATORS, generate_task


def count_tokens(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


make = partial(generate_task, count_tokens=count_tokens)


@pytest.fixture(params=GENERATORS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("tokens", [500, 3000])
def test_answers_are_in_the_document(name: str, tokens: int) -> None:
    for question in make(name, 5, tokens).questions:
        text = "\n\n".join(question.paragraphs)
        assert all(answer in text for answer in question.answers)
        assert 0.7 * tokens < count_tokens(text) < 1.3 * tokens + 150


def test_the_gold_paragraphs_hold_the_answers(name: str) -> None:
    for question in make(name, 5, 2000).questions:
        if question.gold is not None:
            evidence = "\n".join(question.paragraphs[index] for index in question.gold)
            assert all(answer in evidence for answer in question.answers)
            assert len(set(question.gold)) < len(question.paragraphs)


def test_a_seed_gives_the_same_questions_and_another_seed_others(name: str) -> None:
    assert make(name, 2, 1000) == make(name, 2, 1000)
    first, other = make(name, 1, 1000), make(name, 1, 1000, seed=1)
    assert first.questions[0].paragraphs != other.questions[0].paragraphs
    assert first.digest != other.digest


def test_more_questions_begin_with_the_same_ones(name: str) -> None:
    fewer, more = make(name, 1, 1000), make(name, 3, 1000)
    assert more.questions[:1] == fewer.questions
    assert len({question.id for question in more.questions}) == 3
    assert more.digest == fewer.digest


def test_needle_names_are_unique() -> None:
    for question in make("needles", 5, 1500).questions:
        asked = question.question.removeprefix("What is the ").removesuffix("?")
        text = " ".join(question.paragraphs)
        assert text.count(asked) == 1
        assert f"The {asked} is {question.answers[0]}." in text


def test_variables_can_be_traced() -> None:
    for question in make("variable-tracking", 5, 1500).questions:
        value = re.search(r"value (\d+)", question.question)
        assert value is not None
        values: dict[str, str] = {}
        for name, number, other in re.findall(
            r"Let (\w+) be (?:(\d+)|the same as (\w+))\.", " ".join(question.paragraphs)
        ):
            values[name] = number or values[other]
        assert len(values) == 10
        assert {name for name, number in values.items() if number == value[1]} == set(question.answers)


def test_common_words_are_the_most_frequent() -> None:
    for question in make("common-words", 3, 4000).questions:
        words = re.findall(r"\d+\. (\w+)", "\n".join(question.paragraphs))
        ranked = Counter(words).most_common(11)
        assert {word for word, _ in ranked[:10]} == set(question.answers)
        assert ranked[9][1] == 30
        assert ranked[10][1] == 3


def test_keys_are_unique() -> None:
    for question in make("key-value", 3, 1500).questions:
        pairs = dict(re.findall(r'"([\w-]+)": "([\w-]+)"', "\n".join(question.paragraphs)))
        assert pairs[question.question.split('"')[1]] == question.answers[0]


def test_impossible_lengths_are_refused() -> None:
    with pytest.raises(EvaluationError, match="--tokens is at least 500"):
        make("needles", 1, 499)
    with pytest.raises(EvaluationError, match="not enough words"):
        make("common-words", 1, 1_000_000)
