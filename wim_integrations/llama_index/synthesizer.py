"""A response synthesizer that reads nodes once, writes margins on the way, and answers from them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, closing
from inspect import signature
from typing import Any

from llama_index.core.base.response.schema import RESPONSE_TYPE, Response
from llama_index.core.bridge.pydantic import BaseModel, ValidationError
from llama_index.core.callbacks import CallbackManager
from llama_index.core.indices.prompt_helper import ChatPromptHelper, PromptHelper
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.events.synthesis import GetResponseEndEvent, GetResponseStartEvent
from llama_index.core.llms import LLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import NodeWithScore, QueryType
from llama_index.core.types import RESPONSE_TEXT_TYPE
from typing_extensions import Unpack

from wim_integrations.llama_index.chat_model import as_kernel
from wim_integrations.llama_index.events import Emitter, paced
from wim_integrations.llama_index.llm import WimLLM
from wim_integrations.llama_index.nodes import NodeReading, Order, check_reading_options, scored_nodes
from wim_integrations.llama_index.prompts import ANSWER, MARGIN, Templates
from wim_integrations.llama_index.synthesis import SynthesisState, current_synthesis, synthesis, synthesis_of
from wim_integrations.options import OPTION_NAMES, check_kernel, check_names
from wim_kernel import (
    PROMPTS,
    AnswerToken,
    EmptyDocumentError,
    Options,
    WimKernel,
)
from wim_kernel.common.concurrency import in_thread
from wim_kernel.common.copying import HoldsShared
from wim_kernel.common.relay import arelay, relay
from wim_kernel.run.options import parse_options

dispatcher = get_dispatcher(__name__)


_synthesize: Any = getattr(BaseSynthesizer.synthesize, "__wrapped__", BaseSynthesizer.synthesize)
_asynthesize: Any = getattr(BaseSynthesizer.asynthesize, "__wrapped__", BaseSynthesizer.asynthesize)


class WimSynthesizer(HoldsShared, BaseSynthesizer):
    """Reads nodes once, in order, and answers from margins written on the way.

    Every query engine that takes a response synthesizer accepts it. The response's ``metadata`` has, besides the map of
    nodes, ``margins`` (all margins in reading order; see `NodeReading.margin_data`), ``usage``, ``timings`` and
    ``stopped_early``; and with the option ``citations``, if there are any, ``citations``, each the data of a
    `CitationBlock` (see `citation_blocks`). Its source nodes have their relevance as score. In streaming mode margins
    are written before the response is returned, and usage and timings are set when the stream ends.

    Args:
        kernel: the kernel; or a language model, which then reads and answers, as if it were given as ``llm``.
        llm: a language model. Without a kernel it reads and answers; with one it is not called here. The class of a
            `StructuredLLM` is the answer's class. It is ``synthesizer.llm`` for engines that need a language model
            besides the synthesizer; by default the kernel's own model as a `WimLLM`.
        callback_manager: the manager of LlamaIndex's older callbacks.
        streaming: whether the answer streams.
        output_cls: the answer's class; the answer is decoded under its schema.
        empty_response: the answer if no node has text.
        order: ``"given"``, or ``"document"`` to sort nodes by document and position.
        chunk_tokens: most tokens of a chunk; longer nodes are split.
        join_small: whether small adjacent nodes of one document share a chunk.
        text_qa_template: the answer's prompt, with ``query_str``; ``context_str`` becomes "the document above".
        margin_template: the prompt of a margin.
        options: the kernel's `Options`.

    Example:
        >>> synthesizer = WimSynthesizer(kernel)  # doctest: +SKIP
        >>> index.as_query_engine(llm=synthesizer.llm, response_synthesizer=synthesizer)  # doctest: +SKIP
    """

    def __init__(
        self,
        kernel: WimKernel | LLM | None = None,
        *,
        llm: LLM | None = None,
        callback_manager: CallbackManager | None = None,
        streaming: bool = False,
        output_cls: type[BaseModel] | None = None,
        empty_response: str | None = None,
        order: Order = "given",
        chunk_tokens: int | None = None,
        join_small: bool = False,
        text_qa_template: BasePromptTemplate | None = None,
        margin_template: BasePromptTemplate | None = None,
        **options: Unpack[Options],
    ) -> None:
        llm = kernel if llm is None and isinstance(kernel, LLM) else llm
        kernel = as_kernel(llm if kernel is None else kernel)
        check_kernel(kernel, "WimSynthesizer")
        assert isinstance(kernel, WimKernel)
        check_names(options, [*OPTION_NAMES, *_ARGUMENTS], "WimSynthesizer")
        llm = llm or WimLLM(kernel)
        super().__init__(
            llm=llm,
            callback_manager=callback_manager,
            prompt_helper=PromptHelper.from_llm_metadata(llm.metadata, tokenizer=_tokenizer(kernel)),
            chat_prompt_helper=ChatPromptHelper.from_llm_metadata(llm.metadata, tokenizer=_tokenizer(kernel)),
            streaming=streaming,
            output_cls=output_cls,
            empty_response=empty_response,
        )
        parse_options(options)  # raise now, not at the first question
        check_reading_options(order, chunk_tokens)
        self.kernel = kernel
        self.order: Order = order
        self.chunk_tokens = chunk_tokens
        self.join_small = join_small
        self.options = options
        base = options.get("prompts") or PROMPTS[options.get("task", "answer")]
        self._templates = Templates(base, {ANSWER: text_qa_template, MARGIN: margin_template})

    @property
    def llm(self) -> LLM:
        """The language model for engines that need one: by default the kernel's own, as a `WimLLM`."""
        return self._llm

    # -- LlamaIndex's ways to call it ---------------------------------------------------------------------------------

    def synthesize(
        self,
        query: QueryType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """Answer a query from nodes."""
        with synthesis(self, nodes):  # the undecorated method, since a span is open already
            response: RESPONSE_TYPE = _synthesize(
                self, query, nodes, additional_source_nodes, **response_kwargs
            )
            return response

    async def asynthesize(
        self,
        query: QueryType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """See `synthesize`."""
        with synthesis(self, nodes):
            coroutine = _asynthesize(self, query, nodes, additional_source_nodes, **response_kwargs)
            response: RESPONSE_TYPE = await coroutine
            return response

    def get_response(
        self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        """Answer a query; returns the answer's text, a generator of its pieces, or an object of ``output_cls``."""
        dispatcher.event(GetResponseStartEvent(query_str=query_str, text_chunks=list(text_chunks)))
        state, streams = synthesis_of(self, text_chunks), self._streams
        try:
            state.source = self._read(state.nodes)
        except EmptyDocumentError:
            dispatcher.event(GetResponseEndEvent())
            return self._empty_response_generator() if streams else self._empty_response
        pieces = self._pieces(state, query_str, self._call_options(query_str, response_kwargs), streams)
        if streams:
            response: RESPONSE_TEXT_TYPE = _after(next(pieces, ""), pieces)
        else:
            with closing(pieces):
                response = self._shaped("".join(pieces))
        dispatcher.event(GetResponseEndEvent())
        return response

    async def aget_response(
        self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        """See `get_response`."""
        dispatcher.event(GetResponseStartEvent(query_str=query_str, text_chunks=list(text_chunks)))
        state, streams = synthesis_of(self, text_chunks), self._streams
        try:
            state.source = await in_thread(self._read, state.nodes)
        except EmptyDocumentError:
            dispatcher.event(GetResponseEndEvent())
            return self._empty_response_agenerator() if streams else self._empty_response
        pieces = self._apieces(state, query_str, self._call_options(query_str, response_kwargs), streams)
        if streams:
            response: RESPONSE_TEXT_TYPE = _aafter(await anext(pieces, ""), pieces)
        else:
            async with aclosing(pieces):
                response = self._shaped("".join([piece async for piece in pieces]))
        dispatcher.event(GetResponseEndEvent())
        return response

    def _prepare_response_output(
        self, response_str: RESPONSE_TEXT_TYPE | None, source_nodes: list[NodeWithScore]
    ) -> RESPONSE_TYPE:
        state = current_synthesis()
        assert state is not None, "responses are made within synthesize"
        scored = scored_nodes(state.source, state.margins, source_nodes)
        if state.source is None and self._shape is not None:
            # nothing was read, and the empty response is no object of the class
            return Response(self._empty_response, source_nodes=scored, metadata=state.metadata)
        response = super()._prepare_response_output(response_str, scored)
        state.metadata.update(response.metadata or {})
        response.metadata = state.metadata  # a stream adds to it at its end
        return response

    def _get_prompts(self) -> PromptDictType:
        return dict(self._templates.shown)

    def _update_prompts(self, prompts: PromptDictType) -> None:
        self._templates.update(prompts)

    # -- one call -----------------------------------------------------------------------------------------------------

    def _read(self, nodes: Sequence[NodeWithScore]) -> NodeReading:
        return NodeReading(
            self.kernel,
            [item.node for item in nodes],
            order=self.order,
            chunk_tokens=self.chunk_tokens,
            join_small=self.join_small,
        )

    def _call_options(self, question: str, variables: dict[str, Any]) -> Options:
        prompts = self._templates.for_call(question, variables)
        known = {**(self.options.get("variables") or {}), **prompts.variables}
        options: Options = {**self.options, "prompts": prompts.prompts, "variables": known}
        shape, config = self._shape, options.get("answer_config")
        if shape is not None:
            options["answer_schema"] = shape.model_json_schema()
            if config is None or config.max_new_tokens is None:
                options.setdefault("answer_tokens", 512)
        return options

    @property
    def _shape(self) -> type[BaseModel] | None:
        """The answer's class; None for plain text."""
        return self._llm.output_cls if isinstance(self._llm, StructuredLLM) else self._output_cls

    @property
    def _streams(self) -> bool:
        return self._streaming and self._shape is None  # part of an object cannot be parsed

    def _shaped(self, answer: str) -> RESPONSE_TEXT_TYPE:
        if self._output_cls is None or isinstance(self._llm, StructuredLLM):
            return answer
        try:
            return self._output_cls.model_validate_json(answer)
        except ValidationError as error:
            raise ValueError(
                f"The answer does not fit {self._output_cls.__name__}: {answer!r}. Give it more "
                "answer_tokens, or a schema without constraints that JSON schemas cannot express."
            ) from error

    def _pieces(
        self, state: SynthesisState, question: str, options: Options, streams: bool
    ) -> Generator[str, None, None]:
        """Yield the answer's pieces; emit all events, and record margins and results in the state."""
        assert state.source is not None
        pace = paced(state.source, options, self._callback_manager, streams=streams)
        stream = state.source.reading.stream(question, **pace)  # raises before the emitter opens an event
        emitter = Emitter(self._callback_manager, state.source, question, options)
        with closing(relay(stream, emitter)) as events:
            for event in events:
                state.record(event)
                if isinstance(event, AnswerToken):
                    yield event.text

    async def _apieces(
        self, state: SynthesisState, question: str, options: Options, streams: bool
    ) -> AsyncGenerator[str, None]:
        assert state.source is not None
        pace = paced(state.source, options, self._callback_manager, streams=streams)
        stream = state.source.reading.astream(question, **pace)
        emitter = Emitter(self._callback_manager, state.source, question, options)
        async with aclosing(arelay(stream, emitter)) as events:
            async for event in events:
                state.record(event)
                if isinstance(event, AnswerToken):
                    yield event.text


def _after(first: str, rest: Generator[str, None, None]) -> Generator[str, None, None]:
    with closing(rest):
        yield first
        yield from rest


async def _aafter(first: str, rest: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece


def _tokenizer(kernel: WimKernel) -> Any:
    """The model's tokenizer as LlamaIndex uses one: a callable whose result has one item for each token."""
    return lambda text: [0] * kernel.count_tokens(text)


_ARGUMENTS = tuple(signature(WimSynthesizer).parameters)
