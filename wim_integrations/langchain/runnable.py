"""Writing in the Margins as LangChain runnables: the whole, its margins alone, and the answer from margins."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.utils import AddableDict
from pydantic import BaseModel, create_model

from wim_integrations.langchain.base import DocumentRunnable
from wim_integrations.langchain.batching import Batch
from wim_integrations.langchain.chat_model import Model
from wim_integrations.langchain.decisions import is_decided
from wim_integrations.langchain.events import Emitter, Manager, answer_data
from wim_integrations.langchain.outputs import Inputs, Margins, Outputs, WimMarginsOutput, WimOutput
from wim_integrations.langchain.requests import Request
from wim_integrations.langchain.reviewing import remember, remembered, reviewed
from wim_kernel import (
    Answered,
    AnswerToken,
    Event,
    Margin,
    MarginRevised,
    MarginsDone,
    MarginsError,
    MarginWritten,
    MissingInputError,
    Options,
)


class WimRunnable(DocumentRunnable):
    """Reads documents once, writes margins on what helps with the question, and answers from them.

    The input has a question (``question``, ``input`` or ``query``) and documents (``documents``, ``context`` or
    ``input_documents``), as `Document` objects or strings. The output has ``answer``; ``margins``, all margins in
    reading order as plain JSON data (see `DocumentReading.margin_data`); ``usage`` and ``timings`` of the call;
    ``stopped_early``; and, with the option ``citations``, ``citations`` (see `citation_annotations`). A stream yields
    margins and pieces of the answer as they are written, and citations at its end. A margin may be yielded
    again after a revision; in the sum of the chunks it replaces the margin with the same index.

    Questions of a batch about the same documents are answered in one run, and documents in the kernel's cache are not
    read again.

    Attributes:
        kernel: the kernel, or a chat model; see `wim_kernel.WimKernel.from_chat_model`.
        question_key: the input's key of the question; by default the first present one of the keys above.
        documents_key: the input's key of the documents; by default the first present one of the keys above.
        document_prompt: the template of each document's text; by default its page content.
        document_separator: the text between documents; by default the kernel's separator.
        chunk_tokens: most tokens of a chunk; longer documents are split at sentence ends.
        prompts: `Prompts`, or prompt templates by the names of its fields; see `PromptSet`.
        empty_response: the answer if no document has text; by default that raises.
        answer_tags: tags of the chat model run that has the answer's tokens.

    The other fields are the kernel's `Options`.

    Raises:
        KeyError: if the input has no question or no documents.
        EmptyDocumentError: if no document has text.
        ContextOverflowError: if the question leaves no room for the documents in the model's window.

    Example:
        >>> chain = WimRunnable(kernel=kernel)  # doctest: +SKIP
        >>> chain.invoke({"question": "Who owned the ship?", "documents": documents})["answer"]  # doctest: +SKIP
    """

    output_type: ClassVar[Any] = WimOutput

    if TYPE_CHECKING:

        def __init__(self, *, kernel: Model, **fields: Any) -> None: ...

        def invoke(self, input: Inputs, config: RunnableConfig | None = None, **kwargs: Any) -> WimOutput:
            """See `DocumentRunnable.invoke`."""

        async def ainvoke(
            self, input: Inputs, config: RunnableConfig | None = None, **kwargs: Any
        ) -> WimOutput:
            """See `DocumentRunnable.invoke`."""

    def batch(
        self,
        inputs: list[Inputs],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Outputs]:
        """Outputs for several inputs; questions about the same documents are answered in one run."""
        runnable = self._with(kwargs) if kwargs else self
        return runnable._batch_with_config(
            runnable._batch, inputs, config, return_exceptions=return_exceptions
        )

    async def abatch(
        self,
        inputs: list[Inputs],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Outputs]:
        """See `batch`."""
        runnable = self._with(kwargs) if kwargs else self
        return await runnable._abatch_with_config(
            runnable._abatch, inputs, config, return_exceptions=return_exceptions
        )

    def _batch(
        self,
        inputs: list[Inputs],
        run_manager: list[CallbackManagerForChainRun],
        config: list[RunnableConfig],
    ) -> list[Exception | Outputs]:
        return Batch(self, inputs, run_manager, config).run()

    async def _abatch(
        self,
        inputs: list[Inputs],
        run_manager: list[AsyncCallbackManagerForChainRun],
        config: list[RunnableConfig],
    ) -> list[Exception | Outputs]:
        return await Batch(self, inputs, run_manager, config).arun()

    def _events(self, request: Request, options: Options) -> Generator[Event, None, None]:
        return request.reading.stream(request.question, **options)

    def _aevents(self, request: Request, options: Options) -> AsyncGenerator[Event, None]:
        return request.reading.astream(request.question, **options)

    def _output(self, request: Request, last: Event | None) -> Outputs:
        if not isinstance(last, Answered):
            return {
                "answer": self.empty_response,
                "margins": [],
                "usage": {},
                "timings": {},
                "stopped_early": False,
                **({"citations": []} if request.options.get("citations") else {}),
            }
        data = answer_data(last)
        del data["question"]
        if request.options.get("citations"):
            data["citations"] = request.citations(last.result)
        return {**data, "margins": request.margins_data(last.result.margins)}

    def _first_chunk(self, request: Request) -> Outputs:
        return AddableDict(answer="", margins=Margins())

    def _chunk(self, request: Request, event: Event) -> Outputs | None:
        match event:
            case MarginWritten(margin) | MarginRevised(margin):
                return AddableDict(margins=Margins(request.margins_data([margin])))
            case AnswerToken(text):
                return AddableDict(answer=text)
        return None

    def _streamed(self) -> tuple[str, ...]:
        return ("answer", "margins")


class WimMargins(DocumentRunnable):
    """Reads documents and writes margins, without an answer: for a person or a program to drop, edit or add to.

    The input is that of `WimRunnable`. The output has ``margins``, ``usage``, ``timings``, and ``chunks_read``, which
    `WimAnswer` needs if reading stopped early.
    """

    output_type: ClassVar[Any] = WimMarginsOutput

    if TYPE_CHECKING:

        def __init__(self, *, kernel: Model, **fields: Any) -> None: ...

        def invoke(
            self, input: Inputs, config: RunnableConfig | None = None, **kwargs: Any
        ) -> WimMarginsOutput:
            """See `DocumentRunnable.invoke`."""

        async def ainvoke(
            self, input: Inputs, config: RunnableConfig | None = None, **kwargs: Any
        ) -> WimMarginsOutput:
            """See `DocumentRunnable.invoke`."""

    def _events(self, request: Request, options: Options) -> Generator[Event, None, None]:
        return request.reading.stream_margins(request.question, **options)

    def _aevents(self, request: Request, options: Options) -> AsyncGenerator[Event, None]:
        return request.reading.astream_margins(request.question, **options)

    def _output(self, request: Request, last: Event | None) -> Outputs:
        if not isinstance(last, MarginsDone):
            return {"margins": [], "usage": {}, "timings": {}, "chunks_read": 0}
        remember(request.reading, request.question, last.margins)
        return {
            "margins": request.margins_data(last.margins),
            "usage": asdict(last.usage),
            "timings": asdict(last.timings),
            "chunks_read": last.chunks_read,
        }

    def _first_chunk(self, request: Request) -> Outputs:
        return AddableDict(margins=Margins())

    def _chunk(self, request: Request, event: Event) -> Outputs | None:
        if isinstance(event, MarginWritten | MarginRevised):
            return AddableDict(margins=Margins(request.margins_data([event.margin])))
        return None

    def _streamed(self) -> tuple[str, ...]:
        return ("margins",)


class WimAnswer(WimRunnable):
    """Answers from given margins, such as margins by `WimMargins` that a person has reviewed.

    The input is that of `WimRunnable` with ``margins`` and, optionally, ``chunks_read``. Margins with ``kept`` are
    used, ``note`` is the reader's remark on a margin, and a string is a margin of the reader's own. True or
    ``"approve"`` in place of the list approves the margins that `WimMargins` wrote last for this question in the same
    process, and ``{"decisions": [...]}`` decides on them (see `review_request`); `reviewed` does both across processes.
    The documents are read again only if the kernel's cache no longer holds them, as in another process.

    Raises:
        MarginsError: for an item that is no margin, or a margin of other documents.
    """

    margins_key: str = "margins"

    if TYPE_CHECKING:

        def __init__(self, *, kernel: Model, **fields: Any) -> None: ...

    def get_input_schema(self, config: RunnableConfig | None = None) -> type[BaseModel]:
        """The question, the documents and the margins."""
        given: dict[str, Any] = {
            self.margins_key: (list[dict[str, Any] | str] | dict[str, Any] | str | bool, ...),
            "chunks_read": (int | None, None),
        }
        return create_model(self.get_name("Input"), __base__=super().get_input_schema(config), **given)

    def batch(self, *args: Any, **kwargs: Any) -> list[Outputs]:
        """Outputs for several inputs, each in a run of its own, since each input has its own margins."""
        return super(WimRunnable, self).batch(*args, **kwargs)

    async def abatch(self, *args: Any, **kwargs: Any) -> list[Outputs]:
        """See `batch`."""
        return await super(WimRunnable, self).abatch(*args, **kwargs)

    def _events(self, request: Request, options: Options) -> Generator[Event, None, None]:
        margins, chunks_read = self._given_margins(request)
        return request.reading.stream_answer(request.question, margins, chunks_read=chunks_read, **options)

    def _aevents(self, request: Request, options: Options) -> AsyncGenerator[Event, None]:
        margins, chunks_read = self._given_margins(request)
        return request.reading.astream_answer(request.question, margins, chunks_read=chunks_read, **options)

    def _emitter(self, request: Request, manager: Manager, config: RunnableConfig) -> Emitter:
        emitter = super()._emitter(request, manager, config)
        emitter.margins, _ = self._given_margins(request)
        return emitter

    def _first_chunk(self, request: Request) -> Outputs:
        return AddableDict(answer="")

    def _streamed(self) -> tuple[str, ...]:
        return ("answer",)

    def _given_margins(self, request: Request) -> tuple[list[Margin], int | None]:
        assert request.source is not None
        if self.margins_key not in request.inputs:
            raise MissingInputError(
                f"The input has {sorted(map(str, request.inputs))}, and nothing called {self.margins_key}."
            )
        written = remembered(request.reading, request.question)
        given = request.inputs[self.margins_key]
        if is_decided(given):
            if written is None:
                raise MarginsError(
                    "The decisions are about margins that are not known here: give the margins themselves, which "
                    "reviewed() makes of decisions."
                )
            given = reviewed(request.margins_data(written), given)
        margins = request.source.margins(given, request.question, written)
        return margins, request.inputs.get("chunks_read")
