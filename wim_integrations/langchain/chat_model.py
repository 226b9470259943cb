"""LangChain's chat models as the kernel's model: requests of content blocks, streamed replies, data under a schema."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Annotated, Any, cast
from urllib.parse import urlsplit

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.runnables import RunnableConfig
from pydantic import BeforeValidator, SecretStr

from wim_kernel import WimKernel
from wim_kernel.common.errors import ModelNotFoundError, status_of
from wim_kernel.engines.chat.backend import Billed, ChatRequest, Piece, UnreadableReplyError, closed

# The kernel's own run reports the whole call: these requests are no runs of their own.
_CONFIG: RunnableConfig = {"callbacks": [], "run_name": "WimRequest"}
_MARKS: dict[str, dict[str, Any]] = {
    "cache_control": {"type": "ephemeral"},
    "prompt_cache_breakpoint": {"mode": "explicit"},
}


class LangChainChat:
    """A LangChain chat model; see `wim_kernel.engines.chat.backend.ChatBackend`.

    Requests go through the model's own ``stream`` and ``with_structured_output``, so that its rate limiter, retries,
    limits and keys hold.

    Args:
        llm: the chat model.
    """

    def __init__(self, llm: BaseChatModel) -> None:
        self.llm = llm
        self.kind = type(llm).__name__
        names = (getattr(llm, name, None) for name in ("model_name", "model", "model_id", "deployment_name"))
        self.name = next((name for name in names if isinstance(name, str) and name), self.kind)
        self.host = _host(llm)
        profile = llm.profile or {}
        self.window: int | None = profile.get("max_input_tokens")
        # Some providers report the usage of a stream only if they are asked. They are asked by the class's field, since
        # not every protocol of a class knows the argument.
        has_field = "stream_usage" in type(llm).model_fields
        self._asks_usage = llm.model_copy(update={"stream_usage": True}) if has_field else None

    @classmethod
    def from_name(cls, name: str) -> LangChainChat:
        """Make a chat model as LangChain's ``init_chat_model`` names it: ``"openai:gpt-5.6"``.

        Raises:
            ModelNotFoundError: if the provider is unknown, or its package or key is missing.
        """
        lead = f"The chat model {name!r} cannot be made"
        try:
            from langchain.chat_models import init_chat_model
        except ImportError as error:
            raise ModelNotFoundError(f"{lead}: pip install 'wim-integrations[chat-model]'.") from error
        if not all(part.strip() for part in name.split(":", 1)):
            raise ModelNotFoundError(f"{lead}: write PROVIDER:NAME, such as openai:gpt-5.6.")
        try:
            llm = init_chat_model(name)
        except ValueError as error:  # an unknown provider, or fields that its class refuses
            hint = "Write PROVIDER:NAME, such as openai:gpt-5.6."
            raise ModelNotFoundError(f"{lead}: {_first_lines(error)} {hint}") from error
        except Exception as error:  # a missing package, or whatever a provider's client raises without a key
            raise ModelNotFoundError(f"{lead}: {_first_lines(error)}") from error
        missing = _missing_keys(llm)
        if missing:
            raise ModelNotFoundError(f"{lead}: it has no key. Set {' and '.join(missing)}.")
        return cls(llm)

    def stream(self, request: ChatRequest) -> Generator[Piece, None, None]:
        """Send a request; yields the reply as it comes. Closing the generator closes the request."""
        asks, has_begun = self._asks_usage, False
        try:
            for piece in self._stream(asks or self.llm, request):
                has_begun = True
                yield piece
        except Exception as error:
            if has_begun or asks is None or status_of(error) not in (400, 422):
                raise
            yield from self._stream(
                self.llm, request
            )  # some servers refuse to be asked for the usage of a stream
            self._asks_usage = None

    def _stream(self, llm: BaseChatModel, request: ChatRequest) -> Generator[Piece, None, None]:
        usage: UsageMetadata | None = None
        chunks = llm.stream(_messages(request), _CONFIG, **request.fields, **request.extra)
        with closed(chunks):
            for chunk in chunks:
                usage = _added(usage, getattr(chunk, "usage_metadata", None))
                yield Piece(chunk.text)
        if usage is not None:
            yield Piece(billed=_billed(usage))

    def structured(self, request: ChatRequest, schema: Mapping[str, Any]) -> Piece:
        """Send a request whose reply is data of a JSON schema.

        Raises:
            NotImplementedError: if the model cannot reply under a schema.
            UnreadableReplyError: if it replied, and not with such data.
        """
        shape = {"title": "Reply", "description": "The reply", **schema}
        model = self.llm.with_structured_output(shape, include_raw=True)
        try:
            reply = cast(
                Mapping[str, Any],
                model.invoke(_messages(request), _CONFIG, **request.fields, **request.extra),
            )
        except Exception as error:
            cut = _cut_off(error)
            if cut is None:
                raise
            raise UnreadableReplyError(cut) from error
        raw, parsed = cast(AIMessage, reply["raw"]), reply["parsed"]
        usage = getattr(raw, "usage_metadata", None)
        billed = None if usage is None else _billed(usage)
        if parsed is None:
            broken = (call["args"] or "" for call in raw.invalid_tool_calls)
            raise UnreadableReplyError(Piece(raw.text or "".join(broken), billed))
        data = parsed.model_dump() if hasattr(parsed, "model_dump") else parsed
        return Piece(raw.text, billed, data)


def _cut_off(error: Exception) -> Piece | None:
    """The cut-off reply in an error of OpenAI's client about the limit of output tokens; None for other errors."""
    completion = getattr(error, "completion", None)
    if completion is None or not getattr(completion, "choices", None):
        return None
    usage = getattr(completion, "usage", None)
    billed = None if usage is None else Billed(usage.prompt_tokens, usage.completion_tokens, None, None)
    return Piece(completion.choices[0].message.content or "", billed)


