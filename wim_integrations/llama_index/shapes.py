"""The JSON schemas of the output that LlamaIndex's output parsers accept."""

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
    """The JSON schema of the output that a prompt's parser accepts; None without a parser, or with an unknown one.

    Args:
        prompt: the prompt, which has the parser.
        values: the values that the prompt is formatted with, such as the number of choices or the tools.
    """
    parser = prompt.output_parser
    if isinstance(parser, SelectionOutputParser):
        choice = {"type": "integer", "minimum": 1, "maximum": max(1, int(values.get("num_choices") or 1))}
        # the prompt of a single selection has no max_outputs
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
    """The schema of a list of one to ``most`` objects."""
    item = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "array", "items": item, "minItems": 1, "maxItems": most}


def _names(tools: Any) -> list[str]:
    """The tools' names, from a JSON object with these as its keys; none if it cannot be parsed."""
    try:
        listed = json.loads(tools)
    except (TypeError, ValueError):
        return []
    return [str(name) for name in listed] if isinstance(listed, dict) else []
