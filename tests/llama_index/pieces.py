"""A text and nodes of it, as node parsers make them."""

from __future__ import annotations

from typing import Any

from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode

QUESTION = "Who owned the ship?"
FEW: dict[str, Any] = {"threshold": 0, "margin_tokens": 3, "answer_tokens": 5}
LOG = "The gull sat on the mast. It rained all night. Elsa Brandt owned the ship Aurora. The fog was thick."


def piece(document: str, start: int, end: int, **metadata: str) -> TextNode:
    """A node of a document's characters, as node parsers make them."""
    return TextNode(
        text=LOG[start:end],
        id_=f"{document}-{start}",
        start_char_idx=start,
        end_char_idx=end,
        metadata=metadata,
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)},
    )
