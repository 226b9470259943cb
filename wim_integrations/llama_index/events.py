"""The kernel's events as LlamaIndex instrumentation events and older callbacks."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import Any

from llama_index.core.base.llms.types import CompletionResponse
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher, root_dispatcher
from llama_index.core.instrumentation.event_handlers import NullEventHandler
from llama_index.core.instrumentation.events.base import BaseEvent
from llama_index.core.instrumentation.span import active_span_id

from wim_integrations.llama_index.nodes import NodeReading
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
from wim_kernel.run.options import unwatched_options
from wim_kernel.run.transcripts import Transcript

dispatcher = get_dispatcher(__name__)


class WimChunkRead(BaseEvent):
    """A chunk was prefilled, or found in the cache.

    Attributes:
        query_str: the question.
        index: the chunk's index.
        chunks: how many chunks there are.
        tokens: document tokens read so far.
        total_tokens: document tokens in all.
        cached: whether the chunk was in the cache.
    """

    query_str: str
    index: int
    chunks: int
    tokens: int
    total_tokens: int
    cached: bool

    @classmethod
    def class_name(cls) -> str:
        """The event's name."""
        return "WimChunkRead"


class WimMarginWritten(BaseEvent):
    """A margin was written, or its chunk was not relevant enough for a note.

    Attributes:
        query_str: the question.
        margin: see `NodeReading.margin_data`.
        prompt: the model's prompt, with the document elided.
    """

    query_str: str
    margin: dict[str, Any]
    prompt: str = ""

    @classmethod
    def class_name(cls) -> str:
        """The event's name."""
        return "WimMarginWritten"


class WimMarginRevised(WimMarginWritten):
    """A margin changed after more of the document was read; it replaces the margin with the same index.

    It is a subclass of `WimMarginWritten`, so that handlers of that class get it, too.
    """

    @classmethod
    def class_name(cls) -> str:
        """The event's name."""
        return "WimMarginRevised"


class WimAnswerStart(BaseEvent):
    """The answer's first token was generated.

    Attributes:
        query_str: the question.
        prompt: the model's prompt with the kept margins, and with the document elided.
    """

    query_str: str
    prompt: str = ""

    @classmethod
    def class_name(cls) -> str:
        """The event's name."""
        return "WimAnswerStart"


class WimAnswerEnd(BaseEvent):
    """The answer is finished.

    Attributes:
        query_str: the question.
        answer: the answer's text.
        usage: tokens that the call cost.
        timings: seconds that the call took.
    """

    query_str: str
    answer: str
    usage: dict[str, Any]
    timings: dict[str, Any]

    @classmethod
    def class_name(cls) -> str:
        """The event's name."""
        return "WimAnswerEnd"


def paced(
    source: NodeReading, options: Options, callbacks: CallbackManager, *, streams: bool = False
) -> Options:
    """The options; if nobody watches the events, all margins are written in one batch."""
    listening = (*root_dispatcher.event_handlers, *dispatcher.event_handlers)
    watched = (
        streams or callbacks.handlers or any(not isinstance(item, NullEventHandler) for item in listening)
    )
    return options if watched else unwatched_options(options, len(source.reading.chunks))