def as_kernel(model: Any) -> Any:
    """A kernel on a chat model; anything else as it is, for the caller's check."""
    return WimKernel.from_chat_model(LangChainChat(model)) if isinstance(model, BaseChatModel) else model


Model = WimKernel | BaseChatModel
"""What reads: a kernel, or a chat model, on which a kernel is made."""
KernelField = Annotated[WimKernel, BeforeValidator(as_kernel)]
"""The field of a kernel, which may be given as a chat model."""


def _messages(request: ChatRequest) -> list[BaseMessage]:
    """The messages of a request. A user message of one block is plain text, which every model takes."""
    turns: list[BaseMessage] = [SystemMessage(request.system)] if request.system else []
    if len(request.blocks) == 1 and not request.blocks[0].mark:
        return [*turns, HumanMessage(request.blocks[0].text)]
    blocks: list[str | dict[str, Any]] = []
    for block in request.blocks:
        marks = {request.mark: _MARKS[request.mark]} if block.mark and request.mark else {}
        blocks.append({"type": "text", "text": block.text, **marks})
    return [*turns, HumanMessage(blocks)]


def _added(before: UsageMetadata | None, new: UsageMetadata | None) -> UsageMetadata | None:
    """The usage of a stream so far: some providers report it in parts, which add up."""
    if before is None or new is None:
        return before or new
    details = dict(before.get("input_token_details") or {})
    for name, count in (new.get("input_token_details") or {}).items():
        if isinstance(count, int):
            details[name] = cast(int, details.get(name) or 0) + count
    return cast(
        UsageMetadata,
        {
            "input_tokens": before["input_tokens"] + new["input_tokens"],
            "output_tokens": before["output_tokens"] + new["output_tokens"],
            "total_tokens": before["total_tokens"] + new["total_tokens"],
            "input_token_details": details,
        },
    )


def _billed(usage: UsageMetadata) -> Billed:
    details = dict(usage.get("input_token_details") or {})
    # Anthropic's writes are counted by how long they are kept, and then not under the common name.
    parts = [
        count for name, count in details.items() if name.startswith("ephemeral_") and isinstance(count, int)
    ]
    written = cast("int | None", details.get("cache_creation"))
    if parts and sum(parts):
        written = (written or 0) + sum(parts)
    return Billed(
        usage["input_tokens"], usage["output_tokens"], cast("int | None", details.get("cache_read")), written
    )


def _host(llm: BaseChatModel) -> str:
    """The host that a model was told to send requests to; empty if it was told none."""
    for name in ("openai_api_base", "base_url", "azure_endpoint"):
        found = getattr(llm, name, None)
        if isinstance(found, str) and found:
            return urlsplit(found).hostname or ""
    client = getattr(llm, "root_client", None)  # OpenAI's, which reads an address from the environment itself
    return urlsplit(str(getattr(client, "base_url", ""))).hostname or ""


def _missing_keys(llm: BaseChatModel) -> list[str]:
    """The environment variables of a model's keys that are empty."""
    found = ((getattr(llm, field, None), variable) for field, variable in llm.lc_secrets.items())
    return [
        variable
        for value, variable in found
        if isinstance(value, SecretStr) and not value.get_secret_value().strip()
    ]


def _first_lines(error: Exception) -> str:
    """The first paragraph of an error's message, as one line."""
    return " ".join(str(error).split("\n\n")[0].split())[:300]
