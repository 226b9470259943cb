"""An answer's citations as LlamaIndex's citation blocks."""

from __future__ import annotations

from llama_index.core.base.llms.types import CitationBlock, TextBlock

from wim_integrations.llama_index.nodes import NodeReading
from wim_kernel import Citation, WimResult


def citation_blocks(result: WimResult, source: NodeReading) -> list[CitationBlock]:
    """The citations of a result, in the answer's order.

    ``cited_content`` is the quote, ``source`` the node's id, and ``title`` the title or the file's name in the node's
    metadata, or that id. ``additional_location_info`` has whole numbers, and only those that are known:
    ``answer_start`` and ``answer_end``, the marker's characters in the answer; ``number``, the margin's number there;
    ``margin``, its index; ``start`` and ``end``, the quote's characters in the node's text; ``start_char_idx`` and
    ``end_char_idx``, those in its document; ``page``; and ``exact``, which is 1 if the text has the quote word for
    word. A quote that was not located has no ``start``.
    """
    return [_block(citation, source) for citation in result.citations]


def _block(citation: Citation, source: NodeReading) -> CitationBlock:
    numbers: dict[str, int | None] = {
        "answer_start": citation.start,
        "answer_end": citation.end,
        "number": citation.number,
        "margin": citation.margin,
        "exact": int(citation.located == "exact"),
    }
    node_id, title = "", ""
    if citation.document is not None:
        node = source.nodes[int(citation.document)]
        metadata = node.metadata
        node_id = node.node_id
        title = str(metadata.get("title") or metadata.get("file_name") or node_id)
        page = str(metadata.get("page_label", ""))
        numbers["page"] = int(page) if page.isdecimal() else citation.page
    if citation.chunk_start is not None:
        stop = citation.chunk_start + len(citation.quote)
        own = [
            span
            for span in source.reading.chunks[citation.margin].locate(citation.chunk_start, stop)
            if span.source_id == citation.document
        ]
        if own:
            first, last = source.location(own[0]), source.location(own[-1])
            numbers |= {name: first[name] for name in ("start", "start_char_idx")}
            numbers |= {name: last[name] for name in ("end", "end_char_idx")}
    return CitationBlock(
        cited_content=TextBlock(text=citation.quote),
        source=node_id,
        title=title,
        additional_location_info={name: item for name, item in numbers.items() if item is not None},
    )
