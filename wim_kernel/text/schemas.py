"""JSON schemas of answers: checked, made bare, and measured, without a grammar.

A schema is rewritten only where that changes no value that fits it as its author meant it. Titles of schemas go, since
they only repeat names. Objects that name their keys are closed, so that a model invents none, but only where nothing
else adds keys to them. What is data (``const``, ``enum``, ``default``, ``examples``) and what users named is left as it
is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wim_kernel.common.errors import SchemaError
from wim_kernel.text.schema_words import check_is_schema, put_plainly

_ONE: tuple[str, ...] = (
    "additionalItems",
    "additionalProperties",
    "contains",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
)
_ONE = (*_ONE, "unevaluatedItems", "unevaluatedProperties")
_SEVERAL = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")
_UNTOUCHED = ("not", "if", "contains", "propertyNames")  # closing an object there would let other values fit

_OF_AN_OBJECT = ("properties", "required", "patternProperties", "additionalProperties", "minProperties")
_BESIDE = ("$ref", "allOf", "anyOf", "oneOf", "if", "not", "dependentSchemas", "dependentRequired")

Node = Any
"""A schema: a mapping, or a truth value."""


def grammar_schema(given: Mapping[str, Any]) -> str:
    """The schema to which an answer is written, as JSON.

    Raises:
        SchemaError: if it is no JSON, or no value of it ever ends.
    """
    if not isinstance(given, Mapping):
        raise SchemaError(
            f"answer_schema is a JSON schema as a dict, such as Model.model_json_schema(), not {given!r:.80}."
        )
    try:
        schema = json.loads(json.dumps(given, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise SchemaError(
            f"answer_schema holds what JSON cannot say ({error}): give plain data, such as Model.model_json_schema()."
        ) from error
    check_is_schema(schema)
    try:
        for node in list(_walk(schema)):
            put_plainly(node, lambda reference: _target(schema, reference))
        sizes = Sizes(schema)
        if math.isinf(sizes.of(schema)):
            raise SchemaError(
                "No answer of this JSON schema ever ends, since it requires itself: make the reference optional, or "
                "let null or an empty list stand in its place."
            )
        bare = _bare(schema, _Rewriting(sizes, _composed(schema)))
        return json.dumps(bare, separators=(",", ":"))
    except RecursionError as error:
        raise SchemaError("This JSON schema is nested too deeply: move parts of it to $defs.") from error


# -- rewriting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rewriting:
    sizes: Sizes
    composed: frozenset[int]


def _bare(node: Node, rewriting: _Rewriting, closing: bool = True) -> Node:
    """A schema without titles and ways that never end, and with its objects closed unless others compose them."""
    if not isinstance(node, dict):
        return node
    bare: dict[str, Any] = {}
    for name, item in node.items():
        if name == "title" and isinstance(item, str):
            continue
        inside = closing and name not in _UNTOUCHED

        def part(value: Node, inside: bool = inside) -> Node:
            return _bare(value, rewriting, inside)

        if name in _NAMED and isinstance(item, dict):
            ends = rewriting.sizes.ends if name in ("properties", "patternProperties") and inside else _always
            bare[name] = {key: part(value) if ends(value) else False for key, value in item.items()}
        elif name in _SEVERAL and isinstance(item, list):
            ends = rewriting.sizes.ends if name in ("anyOf", "oneOf") and inside else _always
            bare[name] = [part(value) for value in item if ends(value)] or [part(value) for value in item]
        elif name in _ONE and isinstance(item, dict):
            bare[name] = part(item) if not inside or rewriting.sizes.ends(item) else False
        else:
            bare[name] = item
    if "oneOf" in bare and "anyOf" not in bare and _exclusive(node):
        bare["anyOf"] = bare.pop("oneOf")  # the same where only one can fit, and grammars have no other
    if closing and id(node) not in rewriting.composed and _names_its_keys(node):
        bare.setdefault("additionalProperties", False)
    return bare


def _always(node: Node) -> bool:
    return True


def _names_its_keys(node: dict[str, Any]) -> bool:
    """Whether an object's keys are all listed, so that a value needs no others."""
    named = node.get("properties")
    if node.get("type") != "object" or not isinstance(named, dict):
        return False
    required, least = node.get("required", []), node.get("minProperties", 0)
    listed = isinstance(required, list) and all(name in named for name in required)
    return listed and (not isinstance(least, int) or least <= len(named))


