"""LlamaIndex's language models as the kernel's model: requests of content blocks, streamed replies, data of a class."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any
from urllib.parse import urlsplit

from llama_index.core.base.llms.types import (
    CacheControl,
    CachePoint,
    ChatMessage,
    ContentBlock,
    MessageRole,
    TextBlock,
)
from llama_index.core.bridge.pydantic import BaseModel, create_model
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms import LLM
from llama_index.core.llms.structured_llm import StructuredLLM

from wim_kernel import WimKernel
from wim_kernel.engines.chat.backend import Billed, ChatRequest, Piece, UnreadableReplyError, closed

_TYPES: dict[str, Any] = {"integer": int, "number": float, "string": str, "boolean": bool}


class LlamaIndexChat:
    """A LlamaIndex language model; see `wim_kernel.engines.chat.backend.ChatBackend`.

    Args:
        llm: the language model. A copy without callbacks is used, since the synthesizer's events report the whole call.
    """

    def __init__(self, llm: LLM) -> None:
        self.llm = llm.model_copy(update={"callback_manager": CallbackManager([])})
        self.kind = type(llm).__name__
        metadata = llm.metadata
        self.name = metadata.model_name if metadata.model_name not in ("", "unknown") else self.kind
        self.window: int | None = metadata.context_window
        base = getattr(llm, "api_base", None) or getattr(llm, "base_url", None)
        self.host = (urlsplit(base).hostname or "") if isinstance(base, str) else ""

    def stream(self, request: ChatRequest) -> Generator[Piece, None, None]:
        """Send a request; yields the reply as it comes. Closing the generator closes the request."""
        arguments = {**request.fields, **_extra(request)}
        if _takes_openai_fields(self.llm):
            arguments["stream_options"] = {"include_usage": True}
        billed = None
        replies = self.llm.stream_chat(_messages(request), **arguments)
        with closed(replies):
            for reply in replies:
                billed = _billed(reply.raw) or billed
                yield Piece(reply.delta or "")
        if billed is not None:
            yield Piece(billed=billed)

    def structured(self, request: ChatRequest, schema: Mapping[str, Any]) -> Piece:
        """Send a request whose reply is data of a JSON schema.

        Raises:
            NotImplementedError: if the model calls no functions, or the schema is more than named plain values.
                `LLM.as_structured_llm` reports no usage: then it is estimated.
            UnreadableReplyError: if it replied, and not with such data.
        """
        if _takes_openai_fields(self.llm):  # takes any schema, and reports what the request cost
            shape = {"name": schema.get("title", "Reply"), "schema": dict(schema)}
            extra = {**request.fields, **_extra(request)}
            reply = self.llm.chat(
                _messages(request), response_format={"type": "json_schema", "json_schema": shape}, **extra
            )
            return Piece(reply.message.content or "", _billed(reply.raw))
        if not self.llm.metadata.is_function_calling_model:
            raise NotImplementedError("The model takes no schemas.")
        structured = self.llm.as_structured_llm(_class(schema))
        reply = structured.chat(_messages(request))
        if not isinstance(reply.raw, BaseModel):
            raise UnreadableReplyError(Piece(reply.message.content or ""))
        return Piece(reply.message.content or "", None, reply.raw.model_dump())


def as_kernel(model: Any) -> Any:
    """A kernel on a language model; anything else as it is, for the caller's check."""
    if isinstance(model, StructuredLLM):
        return as_kernel(model.llm)
    own = getattr(model, "_kernel", None)  # of a `WimLLM`, which is a kernel's own model
    if isinstance(own, WimKernel):
        return own
    return WimKernel.from_chat_model(LlamaIndexChat(model)) if isinstance(model, LLM) else model


def _messages(request: ChatRequest) -> list[ChatMessage]:
    blocks: list[ContentBlock] = []
    for block in request.blocks:
        blocks.append(TextBlock(text=block.text))
        if block.mark and request.mark == "cache_control":
            blocks.append(CachePoint(cache_control=CacheControl(type="ephemeral")))
    turns = [ChatMessage(role=MessageRole.SYSTEM, content=request.system)] if request.system else []
    return [*turns, ChatMessage(role=MessageRole.USER, blocks=blocks)]


def _extra(request: ChatRequest) -> dict[str, Any]:
    """The fields for the provider's cache, without OpenAI's breakpoints, which LlamaIndex's blocks cannot carry."""
    return {name: value for name, value in request.extra.items() if name != "prompt_cache_options"}


def _takes_openai_fields(llm: LLM) -> bool:
    """Whether a class is LlamaIndex's OpenAI class, or made from it: only these leave usage out of streams."""
    return any(base.__module__.startswith("llama_index.llms.openai.") for base in type(llm).__mro__)


def _class(schema: Mapping[str, Any]) -> type[BaseModel]:
    """A class of the named plain values of a schema.

    Raises:
        NotImplementedError: for a schema with other values.
    """
    fields: dict[str, Any] = {}
    for name, value in dict(schema.get("properties") or {}).items():
        kind = value.get("type")
        if kind == "array":
            inner = _TYPES.get(dict(value.get("items") or {}).get("type", ""))
            found: Any = None if inner is None else list[inner]  # type: ignore[valid-type]
        else:
            found = _TYPES.get(kind)
        if found is None or name not in schema.get("required", ()):
            raise NotImplementedError(f"The schema's {name!r} is more than a plain value.")
        fields[name] = (found, ...)
    if not fields:
        raise NotImplementedError("The schema names no values.")
    return create_model(str(schema.get("title", "Reply")), **fields)


def _billed(raw: Any) -> Billed | None:
    """What a reply cost, from the provider's own report, by the names of OpenAI and Anthropic."""
    usage = raw.get("usage") if isinstance(raw, Mapping) else getattr(raw, "usage", None)
    if usage is None:
        return None

    def count(holder: Any, name: str) -> int | None:
        found = holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)
        return found if isinstance(found, int) else None

    prompt, completion = count(usage, "prompt_tokens"), count(usage, "completion_tokens")
    if prompt is not None:  # OpenAI's names: cached tokens are among the prompt's
        details = usage.get("prompt_tokens_details") if isinstance(usage, Mapping) else None
        details = details or getattr(usage, "prompt_tokens_details", None)
        return Billed(
            prompt,
            completion or 0,
            None if details is None else count(details, "cached_tokens"),
            None if details is None else count(details, "cache_write_tokens"),
        )
    fresh = count(usage, "input_tokens")
    if fresh is None:
        return None
    read, written = count(usage, "cache_read_input_tokens"), count(usage, "cache_creation_input_tokens")
    return Billed(fresh + (read or 0) + (written or 0), count(usage, "output_tokens") or 0, read, written)
