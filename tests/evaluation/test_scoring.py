"""Scores of answers, metric by metric."""

from __future__ import annotations

import pytest

from wim_integrations.evaluation.scoring import METRICS, default_metric, holds_answer, score

ROOMS = ("kitchen", "garden", "office")
OPTIONS = "Which one?\nA. the first\nB. the second"


@pytest.mark.parametrize(
    ("output", "expected"),
    [("It was Elsa Brandt.", 1), ("ELSA BRANDT", 1), ("E. Brandt owned it", 1), ("nobody", 0), ("", 0)],
)
def test_any_answer_metric(output: str, expected: float) -> None:
    assert score("any-answer", output, ["Elsa Brandt", "E. Brandt"]) == expected


def test_all_answers_is_the_share_found() -> None:
    assert score("all-answers", "1. Mast 2. gull 3. fog", ["mast", "gull", "sea", "rope"]) == 0.5


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("John is in the kitchen.", 1),
        ("Kitchen\nThen he went to the garden.", 1),
        ("He left the garden. He is in the kitchen.", 0),  # the second sentence does not count
        ("In the kitchen or the garden.", 0),
        ("Before the office he was in the kitchen.", 1),  # the question names the office itself
        ("I do not know.", 0),
    ],
)
def test_first_sentence_metric(output: str, expected: float) -> None:
    question = "Where was John before the office?"
    assert score("first-sentence", output, ["kitchen"], question, ROOMS) == expected


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("B", 1),
        ("B. the second", 1),
        ("The answer is (B).", 1),
        ("A man says B", 1),  # an article is no option
        ("A. the first", 0),
        ("A", 0),
        ("The answer is A, not B", 0),
        ("Both", 0),
        ("the second", 0),
    ],
)
def test_choice_metric(output: str, expected: float) -> None:
    assert score("choice", output, ["B"]) == expected


@pytest.mark.parametrize(
    ("output", "expected"),
    [("No, they agree.", 1), ("I know: no", 1), ("Yes. No?", 0), ("I cannot tell", 0)],
)
def test_yes_no_metric(output: str, expected: float) -> None:
    assert score("yes-no", output, ["no"]) == expected


def test_a_quote_holds_an_answer_if_answers_are_words_of_the_document() -> None:
    assert holds_answer("any-answer", "The ship was ELSA Brandt's.", ["Elsa Brandt"]) is True
    assert holds_answer("any-answer", "The ship was hers.", ["Elsa Brandt"]) is False
    assert holds_answer("choice", "A ship.", ["A"]) is None


@pytest.mark.parametrize(
    ("task", "question", "answers", "expected"),
    [
        ("babilong_qa1_16k", "Where is John?", ["office"], "first-sentence"),
        ("cwe_16k", "What are the words?", ["mast", "gull"], "all-answers"),
        ("quality_mc_6k", OPTIONS, ["A"], "choice"),
        ("grades", "Which grade did she get?", ["A"], "any-answer"),
        ("multihoprag", "Do they agree?", ["Yes"], "yes-no"),
        ("squad", "Who?", ["Elsa Brandt"], "any-answer"),
    ],
)
def test_default_metric_depends_on_task_and_answer(
    task: str, question: str, answers: list[str], expected: str
) -> None:
    assert default_metric(task, question, answers) == expected
    assert expected in METRICS