def _exclusive(node: dict[str, Any]) -> bool:
    """Whether at most one of a ``oneOf`` can fit: a member says which, or they are of different types."""
    choices = node["oneOf"]
    if not isinstance(choices, list):
        return False
    if isinstance(node.get("discriminator"), dict):
        return True
    types = [choice.get("type") if isinstance(choice, dict) else None for choice in choices]
    known = [each for each in types if isinstance(each, str)]
    return len(set(known)) == len(types) and not {"integer", "number"} <= set(known)


def _composed(root: Node) -> frozenset[int]:
    """The ids of schemas that describe a value together with others; closed, they would shut out each other's keys."""
    found: set[int] = set()
    pending = [node for node in _walk(root) if len(_described_by(root, node)) > 1 or _sits_beside(node)]
    while pending:
        parts = _parts(root, pending.pop())
        described: dict[str, list[Node]] = {}
        for part in parts:
            found.add(id(part))
            for keyword in ("properties", "patternProperties"):
                for name, item in _mapping(part, keyword).items():
                    described.setdefault(f"{keyword} {name}", []).append(item)
            for keyword in ("items", "additionalProperties"):
                if isinstance(part.get(keyword), dict):
                    described.setdefault(keyword, []).append(part[keyword])
        many = any(key.startswith(("patternProperties", "additionalProperties")) for key in described)
        for items in described.values():
            if many or len(items) > 1:  # one member, described twice
                pending += [item for item in items if isinstance(item, dict) and id(item) not in found]
    return frozenset(found)


def _sits_beside(node: dict[str, Any]) -> bool:
    """Whether a schema speaks of keys and has something beside it that may ask for others."""
    return any(name in node for name in _OF_AN_OBJECT) and any(name in node for name in _BESIDE)


def _described_by(root: Node, node: Node) -> list[list[dict[str, Any]]]:
    """What describes a value together, each with its alternatives: a schema itself, and those applied in place."""
    if not isinstance(node, dict):
        return []
    groups = [[node]] if any(name in node for name in _OF_AN_OBJECT) else []
    together = [_target(root, node.get("$ref")), node.get("then"), node.get("else"), *_several(node, "allOf")]
    together += _mapping(node, "dependentSchemas").values()
    groups += [[item] for item in together if isinstance(item, dict)]
    groups += [_several(node, keyword) for keyword in ("anyOf", "oneOf") if _several(node, keyword)]
    return groups


def _parts(root: Node, node: Node) -> list[dict[str, Any]]:
    """All schemas that take part in describing the same value as one does, that one included."""
    found: dict[int, dict[str, Any]] = {}
    pending = [node]
    while pending:
        part = pending.pop()
        if isinstance(part, dict) and id(part) not in found:
            found[id(part)] = part
            pending += [item for group in _described_by(root, part) for item in group]
    return list(found.values())


def _walk(node: Node) -> Iterator[dict[str, Any]]:
    """A schema and all within it."""
    if not isinstance(node, dict):
        return
    yield node
    for name, item in node.items():
        if name in _NAMED and isinstance(item, dict):
            for value in item.values():
                yield from _walk(value)
        elif name in _SEVERAL and isinstance(item, list):
            for value in item:
                yield from _walk(value)
        elif name in _ONE:
            yield from _walk(item)


