"""Answers under a JSON schema: always complete JSON that fits, whatever the model and however few the tokens."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from helpers import Loaded, TinyModel
from pydantic import BaseModel, Field

from wim_kernel import WimKernel
from wim_kernel.engines.local.grammar import SchemaError

TEXTS = ["The gull sat on the mast.", "Elsa Brandt owned the ship Aurora. She bought it in 1902."]
QUESTION = "Who owned the ship, and when was it bought?"


class Owner(BaseModel):
    name: str
    year: int
    colours: list[Literal["red", "green"]] = Field(min_length=1)
    weight: float
    married: bool
    note: str | None


class Fleet(BaseModel):
    ships: list[Owner] = Field(min_length=1, max_length=3)


@pytest.fixture(scope="module")
def kernel(tiny_model: TinyModel, smollm2: Loaded) -> WimKernel:
    return WimKernel(tiny_model("llama"), smollm2[1])


@pytest.mark.parametrize("kind", [Owner, Fleet])
@pytest.mark.parametrize("tokens", [None, 300, 150])
def test_a_random_model_gives_complete_json(
    kernel: WimKernel, kind: type[BaseModel], tokens: int | None
) -> None:
    options: dict[str, Any] = {"answer_schema": kind.model_json_schema(), "margin_tokens": 4}
    if tokens is not None:
        options["answer_tokens"] = tokens
    for question in ("Who?", QUESTION, "What?"):
        kind.model_validate_json(kernel.ask(question, TEXTS, **options).answer)


def test_the_real_model_fills_it_in(smollm2: Loaded) -> None:
    class Bought(BaseModel):
        owner: str
        year: int

    kernel = WimKernel(*smollm2)
    answer = kernel.ask(
        QUESTION, TEXTS, answer_schema=Bought.model_json_schema(), margin_style="verbatim"
    ).answer
    bought = Bought.model_validate_json(answer)
    assert bought.year == 1902
    assert "Elsa" in bought.owner


def test_questions_with_and_without_a_schema_share_a_reading(kernel: WimKernel) -> None:
    reading = kernel.read(TEXTS)
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    plain = reading.ask(QUESTION, threshold=0, margin_tokens=3, answer_tokens=5)
    results = reading.ask_many([QUESTION, "Which?"], threshold=0, margin_tokens=3, answer_schema=schema)
    assert all(json.loads(result.answer)["a"] in ("x", "y") for result in results)
    assert reading.ask(QUESTION, threshold=0, margin_tokens=3, answer_tokens=5).answer == plain.answer
    pieces = [event for event in reading.stream(QUESTION, margin_tokens=3, answer_schema=schema)]
    assert pieces[-1].result.answer == "".join(getattr(event, "text", "") for event in pieces)


def test_a_schema_that_makes_no_grammar_is_an_error(kernel: WimKernel) -> None:
    with pytest.raises(SchemaError, match="No grammar"):
        kernel.ask(QUESTION, TEXTS, answer_schema={"type": "nothing"}, margin_tokens=2)
    assert kernel.ask(QUESTION, TEXTS, margin_tokens=2, answer_tokens=2)
