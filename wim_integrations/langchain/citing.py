"""An answer's citations in the shapes that LangChain and chat models' providers render."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.messages.content import Citation as Annotation

from wim_integrations.langchain.documents import DocumentReading, plain
from wim_kernel import Citation, WimResult


def citation_annotations(result: WimResult, source: DocumentReading) -> list[Annotation]:
    """The citations of a result as LangChain's annotations, in the answer's order.

    ``start_index`` and ``end_index`` are places in the *answer*, as LangChain has it. The source's are in ``extras``:
    ``document``, the index of the document; ``start`` and ``end``, the quote's characters in its page content (None if
    not known); ``page`` as its loader numbers it, and ``source``, if its metadata has them; ``number``, the margin's
    number in the answer's markers; ``margin``, its index; and ``located``. ``url`` is the metadata's source if that is
    an address.
    """
    return [_annotation(citation, source) for citation in result.citations]


def cited_message(output: Mapping[str, Any]) -> AIMessage:
    """The output of `WimRunnable` as a message, whose one text block has the citations as annotations.

    Example:
        >>> cited_message({"answer": "Elsa did.", "citations": []}).text
        'Elsa did.'
    """
    return AIMessage(content=content(str(output["answer"]), output.get("citations") or ()))


def content(text: str, citations: Iterable[Annotation] = ()) -> list[str | dict[Any, Any]]:
    """A message's content: one text block, which is the same block in every chunk of a stream."""
    block: dict[Any, Any] = {"type": "text", "text": text, "index": 0}
    found = list(citations)
    return [{**block, "annotations": found} if found else block]


def search_results(output: Mapping[str, Any], most_chars: int) -> list[str | dict[Any, Any]]:
    """The output of `WimRunnable` as a tool's content: the answer, then each kept margin as a search result.

    Anthropic's models cite ``search_result`` blocks natively; LangChain passes them through.

    Args:
        output: the output.
        most_chars: most characters of text in all; a margin that is too long is left out with all after it.
    """
    answer = str(output["answer"]).strip()[:most_chars]
    blocks: list[str | dict[Any, Any]] = [{"type": "text", "text": answer}] if answer else []
    left = most_chars - len(answer)
    for margin in output["margins"]:
        text = margin["text"].strip()
        if not margin["kept"] or not text:
            continue
        left -= len(text)
        if left < 0:
            break
        where = str(margin["metadata"].get("source") or f"document {margin['document']}")
        blocks.append(
            {
                "type": "search_result",
                "source": where,
                "title": str(margin["metadata"].get("title") or where),
                "content": [{"type": "text", "text": text}],
                "citations": {"enabled": True},
            }
        )
    return blocks


def _annotation(citation: Citation, source: DocumentReading) -> Annotation:
    document = source.reading.chunks[citation.margin].metadata["document"]
    metadata = plain(source.documents[document].metadata)
    start = end = None
    if citation.chunk_start is not None:
        stop = citation.chunk_start + len(citation.quote)
        start, end = source.within(document, citation.margin, citation.chunk_start, stop)
        if start == end:  # in words that the document prompt adds
            start = end = None
    extras = {
        "document": document,
        "start": start,
        "end": end,
        "number": citation.number,
        "margin": citation.margin,
        "located": citation.located,
    }
    page, where = metadata.get("page_label", metadata.get("page")), metadata.get("source")
    extras |= {name: item for name, item in (("page", page), ("source", where)) if item is not None}
    title = metadata.get("title") or where
    found = Annotation(
        type="citation",
        start_index=citation.start,
        end_index=citation.end,
        cited_text=citation.quote,
        extras=extras,
    )
    if title is not None:
        found["title"] = str(title)
    if isinstance(where, str) and "://" in where:
        found["url"] = where
    return found
