"""Results of tools: the texts and files in a message, and the message that stands in its place."""

from __future__ import annotations

import base64
import binascii
import mimetypes
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage, ToolMessage

from wim_kernel.text.files import FileError, read_file

KEY = "wim"
Block = str | dict[Any, Any]


@dataclass(frozen=True)
class LongResult:
    """A tool's message that is to be read.

    Attributes:
        message: the message.
        documents: its texts and files.
        rest: its blocks without text, such as images.
        tokens: the tokens of the texts.
    """

    message: ToolMessage
    documents: list[Document]
    rest: list[Block]
    tokens: int

    @property
    def name(self) -> str:
        """The tool's name."""
        return name_of(self.message)

    def replaced(
        self,
        content: str | list[Block],
        data: Mapping[str, Any],
        *,
        status: Literal["success", "error"] | None = None,
    ) -> ToolMessage:
        """The message with other content; `read_result` gives ``data`` and the original content."""
        if self.rest:
            content = [{"type": "text", "text": content}] if isinstance(content, str) else content
            content = [*content, *self.rest]
        data = {**data, "content": self.message.content}
        changes: dict[str, Any] = {"content": content, "status": status or self.message.status}
        if self.message.artifact is None:
            changes["artifact"] = {KEY: data}
        else:
            changes["additional_kwargs"] = {**self.message.additional_kwargs, KEY: data}
        return self.message.model_copy(update=changes)


def read_result(message: BaseMessage) -> dict[str, Any] | None:
    """What `WimMiddleware` read in place of a tool's message.

    Returns:
        ``content``, the original content; ``tokens``, its length; ``question``; and the output of `WimRunnable`:
        ``answer``, ``margins``, ``citations``, ``usage`` and so on. If it could not be read, ``content``, ``tokens``
        and ``error``. None for a message that was left as it was.
    """
    artifact = getattr(message, "artifact", None)
    for place in (artifact, message.additional_kwargs):
        if isinstance(place, Mapping) and isinstance(place.get(KEY), dict):
            found: dict[str, Any] = place[KEY]
            return found
    return None


def documents_in(message: BaseMessage, source: str) -> tuple[list[Document], list[Block]]:
    """The texts and files of a message as documents, and the blocks that have no text.

    Args:
        message: the message.
        source: the source of texts without a name of their own.
    """
    if isinstance(message.content, str):
        return [Document(message.content, metadata={"source": source})], []
    documents, rest = [], []
    for block in message.content:
        found = _document(block, source)
        if found is None:
            rest.append(block)
        else:
            documents.append(found)
    return documents, rest


def _document(block: Block, default: str) -> Document | None:
    if isinstance(block, str):
        return Document(block, metadata={"source": default})
    kind, text = block.get("type"), block.get("text")
    if kind == "search_result":
        parts = [part.get("text", "") for part in block.get("content") or () if isinstance(part, Mapping)]
        text = "\n\n".join(parts)
    elif kind == "file":
        text = _file_text(block)
    elif kind not in ("text", "text-plain"):
        return None
    if not isinstance(text, str):
        return None
    source = block.get("source") if kind == "search_result" else _file_name(block)
    metadata = {"source": source or default, "title": block.get("title")}
    return Document(text, metadata={name: item for name, item in metadata.items() if item})


def _file_text(block: Mapping[Any, Any]) -> str | None:
    """The text of a file in base64; None for a file without text, or given by its address."""
    try:
        data = base64.b64decode(block.get("base64") or "", validate=True)
    except (binascii.Error, TypeError, ValueError):
        return None
    suffix = mimetypes.guess_extension(str(block.get("mime_type"))) or Path(_file_name(block) or "").suffix
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"file{suffix}")
        path.write_bytes(data)
        try:
            return read_file(path)
        except FileError:  # no text, or no package that reads it: the agent's model may
            return None


def _file_name(block: Mapping[Any, Any]) -> str | None:
    given = [block, block.get("extras"), block.get("metadata")]
    names = (place.get("filename") or place.get("name") for place in given if isinstance(place, Mapping))
    return next((str(name) for name in names if name), None)


def name_of(message: ToolMessage) -> str:
    """The name of the tool that a message is from."""
    return message.name or "the tool"
