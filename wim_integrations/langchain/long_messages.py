"""Long messages of people in an agent's prompt: which are read, for which question, and what stands in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast

from langchain.agents.middleware import AgentState, ModelRequest
from langchain.agents.middleware.types import ExtendedModelResponse, ModelResponse, OmitFromInput
from langchain_core.messages import AnyMessage, HumanMessage, ToolMessage
from langchain_core.messages.content import Citation
from langgraph.types import Command
from typing_extensions import NotRequired, TypedDict

from wim_integrations.langchain.outputs import MarginData
from wim_integrations.langchain.own_words import LongMessage, digest_of, own_words, split_message
from wim_integrations.langchain.results import Block
from wim_kernel import WimKernel

STATE = "wim_messages"


class MessageReading(TypedDict):
    """What was read of a message: the output of `WimRunnable` (see `WimOutput`), or ``error`` in its place.

    Attributes:
        question: the question that it was read for; empty for a summary.
        tokens: tokens of its text.
        digest: a digest of the message's content.
        shown: the content that the agent's model sees.
        error: why it could not be read.
    """

    question: str
    tokens: int
    digest: str
    shown: str | list[Block]
    error: NotRequired[str]
    answer: NotRequired[str]
    margins: NotRequired[list[MarginData]]
    usage: NotRequired[dict[str, Any]]
    timings: NotRequired[dict[str, Any]]
    stopped_early: NotRequired[bool]
    citations: NotRequired[list[Citation]]


class WimState(AgentState[Any]):
    """The agent's state, with what was read of long messages by the messages' ids."""

    wim_messages: NotRequired[Annotated[dict[str, MessageReading], OmitFromInput]]


@dataclass(frozen=True)
class Wanted:
    """A message to read.

    Attributes:
        long: the message.
        question: what to read it for: the person's words in the newest message; empty for a summary.
        tokens: tokens of its text.
    """

    long: LongMessage
    question: str
    tokens: int

    @property
    def id(self) -> str:
        """The message's id."""
        return str(self.long.message.id)

    def reading(self, content: str | list[Block], found: Mapping[str, Any]) -> MessageReading:
        """What was read, and the content that stands in the place of the text."""
        digest, shown = digest_of(self.long.message), self.shown(content)
        own = {"question": self.question, "tokens": self.tokens, "digest": digest, "shown": shown}
        return cast(MessageReading, {**own, **found})

    def shown(self, content: str | list[Block]) -> str | list[Block]:
        """The message's new content: the person's words, and what was read in the place of the text."""
        before, after = self.long.before, self.long.after
        if isinstance(content, str) and not self.long.rest:
            return "\n\n".join(part for part in (before, content, after) if part)
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        first, last = ([{"type": "text", "text": words}] if words else [] for words in (before, after))
        return [*first, *blocks, *last, *self.long.rest]


def wanted(request: ModelRequest[Any], kernel: WimKernel, over_tokens: int) -> list[Wanted]:
    """The long messages of a request that were not read yet for the newest question, or failed in an earlier run."""
    humans, known = list(_humans(request)), readings(request)
    found: dict[str, tuple[LongMessage, int]] = {}
    for message in humans:
        long, before = split_message(message), known.get(str(message.id))
        if long is not None:
            texts = (document.page_content for document in long.documents)
            tokens = sum(map(kernel.count_tokens, texts)) if before is None else before["tokens"]
            if tokens > over_tokens:
                found[str(message.id)] = long, tokens
    question = _question(humans, {key: long for key, (long, _) in found.items()})
    return [
        Wanted(long, question, tokens)
        for key, (long, tokens) in found.items()
        if key not in known
        or known[key]["question"] != question
        or ("error" in known[key] and not _goes_on(request))
    ]


def readings(request: ModelRequest[Any]) -> dict[str, MessageReading]:
    """What is known of the messages that the request and the agent's state have, as they are now."""
    messages = {message.id: message for message in (*request.messages, *request.state.get("messages", ()))}
    found: dict[str, MessageReading] = {}
    for key, reading in _stored(request).items():
        message = messages.get(key)
        if isinstance(message, HumanMessage) and digest_of(message) == reading.get("digest"):
            found[key] = reading
    return found


def with_readings(request: ModelRequest[Any], known: Mapping[str, MessageReading]) -> ModelRequest[Any]:
    """A request in which what was read stands in the place of long messages."""
    messages: list[AnyMessage] = [
        message.model_copy(update={"content": known[str(message.id)]["shown"]})
        if isinstance(message, HumanMessage) and str(message.id) in known
        else message
        for message in request.messages
    ]
    return request.override(messages=messages)


def remembered(
    request: ModelRequest[Any], response: ModelResponse[Any], known: Mapping[str, MessageReading]
) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
    """A response that keeps what is known in the agent's state, if it has changed."""
    if known == _stored(request):
        return response
    return ExtendedModelResponse(response, Command(update={STATE: dict(known)}))


def _stored(request: ModelRequest[Any]) -> Mapping[str, MessageReading]:
    found: Mapping[str, MessageReading] = request.state.get(STATE) or {}  # type: ignore[assignment]
    return found


def _goes_on(request: ModelRequest[Any]) -> bool:
    """Whether the model was called before in this run of the agent: it is called again with the results of tools."""
    messages = request.state.get("messages", ())
    return bool(messages) and isinstance(messages[-1], ToolMessage)


def _humans(request: ModelRequest[Any]) -> Iterator[HumanMessage]:
    """The people's messages, as the state has them: other middleware may have cut them in the request."""
    whole: dict[Any, Any] = {
        message.id: message for message in request.state.get("messages", ()) if message.id
    }
    for message in request.messages:
        found = whole.get(message.id, message)
        if isinstance(found, HumanMessage) and found.id:
            yield found


def _question(humans: list[HumanMessage], longs: Mapping[str, LongMessage]) -> str:
    """The words of the newest message; with those of the message before, if they may be its text's own ends."""
    found: list[str] = []
    for message in reversed(humans):
        long = longs.get(str(message.id))
        words, asks = own_words(message) if long is None else (long.question, long.asks)
        found.insert(0, words)
        if asks and words:
            break
    return "\n".join(filter(None, found))
