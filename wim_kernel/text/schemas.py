"""JSON schemas of answers: checked, simplified, and measured, before a grammar is compiled.

Simplifying does not change which values fit a schema as its author meant it. Titles are removed, since they repeat
names. Objects that list their keys are closed, so that a model invents no keys, unless another schema adds keys to
them. Data (``const``, ``enum``, ``default``, ``examples``) and the users' own names are not changed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wim_kernel.common.errors import SchemaError
from wim_kernel.text.schema_sizes import (
    KEYWORDS_OF_A_LIST,
    KEYWORDS_OF_A_MAPPING,
    KEYWORDS_OF_ONE_SCHEMA,
    Node,
    Sizes,
    list_at,
    mapping_at,
    referenced,
    subschemas,
)
from wim_kernel.text.schema_words import check_is_schema, put_plainly

_UNTOUCHED = ("not", "if", "contains", "propertyNames")  # closing an object there would make other values fit

_OBJECT_KEYWORDS = ("properties", "required", "patternProperties", "additionalProperties", "minProperties")
_APPLICATORS = ("$ref", "allOf", "anyOf", "oneOf", "if", "not", "dependentSchemas", "dependentRequired")


DEEPEST = 200
"""Most levels of a schema, counted here so that the limit is the same whatever Python's recursion limit is."""
_TOO_DEEP = "This JSON schema is nested too deeply: move parts of it to $defs."


