"""LangChain documents as a reading, and margins as plain data that says where in those documents they stand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from langchain_core.documents import Document
from langchain_core.prompts import BasePromptTemplate, format_document
from pydantic import BeforeValidator, SkipValidation
from pydantic_core import to_jsonable_python

from wim_integrations.langchain.outputs import MarginData, Quote
from wim_kernel import Chunk, Margin, MarginsError, Reading, Span, WimKernel
from wim_kernel.run.given_margins import margins_in
from wim_kernel.run.quoting import reads

Documents = str | Document | Sequence[str | Document | Mapping[str, Any]]


def _prompt_template(value: object) -> object:
    if value is not None and not isinstance(value, BasePromptTemplate):
        raise ValueError(f"document_prompt is a prompt template, not a {type(value).__name__}.")
    return value


# A template class with its type filled in, which Pydantic would compare with, has no instances.
DocumentPrompt = Annotated[
    BasePromptTemplate[Any] | None, SkipValidation(), BeforeValidator(_prompt_template)
]

_CONTENT = "\ue000page content\ue001"  # stands for a document's text while its prompt is formatted


@dataclass(frozen=True)
class _Formatted:
    """A document as it is read: ``text``, where its page content begins at ``offset`` (None if that cannot be told)."""

    text: str
    offset: int | None


class DocumentReading:
    """A reading of LangChain documents.

    Args:
        kernel: reads.
        documents: what to read, in order; strings are documents without metadata.
        document_prompt: what is read of each document; by default its page content.
        separator: what stands between documents; by default the kernel's own.
        chunk_tokens: longest chunk; longer documents are split at sentence ends. By default the kernel's own.

    Raises:
        EmptyDocumentError: if no document holds text.
        ContextOverflowError: when asked, if the question leaves no room for them in the model's window.
        ValueError: if the prompt asks for metadata that a document lacks.
    """

    def __init__(
        self,
        kernel: WimKernel,
        documents: Documents,
        *,
        document_prompt: BasePromptTemplate[Any] | None = None,
        separator: str | None = None,
        chunk_tokens: int | None = None,
    ) -> None:
        self.documents = as_documents(documents)
        self._formatted = [_format(document, document_prompt) for document in self.documents]
        pairs = zip(self.documents, self._formatted, strict=True)
        chunks = [_chunk(index, document, formatted) for index, (document, formatted) in enumerate(pairs)]
        self.reading: Reading = kernel.read(
            chunks, chunk_tokens=chunk_tokens or kernel.chunk_tokens, separator=separator
        )
        self._starts = self._chunk_starts()

    def document_of(self, margin: Margin) -> int:
        """Which document a margin is about, from 0."""
        position: int = self.reading.chunks[margin.index].metadata["document"]
        return position

    def margin_data(self, margin: Margin) -> MarginData:
        """A margin as plain JSON data.

        Returns:
            ``index``, ``text``, ``relevance``, ``kept`` and ``note`` of the margin; ``evidence``, what its relevance
            is made of, by signal; ``document``, which of the documents it is about, with that document's
            ``metadata``; ``start`` and ``end``, the characters of its page content that the margin's chunk holds (None
            where the document's prompt hides them); ``quotes``, the characters of each sentence of a verbatim margin.
        """
        place = self._place(margin.index)
        quotes = [
            self._within(place["document"], margin.index, span.offset, span.offset + span.length)
            for span in margin.spans
        ]
        return {
            "index": margin.index,
            "text": margin.text,
            "relevance": margin.relevance,
            "kept": margin.kept,
            "evidence": dict(margin.evidence),
            "note": margin.note,
            "document": place["document"],
            "start": place["start"],
            "end": place["end"],
            "metadata": plain(self.documents[place["document"]].metadata),
            "quotes": [Quote(start=start, end=end) for start, end in quotes],
        }

    def margins(self, given: object, written: Sequence[Margin] | None = None) -> list[Margin]:
        """Read back what `margin_data` wrote and a person may have changed; see `margins_in`.

        Args:
            given: the margins, or an approval of those that were ``written``.
            written: the margins that a person was shown, where they are known.

        Raises:
            MarginsError: for what is no margin, or one that was written on other chunks.
        """
        return margins_in(given, self.reading.chunks, written=written, find_spans=self._checked_spans)

    def _checked_spans(self, index: int, data: Mapping[str, Any]) -> tuple[Span, ...]:
        place = self._place(index)
        if any(data.get(name, value) != value for name, value in place.items()):
            raise MarginsError(
                f"Margin {index} was written on other chunks: read the same documents with the same chunk_tokens."
            )
        return self._spans(index, data)

    def margin_document(self, margin: Margin) -> Document:
        """A margin as a document of its own: its source's metadata, ``relevance_score``, and where it stands."""
        data = self.margin_data(margin)
        names = ("index", "evidence", "document", "start", "end", "quotes")
        place = {name: item for name, item in data.items() if name in names}
        metadata = self.documents[data["document"]].metadata
        return Document(
            page_content=margin.text, metadata={**metadata, "relevance_score": margin.relevance, "wim": place}
        )

    def _place(self, chunk: int) -> dict[str, Any]:
        """Which characters of which document a chunk holds."""
        document = self.reading.chunks[chunk].metadata["document"]
        start, end = self._within(document, chunk, 0, len(self.reading.chunks[chunk].text))
        return {"document": document, "start": start, "end": end}

    def _spans(self, chunk: int, data: Mapping[str, Any]) -> tuple[Span, ...]:
        """Where a verbatim margin's sentences stand, if it still says what stands there."""
        document = self.reading.chunks[chunk].metadata["document"]
        content, offset = self.documents[document].page_content, self._formatted[document].offset
        try:
            quotes = [(int(quote["start"]), int(quote["end"])) for quote in data.get("quotes") or ()]
        except (KeyError, TypeError, ValueError) as error:
            if offset is None:  # they were not known when it was written, either
                return ()
            raise MarginsError(
                f"The 'quotes' of margin {chunk} are not as they were written: leave them out."
            ) from error
        if (
            offset is None
            or not quotes
            or not reads(data["text"], [content[slice(*each)] for each in quotes])
        ):
            return ()
        shift = self._starts[chunk] - offset
        located = (self.reading.chunks[chunk].locate(start - shift, end - shift) for start, end in quotes)
        return tuple(span for spans in located for span in spans)

    def _chunk_starts(self) -> list[int]:
        """Where each chunk begins in its document's formatted text: chunks are all of it but a head already said."""
        lengths = [0] * len(self.documents)
        for chunk in self.reading.chunks:
            lengths[chunk.metadata["document"]] += len(chunk.text)
        ends = [
            len(formatted.text) - length for formatted, length in zip(self._formatted, lengths, strict=True)
        ]
        starts = []
        for chunk in self.reading.chunks:
            starts.append(ends[chunk.metadata["document"]])
            ends[chunk.metadata["document"]] += len(chunk.text)
        return starts

    def _within(self, document: int, chunk: int, start: int, end: int) -> tuple[int | None, int | None]:
        """Characters ``start`` to ``end`` of a chunk as characters of the document's page content."""
        offset = self._formatted[document].offset
        if offset is None:
            return None, None
        length, shift = len(self.documents[document].page_content), self._starts[chunk] - offset
        return min(max(0, start + shift), length), min(max(0, end + shift), length)