def _mapping(node: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = node.get(name)
    return found if isinstance(found, dict) else {}


def _target(root: Node, reference: Any) -> Node:
    """What a reference within the schema points to; None for any other."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    if reference[1:2] not in ("", "/"):
        named = (
            node for node in _walk(root) if reference[1:] in (node.get("$anchor"), node.get("$dynamicAnchor"))
        )
        return next(named, None)
    node = root
    for part in reference[1:].split("/")[1:]:
        key = re.sub("%([0-9A-Fa-f]{2})", lambda code: chr(int(code[1], 16)), part)
        key = key.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        elif isinstance(node, dict) and key in node:
            node = node[key]
        else:
            return None
    return node


# -- measuring --------------------------------------------------------------------------------------------------------


class Sizes:
    """How long the shortest value of every part of a schema is, about; infinite where it never ends.

    Args:
        schema: as plain JSON data.
        cost: of a run of JSON text; by default its characters.
    """

    def __init__(self, schema: Node, cost: Callable[[str], int] = len) -> None:
        self.schema = schema
        self.cost = cost
        self._sizes: dict[int, float] = {}
        nodes = list(_walk(schema))
        changed = True
        while changed:  # the least fixed point, from above: what only refers to itself stays infinite
            changed = False
            for node in reversed(nodes):
                size = self._measured(node)
                if size < self._sizes.get(id(node), math.inf):
                    self._sizes[id(node)] = size
                    changed = True
        self._nodes = nodes

    def of(self, node: Node) -> float:
        """The size of a part of the schema."""
        return self._sizes.get(id(node), math.inf) if isinstance(node, dict) else 1.0

    def ends(self, node: Node) -> bool:
        """Whether any value of a part of the schema ends."""
        return math.isfinite(self.of(node))

    @property
    def jump(self) -> int:
        """By how much one token can put off the end: what it opens that was not going to be written."""
        return int(max((self._jump(node) for node in self._nodes), default=0.0))

    def _jump(self, node: dict[str, Any]) -> float:
        jumps = [3.0]  # a sign, a decimal point, an escape
        optional = set(_mapping(node, "properties")) - set(_strings(node.get("required")))
        for name in optional:
            jumps.append(self._member(name, node["properties"][name]))
        for keyword in ("additionalProperties", "unevaluatedProperties"):
            jumps.append(self._member("", node.get(keyword)))
        jumps += [self._member("", item) for item in _mapping(node, "patternProperties").values()]
        items = node.get("items", True)
        jumps += [self.of(item) + 1 for item in (items if isinstance(items, list) else [items])]
        jumps += [self.of(item) + 1 for item in node.get("prefixItems", ()) or ()]
        for keyword in ("anyOf", "oneOf"):
            jumps += [self.of(item) for item in node.get(keyword, ()) or ()]
        if "enum" in node or "const" in node:
            jumps += [float(self._text(value)) for value in node.get("enum", [node.get("const")])]
        jumps.append(float(_detours(node)))
        jumps.append(float(len(str(node.get("multipleOf", "")))) + 1)
        return max((jump for jump in jumps if math.isfinite(jump)), default=3.0)

    def _measured(self, node: dict[str, Any]) -> float:
        if "const" in node:
            return self._text(node["const"])
        if isinstance(node.get("enum"), list) and node["enum"]:
            return min(self._text(value) for value in node["enum"])
        beside = 0.0
        if "$ref" in node:
            target = _target(self.schema, node["$ref"])
            beside += 1.0 if target is None else self.of(target)
        beside += sum(self.of(item) for item in _several(node, "allOf"))
        for keyword in ("anyOf", "oneOf"):
            beside += min((self.of(item) for item in _several(node, keyword)), default=0.0)
        kinds = node.get("type")
        if kinds is None:
            return beside or 1.0
        return beside + min(
            (self._of_kind(node, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)),
            default=1.0,
        )

    def _of_kind(self, node: dict[str, Any], kind: Any) -> float:
        if kind == "string":
            return 2.0 + _number(node.get("minLength"))
        if kind == "object":
            named = _mapping(node, "properties")
            rest = node.get("additionalProperties")
            members = [
                self._member(name, named.get(name, rest))
                for name in dict.fromkeys(_strings(node.get("required")))
            ]
            return 2.0 + sum(members)
        if kind == "array":
            first = [*_several(node, "prefixItems")]
            items = node.get("items")
            if isinstance(items, list):
                first, items = items, node.get("additionalItems")
            least = int(_number(node.get("minItems")))
            sizes = [self.of(item) + 1 for item in first[:least]]
            more = least - len(sizes)
            return 2.0 + sum(sizes) + (more * (self.of(items) + 1) if more > 0 else 0.0)
        return 4.0 if kind in ("boolean", "null") else 1.0

    def _member(self, name: str, value: Node) -> float:
        return self._text(name) + self.of(value) + 2

    def _text(self, value: Any) -> int:
        return self.cost(json.dumps(value, ensure_ascii=False))


def _several(node: dict[str, Any], keyword: str) -> list[Node]:
    found = node.get(keyword)
    return found if isinstance(found, list) else []


def _strings(found: Any) -> Sequence[str]:
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def _number(found: Any) -> float:
    return float(found) if isinstance(found, int | float) else 0.0


def _detours(node: Mapping[str, Any]) -> int:
    """About how many more characters a choice within a string can ask for; none unless its characters are ruled."""
    if "pattern" not in node:
        return 40 if "format" in node else 0
    pattern = str(node["pattern"])
    return len(pattern) + sum(min(400, int(count)) for count in re.findall(r"\{(\d{1,6})", pattern))
