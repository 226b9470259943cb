"""The kernel's events as LangChain callbacks, LangChain custom events and LangGraph stream events."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManager,
    CallbackManager,
    adispatch_custom_event,
    dispatch_custom_event,
)
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, LLMResult
from langchain_core.runnables import RunnableConfig

from wim_integrations.langchain.citing import citation_annotations, content
from wim_integrations.langchain.content_blocks import message_finish, message_start, text_delta
from wim_integrations.langchain.documents import DocumentReading
from wim_kernel import (
    Answered,
    AnswerToken,
    ChunkRead,
    Event,
    Margin,
    MarginRevised,
    MarginsDone,
    MarginWritten,
    Options,
    Usage,
)
from wim_kernel.common.relay import Calls
from wim_kernel.run.transcripts import Transcript

EVENTS = frozenset({"wim_chunk", "wim_margin", "wim_margin_revised", "wim_answer"})
NO_STREAM = "nostream"  # LangGraph's tag for runs whose tokens stay out of the message stream

Manager = CallbackManager | AsyncCallbackManager


class Emitter:
    """Emits one question's events.

    Chunks, margins and the answer become custom events ``wim_chunk``, ``wim_margin`` and ``wim_answer`` with plain JSON
    data. Callback handlers and event streams get them within a run, and the graph's stream writer within a graph. A
    revised margin, which replaces the margin with the same index, becomes ``wim_margin_revised``. The answer's prompt,
    its tokens and the whole call's usage become a chat model run, which also emits its tokens as events of content
    blocks. Each margin becomes a chain run with its prompt and its text, without tokens. With the option ``citations``
    the chat model's messages have one text block, whose annotations are the citations (see `citation_annotations`).

    Args:
        manager: the callback manager, a child of the run that the events belong to.
        config: the run's config.
        source: the documents' reading.
        question: the question.
        options: the kernel's options, from which the prompts are made.
        tags: tags of the chat model run.
    """

    def __init__(
        self,
        manager: Manager,
        config: RunnableConfig,
        source: DocumentReading,
        question: str,
        *,
        options: Options,
        tags: Sequence[str] = (),
    ) -> None:
        self.manager = manager
        self.write = stream_writer(config)
        self.source = source
        self.question = question
        self.tags = list(tags)
        self._cites = bool(options.get("citations"))
        self.model_name = source.reading.engine.model_name
        self.margins: list[Margin] = []  # the answer's margins, in their last version
        self._transcript = Transcript(
            source.reading.engine, source.reading.frame, source.reading.document, question, options
        )
        self._chunks_read = 0
        self._run: Any = None

    # -- generators of callbacks: what they yield is awaited if it is awaitable, and its value is sent back -----------

    def emit(self, event: Event) -> Calls:
        """Emit an event."""
        match event:
            case ChunkRead(index):
                self._chunks_read = index + 1
                data = event.to_dict()
                yield from self._custom("wim_chunk", {name: data[name] for name in data if name != "event"})
            case MarginWritten(margin):
                self.margins.append(margin)
                yield from self._margin_run(margin)
                yield from self._custom("wim_margin", self.source.margin_data(margin))
            case MarginRevised(margin):
                position = [known.index for known in self.margins].index(margin.index)
                before, self.margins[position] = self.margins[position], margin
                if (before.text, before.kept) != (margin.text, margin.kept):
                    yield from self._margin_run(margin)
                yield from self._custom("wim_margin_revised", self.source.margin_data(margin))
            case MarginsDone(margins, usage):
                yield from self._start([NO_STREAM, *self.tags], answers=False)
                yield from self._end("\n".join(margin.text for margin in margins if margin.kept), usage)
            case AnswerToken(text):
                yield from self._start(self.tags)
                piece = content(text) if self._cites else text
                yield from self._token(AIMessageChunk(content=piece, id=self._message_id))
                yield from self._protocol(text_delta(text))
            case Answered(result):
                yield from self._start(self.tags)
                cited = citation_annotations(result, self.source)
                usage_metadata = _usage_metadata(result.usage)
                last = AIMessageChunk(
                    content=content("", cited) if self._cites else "",
                    id=self._message_id,
                    usage_metadata=usage_metadata,
                    chunk_position="last",
                )
                yield from self._token(last)
                whole = content(result.answer, cited) if self._cites else result.answer
                metadata = {"model_name": self.model_name}
                yield from self._protocol(*message_finish(result.answer, cited, usage_metadata, metadata))
                yield from self._end(whole, result.usage)
                data = answer_data(event)
                yield from self._custom("wim_answer", {**data, "citations": cited} if self._cites else data)

    def _custom(self, name: str, data: Mapping[str, Any]) -> Calls:
        data = {"question": self.question, **data}
        if self.manager.parent_run_id is not None:
            dispatch: Callable[..., Any] = dispatch_custom_event
            if self.manager.is_async:
                dispatch = adispatch_custom_event
            yield dispatch(name, data, config={"callbacks": self.manager})
        if self.write is not None:
            self.write({"event": name, "data": data})

    def _margin_run(self, margin: Margin) -> Calls:
        """Emit a chain run with the prompt at the chunk's end and the margin's text."""
        if not self.manager.handlers:
            return
        prompt = self._transcript.margin(margin.index)
        run = yield self.manager.on_chain_start(
            {"name": "WimMargin"}, {"prompt": prompt, "chunk": margin.index}, name="WimMargin"
        )
        outputs = {"margin": margin.text, "relevance": margin.relevance, "kept": margin.kept}
        yield run.on_chain_end(outputs)

    def _prompt(self, answers: bool) -> str:
        if answers:
            return self._transcript.answer(self.margins, self._chunks_read)
        return self._transcript.margin(max(0, self._chunks_read - 1))

    def _start(self, tags: Sequence[str], *, answers: bool = True) -> Calls:
        if self._run is not None:
            return
        manager = self.manager.copy()
        manager.add_tags(list(tags), inherit=False)
        runs = yield manager.on_chat_model_start(
            {"name": "WimKernel", "kwargs": {"model_name": self.model_name}},
            [[SystemMessage(self._transcript.system), HumanMessage(self._prompt(answers))]],
            invocation_params={"model": self.model_name},
            name="WimKernel",
        )
        self._run = runs[0]
        if answers:
            yield from self._protocol(*message_start(self._message_id))

    def _protocol(self, *events: Mapping[str, Any]) -> Calls:
        """Emit content-block events, which ``stream_events(version="v3")`` turns into messages."""
        emit = getattr(self._run, "on_stream_event", None)
        if emit is not None:  # older versions of langchain-core have no such streams
            for event in events:
                yield emit(event)

    def _token(self, message: AIMessageChunk) -> Calls:
        message.response_metadata = (
            {"model_name": self.model_name} if message.chunk_position == "last" else {}
        )
        yield self._run.on_llm_new_token(str(message.text), chunk=ChatGenerationChunk(message=message))

    def _end(self, text: str | list[str | dict[Any, Any]], usage: Usage) -> Calls:
        message = AIMessage(
            content=text,
            id=self._message_id,
            usage_metadata=_usage_metadata(usage),
            response_metadata={"model_name": self.model_name},
        )
        run, self._run = self._run, None
        yield run.on_llm_end(LLMResult(generations=[[ChatGeneration(message=message)]]))

    def fail(self, error: BaseException) -> Calls:
        """End an open chat model run with an error."""
        run, self._run = self._run, None
        if run is not None:
            yield run.on_llm_error(error)

    @property
    def _message_id(self) -> str:
        return f"lc_run--{self._run.run_id}"


def answer_data(event: Answered) -> dict[str, Any]:
    """An answer as plain JSON data, without its margins, which were emitted before."""
    result = event.result
    return {
        "question": result.question,
        "answer": result.answer,
        "usage": asdict(result.usage),
        "timings": asdict(result.timings),
        "stopped_early": result.stopped_early,
    }


def stream_writer(config: RunnableConfig) -> Callable[[Any], None] | None:
    """The stream writer of the surrounding LangGraph run; None outside of one."""
    if "langgraph" not in sys.modules:  # a running graph has imported it
        return None
    try:
        from langgraph.config import get_stream_writer
    except ImportError:  # only a part of langgraph is installed
        return None
    try:
        return get_stream_writer()
    except (RuntimeError, KeyError):
        # no run, a run outside a graph, or a task on Python 3.10: the config may have the writer
        runtime = (config.get("configurable") or {}).get("__pregel_runtime")
        return getattr(runtime, "stream_writer", None)


def _usage_metadata(usage: Usage) -> UsageMetadata:
    metadata = UsageMetadata(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        total_tokens=usage.input_tokens + usage.output_tokens,
    )
    details = InputTokenDetails()
    if usage.cached_tokens is not None:
        details["cache_read"] = usage.cached_tokens
    if usage.cache_write_tokens is not None:
        details["cache_creation"] = usage.cache_write_tokens
    if details:
        metadata["input_token_details"] = details
    return metadata
