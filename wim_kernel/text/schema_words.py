"""Rewrites the keywords of JSON schemas into keywords that grammars support."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from wim_kernel.common.errors import SchemaError

Node = dict[str, Any]

_WORDS = """
    $anchor $comment $defs $dynamicAnchor $dynamicRef $id $recursiveRef $ref $schema additionalItems
    additionalProperties allOf anyOf const contains contentEncoding contentMediaType contentSchema default
    definitions dependencies dependentRequired dependentSchemas deprecated description else enum example
    examples exclusiveMaximum exclusiveMinimum format id if items maxContains maxItems maxLength maxProperties
    maximum minContains minItems minLength minProperties minimum multipleOf not nullable oneOf pattern
    patternProperties prefixItems properties propertyNames readOnly required then title type unevaluatedItems
    unevaluatedProperties uniqueItems writeOnly
"""
_KEYWORDS = frozenset(_WORDS.split())
_WRAPPERS = ("schema", "json_schema", "parameters", "input_schema")
_IN_PLACE = ("$ref", "allOf", "anyOf", "oneOf", "if", "not", "dependentSchemas", "dependencies")

_HELD = {
    "date",
    "date-time",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "time",
    "unknown",
    "uri",
    "uuid",
}
_NARROWER = {  # every string of the second format is one of the first
    "idn-email": "email",
    "idn-hostname": "hostname",
    "ipv4interface": "ipv4",
    "ipv4network": "ipv4",
    "ipv6interface": "ipv6",
    "ipv6network": "ipv6",
    "ipvanyaddress": "ipv4",
    "ipvanyinterface": "ipv4",
    "ipvanynetwork": "ipv4",
    "iri": "uri",
    "iri-reference": "uri",
    "uri-reference": "uri",
}
_HEX = "[0-9a-f]"
_AS_PATTERNS = {
    "base64": "^([A-Za-z0-9+/]{4})*$",
    "base64url": "^([A-Za-z0-9_-]{4})*$",
    **{
        f"uuid{version}": f"^{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-[89ab]{_HEX}{{3}}-{_HEX}{{12}}$"
        for version in range(1, 9)
    },
}


def check_is_schema(given: Mapping[str, Any]) -> None:
    """Check that a dict is a schema. A dict without any keyword would accept every answer.

    Raises:
        SchemaError: if it is not.
    """
    for name in _WRAPPERS:
        if isinstance(given.get(name), Mapping) and not {"properties", *_IN_PLACE} & set(given):
            raise SchemaError(f"answer_schema has its schema under {name!r}: give what stands there alone.")
    if given and not _KEYWORDS & set(given):
        raise SchemaError(
            f"answer_schema has none of JSON Schema's keywords, only {', '.join(map(repr, list(given)[:3]))}: "
            "give a schema, such as {'type': 'object', 'properties': {...}}."
        )


def put_plainly(node: Node, target: Callable[[Any], Any]) -> None:
    """Rewrite a schema, in place, with keywords that grammars support. It then accepts the same values, or fewer.

    Args:
        node: one schema, without those within it.
        target: a callback that returns the schema that a reference points to.

    Raises:
        SchemaError: for a ``multipleOf`` that nothing is a multiple of.
    """
    _put_bounds(node)
    _put_format(node)
    if node.get("uniqueItems") is False:
        del node["uniqueItems"]
    _put_names(node, target)
    _put_unevaluated(node)


def _put_bounds(node: Node) -> None:
    for beyond, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        # as draft 4 and OpenAPI 3.0 have it
        if isinstance(node.get(beyond), bool) and node.pop(beyond) and bound in node:
            node[beyond] = node.pop(bound)
    _put_narrow(node, "exclusiveMinimum", "minimum", ("maximum", "exclusiveMaximum"))
    _put_narrow(node, "exclusiveMaximum", "maximum", ("minimum", "exclusiveMinimum"))
    step = node.get("multipleOf")
    if isinstance(step, int | float) and (step <= 0 or not math.isfinite(step)):
        raise SchemaError(f"multipleOf is {step!r} in this JSON schema, and has to be more than 0.")


def _put_narrow(node: Node, beyond: str, bound: str, opposite: tuple[str, str]) -> None:
    """Bound a fraction by a fraction: where a number is over 0 and under 0.5, llguidance lets it be 0."""
    whole = Decimal(str(node[beyond])) if _is_number(node.get(beyond)) else Decimal("0.5")
    if whole != int(whole):
        return
    for other in [Decimal(str(node[name])) for name in opposite if _is_number(node.get(name))]:
        distance = other - whole
        if 0 < abs(distance) < 1 and whole * distance >= 0:  # towards nought it is right
            least = Decimal(10) ** (int(other.as_tuple().exponent) - 3)
            inside = float(whole + least.copy_sign(distance))
            both = [inside, node[bound]] if _is_number(node.get(bound)) else [inside]
            node[bound] = max(both) if distance > 0 else min(both)
            node.pop(beyond, None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _put_format(node: Node) -> None:
    """Replace a format by one that the grammar knows, or drop it: a format is only an annotation."""
    name = node.get("format")
    if not isinstance(name, str) or name in _HELD:
        return
    del node["format"]
    if name in _NARROWER:
        node["format"] = _NARROWER[name]
    elif name in _AS_PATTERNS:
        node.setdefault("pattern", _AS_PATTERNS[name])


def _put_names(node: Node, target: Callable[[Any], Any]) -> None:
    """Keys that are listed are properties, those of a pattern are pattern properties."""
    names = node.get("propertyNames")
    if isinstance(names, dict) and set(names) <= {"$ref", "title", "description"} and "$ref" in names:
        names = target(names["$ref"])
    if names is True:
        del node["propertyNames"]
    if not isinstance(names, dict) or "properties" in node or "patternProperties" in node:
        return
    value = node.get("additionalProperties", True)
    said = set(names) - {"type", "title", "description"}
    if not said and names.get("type", "string") == "string":
        del node["propertyNames"]
    elif said <= {"enum", "const"} and said and value is not False:
        listed = [name for name in names.get("enum", [names.get("const")]) if isinstance(name, str)]
        del node["propertyNames"]
        node |= {"properties": dict.fromkeys(listed, value), "additionalProperties": False}
    elif said == {"pattern"} and value is not False:
        del node["propertyNames"]
        node |= {"patternProperties": {names["pattern"]: value}, "additionalProperties": False}


def _put_unevaluated(node: Node) -> None:
    """Rename ``unevaluated*`` to ``additional*`` where no other schema describes the value."""
    if any(name in node for name in _IN_PLACE):
        return
    for name, plain in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
        if name in node:
            rest = node.pop(name)
            if plain not in node:
                node[plain] = rest
