"""A middleware for agents: long results and messages are read, and answered from margins, in place of being cut."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, get_args

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ToolCallRequest
from langchain.agents.middleware.types import ModelCallResult, ModelResponse
from langchain_core.documents import Document
from langchain_core.messages import BaseMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.types import Command

from wim_integrations.langchain.chat_model import Model, as_kernel
from wim_integrations.langchain.citing import search_results
from wim_integrations.langchain.events import NO_STREAM
from wim_integrations.langchain.long_messages import (
    MessageReading,
    Wanted,
    WimState,
    readings,
    remembered,
    wanted,
    with_readings,
)
from wim_integrations.langchain.own_words import TYPED_CHARS, own_words
from wim_integrations.langchain.results import Block, LongResult, documents_in, name_of
from wim_integrations.langchain.runnable import WimRunnable
from wim_integrations.langchain.tool import Content, kept_notes
from wim_integrations.langchain.tool_messages import tool_messages, with_messages
from wim_integrations.langchain.transformer import WimTransformer
from wim_integrations.options import check_kernel, check_names
from wim_kernel import WimError
from wim_kernel.common.concurrency import in_thread
from wim_kernel.text.tool_text import (
    READ_MESSAGE,
    READ_RESULT,
    TRUNCATED,
    UNREAD_MESSAGE,
    UNREAD_RESULT,
    report,
)

Question = Callable[[ToolCallRequest], str]
_OWN = ("over_tokens", "over_message_tokens", "question", "tools", "max_output_chars", "content")
_SUMMARY = "none, a summary"
_FIXED = ("question_key", "documents_key", "task")


class WimMiddleware(AgentMiddleware[Any, Any, Any]):
    """Reads long results of an agent's tools, and gives the agent answers with citations in their place.

    A result of more than ``over_tokens`` tokens becomes a reading. The agent's model sees the answer to ``question``
    and the margins it rests on, and the text's length. The message keeps its id, its name, its call's id and its
    status. Its ``artifact`` is the tool's own, if the tool gave one; `read_result` has the original content, the
    answer, all margins and the citations. Shorter results, errors and blocks without text, such as images, stay as they
    are. Texts in messages of a `Command` are read, too, and so are files: blocks of plain text, search results, and
    text, HTML and PDF files in base64.

    With ``over_message_tokens`` the same is done with long messages of people: the agent's model sees the person's own
    words, and the answer and margins in the place of the text that was pasted or attached. The question is the person's
    words in the newest message, so a text is asked anew, and not read anew, when another message follows. The messages
    in the agent's state stay as they are; its ``wim_messages`` has what was read, by their ids.

    While it reads, margins are emitted as custom events, to the graph's ``custom`` stream, and as
    ``run.extensions["wim"]`` of version 3. The same text is not read again for another question.

    Args:
        kernel: the kernel, or a chat model.
        over_tokens: most tokens of a result that stays as it is, counted by the kernel.
        over_message_tokens: most tokens of text in a human message that stays as it is; None, the default, leaves all
            human messages as they are, since a text that is to be translated or mended has to be seen as it is.
        question: gives the question for a tool call; by default it is what the person says in the last human message.
            Without a question the result is summarised.
        tools: the tools whose results are read, or their names; by default all.
        max_output_chars: most characters of the new content.
        content: ``"text"``, or ``"search_result"`` for the answer and each kept margin as a ``search_result`` block.
        options: further fields of `WimRunnable`. By default ``citations`` is true.

    Raises:
        ValueError: if ``over_tokens`` or ``max_output_chars`` is too small.
        UnknownOptionError: for an option that does not exist.

    Example:
        >>> agent = create_agent(model, tools, middleware=[WimMiddleware(kernel)])  # doctest: +SKIP
    """

    transformers = (WimTransformer,)
    tools: Sequence[BaseTool] = ()
    state_schema = WimState

    def __init__(
        self,
        kernel: Model,
        *,
        over_tokens: int = 2000,
        over_message_tokens: int | None = None,
        question: Question | None = None,
        tools: Sequence[BaseTool | str] | None = None,
        max_output_chars: int = 4000,
        content: Content = "text",
        **options: Any,
    ) -> None:
        super().__init__()
        known = [name for name in WimRunnable.model_fields if name not in _FIXED]
        check_names(options, [*known, *_OWN], "WimMiddleware")
        self.kernel = as_kernel(kernel)
        check_kernel(self.kernel, "WimMiddleware")
        for name, value in (("over_tokens", over_tokens), ("over_message_tokens", over_message_tokens)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is 1 or more, not {value}.")
        if max_output_chars <= len(TRUNCATED):
            raise ValueError(f"max_output_chars is more than {len(TRUNCATED)}, not {max_output_chars}.")
        if content not in get_args(Content):
            raise ValueError(f"content is one of {get_args(Content)}, not {content!r}.")
        self.over_tokens = over_tokens
        self.over_message_tokens = over_message_tokens
        self.question = question or last_question
        self.max_output_chars = max_output_chars
        self.content = content
        self._names = (
            None if tools is None else {tool if isinstance(tool, str) else tool.name for tool in tools}
        )
        self._reader = WimRunnable(
            kernel=self.kernel, **{"answer_tags": [NO_STREAM], "citations": True, **options}
        )

    def wrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], ToolMessage | Command[Any]]
    ) -> ToolMessage | Command[Any]:
        """Run the tool, and read its result if it is long."""
        result = handler(request)
        answered: dict[int, ToolMessage] = {}
        for message in self._messages(request, result):
            long = self._long(message)
            if long is not None:
                answered[id(message)] = self._read(request, long)
        return with_messages(result, answered)

    async def awrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]],
    ) -> ToolMessage | Command[Any]:
        """See `wrap_tool_call`."""
        result = await handler(request)
        answered: dict[int, ToolMessage] = {}
        for message in self._messages(request, result):
            long = await in_thread(self._long, message)
            if long is not None:
                answered[id(message)] = await self._aread(request, long)
        return with_messages(result, answered)

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelCallResult[Any]:
        """Read long messages of people that were not read for the newest question, and show what was read."""
        if self.over_message_tokens is None:
            return handler(request)
        known = readings(request)
        new = wanted(request, self.kernel, self.over_message_tokens)
        known |= {each.id: self._read_message(request, each) for each in new}
        response = handler(with_readings(request, known))
        return remembered(request, response, known)

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelCallResult[Any]:
        """See `wrap_model_call`."""
        if self.over_message_tokens is None:
            return await handler(request)
        known = readings(request)
        new = await in_thread(wanted, request, self.kernel, self.over_message_tokens)
        for each in new:
            known[each.id] = await self._aread_message(request, each)
        response = await handler(with_readings(request, known))
        return remembered(request, response, known)

    def _read_message(self, request: ModelRequest[Any], new: Wanted) -> MessageReading:
        inputs = self._call(request, new.long.documents, new.question)
        try:
            return self._message_answered(new, self._reader.invoke(*inputs, **_task(new.question)))
        except (WimError, ValueError) as error:
            return _message_unread(new, error)

    async def _aread_message(self, request: ModelRequest[Any], new: Wanted) -> MessageReading:
        inputs = self._call(request, new.long.documents, new.question)
        try:
            return self._message_answered(new, await self._reader.ainvoke(*inputs, **_task(new.question)))
        except (WimError, ValueError) as error:
            return _message_unread(new, error)

    def _message_answered(self, new: Wanted, output: Mapping[str, Any]) -> MessageReading:
        intro = READ_MESSAGE.format(tokens=new.tokens, question=new.question or _SUMMARY)
        return new.reading(self._report(intro, output), output)

    def _messages(self, request: ToolCallRequest, result: object) -> list[ToolMessage]:
        if self._names is not None and request.tool_call["name"] not in self._names:
            return []
        return [message for message in tool_messages(result) if message.status != "error"]

    def _long(self, message: ToolMessage) -> LongResult | None:
        """The parts of a message, if their texts are long."""
        documents, rest = documents_in(message, name_of(message))
        tokens = sum(self.kernel.count_tokens(document.page_content) for document in documents)
        return LongResult(message, documents, rest, tokens) if tokens > self.over_tokens else None

    def _read(self, request: ToolCallRequest, long: LongResult) -> ToolMessage:
        question = self.question(request)
        try:
            output = self._reader.invoke(*self._call(request, long.documents, question), **_task(question))
        except (WimError, ValueError) as error:
            return self._unread(long, error)
        return self._answered(long, question, output)

    async def _aread(self, request: ToolCallRequest, long: LongResult) -> ToolMessage:
        question = self.question(request)
        try:
            inputs = self._call(request, long.documents, question)
            output = await self._reader.ainvoke(*inputs, **_task(question))
        except (WimError, ValueError) as error:
            return self._unread(long, error)
        return self._answered(long, question, output)

    def _call(
        self, request: ToolCallRequest | ModelRequest[Any], documents: list[Document], question: str
    ) -> tuple[dict[str, Any], RunnableConfig | None]:
        inputs = {"question": question, "documents": documents}
        return inputs, getattr(request.runtime, "config", None)

    def _answered(self, long: LongResult, question: str, output: Mapping[str, Any]) -> ToolMessage:
        data = {"question": question, "tokens": long.tokens, **output}
        intro = READ_RESULT.format(name=long.name, tokens=long.tokens, question=question or _SUMMARY)
        return long.replaced(self._report(intro, output), data)

    def _report(self, intro: str, output: Mapping[str, Any]) -> str | list[Block]:
        """The content that stands in the place of a text."""
        if self.content == "search_result":
            return [{"type": "text", "text": intro}, *search_results(output, self.max_output_chars)]
        return f"{intro}\n\n{report(str(output['answer']), kept_notes(output), self.max_output_chars)}"

    def _unread(self, long: LongResult, error: Exception) -> ToolMessage:
        text = UNREAD_RESULT.format(name=long.name, tokens=long.tokens, error=error)
        return long.replaced(text, {"error": str(error), "tokens": long.tokens}, status="error")


def last_question(request: ToolCallRequest) -> str:
    """What the person says in the last human message of the agent's state; empty without one.

    A text pasted there is left out where that is sure: beside the person's question, or in a message of more than
    20,000 characters, which nobody types.
    """
    state = request.state
    if isinstance(state, Mapping):
        messages = state.get("messages", ())
    else:
        messages = state if isinstance(state, list) else getattr(state, "messages", ())
    humans = (message for message in reversed(messages) if getattr(message, "type", None) == "human")
    message: BaseMessage | None = next(humans, None)
    if isinstance(message, HumanMessage):
        words, asks = own_words(message)
        if (asks and words) or len(message.text) > TYPED_CHARS:
            return words
    return "" if message is None else str(message.text)


def _message_unread(new: Wanted, error: Exception) -> MessageReading:
    text = UNREAD_MESSAGE.format(tokens=new.tokens, error=error)
    return new.reading(text, {"error": str(error)})


def _task(question: str) -> dict[str, Any]:
    return {} if question.strip() else {"task": "summarise"}
