"""A document compressor: replaces retrieved documents by the margins that help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import Document
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import (
    ensure_config,
    get_async_callback_manager_for_config,
    get_callback_manager_for_config,
)
from pydantic import model_validator
from typing_extensions import Self

from wim_integrations.langchain.chat_model import Model, as_kernel
from wim_integrations.langchain.documents import DocumentReading
from wim_integrations.langchain.events import Emitter
from wim_integrations.langchain.fields import CompressorFields
from wim_integrations.langchain.prompts import PromptLike, PromptSet, as_templates
from wim_integrations.options import check_kernel, leaning_to_recall
from wim_kernel import EmptyDocumentError, Event, MarginsDone, Options
from wim_kernel.common.concurrency import in_thread
from wim_kernel.common.relay import alast_of, arelay, last_of, relay
from wim_kernel.run.options import parse_options, unwatched_options


class WimDocumentCompressor(CompressorFields):
    """Replaces documents by their kept margins, for `ContextualCompressionRetriever`.

    All documents are read as one, in their order, so that the model has read the earlier ones when it writes a margin.
    Each kept margin becomes a document with its source's metadata, ``relevance_score``, and ``wim``, the margin's place
    in the source. By default margins are verbatim: whole sentences of the source.

    The next step sees kept margins only, so that a dropped passage is lost. The default of ``threshold`` therefore
    favours recall: 0.1 if relevance is a probability of evidence, as by default (the kernel's default is 0.25, for
    answers behind the whole document). With other scores, ``top_k`` or ``keep`` it is the kernel's default.

    Attributes:
        kernel: the kernel.
        document_prompt: the template of each document's text; by default its page content.
        document_separator: the text between documents; by default the kernel's separator.
        chunk_tokens: most tokens of a chunk.
        prompts: `Prompts`, or prompt templates by the names of its fields.
        options: the kernel's `Options` as a dict, in addition to options given by name.

    The other fields are the kernel's `Options`, such as ``threshold``.

    Example:
        >>> ContextualCompressionRetriever(  # doctest: +SKIP
        ...     base_compressor=WimDocumentCompressor(kernel=kernel, threshold=0.7), base_retriever=retriever
        ... )
    """

    task: str = "answer"

    def __init__(self, *, options: Mapping[str, Any] | None = None, **fields: Any) -> None:
        given = {**(options or {}), **fields}
        self.check_fields(given)
        super().__init__(**given)

    @classmethod
    def from_kernel(cls, kernel: Model, prompt: PromptLike | None = None, **fields: Any) -> Self:
        """Make a compressor, as `LLMChainExtractor.from_llm` does.

        Args:
            kernel: the kernel, or a chat model.
            prompt: the prompt of margins. With a prompt, margins are in the model's own words.
            fields: the fields of the class.
        """
        kernel = as_kernel(kernel)
        check_kernel(kernel, cls.__name__)
        if prompt is not None:
            fields["prompts"] = {**as_templates(fields), "margin": prompt}
            fields.setdefault("margin_style", "free")
        return cls(kernel=kernel, **fields)

    from_llm = from_kernel

    @model_validator(mode="after")
    def _check(self) -> Self:
        parse_options(self._options("", None))  # raise now, not at the first query
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The kernel's options that are set."""
        return {**self.given_options()}

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """The kept margins, in the order of the documents.

        Args:
            documents: the retrieved documents.
            query: the question.
            callbacks: callbacks for chunks and margins, as children of their run.

        Raises:
            ContextOverflowError: if the question leaves no room for the documents in the model's window.
        """
        source = self._source(documents)
        if source is None:
            return []
        config = _config(callbacks)
        options, manager = self._options(query, source), get_callback_manager_for_config(config)
        emitter = Emitter(manager, config, source, query, options=options)
        return _documents(source, last_of(relay(source.reading.stream_margins(query, **options), emitter)))

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """See `compress_documents`."""
        source = await in_thread(self._source, documents)
        if source is None:
            return []
        config = _config(callbacks)
        options, manager = self._options(query, source), get_async_callback_manager_for_config(config)
        emitter = Emitter(manager, config, source, query, options=options)
        events = arelay(source.reading.astream_margins(query, **options), emitter)
        return _documents(source, await alast_of(events))

    def _source(self, documents: Sequence[Document]) -> DocumentReading | None:
        try:
            return DocumentReading(
                self.kernel,
                documents,
                document_prompt=self.document_prompt,
                separator=self.document_separator,
                chunk_tokens=self.chunk_tokens,
            )
        except EmptyDocumentError:
            return None

    def _options(self, query: str, source: DocumentReading | None) -> Options:
        options: Options = {"margin_style": "verbatim", **self.given_options()}
        if source is not None:
            options = unwatched_options(leaning_to_recall(options, self.kernel), len(source.reading.chunks))
        prompts = PromptSet(self.task, self.prompts).for_call(query, "question", {"question": query})
        variables = {**(self.variables or {}), **prompts.variables}
        return {**options, "prompts": prompts.prompts, "variables": variables}


def _config(callbacks: Callbacks | None) -> RunnableConfig:
    """The surrounding run's config with the given callbacks."""
    return ensure_config(None if callbacks is None else {"callbacks": callbacks})


def _documents(source: DocumentReading, last: Event | None) -> list[Document]:
    assert isinstance(last, MarginsDone)
    return [source.margin_document(margin) for margin in last.margins if margin.kept and margin.text.strip()]
