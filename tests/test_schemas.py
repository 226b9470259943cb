"""JSON schemas: what is data stays, what is composed stays open, and every value that may be begun can be ended."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from helpers import Loaded

from wim_kernel import SchemaError
from wim_kernel.text.schemas import grammar_schema

if TYPE_CHECKING:
    from wim_kernel.engines.local.decode.json_grammar import Grammars

A = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
B = {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]}
NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/N"}}, "required": ["next"]}
PAIR = {"$defs": {"A": A, "N": NODE}}


@pytest.fixture(scope="module")
def grammars(smollm2: Loaded) -> Iterator[Grammars]:
    """Grammars, with one thread for torch: random numbers are had sooner by one."""
    import torch

    from wim_kernel.engines.local.decode.json_grammar import Grammars

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Grammars(smollm2[1], 49152, frozenset([2]))
    torch.set_num_threads(threads)


def written(grammars: Grammars, schema: Any, room: int, seed: int = 0, sharpness: float = 3.0) -> Any:
    """What a model of random logits writes to a schema."""
    import torch

    processor = grammars.processor(grammar_schema(schema), 0, room)
    dice, ids = torch.Generator().manual_seed(seed), []
    while len(ids) < room:
        scores = torch.randn(1, 49152, generator=dice) * sharpness
        token = int(processor(torch.tensor([ids], dtype=torch.long), scores).argmax())
        if token == 2:
            break
        ids.append(token)
    return json.loads(grammars.tokens.decode_str(ids))


@pytest.mark.parametrize(
    "schema",
    [
        {"const": {"title": "Mr", "n": 1}},
        {"enum": [{"title": "Mr"}, {"title": "Ms", "type": "object", "properties": {}}]},
        {"type": "string", "default": {"title": "x"}, "examples": [{"title": "y"}]},
        {"type": "object", "additionalProperties": {"const": [{"title": "z"}]}},
        {"type": "array", "prefixItems": [{"enum": [{"title": "Mr", "properties": {"title": "q"}}]}]},
    ],
)
def test_constant_data_is_left_unchanged(schema: dict[str, Any]) -> None:
    assert json.loads(grammar_schema(schema)) == schema


@pytest.mark.parametrize("name", ["title", "const", "properties", "enum", "$ref", "items"])
def test_properties_may_have_any_name(grammars: Grammars, name: str) -> None:
    schema = {
        "type": "object",
        "title": "T",
        "properties": {name: {"type": "string", "title": "U"}},
        "required": [name],
    }
    bare = json.loads(grammar_schema(schema))
    assert bare == {
        "type": "object",
        "properties": {name: {"type": "string"}},
        "required": [name],
        "additionalProperties": False,
    }
    assert isinstance(written(grammars, schema, 60)[name], str)


@pytest.mark.filterwarnings("ignore:The answer ran short")
@pytest.mark.parametrize(
    ("schema", "keys"),
    [
        ({"allOf": [A, B]}, "ab"),
        ({"allOf": [A, {"allOf": [B]}], "description": "both"}, "ab"),
        ({**PAIR, "$ref": "#/$defs/A", "properties": {"b": {"type": "integer"}}, "required": ["b"]}, "ab"),
        ({**PAIR, "allOf": [{"$ref": "#/$defs/A"}, B]}, "ab"),
        ({"type": "object", "anyOf": [A], "properties": {"c": {"const": 1}}, "required": ["c"]}, "ac"),
        ({"type": "object", "properties": {"c": {"const": 1}}, "required": ["c", "d"]}, "cd"),
        ({"properties": {"x": {"allOf": [A, B]}}, "required": ["x"], "type": "object"}, "x"),
        (
            {
                "allOf": [
                    {"properties": {"x": A}, "type": "object"},
                    {"properties": {"x": B}, "required": ["x"]},
                ]
            },
            "x",
        ),
    ],
)
def test_composed_objects_stay_open(grammars: Grammars, schema: dict[str, Any], keys: str) -> None:
    for seed in range(3):
        value = written(grammars, schema, 120, seed)
        if isinstance(value, dict):
            assert set(keys) <= set(value)


@pytest.mark.parametrize(
    "schema",
    [
        A,
        {"anyOf": [A, {"type": "null"}]},
        {"oneOf": [A, B], "discriminator": {"propertyName": "kind"}},
        {"allOf": [A], "description": "one alone"},
        {**PAIR, "$ref": "#/$defs/A"},
        {"type": "array", "items": A},
    ],
)
def test_other_objects_are_closed(schema: dict[str, Any]) -> None:
    assert '"required":["a"],"additionalProperties":false' in grammar_schema(schema)


@pytest.mark.parametrize(
    "schema", ["object", [A], 3, {"enum": {1, 2}}, {"const": float("nan")}, {"enum": [object()]}]
)
def test_invalid_schemas_are_refused(schema: Any) -> None:
    with pytest.raises(SchemaError, match="model_json_schema"):
        grammar_schema(schema)


def test_deeply_nested_schemas_are_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"items": deep}
    with pytest.raises(SchemaError):
        grammar_schema(deep)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"type": "object", "properties": {"n": {"$ref": "#"}}, "required": ["n"]},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {**PAIR, "$ref": "#/$defs/N"},
        {
            **PAIR,
            "anyOf": [
                {"$ref": "#/$defs/N"},
                {"type": "array", "items": {"$ref": "#/$defs/N"}, "minItems": 2},
            ],
        },
        {**PAIR, "allOf": [A, {"$ref": "#/$defs/N"}]},
    ],
)
def test_schema_without_an_end(schema: dict[str, Any]) -> None:
    with pytest.raises(SchemaError, match="No finite answer"):
        grammar_schema(schema)


@pytest.mark.filterwarnings("ignore:The answer ran short")
@pytest.mark.parametrize(
    "schema",
    [
        {**PAIR, "type": "object", "properties": {"t": {"$ref": "#/$defs/N"}, "u": {"type": "string"}}},
        {**PAIR, "anyOf": [{"$ref": "#/$defs/N"}, {"type": "boolean"}]},
        {**PAIR, "type": "array", "items": {"$ref": "#/$defs/N"}},
        {**PAIR, "type": "object", "additionalProperties": {"$ref": "#/$defs/N"}},
    ],
)
def test_endless_branches_of_schemas_are_not_taken(grammars: Grammars, schema: dict[str, Any]) -> None:
    for seed in range(3):
        written(grammars, schema, 40, seed)


FORMATS = ("email", "uri", "duration", "date", "date-time", "time", "uuid", "ipv4", "ipv6", "hostname")
PATTERNS = (
    *("^.+ EUR$", "^[a-z]{3}$", "qzx", r"^\d{10}$", "^é+$", "^(a|b.{40}x)$", "^[^a-z]{5,}Q$", ".*foo.*bar"),
    *(r"[A-Z]{2}\d{2}[A-Z0-9]{11,30}", r"^\p{L}+$", r"\w+@\w+\.com", "^.{90}$", "(x|y){20}z", "(?i)abc"),
)
ADDRESS = {
    "type": "object",
    "properties": {
        "street": {"type": "string", "minLength": 5},
        "code": {"type": "string", "pattern": "^[0-9]{5}(-[0-9]{4})?$"},
        "mail": {"type": "string", "format": "email"},
    },
    "required": ["street", "code", "mail"],
}
TREE = {
    "type": "object",
    "properties": {side: {"anyOf": [{"$ref": "#"}, {"type": "null"}]} for side in ("left", "right")},
    "required": ["left", "right"],
}
SHAPES = {
    "addresses": {"type": "array", "items": ADDRESS},
    "nested": {
        "type": "object",
        "properties": {"of": {"type": "array", "items": {"type": "array", "items": ADDRESS}}},
    },
    "by name": {"type": "object", "additionalProperties": ADDRESS, "minProperties": 1},
    "tree": TREE,
    "anything": {},
    "number": {"type": "number", "exclusiveMinimum": 0},
    "long": {"type": "string", "minLength": 60},
    "choice": {
        "type": "array",
        "minItems": 3,
        "items": {"enum": ["a long way to say yes", "é", None, {"no": []}]},
    },
}


@pytest.mark.filterwarnings("ignore:The answer ran short")
@pytest.mark.parametrize(
    "schema",
    [
        *({"type": "string", "format": name} for name in FORMATS),
        *({"type": "string", "pattern": pattern} for pattern in PATTERNS),
        *SHAPES.values(),
    ],
    ids=[*FORMATS, *PATTERNS, *SHAPES],
)
def test_every_text_ends_within_its_room(grammars: Grammars, schema: dict[str, Any]) -> None:
    shortest = len(grammars._ends_of(text := grammar_schema(schema), grammars._matcher(text)).whole or ())
    assert 0 < shortest <= 100
    for extra, sharpness in itertools.product((0, 7, 60), (0.3, 3.0)):
        written(grammars, schema, shortest + extra, extra, sharpness)


@pytest.mark.parametrize("schema", [*SHAPES.values()][:4], ids=[*SHAPES][:4])
def test_looking_for_an_end_costs_few_steps(grammars: Grammars, schema: dict[str, Any]) -> None:
    text = grammar_schema(schema)
    ends = grammars._ends_of(text, grammars._matcher(text))
    assert ends.shortest.steps < 2500


def test_too_little_room_says_how_much_is_needed(grammars: Grammars) -> None:
    with pytest.raises(SchemaError, match=r"takes 38 tokens and the limit is 20: give more answer_tokens"):
        grammars.processor(grammar_schema({"type": "string", "format": "uuid"}), 0, 20)


def test_errors_of_grammars_are_one_line(grammars: Grammars) -> None:
    for schema in ({"type": "nothing"}, {"type": "string", "pattern": "^(?!x)a$"}, {"$ref": "http://x/y"}):
        with pytest.raises(SchemaError, match="No grammar can be made") as caught:
            grammars.processor(grammar_schema(schema), 0, 50)
        assert "\n" not in str(caught.value)


def _fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a number is within its bounds and a multiple of what it is to be one of."""
    number = Decimal(str(value))
    least, most = schema.get("exclusiveMinimum", "-Infinity"), schema.get("exclusiveMaximum", "Infinity")
    step = Decimal(str(schema.get("multipleOf", 1 if schema["type"] == "integer" else number or 1)))
    return Decimal(least) < number < Decimal(most) and int(number / step) * step == number


