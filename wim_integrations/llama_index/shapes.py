"""What LlamaIndex's output parsers want to read, as JSON schemas."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.output_parsers.selection import SelectionOutputParser
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.question_gen.output_parser import SubQuestionOutputParser

_REASON = {"type": "string", "maxLength": 120}
_MOST_QUESTIONS = 8


def shape_of(prompt: BasePromptTemplate, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The JSON schema of what a prompt's parser takes; None if it has none, or one that is not known.

    Args:
        prompt: with its parser.
        values: what the prompt is formatted with: the number of choices, the tools.
    """
    parser = prompt.output_parser
    if isinstance(parser, SelectionOutputParser):
        choice = {"type": "integer", "minimum": 1, "maximum": max(1, int(values.get("num_choices") or 1))}
        # a single selection asks for no number of outputs
        return _list({"choice": choice, "reason": _REASON}, int(values.get("max_outputs") or 1))
    if isinstance(parser, SubQuestionOutputParser):
        name: dict[str, Any] = {"type": "string"}
        tools = _names(values.get("tools_str"))
        if tools:
            name["enum"] = tools
        return _list(
            {"sub_question": {"type": "string", "maxLength": 200}, "tool_name": name}, _MOST_QUESTIONS
        )
    if isinstance(parser, PydanticOutputParser):
        schema: dict[str, Any] = parser.output_cls.model_json_schema()
        return schema
    return None


def _list(properties: dict[str, Any], most: int) -> dict[str, Any]:
    """One object or more, up to ``most``."""
    item = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "array", "items": item, "minItems": 1, "maxItems": most}


def _names(tools: Any) -> list[str]:
    """The tools' names, which a prompt lists as a JSON object's keys."""
    try:
        listed = json.loads(tools)
    except (TypeError, ValueError):
        return []
    return [str(name) for name in listed] if isinstance(listed, dict) else []
