"""A middleware for agents: long results of tools are read, and answered from margins, in place of being cut."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast, get_args

from langchain.agents.middleware import AgentMiddleware, ToolCallRequest
from langchain_core.messages import BaseMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.types import Command

from wim_integrations.langchain.chat_model import Model, as_kernel
from wim_integrations.langchain.citing import search_results
from wim_integrations.langchain.events import NO_STREAM
from wim_integrations.langchain.results import LongResult, documents_in
from wim_integrations.langchain.runnable import WimRunnable
from wim_integrations.langchain.tool import Content, kept_notes
from wim_integrations.langchain.transformer import WimTransformer
from wim_integrations.options import check_kernel, check_names
from wim_kernel import WimError
from wim_kernel.common.concurrency import in_thread
from wim_kernel.text.tool_text import READ_RESULT, TRUNCATED, UNREAD_RESULT, report

Question = Callable[[ToolCallRequest], str]
_Result = TypeVar("_Result")
_FIXED = ("question_key", "documents_key", "task")


class WimMiddleware(AgentMiddleware[Any, Any, Any]):
    """Reads long results of an agent's tools, and gives the agent answers with citations in their place.

    A result of more than ``over_tokens`` tokens becomes a reading. The agent's model sees the answer to ``question``
    and the margins it rests on, and the text's length. The message keeps its id, its name, its call's id and its
    status. Its ``artifact`` is the tool's own, if the tool gave one; `read_result` has the original content, the
    answer, all margins and the citations. Shorter results, errors and blocks without text, such as images, stay as they
    are. Texts in messages of a `Command` are read, too, and so are files: blocks of plain text, search results, and
    text, HTML and PDF files in base64.

    While it reads, margins are emitted as custom events, to the graph's ``custom`` stream, and as
    ``run.extensions["wim"]`` of version 3. The same text is not read again for another question.

    Args:
        kernel: the kernel, or a chat model.
        over_tokens: most tokens of a result that stays as it is, counted by the kernel.
        question: gives the question for a tool call; by default it is the text of the last human message. Without a
            question the result is summarised.
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

    def __init__(
        self,
        kernel: Model,
        *,
        over_tokens: int = 2000,
        question: Question | None = None,
        tools: Sequence[BaseTool | str] | None = None,
        max_output_chars: int = 4000,
        content: Content = "text",
        **options: Any,
    ) -> None:
        super().__init__()
        known = [name for name in WimRunnable.model_fields if name not in _FIXED]
        check_names(
            options, [*known, "over_tokens", "question", "tools", "max_output_chars"], "WimMiddleware"
        )
        self.kernel = as_kernel(kernel)
        check_kernel(self.kernel, "WimMiddleware")
        if over_tokens < 1:
            raise ValueError(f"over_tokens is 1 or more, not {over_tokens}.")
        if max_output_chars <= len(TRUNCATED):
            raise ValueError(f"max_output_chars is more than {len(TRUNCATED)}, not {max_output_chars}.")
        if content not in get_args(Content):
            raise ValueError(f"content is one of {get_args(Content)}, not {content!r}.")
        self.over_tokens = over_tokens
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
        return _replaced(result, answered)

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
        return _replaced(result, answered)

    def _messages(self, request: ToolCallRequest, result: object) -> list[ToolMessage]:
        if self._names is not None and request.tool_call["name"] not in self._names:
            return []
        return [message for message in _tool_messages(result) if message.status != "error"]

    def _long(self, message: ToolMessage) -> LongResult | None:
        """The parts of a message, if their texts are long."""
        documents, rest = documents_in(message)
        tokens = sum(self.kernel.count_tokens(document.page_content) for document in documents)
        return LongResult(message, documents, rest, tokens) if tokens > self.over_tokens else None

    def _read(self, request: ToolCallRequest, long: LongResult) -> ToolMessage:
        question = self.question(request)
        try:
            output = self._reader.invoke(*self._call(request, long, question), **_task(question))
        except (WimError, ValueError) as error:
            return self._unread(long, error)
        return self._answered(long, question, output)

    async def _aread(self, request: ToolCallRequest, long: LongResult) -> ToolMessage:
        question = self.question(request)
        try:
            output = await self._reader.ainvoke(*self._call(request, long, question), **_task(question))
        except (WimError, ValueError) as error:
            return self._unread(long, error)
        return self._answered(long, question, output)

    def _call(
        self, request: ToolCallRequest, long: LongResult, question: str
    ) -> tuple[dict[str, Any], RunnableConfig | None]:
        inputs = {"question": question, "documents": long.documents}
        return inputs, getattr(request.runtime, "config", None)

    def _answered(self, long: LongResult, question: str, output: Mapping[str, Any]) -> ToolMessage:
        data = {"question": question, "tokens": long.tokens, **output}
        intro = READ_RESULT.format(name=long.name, tokens=long.tokens, question=question or "none, a summary")
        if self.content == "search_result":
            blocks = search_results(output, self.max_output_chars)
            return long.replaced([{"type": "text", "text": intro}, *blocks], data)
        text = report(str(output["answer"]), kept_notes(output), self.max_output_chars)
        return long.replaced(f"{intro}\n\n{text}", data)

    def _unread(self, long: LongResult, error: Exception) -> ToolMessage:
        text = UNREAD_RESULT.format(name=long.name, tokens=long.tokens, error=error)
        return long.replaced(text, {"error": str(error), "tokens": long.tokens}, status="error")


def last_question(request: ToolCallRequest) -> str:
    """The text of the last human message in the agent's state; empty without one."""
    state = request.state
    if isinstance(state, Mapping):
        messages = state.get("messages", ())
    else:
        messages = state if isinstance(state, list) else getattr(state, "messages", ())
    humans = (message for message in reversed(messages) if getattr(message, "type", None) == "human")
    message: BaseMessage | None = next(humans, None)
    return "" if message is None else str(message.text)


def _task(question: str) -> dict[str, Any]:
    return {} if question.strip() else {"task": "summarise"}


def _tool_messages(result: object) -> list[ToolMessage]:
    """The tool messages in what a tool call returned: a message, a command's update, or a list of these."""
    if isinstance(result, ToolMessage):
        return [result]
    if isinstance(result, Command):
        return [message for _, value in _updates(result) for message in _tool_messages(value)]
    if isinstance(result, list | tuple):
        return [message for item in result for message in _tool_messages(item)]
    return []


def _replaced(result: _Result, answered: Mapping[int, ToolMessage]) -> _Result:
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
