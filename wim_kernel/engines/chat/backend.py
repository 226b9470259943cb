"""What the engine needs of a chat model. An integration implements `ChatBackend` for its framework's models."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class Block:
    """A content block of the user's message.

    Attributes:
        text: its text, which is never blank.
        mark: whether the provider is asked to cache the prompt up to the block's end.
    """

    text: str
    mark: bool = False


@dataclass(frozen=True)
class ChatRequest:
    """One request: a system prompt, and one user message.

    Attributes:
        system: the system prompt; empty for none.
        blocks: the blocks of the user's message: one for each chunk of the document, then the prompt.
        fields: settings of the generation that the caller chose: ``temperature``, ``top_p``, ``stop``. A setting that
            is missing stays the chat model's own.
        extra: fields that the provider takes for its cache, such as ``prompt_cache_key``.
        mark: how the provider wants marked blocks marked; see `wim_kernel.engines.chat.providers.Provider`.
    """

    system: str
    blocks: Sequence[Block]
    fields: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    mark: str = ""


@dataclass(frozen=True)
class Billed:
    """What the provider reports of one request, in its own tokens.

    Attributes:
        input_tokens: all tokens of the prompt, those read from the cache or written to it included.
        output_tokens: tokens generated.
        cache_read: tokens of the prompt that were read from the cache; None if the provider does not say.
        cache_write: tokens of the prompt that were written to the cache; None if the provider does not say.
    """

    input_tokens: int
    output_tokens: int
    cache_read: int | None = None
    cache_write: int | None = None


@dataclass(frozen=True)
class Piece:
    """A piece of a reply.

    Attributes:
        text: new text.
        billed: what the request cost, if it is known by now.
        data: the whole reply as data, for a request under a schema.
    """

    text: str = ""
    billed: Billed | None = None
    data: Any = None


class UnreadableReplyError(ValueError):
    """A reply under a schema is no data of it.

    Attributes:
        piece: the reply as text, and its bill.
    """

    def __init__(self, piece: Piece) -> None:
        super().__init__(f"The reply is no data of the schema: {piece.text[:200]!r}")
        self.piece = piece


@contextmanager
def closed(pieces: Any) -> Iterator[None]:
    """A context at whose end an iterator is closed, if it can be: generators can, other iterators cannot."""
    try:
        yield
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()


@runtime_checkable
class ChatBackend(Protocol):
    """A chat model behind its framework.

    Attributes:
        name: the model's name.
        kind: the name of the model's class, which tells the provider.
        host: the host that the model's requests go to; empty if it is the provider's own, or unknown.
        window: most tokens of a prompt and its reply; None if unknown.
    """

    name: str
    kind: str
    host: str
    window: int | None

    def stream(self, request: ChatRequest) -> Generator[Piece, None, None]:
        """Send a request; yields the reply as it comes. Closing the generator closes the request."""

    def structured(self, request: ChatRequest, schema: Mapping[str, Any]) -> Piece:
        """Send a request whose reply is data of a JSON schema.

        Raises:
            NotImplementedError: if the model cannot reply under a schema.
            UnreadableReplyError: if it replied, and not with such data.
        """