@pytest.mark.filterwarnings("ignore:The answer ran short")
@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "exclusiveMinimum": 0},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        {"type": "number", "exclusiveMaximum": 0},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5},
        {"type": "number", "exclusiveMinimum": -0.1, "exclusiveMaximum": 0.0},
        {"type": "number", "exclusiveMinimum": 1, "exclusiveMaximum": 1.05},
        {"type": "integer", "multipleOf": 97, "exclusiveMinimum": 0},
        {"type": "integer", "multipleOf": 1001, "exclusiveMinimum": 1000},
        {"type": "integer", "multipleOf": 7, "exclusiveMinimum": 99, "exclusiveMaximum": 111},
        {"type": "number", "multipleOf": 0.7, "exclusiveMinimum": 0},
        {"type": "number", "multipleOf": 0.25, "exclusiveMaximum": 0},
    ],
    ids=str,
)
def test_numbers_end_where_their_bounds_and_multiples_let_them(
    grammars: Grammars, schema: dict[str, Any]
) -> None:
    pair = {"type": "object", "properties": {"a": schema, "b": schema}, "required": ["a", "b"]}
    ends = grammars._ends_of(text := grammar_schema(pair), grammars._matcher(text))
    for seed, extra in itertools.product(range(3), (0, 3, 9)):
        found = written(grammars, pair, ends.least + extra, seed)
        assert all(_fits(found[name], schema) for name in "ab")


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({"minimum": 0, "exclusiveMinimum": True}, {"exclusiveMinimum": 0}),
        ({"maximum": 9, "exclusiveMaximum": False}, {"maximum": 9}),
        ({"exclusiveMinimum": 0, "maximum": 0.5}, {"minimum": 0.0001, "maximum": 0.5}),
        ({"minimum": -0.5, "exclusiveMaximum": 0}, {"minimum": -0.5, "maximum": -0.0001}),
        ({"format": "path"}, {}),
        ({"format": "ipvanyaddress"}, {"format": "ipv4"}),
        ({"format": "uuid4", "pattern": "^a"}, {"pattern": "^a"}),
        ({"uniqueItems": False}, {}),
        ({"propertyNames": {"enum": ["a", "b"]}}, {"properties": {"a": True, "b": True}}),
        ({"propertyNames": {"type": "string"}, "maxProperties": 2}, {"maxProperties": 2}),
        (
            {"propertyNames": {"pattern": "^x"}, "additionalProperties": {"type": "null"}},
            {"patternProperties": {"^x": {"type": "null"}}},
        ),
        ({"properties": {"a": True}, "unevaluatedProperties": False}, {"properties": {"a": True}}),
        ({"prefixItems": [True], "unevaluatedItems": False}, {"prefixItems": [True], "items": False}),
    ],
    ids=str,
)
def test_equivalent_keywords_are_normalised(given: dict[str, Any], plain: dict[str, Any]) -> None:
    found = json.loads(grammar_schema({"type": ["object", "array", "string"], **given}))
    assert {**found.pop("properties", {}), **found} == {
        **plain.pop("properties", {}),
        **plain,
        "type": ["object", "array", "string"],
        **({"additionalProperties": False} if "additionalProperties" in found else {}),
    }