def as_documents(documents: Documents) -> list[Document]:
    """Documents in any of the forms that are accepted.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(documents, str | Document):
        documents = [documents]
    if not isinstance(documents, Sequence):
        raise TypeError(
            f"Documents are Documents or strings, one or a list; this is a {type(documents).__name__}."
        )
    return [_as_document(index, item) for index, item in enumerate(documents)]


def _as_document(index: int, item: object) -> Document:
    if isinstance(item, Document):
        return item
    if isinstance(item, str):
        return Document(page_content=item)
    if isinstance(item, Mapping) and "page_content" in item:  # as JSON clients send them
        return Document(page_content=item["page_content"], metadata=item.get("metadata") or {})
    raise TypeError(
        f"Documents are Documents or strings; the one at index {index} is a {type(item).__name__}."
    )


def plain(value: Any) -> Any:
    """Anything as plain JSON data; what has no JSON form becomes its text."""
    if isinstance(value, dict):  # one entry without a JSON form does not take the others with it
        return {str(name): _plain(item) for name, item in value.items()}
    return _plain(value)


def _plain(value: Any) -> Any:
    try:
        return _plain_inside(to_jsonable_python(value, fallback=str, bytes_mode="base64"))
    except (ValueError, RecursionError):  # it holds itself, or what has no text either
        return repr(value)


def _plain_inside(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain_inside(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain_inside(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _format(document: Document, prompt: BasePromptTemplate[Any] | None) -> _Formatted:
    if prompt is None:
        return _Formatted(document.page_content, 0)
    text = str(format_document(document, prompt))
    marked = Document(page_content=_CONTENT, metadata=document.metadata)
    before, _, after = str(format_document(marked, prompt)).partition(_CONTENT)
    if before + document.page_content + after != text:  # the template does something with the text
        return _Formatted(text, None)
    return _Formatted(text, len(before))


def _chunk(index: int, document: Document, formatted: _Formatted) -> Chunk:
    start = document.metadata.get("start_index")
    offset, length = formatted.offset, len(document.page_content)
    if offset is None:
        start, offset, length = None, 0, len(formatted.text)
    if not isinstance(start, int):
        start = None
    end = None if start is None else start + length
    span = Span(_source_id(index, document), start, end, offset, length)
    return Chunk(formatted.text, (span,), {"document": index})


def _source_id(index: int, document: Document) -> str:
    """What pieces of one text have in common, so that what they share is read once."""
    metadata = document.metadata
    if metadata.get("source") is None:
        return f"at {index}"  # an id is one document's, and two that have the same are still two
    own = {"start_index", "id", "_id", "chunk", "chunk_index", "chunk_id"}  # of the piece, as scores are
    common = {
        name: item for name, item in metadata.items() if name not in own and not isinstance(item, float)
    }
    return repr(sorted(plain(common).items(), key=str))
