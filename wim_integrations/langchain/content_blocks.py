"""A message's text as events of content blocks, in the protocol of ``stream_events(version="v3")``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.content import Citation

Data = dict[str, Any]


def message_start(message_id: str) -> list[Data]:
    """The events in front of the text: the message and its one text block begin."""
    return [
        {"event": "message-start", "role": "ai", "id": message_id},
        {"event": "content-block-start", "index": 0, "content": {"type": "text", "text": ""}},
    ]


def text_delta(text: str) -> Data:
    """The event of a piece of the text."""
    return {"event": "content-block-delta", "index": 0, "delta": {"type": "text-delta", "text": text}}


def message_finish(
    text: str, citations: Sequence[Citation], usage: UsageMetadata, metadata: Mapping[str, Any]
) -> list[Data]:
    """The events behind the text: the whole text block with its citations, then the message's usage and metadata."""
    block: Data = {"type": "text", "text": text}
    if citations:
        block["annotations"] = list(citations)
    return [
        {"event": "content-block-finish", "index": 0, "content": block},
        {"event": "message-finish", "usage": usage, "metadata": dict(metadata)},
    ]
