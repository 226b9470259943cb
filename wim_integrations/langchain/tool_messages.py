"""The tool messages in what a tool call returned, and the same with others in their place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar, cast

from langchain_core.messages import ToolMessage
from langgraph.types import Command

_Result = TypeVar("_Result")


def tool_messages(result: object) -> list[ToolMessage]:
    """The tool messages in what a tool call returned: a message, a command's update, or a list of these."""
    if isinstance(result, ToolMessage):
        return [result]
    if isinstance(result, Command):
        return [message for _, value in _updates(result) for message in tool_messages(value)]
    if isinstance(result, list | tuple):
        return [message for item in result for message in tool_messages(item)]
    return []


def with_messages(result: _Result, answered: Mapping[int, ToolMessage]) -> _Result:
    """What a tool call returned, with other messages in place of those whose ``id()`` is given."""
    changed: Any = _with_other_messages(result, answered) if answered else result
    return cast(_Result, changed)


def _with_other_messages(result: Any, answered: Mapping[int, ToolMessage]) -> Any:
    if isinstance(result, ToolMessage):
        return answered.get(id(result), result)
    if isinstance(result, Command):
        pairs = [(key, _with_other_messages(value, answered)) for key, value in _updates(result)]
        return replace(result, update=dict(pairs) if isinstance(result.update, Mapping) else pairs)
    if isinstance(result, list | tuple):
        return type(result)(_with_other_messages(item, answered) for item in result)
    return result


def _updates(command: Command[Any]) -> list[tuple[str, Any]]:
    """A command's update as pairs of a key and a value; none for updates of other forms."""
    if isinstance(command.update, Mapping):
        return list(command.update.items())
    pairs = command.update if isinstance(command.update, list | tuple) else ()
    return [pair for pair in pairs if isinstance(pair, tuple) and len(pair) == 2]
