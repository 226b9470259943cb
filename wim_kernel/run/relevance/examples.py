"""Calibration examples: documents, questions, and where each question's evidence stands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Example:
    """A document and questions about it.

    Attributes:
        passages: the document's passages.
        questions: for each question, its text, the indexes of the passages with its evidence (none if the document
            does not answer it), and the evidence sentences, if they are known.
    """

    passages: tuple[str, ...]
    questions: tuple[tuple[str, frozenset[int], tuple[str, ...]], ...]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Example:
        """Make an example of JSON data.

        Args:
            data: ``{"passages": [...], "questions": [{"question": ..., "evidence": [...]}]}``. A question may have the
                evidence sentences as ``"sentences"``.

        Raises:
            ValueError: if the data has another form.
        """
        try:
            passages = tuple(str(passage) for passage in data["passages"])
            questions = tuple(
                (str(item["question"]), frozenset(item["evidence"]), tuple(item.get("sentences", ())))
                for item in data["questions"]
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                "An example has passages, and questions with a question and the indexes of its evidence."
            ) from error
        if any(not evidence <= set(range(len(passages))) for _, evidence, _ in questions):
            raise ValueError("A question's evidence is given by indexes of the example's passages.")
        return cls(passages, questions)


def packaged_examples() -> list[Example]:
    """The examples that come with the package."""
    text = files("wim_kernel.run.relevance").joinpath("examples.jsonl").read_text(encoding="utf-8")
    return [Example.from_dict(json.loads(line)) for line in text.splitlines()]
