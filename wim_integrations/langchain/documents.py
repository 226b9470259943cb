"""LangChain documents as a reading, and margins as plain data with their place in the documents."""

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


# No validation of the type: a parametrised generic, which Pydantic would check against, has no instances.
DocumentPrompt = Annotated[
    BasePromptTemplate[Any] | None, SkipValidation(), BeforeValidator(_prompt_template)
]

_CONTENT = "\ue000page content\ue001"  # a placeholder for the page content in a formatted prompt


@dataclass(frozen=True)
class _Formatted:
    """A formatted document: ``text`` has the page content at ``offset`` (None if the prompt changes the content)."""

    text: str
    offset: int | None


class DocumentReading:
    """A reading of LangChain documents.

    Args:
        kernel: the kernel.
        documents: the documents, in order; strings are documents without metadata.
        document_prompt: the template of each document's text; by default its page content.
        separator: the text between documents; by default the kernel's separator.
        chunk_tokens: most tokens of a chunk; longer documents are split at sentence ends. By default the kernel's.

    Raises:
        EmptyDocumentError: if no document has text.
        ContextOverflowError: at a question that leaves no room for the documents in the model's window.
        ValueError: if the prompt has a variable for metadata that a document lacks.
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
        """The index of the document that a margin is about."""
        position: int = self.reading.chunks[margin.index].metadata["document"]
        return position

    def margin_data(self, margin: Margin) -> MarginData:
        """A margin as plain JSON data.

        Returns:
            ``index``, ``text``, ``relevance``, ``kept`` and ``note`` of the margin; ``evidence``, the signals of its
            relevance by name; ``document``, the index of its document, and that document's ``metadata``; ``start`` and
            ``end``, the characters of the page content that the margin's chunk holds (None if the document prompt
            changes the content); ``quotes``, the characters of each sentence of a verbatim margin.
        """
        place = self._place(margin.index)
        quotes = [
            self.within(place["document"], margin.index, span.offset, span.offset + span.length)
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

    def margins(
        self, given: object, question: str = "", written: Sequence[Margin] | None = None
    ) -> list[Margin]:
        """Parse margins that `margin_data` wrote and a person may have changed; see `margins_in`.

        Args:
            given: the margins, or an approval of ``written``.
            question: the question that they were written for.
            written: the margins that the person was shown, if they are known.

        Raises:
            MarginsError: for an item that is no margin, or a margin written on other chunks.
        """
        return margins_in(
            given, self.reading.chunks, question=question, written=written, find_spans=self._checked_spans
        )

    def _checked_spans(self, index: int, data: Mapping[str, Any]) -> tuple[Span, ...]:
        place = self._place(index)
        if any(data.get(name, value) != value for name, value in place.items()):
            raise MarginsError(
                f"Margin {index} was written on other chunks: read the same documents with the same chunk_tokens."
            )
        return self._spans(index, data)

    def margin_document(self, margin: Margin) -> Document:
        """A margin as a document with its source's metadata, ``relevance_score``, and ``wim``, its place."""
        data = self.margin_data(margin)
        names = ("index", "evidence", "document", "start", "end", "quotes")
        place = {name: item for name, item in data.items() if name in names}
        metadata = self.documents[data["document"]].metadata
        return Document(
            page_content=margin.text, metadata={**metadata, "relevance_score": margin.relevance, "wim": place}
        )

    def _place(self, chunk: int) -> dict[str, Any]:
        """A chunk's document, and the characters of its page content that the chunk holds."""
        document = self.reading.chunks[chunk].metadata["document"]
        start, end = self.within(document, chunk, 0, len(self.reading.chunks[chunk].text))
        return {"document": document, "start": start, "end": end}

    def _spans(self, chunk: int, data: Mapping[str, Any]) -> tuple[Span, ...]:
        """The spans of a verbatim margin's sentences; none if the margin's text was changed."""
        document = self.reading.chunks[chunk].metadata["document"]
        content, offset = self.documents[document].page_content, self._formatted[document].offset
        try:
            quotes = [(int(quote["start"]), int(quote["end"])) for quote in data.get("quotes") or ()]
        except (KeyError, TypeError, ValueError) as error:
            if offset is None:  # the quotes were written without positions
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
        """The offset of each chunk in its document's formatted text, whose head is left out if it overlaps."""
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

    def within(self, document: int, chunk: int, start: int, end: int) -> tuple[int | None, int | None]:
        """Map characters ``start`` to ``end`` of a chunk to characters of the document's page content."""
        offset = self._formatted[document].offset
        if offset is None:
            return None, None
        length, shift = len(self.documents[document].page_content), self._starts[chunk] - offset
        return min(max(0, start + shift), length), min(max(0, end + shift), length)


def as_documents(documents: Documents) -> list[Document]:
    """Documents from any of the accepted forms.

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
    if isinstance(item, Mapping) and "page_content" in item:  # the form of JSON clients
        return Document(page_content=item["page_content"], metadata=item.get("metadata") or {})
    raise TypeError(
        f"Documents are Documents or strings; the one at index {index} is a {type(item).__name__}."
    )


def plain(value: Any) -> Any:
    """A value as plain JSON data; a value without a JSON form becomes its text."""
    if isinstance(value, dict):  # convert each entry alone, so that an unusual one does not affect the others
        return {str(name): _plain(item) for name, item in value.items()}
    return _plain(value)


def _plain(value: Any) -> Any:
    try:
        return _plain_inside(to_jsonable_python(value, fallback=str, bytes_mode="base64"))
    except (ValueError, RecursionError):  # a reference cycle, or a value without text
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
    if before + document.page_content + after != text:  # the template changes the content
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
    """The source of a document, the same for all parts of one text, so that their overlaps are read once."""
    metadata = document.metadata
    if metadata.get("source") is None:
        return f"at {index}"  # an id does not say that two documents are parts of one text
    # These differ between parts of one text, as scores do.
    own = {"start_index", "id", "_id", "chunk", "chunk_index", "chunk_id"}
    common = {
        name: item for name, item in metadata.items() if name not in own and not isinstance(item, float)
    }
    return repr(sorted(plain(common).items(), key=str))