class Emitter:
    """Emits one question's events, in the span in which the emitter was made, from whatever thread.

    Args:
        callbacks: the manager of the older callbacks. They get a ``TREE`` event for each margin and each revised note,
            and one ``LLM`` event for the whole call.
        source: the nodes' reading.
        question: the question.
        options: the kernel's options, from which the prompts are made.
    """

    def __init__(
        self, callbacks: CallbackManager, source: NodeReading, question: str, options: Options
    ) -> None:
        self.callbacks = callbacks
        self.source = source
        self.question = question
        self.span_id = active_span_id.get()
        self._answering = False
        self._transcript = Transcript(
            source.reading.engine, source.reading.frame, source.reading.document, question, options
        )
        self._prompt = self._transcript.answer(())  # replaced when the margins are known
        self._margins: dict[int, Margin] = {}
        self._chunks_read = 0
        payload: dict[str, Any] = {
            EventPayload.PROMPT: self._prompt,
            EventPayload.MODEL_NAME: self._model_name,
        }
        self._llm_event: str | None = callbacks.on_event_start(CBEventType.LLM, payload=payload)

    def emit(self, event: Event) -> None:
        """Emit an event."""
        common: dict[str, Any] = {"query_str": self.question, "span_id": self.span_id}
        match event:
            case ChunkRead(index, chunks, tokens, total_tokens, cached):
                read: dict[str, Any] = {"tokens": tokens, "total_tokens": total_tokens, "cached": cached}
                self._chunks_read = index + 1
                dispatcher.event(WimChunkRead(index=index, chunks=chunks, **read, **common))
            case MarginWritten(margin):
                self._margins[margin.index] = margin
                self._emit_margin(margin, WimMarginWritten, common)
            case MarginRevised(margin):
                before, self._margins[margin.index] = self._margins[margin.index], margin
                has_changed = (before.text, before.kept) != (margin.text, margin.kept)
                self._emit_margin(margin, WimMarginRevised, common, with_callback=has_changed)
            case AnswerToken():
                self._start(common)
            case Answered(result):
                self._start(common)
                usage, timings = asdict(result.usage), asdict(result.timings)
                dispatcher.event(WimAnswerEnd(answer=result.answer, usage=usage, timings=timings, **common))
                self.end(result.answer, result.usage)
            case MarginsDone(margins, usage):
                self._prompt = self._transcript.margin(max(0, self._chunks_read - 1))
                self.end("\n".join(margin.text for margin in margins if margin.kept), usage)

    def _emit_margin(
        self,
        margin: Margin,
        kind: type[WimMarginWritten],
        common: dict[str, Any],
        *,
        with_callback: bool = True,
    ) -> None:
        data, prompt = self.source.margin_data(margin), self._transcript.margin(margin.index)
        dispatcher.event(kind(margin=data, prompt=prompt, **common))
        if not with_callback:
            return
        payload: dict[str, Any] = {EventPayload.QUERY_STR: self.question, EventPayload.PROMPT: prompt}
        with self.callbacks.event(CBEventType.TREE, payload=payload) as callback:
            callback.on_end(payload={EventPayload.RESPONSE: data})

    def end(self, text: str, usage: Usage | None = None) -> None:
        """End the ``LLM`` event, if it is open."""
        if self._llm_event is None:
            return
        counts = usage or Usage()
        raw = {"usage": {"prompt_tokens": counts.input_tokens, "completion_tokens": counts.output_tokens}}
        if usage and not usage.output_tokens:
            text = ""  # LlamaIndex counts tokens of the text if the count is 0
        completion = CompletionResponse(text=text, raw=raw if usage else None)
        event_id, self._llm_event = self._llm_event, None
        payload: dict[str, Any] = {EventPayload.PROMPT: self._prompt, EventPayload.COMPLETION: completion}
        self.callbacks.on_event_end(CBEventType.LLM, payload=payload, event_id=event_id)

    def fail(self, error: BaseException) -> None:
        """End the ``LLM`` event with an error, if it is open."""
        if self._llm_event is not None:
            event_id, self._llm_event = self._llm_event, None
            payload: dict[str, Any] = {EventPayload.EXCEPTION: error}
            with contextlib.suppress(Exception):  # the call's own error matters more
                self.callbacks.on_event_end(CBEventType.LLM, payload=payload, event_id=event_id)

    def _start(self, common: dict[str, Any]) -> None:
        if not self._answering:
            self._answering = True
            self._prompt = self._transcript.answer(list(self._margins.values()), self._chunks_read)
            dispatcher.event(WimAnswerStart(prompt=self._prompt, **common))

    @property
    def _model_name(self) -> str:
        return self.source.reading.engine.model_name
