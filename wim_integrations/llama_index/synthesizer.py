"""A response synthesizer that reads nodes once, notes in margins what helps, and answers from them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
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
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryType, TextNode
from llama_index.core.types import RESPONSE_TEXT_TYPE
from typing_extensions import Unpack

from wim_integrations.llama_index.events import Emitter, paced
from wim_integrations.llama_index.llm import WimLLM
from wim_integrations.llama_index.nodes import NodeReading, Order, check_reading_options, scored_nodes
from wim_integrations.llama_index.prompts import ANSWER, MARGIN, Templates
from wim_integrations.options import OPTION_NAMES, check_kernel, check_names
from wim_kernel import (
    PROMPTS,
    Answered,
    AnswerToken,
    EmptyDocumentError,
    Event,
    Margin,
    MarginRevised,
    MarginWritten,
    Options,
    WimKernel,
)
from wim_kernel.common.concurrency import in_thread
from wim_kernel.common.copying import HoldsShared
from wim_kernel.common.relay import arelay, relay
from wim_kernel.run.options import parse_options

dispatcher = get_dispatcher(__name__)


@dataclass
class Call:
    """What one call of ``synthesize`` knows beyond the texts that ``get_response`` is given.

    Attributes:
        owner: whose call it is.
        nodes: the nodes.
        source: their reading, once there is one.
        margins: the margins so far.
        metadata: what the response's metadata has beside the node map; filled as it becomes known.
    """

    owner: BaseSynthesizer
    nodes: Sequence[NodeWithScore]
    source: NodeReading | None = None
    margins: list[Margin] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=lambda: {"margins": [], "usage": {}, "timings": {}})


_call: ContextVar[Call | None] = ContextVar("wim_call", default=None)
_synthesize: Any = getattr(BaseSynthesizer.synthesize, "__wrapped__", BaseSynthesizer.synthesize)
_asynthesize: Any = getattr(BaseSynthesizer.asynthesize, "__wrapped__", BaseSynthesizer.asynthesize)


class WimSynthesizer(HoldsShared, BaseSynthesizer):
    """Reads nodes once, in order, and answers from margins written on the way.

    For every query engine that takes a response synthesizer. The response's ``metadata`` has, beside the map of nodes,
    ``margins`` (every one, in reading order; see `NodeReading.margin_data`), ``usage``, ``timings`` and
    ``stopped_early``; its source nodes have their relevance as score. When streaming, margins are written before the
    response is returned, and usage and timings are there once the stream has ended.

    Args:
        kernel: the model and the readings it holds.
        llm: not called here; a `StructuredLLM` says what the answer is to be. ``synthesizer.llm``, by default the
            kernel's own model as a `WimLLM`, is for engines that want a language model beside the synthesizer.
        callback_manager: the older callbacks.
        streaming: whether the answer streams.
        output_cls: what the answer is to be an object of; it is decoded so that it always fits.
        empty_response: the answer where there is nothing to read.
        order: nodes ``"given"`` as they come, or in ``"document"`` order.
        chunk_tokens: longest chunk; longer nodes are split.
        join_small: small neighbours of one document share a chunk.
        text_qa_template: asks for the answer (``query_str``; ``context_str`` stands for "the document above").
        margin_template: asks for a margin.
        options: the kernel's `Options`.

    Example:
        >>> synthesizer = WimSynthesizer(kernel)  # doctest: +SKIP
        >>> index.as_query_engine(llm=synthesizer.llm, response_synthesizer=synthesizer)  # doctest: +SKIP
    """

    def __init__(
        self,
        kernel: WimKernel,
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
        check_kernel(kernel, "WimSynthesizer")
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
        parse_options(options)  # mistakes are said here, not at the first question
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
        """A language model for engines that want one: by default the kernel's own, as a `WimLLM`."""
        return self._llm

    # -- LlamaIndex's ways to call it ---------------------------------------------------------------------------------

    def synthesize(
        self,
        query: QueryType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """A response from nodes."""
        with _knowing(self, nodes):  # the undecorated one, for there is a span already
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
        with _knowing(self, nodes):
            asked = _asynthesize(self, query, nodes, additional_source_nodes, **response_kwargs)
            response: RESPONSE_TYPE = await asked
            return response

    def get_response(
        self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        """The answer's text, a generator of its pieces, or an object of ``output_cls``."""
        dispatcher.event(GetResponseStartEvent(query_str=query_str, text_chunks=list(text_chunks)))
        call, streams = self._known_call(text_chunks), self._streams
        try:
            call.source = self._read(call.nodes)
        except EmptyDocumentError:
            dispatcher.event(GetResponseEndEvent())
            return self._empty_response_generator() if streams else self._empty_response
        told = self._pieces(call, query_str, self._asked(query_str, response_kwargs), streams)
        if streams:
            response: RESPONSE_TEXT_TYPE = _after(next(told, ""), told)
        else:
            with closing(told):
                response = self._shaped("".join(told))
        dispatcher.event(GetResponseEndEvent())
        return response

    async def aget_response(
        self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        """See `get_response`."""
        dispatcher.event(GetResponseStartEvent(query_str=query_str, text_chunks=list(text_chunks)))
        call, streams = self._known_call(text_chunks), self._streams
        try:
            call.source = await in_thread(self._read, call.nodes)
        except EmptyDocumentError:
            dispatcher.event(GetResponseEndEvent())
            return self._empty_response_agenerator() if streams else self._empty_response
        told = self._apieces(call, query_str, self._asked(query_str, response_kwargs), streams)
        if streams:
            response: RESPONSE_TEXT_TYPE = _aafter(await anext(told, ""), told)
        else:
            async with aclosing(told):
                response = self._shaped("".join([piece async for piece in told]))
        dispatcher.event(GetResponseEndEvent())
        return response

    def _prepare_response_output(
        self, response_str: RESPONSE_TEXT_TYPE | None, source_nodes: list[NodeWithScore]
    ) -> RESPONSE_TYPE:
        call = _call.get()
        assert call is not None, "responses are made within synthesize"
        scored = scored_nodes(call.source, call.margins, source_nodes)
        if call.source is None and self._shape is not None:
            # nothing was read, and what is said of that is no object
            return Response(self._empty_response, source_nodes=scored, metadata=call.metadata)
        response = super()._prepare_response_output(response_str, scored)
        call.metadata.update(response.metadata or {})
        response.metadata = call.metadata  # a stream's end is still to add to it
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

    def _asked(self, question: str, variables: dict[str, Any]) -> Options:
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
        """What the answer is to be an object of."""
        return self._llm.output_cls if isinstance(self._llm, StructuredLLM) else self._output_cls

    @property
    def _streams(self) -> bool:
        return self._streaming and self._shape is None  # half an object is none

    def _shaped(self, answer: str) -> RESPONSE_TEXT_TYPE:
        if self._output_cls is None or isinstance(self._llm, StructuredLLM):
            return answer
        try:
            return self._output_cls.model_validate_json(answer)
        except ValidationError as error:
            raise ValueError(
                f"The answer does not fit {self._output_cls.__name__}: {answer!r}. Give it more "
                "answer_tokens, or a schema that says all that is asked of a value."
            ) from error

    def _pieces(
        self, call: Call, question: str, options: Options, streams: bool
    ) -> Generator[str, None, None]:
        """The answer's pieces; everything else is reported, and noted in the call."""
        assert call.source is not None
        emitter = Emitter(self._callback_manager, call.source, question, options)
        options = paced(call.source, options, self._callback_manager, streams=streams)
        with closing(relay(call.source.reading.stream(question, **options), emitter)) as events:
            for event in events:
                _note(call, event)
                if isinstance(event, AnswerToken):
                    yield event.text

    async def _apieces(
        self, call: Call, question: str, options: Options, streams: bool
    ) -> AsyncGenerator[str, None]:
        assert call.source is not None
        emitter = Emitter(self._callback_manager, call.source, question, options)
        options = paced(call.source, options, self._callback_manager, streams=streams)
        async with aclosing(arelay(call.source.reading.astream(question, **options), emitter)) as events:
            async for event in events:
                _note(call, event)
                if isinstance(event, AnswerToken):
                    yield event.text

    def _known_call(self, texts: Sequence[str]) -> Call:
        """The call that this is part of, if these are its nodes' texts; others are nodes of their own."""
        call = _call.get()
        mine = call is not None and call.owner is self and call.source is None
        if call and mine and list(texts) == [item.node.get_content(MetadataMode.LLM) for item in call.nodes]:
            return call
        nodes = [TextNode(text=text, id_=str(place)) for place, text in enumerate(texts)]
        return Call(self, [NodeWithScore(node=node) for node in nodes])


@contextmanager
def _knowing(owner: BaseSynthesizer, nodes: Sequence[NodeWithScore]) -> Generator[None, None, None]:
    """Within, ``get_response`` knows which nodes its texts are of."""
    token = _call.set(Call(owner, nodes))
    try:
        yield
    finally:
        _call.reset(token)


def _note(call: Call, event: Event) -> None:
    assert call.source is not None
    if isinstance(event, MarginWritten):
        call.margins.append(event.margin)
        call.metadata["margins"].append(call.source.margin_data(event.margin))
        call.metadata["margins"].sort(key=lambda data: data["index"])
    elif isinstance(event, MarginRevised):
        place = [margin.index for margin in call.margins].index(event.margin.index)
        call.margins[place] = event.margin
        data = call.source.margin_data(event.margin)
        call.metadata["margins"] = [
            data if other["index"] == data["index"] else other for other in call.metadata["margins"]
        ]
    elif isinstance(event, Answered):
        call.margins = list(event.result.margins)
        call.metadata.update(call.source.result_data(event.result))


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
    """The model's own tokenizer as LlamaIndex counts with one."""
    return lambda text: [0] * kernel.count_tokens(text)


_ARGUMENTS = tuple(signature(WimSynthesizer).parameters)