def grammar_schema(given: Mapping[str, Any]) -> str:
    """Check and simplify the schema of an answer; returns it as JSON.

    Raises:
        SchemaError: if the schema is no JSON data, or no finite value fits it.
    """
    if not isinstance(given, Mapping):
        raise SchemaError(
            f"answer_schema is a JSON schema as a dict, such as Model.model_json_schema(), not {given!r:.80}."
        )
    try:
        schema = json.loads(json.dumps(given, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise SchemaError(
            f"answer_schema has values that JSON cannot represent ({error}): give plain data, such as "
            "Model.model_json_schema()."
        ) from error
    if _is_deeper(schema, DEEPEST):
        raise SchemaError(_TOO_DEEP)
    check_is_schema(schema)
    try:
        for node in list(subschemas(schema)):
            put_plainly(node, lambda reference: referenced(schema, reference))
        sizes = Sizes(schema)
        if math.isinf(sizes.of(schema)):
            raise SchemaError(
                "No finite answer fits this JSON schema, since it requires itself: make the reference optional, or "
                "allow null or an empty list in its place."
            )
        bare = _simplify(schema, _Rewriting(sizes, _composed(schema)))
        return json.dumps(bare, separators=(",", ":"))
    except RecursionError as error:
        raise SchemaError(_TOO_DEEP) from error


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether plain data is nested in more than ``levels`` levels."""
    waiting = [(value, 1)]
    while waiting:
        item, level = waiting.pop()
        if level > levels:
            return True
        parts = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        waiting += [(part, level + 1) for part in parts]
    return False


# -- rewriting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rewriting:
    sizes: Sizes
    composed: frozenset[int]


def _simplify(node: Node, rewriting: _Rewriting, closing: bool = True) -> Node:
    """A schema without titles and endless alternatives, its objects closed unless other schemas add keys."""
    if not isinstance(node, dict):
        return node
    bare: dict[str, Any] = {}
    for name, item in node.items():
        if name == "title" and isinstance(item, str):
            continue
        closing_inside = closing and name not in _UNTOUCHED

        def part(value: Node, closing: bool = closing_inside) -> Node:
            return _simplify(value, rewriting, closing)

        if name in KEYWORDS_OF_A_MAPPING and isinstance(item, dict):
            ends = (
                rewriting.sizes.ends
                if name in ("properties", "patternProperties") and closing_inside
                else _always
            )
            bare[name] = {key: part(value) if ends(value) else False for key, value in item.items()}
        elif name in KEYWORDS_OF_A_LIST and isinstance(item, list):
            ends = rewriting.sizes.ends if name in ("anyOf", "oneOf") and closing_inside else _always
            bare[name] = [part(value) for value in item if ends(value)] or [part(value) for value in item]
        elif name in KEYWORDS_OF_ONE_SCHEMA and isinstance(item, dict):
            bare[name] = part(item) if not closing_inside or rewriting.sizes.ends(item) else False
        else:
            bare[name] = item
    if "oneOf" in bare and "anyOf" not in bare and _exclusive(node):
        bare["anyOf"] = bare.pop("oneOf")  # equivalent if only one can fit, and grammars support anyOf only
    if closing and id(node) not in rewriting.composed and _names_its_keys(node):
        bare.setdefault("additionalProperties", False)
    return bare


def _always(node: Node) -> bool:
    return True


def _names_its_keys(node: dict[str, Any]) -> bool:
    """Whether a schema lists an object's keys, so that values need no others."""
    named = node.get("properties")
    if node.get("type") != "object" or not isinstance(named, dict):
        return False
    required, least = node.get("required", []), node.get("minProperties", 0)
    listed = isinstance(required, list) and all(name in named for name in required)
    return listed and (not isinstance(least, int) or least <= len(named))


def _exclusive(node: dict[str, Any]) -> bool:
    """Whether at most one schema of a ``oneOf`` can fit: by a discriminator, or because their types differ."""
    choices = node["oneOf"]
    if not isinstance(choices, list):
        return False
    if isinstance(node.get("discriminator"), dict):
        return True
    types = [choice.get("type") if isinstance(choice, dict) else None for choice in choices]
    known = [each for each in types if isinstance(each, str)]
    return len(set(known)) == len(types) and not {"integer", "number"} <= set(known)


def _composed(root: Node) -> frozenset[int]:
    """The ids of schemas that apply to a value together with others, whose keys they would exclude if closed."""
    found: set[int] = set()
    pending = [node for node in subschemas(root) if len(_described_by(root, node)) > 1 or _sits_beside(node)]
    while pending:
        parts = _parts(root, pending.pop())
        described: dict[str, list[Node]] = {}
        for part in parts:
            found.add(id(part))
            for keyword in ("properties", "patternProperties"):
                for name, item in mapping_at(part, keyword).items():
                    described.setdefault(f"{keyword} {name}", []).append(item)
            for keyword in ("items", "additionalProperties"):
                if isinstance(part.get(keyword), dict):
                    described.setdefault(keyword, []).append(part[keyword])
        many = any(key.startswith(("patternProperties", "additionalProperties")) for key in described)
        for items in described.values():
            if many or len(items) > 1:  # one member with two schemas
                pending += [item for item in items if isinstance(item, dict) and id(item) not in found]
    return frozenset(found)


def _sits_beside(node: dict[str, Any]) -> bool:
    """Whether a schema has keywords of objects, and applicators that may add keys."""
    return any(name in node for name in _OBJECT_KEYWORDS) and any(name in node for name in _APPLICATORS)


def _described_by(root: Node, node: Node) -> list[list[dict[str, Any]]]:
    """The groups of schemas that apply to one value: the schema itself, and in-place applicators' alternatives."""
    if not isinstance(node, dict):
        return []
    groups = [[node]] if any(name in node for name in _OBJECT_KEYWORDS) else []
    in_place = [
        referenced(root, node.get("$ref")),
        node.get("then"),
        node.get("else"),
        *list_at(node, "allOf"),
    ]
    in_place += mapping_at(node, "dependentSchemas").values()
    groups += [[item] for item in in_place if isinstance(item, dict)]
    groups += [list_at(node, keyword) for keyword in ("anyOf", "oneOf") if list_at(node, keyword)]
    return groups


def _parts(root: Node, node: Node) -> list[dict[str, Any]]:
    """All schemas that apply to the same value as ``node``, including ``node``."""
    found: dict[int, dict[str, Any]] = {}
    pending = [node]
    while pending:
        part = pending.pop()
        if isinstance(part, dict) and id(part) not in found:
            found[id(part)] = part
            pending += [item for group in _described_by(root, part) for item in group]
    return list(found.values())
