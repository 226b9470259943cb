"""Metrics of answers, each as its benchmark's authors compute it.

========================  ==============================================================================
metric                    an answer's score
========================  ==============================================================================
``any-answer``            1 if any gold answer is in it, whatever the case (RULER, question answering)
``all-answers``           share of the gold answers that are in it (RULER's other tasks)
``first-sentence``        1 if its first sentence names the gold answer and no other label that the task
                          knows and the question does not name (BABILong)
``choice``                1 if the first option letter in it is the gold one (multiple choice)
``yes-no``                1 if the first of the words "yes" and "no" in it is the gold one
========================  ==============================================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

# A letter by itself. "A" and "I" before a lower-case word are words.
_LETTER = re.compile(r"(?<![\w'])(?!A\s+[a-z]|I\s+[a-z]|I')([A-J])(?![\w'])")
_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_OPTION = re.compile(r"^\s*\(?A[.):]", re.MULTILINE)


def any_answer(output: str, answers: Sequence[str], question: str = "", labels: Sequence[str] = ()) -> float:
    """1 if any gold answer is in the output, ignoring case."""
    return float(any(answer.lower() in output.lower() for answer in answers))


def all_answers(output: str, answers: Sequence[str], question: str = "", labels: Sequence[str] = ()) -> float:
    """The share of the gold answers that are in the output, ignoring case."""
    return sum(answer.lower() in output.lower() for answer in answers) / len(answers)


def first_sentence(
    output: str, answers: Sequence[str], question: str = "", labels: Sequence[str] = ()
) -> float:
    """1 if the first sentence names a gold answer and none of the other labels.

    Args:
        output: the model's answer.
        answers: gold answers.
        question: the question; labels that it names do not count as answers.
        labels: every answer that the task's questions have.
    """
    sentence = output.strip().lower().split("\n")[0].split(".")[0]
    gold = {answer.lower() for answer in answers}
    known = gold | {label.lower() for label in labels}
    named = {label for label in known if label in sentence and label not in question.lower()}
    return float(len(named) == 1 and named <= gold)


def choice(output: str, answers: Sequence[str], question: str = "", labels: Sequence[str] = ()) -> float:
    """1 if the first option letter in the output is a gold one."""
    found = _LETTER.search(output)
    return float(found is not None and found[1] in answers)


def yes_no(output: str, answers: Sequence[str], question: str = "", labels: Sequence[str] = ()) -> float:
    """1 if the first of the words "yes" and "no" in the output is a gold one."""
    found = _YES_NO.search(output)
    return float(found is not None and found[1].lower() in {answer.lower() for answer in answers})


METRICS: dict[str, Callable[[str, Sequence[str], str, Sequence[str]], float]] = {
    "any-answer": any_answer,
    "all-answers": all_answers,
    "first-sentence": first_sentence,
    "choice": choice,
    "yes-no": yes_no,
}


def holds_answer(metric: str, quote: str, answers: Sequence[str]) -> bool | None:
    """Whether a quote of a document holds a gold answer; None where answers are letters, or yes and no."""
    return None if metric in ("choice", "yes-no") else bool(any_answer(quote, answers))


def default_metric(task: str, question: str, answers: Sequence[str]) -> str:
    """The metric of a question without one: by the task's name, or by the form of the answers."""
    if task.startswith("babilong"):
        return "first-sentence"
    if task.startswith(("cwe", "common-words", "common_words")):
        return "all-answers"
    if all(re.fullmatch("[A-J]", answer) for answer in answers) and _OPTION.search(question):
        return "choice"
    if all(_YES_NO.fullmatch(answer) for answer in answers):
        return "yes-no"
    return "any-answer"


def score(
    metric: str, output: str, answers: Sequence[str], question: str = "", labels: Sequence[str] = ()
) -> float:
    """The score of an output, from 0 to 1. The arguments are `first_sentence`'s; see `METRICS` for the metrics."""
    return METRICS[metric](output, answers, question, labels)