@pytest.mark.parametrize(
    "name", ["uuid4", "uuid7", "base64", "idn-email", "uri-reference", "regex", "no-such"]
)
def test_every_format_is_accepted(grammars: Grammars, name: str) -> None:
    assert isinstance(written(grammars, {"type": "string", "format": name}, 300), str)


def test_references_by_anchor_are_resolved(grammars: Grammars) -> None:
    schema = {"$defs": {"A": {"$anchor": "count", "type": "integer"}}, "$ref": "#count"}
    assert isinstance(written(grammars, schema, 20), int)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"name": "person", "strict": True, "schema": A}, "under 'schema'"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": A}}, "under 'json_schema'"),
        ({"name": "string", "age": "integer"}, "none of JSON Schema's keywords"),
        ({"type": "integer", "multipleOf": 0}, "more than 0"),
        ({"type": "array", "items": {"type": "number", "multipleOf": -0.5}}, "more than 0"),
    ],
)
def test_schemas_that_accept_everything_are_refused(schema: dict[str, Any], said: str) -> None:
    with pytest.raises(SchemaError, match=said):
        grammar_schema(schema)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "array", "uniqueItems": True}, 'take "uniqueItems" out'),
        ({"not": {"type": "string"}}, 'take "not" out'),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "say anyOf in place of oneOf"),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 50_000}, "takes at least .* tokens"),
    ],
)
def test_keywords_without_a_grammar_are_named(grammars: Grammars, schema: dict[str, Any], said: str) -> None:
    with pytest.raises(SchemaError, match=said):
        grammars.processor(grammar_schema(schema), 0, 50)
