"""The keywords of JSON schemas, and the length of the shortest value that fits a schema."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

KEYWORDS_OF_ONE_SCHEMA: tuple[str, ...] = (
    "additionalItems",
    "additionalProperties",
    "contains",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
)
KEYWORDS_OF_A_LIST = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
KEYWORDS_OF_A_MAPPING = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")

Node = Any
"""A schema: a mapping or a boolean."""


class Sizes:
    """The approximate length of the shortest value of every part of a schema; infinite if no finite value fits.

    Args:
        schema: the schema as plain JSON data.
        cost: a callback for the length of JSON text; by default in characters.
    """

    def __init__(self, schema: Node, cost: Callable[[str], int] = len) -> None:
        self.schema = schema
        self.cost = cost
        self._sizes: dict[int, float] = {}
        nodes = list(subschemas(schema))
        changed = True
        while changed:  # iterate down to a fixed point; a schema that only refers to itself stays infinite
            changed = False
            for node in reversed(nodes):
                size = self._measured(node)
                if size < self._sizes.get(id(node), math.inf):
                    self._sizes[id(node)] = size
                    changed = True
        self._nodes = nodes

    def of(self, node: Node) -> float:
        """The length of the shortest value of a part of the schema."""
        return self._sizes.get(id(node), math.inf) if isinstance(node, dict) else 1.0

    def ends(self, node: Node) -> bool:
        """Whether a finite value fits a part of the schema."""
        return math.isfinite(self.of(node))

    @property
    def jump(self) -> int:
        """By how much one token can lengthen the shortest completion, by beginning something optional."""
        return int(max((self._jump(node) for node in self._nodes), default=0.0))

    def _jump(self, node: dict[str, Any]) -> float:
        jumps = [3.0]  # a sign, a decimal point, an escape
        optional = set(mapping_at(node, "properties")) - set(_strings(node.get("required")))
        for name in optional:
            jumps.append(self._member(name, node["properties"][name]))
        for keyword in ("additionalProperties", "unevaluatedProperties"):
            jumps.append(self._member("", node.get(keyword)))
        jumps += [self._member("", item) for item in mapping_at(node, "patternProperties").values()]
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
            target = referenced(self.schema, node["$ref"])
            beside += 1.0 if target is None else self.of(target)
        beside += sum(self.of(item) for item in list_at(node, "allOf"))
        for keyword in ("anyOf", "oneOf"):
            beside += min((self.of(item) for item in list_at(node, keyword)), default=0.0)
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
            named = mapping_at(node, "properties")
            rest = node.get("additionalProperties")
            members = [
                self._member(name, named.get(name, rest))
                for name in dict.fromkeys(_strings(node.get("required")))
            ]
            return 2.0 + sum(members)
        if kind == "array":
            first = [*list_at(node, "prefixItems")]
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


def _strings(found: Any) -> Sequence[str]:
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def _number(found: Any) -> float:
    return float(found) if isinstance(found, int | float) else 0.0


def _detours(node: Mapping[str, Any]) -> int:
    """About how many more characters a choice within a string may require; 0 without a pattern or format."""
    if "pattern" not in node:
        return 40 if "format" in node else 0
    pattern = str(node["pattern"])
    return len(pattern) + sum(min(400, int(count)) for count in re.findall(r"\{(\d{1,6})", pattern))


def subschemas(node: Node) -> Iterator[dict[str, Any]]:
    """A schema and all schemas in it."""
    if not isinstance(node, dict):
        return
    yield node
    for name, item in node.items():
        if name in KEYWORDS_OF_A_MAPPING and isinstance(item, dict):
            for value in item.values():
                yield from subschemas(value)
        elif name in KEYWORDS_OF_A_LIST and isinstance(item, list):
            for value in item:
                yield from subschemas(value)
        elif name in KEYWORDS_OF_ONE_SCHEMA:
            yield from subschemas(item)


def referenced(root: Node, reference: Any) -> Node:
    """The target of a reference within the schema; None for other references."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    if reference[1:2] not in ("", "/"):
        anchored = (
            node
            for node in subschemas(root)
            if reference[1:] in (node.get("$anchor"), node.get("$dynamicAnchor"))
        )
        return next(anchored, None)
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


def mapping_at(node: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The value of a keyword if it is a mapping; otherwise an empty one."""
    found = node.get(name)
    return found if isinstance(found, dict) else {}


def list_at(node: dict[str, Any], keyword: str) -> list[Node]:
    """The value of a keyword if it is a list; otherwise an empty one."""
    found = node.get(keyword)
    return found if isinstance(found, list) else []
