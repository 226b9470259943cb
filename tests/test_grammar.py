"""Answers under a JSON schema: always complete JSON that fits, whatever the model and however few the tokens."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from helpers import Loaded, TinyModel, spying
from pydantic import BaseModel, Field
from transformers import GenerationConfig

from wim_kernel import WimKernel
from wim_kernel.engines.local.decode.json_grammar import SchemaError

pytestmark = pytest.mark.slow

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


class Numbers(BaseModel):
    positive: float = Field(gt=0)
    share: float = Field(gt=0, le=0.5)
    count: int = Field(ge=3, le=7)


class Optionals(BaseModel):
    name: str | None = None
    sizes: list[float] = []


class Tree(BaseModel):
    name: str
    branches: list[Tree] = Field(max_length=3)


@pytest.fixture(scope="module")
def kernel(tiny_model: TinyModel, smollm2: Loaded) -> WimKernel:
    return WimKernel(tiny_model("llama"), smollm2[1])


@pytest.mark.parametrize("kind", [Owner, Fleet, Numbers, Optionals, Tree])
@pytest.mark.parametrize("tokens", [None, 150])
@pytest.mark.filterwarnings("ignore:The answer ran short")
def test_a_random_model_gives_complete_json(
    kernel: WimKernel, kind: type[BaseModel], tokens: int | None
) -> None:
    options: dict[str, Any] = {"answer_schema": kind.model_json_schema(), "margin_tokens": 4}
    if tokens is not None:
        options["answer_tokens"] = tokens
    for question in ("Who?", QUESTION):
        kind.model_validate_json(kernel.ask(question, TEXTS, **options).answer)


@pytest.mark.parametrize(
    "config",
    [
        {"do_sample": True, "top_k": 5, "temperature": 2.0},
        {"do_sample": True, "top_p": 0.1},
        {"min_new_tokens": 150, "do_sample": False},
        {"stop_strings": ["a", '"', "e"], "do_sample": False},
        {"no_repeat_ngram_size": 1, "suppress_tokens": list(range(2000)), "do_sample": False},
    ],
)
@pytest.mark.filterwarnings("ignore:The answer ran short")
def test_other_logits_processors_do_not_break_the_grammar(kernel: WimKernel, config: dict[str, Any]) -> None:
    generation = GenerationConfig(max_new_tokens=200, **config)
    options: dict[str, Any] = {"answer_schema": Owner.model_json_schema(), "answer_config": generation}
    Owner.model_validate_json(kernel.ask(QUESTION, TEXTS, margin_tokens=4, **options).answer)


def test_filled_in_values_are_warned_of(kernel: WimKernel) -> None:
    with pytest.warns(UserWarning, match="ran short of tokens"):
        kernel.ask(
            QUESTION, TEXTS, answer_schema=Owner.model_json_schema(), answer_tokens=60, margin_tokens=4
        )


def test_real_model_fills_in_a_schema(real_kernel: WimKernel) -> None:
    class Bought(BaseModel):
        owner: str
        year: int

    answer = real_kernel.ask(
        QUESTION, TEXTS, answer_schema=Bought.model_json_schema(), margin_style="verbatim"
    ).answer
    bought = Bought.model_validate_json(answer)
    assert bought.year == 1902
    assert "Elsa" in bought.owner


def test_questions_with_and_without_a_schema_share_a_reading(kernel: WimKernel) -> None:
    reading = kernel.read(TEXTS)
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    free = {"margin_style": "free", "margin_tokens": 3}
    plain = reading.ask(QUESTION, threshold=0, answer_tokens=5, **free)
    results = reading.ask_many([QUESTION, "Which?"], threshold=0, answer_schema=schema, **free)
    assert all(json.loads(result.answer)["a"] in ("x", "y") for result in results)
    assert reading.ask(QUESTION, threshold=0, answer_tokens=5, **free).answer == plain.answer
    pieces = [event for event in reading.stream(QUESTION, answer_schema=schema, **free)]
    assert pieces[-1].result.answer == "".join(getattr(event, "text", "") for event in pieces)


def test_a_schema_that_makes_no_grammar_is_an_error(kernel: WimKernel) -> None:
    kernel.cache.clear()
    with spying(kernel.model) as spy, pytest.raises(SchemaError, match="No grammar"):
        kernel.ask(QUESTION, TEXTS, answer_schema={"type": "nothing"}, margin_tokens=2)
    assert not spy.batches
    assert kernel.ask(QUESTION, TEXTS, margin_tokens=2, answer_tokens=2)
