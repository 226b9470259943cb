"""The base of the runnables: inputs, the kernel's options as fields, and every way LangChain calls them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Container,
    Generator,
    Iterator,
    Mapping,
)
from contextlib import aclosing, closing
from typing import Any, ClassVar, get_type_hints

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForChainRun,
    CallbackManager,
    CallbackManagerForChainRun,
)
from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.utils import AddableDict
from pydantic import BaseModel, Field, create_model, model_validator
from typing_extensions import Self

from wim_integrations.langchain.documents import DocumentReading, Documents
from wim_integrations.langchain.events import Emitter, Manager
from wim_integrations.langchain.fields import RunnableFields
from wim_integrations.langchain.outputs import Inputs, Outputs
from wim_integrations.langchain.prompts import DOCUMENTS_KEYS, QUESTION_KEYS, PromptSet
from wim_integrations.langchain.requests import (
    Request,
    Sources,
    first,
    joined_input,
    missing,
    someone_watches,
)
from wim_kernel import EmptyDocumentError, Event, Options
from wim_kernel.common.concurrency import in_thread
from wim_kernel.common.relay import alast_of, arelay, last_of, relay
from wim_kernel.run.options import parse_options, unwatched_options


class DocumentRunnable(RunnableFields):
    """A runnable that reads documents for a question; `WimRunnable` documents its fields."""

    question_key: str | None = None
    documents_key: str | None = None
    task: str = "answer"
    empty_response: str | None = None
    answer_tags: list[str] = Field(default_factory=list)

    output_type: ClassVar[Any]

    def __init__(self, **fields: Any) -> None:
        self.check_fields(fields)
        super().__init__(**fields)

    @model_validator(mode="after")
    def _check(self) -> Self:
        parse_options(self.given_options())  # raise now, not at the first question
        self._prompts()
        return self

    def _with(self, options: Mapping[str, Any]) -> Self:
        """A copy of this runnable with fields of one call, as ``bind`` passes them.

        Raises:
            UnknownOptionError: for a name that is no field.
        """
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**{**given, **options})

    # -- LangChain's ways to call it ----------------------------------------------------------------------------------

    def invoke(self, input: Inputs, config: RunnableConfig | None = None, **kwargs: Any) -> Outputs:
        """Run and return the whole output; ``kwargs`` are fields for this call only."""
        if kwargs:
            return self._with(kwargs).invoke(input, config)
        return self._call_with_config(self._invoke, input, config)

    async def ainvoke(self, input: Inputs, config: RunnableConfig | None = None, **kwargs: Any) -> Outputs:
        """See `invoke`."""
        if kwargs:
            return await self._with(kwargs).ainvoke(input, config)
        return await self._acall_with_config(self._ainvoke, input, config)

    def stream(self, input: Inputs, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Outputs]:
        """Yield chunks of the output; their sum is the output, with margins in the order they were written."""
        yield from self.transform(iter([input]), config, **kwargs)

    async def astream(
        self, input: Inputs, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncGenerator[Outputs, None]:
        """See `stream`."""

        async def one() -> AsyncIterator[Inputs]:
            yield input

        async with aclosing(self.atransform(one(), config, **kwargs)) as chunks:
            async for chunk in chunks:
                yield chunk

    def transform(
        self, input: Iterator[Inputs], config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[Outputs]:
        """Like `stream`; the input may come in chunks."""
        if kwargs:
            yield from self._with(kwargs).transform(input, config)
            return
        yield from self._transform_stream_with_config(input, self._transform, config)

    async def atransform(
        self, input: AsyncIterator[Inputs], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncGenerator[Outputs, None]:
        """See `transform`."""
        if kwargs:
            whole: Any = self._with(kwargs).atransform(input, config)
        else:
            whole = self._atransform_stream_with_config(input, self._atransform, config)
        async with aclosing(whole) as chunks:
            async for chunk in chunks:
                yield chunk

    def get_input_schema(self, config: RunnableConfig | None = None) -> type[BaseModel]:
        """The input's fields: the question, the documents, and further variables of the prompts."""
        names: dict[str, Any] = {
            self.question_key or QUESTION_KEYS[0]: (str, ... if self.task == "answer" else ""),
            self.documents_key or DOCUMENTS_KEYS[0]: (Documents, ...),
            **{name: (Any, ...) for name in self._prompts().variables},
        }
        return create_model(self.get_name("Input"), **names)

    def get_output_schema(self, config: RunnableConfig | None = None) -> type[BaseModel]:
        """The output's fields; see the class."""
        # A key that an output may lack belongs to the option of its name.
        unasked = [name for name in self.output_type.__optional_keys__ if not getattr(self, name, None)]
        return create_model(self.get_name("Output"), **_fields_of(self.output_type, unasked))

    # -- one input ----------------------------------------------------------------------------------------------------

    def _invoke(
        self, inputs: Inputs, run_manager: CallbackManagerForChainRun, config: RunnableConfig
    ) -> Outputs:
        request, live = self._request(inputs), someone_watches(run_manager, config)
        return self._output(
            request, last_of(self._relayed(request, run_manager.get_child(), config, live=live))
        )

    async def _ainvoke(
        self, inputs: Inputs, run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig
    ) -> Outputs:
        request, live = await self._arequest(inputs), someone_watches(run_manager, config)
        events = self._arelayed(request, run_manager.get_child(), config, live=live)
        return self._output(request, await alast_of(events))

    def _transform(
        self, inputs: Iterator[Inputs], run_manager: CallbackManagerForChainRun, config: RunnableConfig
    ) -> Iterator[Outputs]:
        request, last = self._request(joined_input(list(inputs))), None
        yield self._first_chunk(request)
        with closing(self._relayed(request, run_manager.get_child(), config, live=True)) as events:
            for event in events:
                last, chunk = event, self._chunk(request, event)
                if chunk is not None:
                    yield chunk
        yield self._last_chunk(request, last)

    async def _atransform(
        self,
        inputs: AsyncIterator[Inputs],
        run_manager: AsyncCallbackManagerForChainRun,
        config: RunnableConfig,
    ) -> AsyncIterator[Outputs]:
        request, last = await self._arequest(joined_input([part async for part in inputs])), None
        yield self._first_chunk(request)
        async with aclosing(self._arelayed(request, run_manager.get_child(), config, live=True)) as events:
            async for event in events:
                last, chunk = event, self._chunk(request, event)
                if chunk is not None:
                    yield chunk
        yield self._last_chunk(request, last)

    def _last_chunk(self, request: Request, last: Event | None) -> Outputs:
        output = self._output(request, last)
        streamed = self._streamed() if last is not None else ()
        return AddableDict({name: value for name, value in output.items() if name not in streamed})

    def _relayed(
        self, request: Request, manager: CallbackManager, config: RunnableConfig, *, live: bool
    ) -> Generator[Event, None, None]:
        """The kernel's events, each yielded after LangChain's callbacks were called for it."""
        if request.source is not None:
            events = self._events(request, self._paced(request, live))
            yield from relay(events, self._emitter(request, manager, config))

    async def _arelayed(
        self, request: Request, manager: AsyncCallbackManager, config: RunnableConfig, *, live: bool
    ) -> AsyncGenerator[Event, None]:
        if request.source is not None:
            events = self._aevents(request, self._paced(request, live))
            async with aclosing(arelay(events, self._emitter(request, manager, config))) as relayed:
                async for event in relayed:
                    yield event

    def _emitter(self, request: Request, manager: Manager, config: RunnableConfig) -> Emitter:
        assert request.source is not None, "without documents there are no events"
        return Emitter(
            manager, config, request.source, request.question, tags=self.answer_tags, options=request.options
        )

    # -- what a kind of runnable does with an input -------------------------------------------------------------------

    @abstractmethod
    def _events(self, request: Request, options: Options) -> Generator[Event, None, None]:
        """The kernel's events for a request with documents."""

    @abstractmethod
    def _aevents(self, request: Request, options: Options) -> AsyncGenerator[Event, None]:
        """See `_events`."""

    @abstractmethod
    def _output(self, request: Request, last: Event | None) -> Outputs:
        """The whole output, given the last event; the event is None if there was nothing to read."""

    @abstractmethod
    def _first_chunk(self, request: Request) -> Outputs:
        """The first chunk of a stream, before anything is read."""

    @abstractmethod
    def _chunk(self, request: Request, event: Event) -> Outputs | None:
        """The chunk for an event; None for events without one."""

    @abstractmethod
    def _streamed(self) -> tuple[str, ...]:
        """The keys of the output that `_chunk` streams; the last chunk has the others."""

    # -- inputs -------------------------------------------------------------------------------------------------------

    def _request(self, inputs: Any, sources: Sources | None = None) -> Request:
        """Parse an input; ``sources`` are readings of earlier inputs' documents, for reuse."""
        inputs = self._as_mapping(inputs)
        question_key = first(inputs, [self.question_key] if self.question_key else QUESTION_KEYS)
        question = self._question(inputs, question_key)
        documents_key = first(inputs, [self.documents_key] if self.documents_key else DOCUMENTS_KEYS)
        if documents_key is None:
            raise missing(inputs, [self.documents_key] if self.documents_key else DOCUMENTS_KEYS)
        prompts = self._prompts(documents_key).for_call(question, question_key, inputs)
        variables = {**(self.variables or {}), **prompts.variables}
        options: Options = {**self.given_options(), "prompts": prompts.prompts, "variables": variables}
        documents, known = inputs[documents_key], {} if sources is None else sources
        seen, source = known.get(id(documents), (None, None))
        try:
            if source is None or seen is not documents:
                source = DocumentReading(
                    self.kernel,
                    documents,
                    document_prompt=self.document_prompt,
                    separator=self.document_separator,
                    chunk_tokens=self.chunk_tokens,
                )
        except EmptyDocumentError as error:
            if self.empty_response is None:
                raise EmptyDocumentError(", or say with empty_response= what to answer then") from error
            return Request(inputs, question, None, options)
        known[id(documents)] = documents, source
        return Request(inputs, question, source, options)

    def _as_mapping(self, inputs: Any) -> Mapping[str, Any]:
        if not isinstance(inputs, Mapping):
            raise TypeError(
                f"The input is a dict with a question and documents, not a {type(inputs).__name__}."
            )
        return inputs

    def _question(self, inputs: Mapping[str, Any], key: str | None) -> str:
        given = None if key is None else inputs[key]
        if isinstance(given, BaseMessage):
            return given.text
        if isinstance(given, str):
            return given
        if self.task == "summarise":  # a value that is no question; a summary needs none
            return ""
        if given is not None:
            raise TypeError(f"The question is a string, not a {type(given).__name__}.")
        question = self._prompts().as_question(inputs)
        if question is None:
            raise missing(inputs, [self.question_key] if self.question_key else QUESTION_KEYS)
        return question

    async def _arequest(self, inputs: Inputs) -> Request:
        return await in_thread(self._request, inputs)  # splitting and encoding a book takes seconds

    def _prompts(self, documents_key: str | None = None) -> PromptSet:
        own = [key for key in (self.documents_key, documents_key) if key is not None]
        return PromptSet(self.task, self.prompts, [*DOCUMENTS_KEYS, *own])

    def _paced(self, request: Request, live: bool) -> Options:
        """The options; if nobody watches the events, all margins are written in one batch."""
        return request.options if live else unwatched_options(request.options, len(request.reading.chunks))


def _fields_of(kind: Any, without: Container[str]) -> dict[str, Any]:
    """A TypedDict's keys as fields of a model."""
    return {name: (hint, ...) for name, hint in get_type_hints(kind).items() if name not in without}
