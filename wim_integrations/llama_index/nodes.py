"""LlamaIndex nodes as a reading, and margins as plain data with their index in the nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Literal, get_args

from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore

from wim_kernel import Chunk, Margin, Reading, Span, WimKernel, WimResult
from wim_kernel.text.chunks import contiguous, drop_overlaps, join_adjacent

Order = Literal["given", "document"]


class NodeReading:
    """A reading of nodes.

    The model reads of each node what LlamaIndex would show it: the text and the metadata that is not excluded.
    Metadata and overlapping text that adjacent nodes of one document share are read once.

    Args:
        kernel: the kernel.
        nodes: the nodes.
        order: ``"given"``, or ``"document"`` to sort nodes by document and position.
        chunk_tokens: most tokens of a chunk; longer nodes are split at sentence ends. By default the kernel's.
        join_small: whether small adjacent nodes of one document share a chunk.

    Raises:
        EmptyDocumentError: if no node has text.
        ContextOverflowError: at a question that leaves no room for the nodes in the model's window.
    """

    def __init__(
        self,
        kernel: WimKernel,
        nodes: Sequence[BaseNode],
        *,
        order: Order = "given",
        chunk_tokens: int | None = None,
        join_small: bool = False,
    ) -> None:
        check_reading_options(order, chunk_tokens)
        self.given = _as_nodes(nodes)
        self._order = list(range(len(self.given))) if order == "given" else _document_order(self.given)
        self.nodes = [self.given[index] for index in self._order]
        longest = chunk_tokens or kernel.chunk_tokens
        chunks = self._chunks()
        if join_small:
            chunks = [
                joined
                for _, group in groupby(chunks, key=self._document_of)
                for joined in join_adjacent(list(group), longest, kernel.count_tokens, kernel.frame.separator)
            ]
        self.reading: Reading = kernel.read(chunks, chunk_tokens=longest)

    def nodes_of(self, margin: Margin) -> list[int]:
        """The indexes in ``nodes`` of the nodes that a margin is about: those of its sentences, or of its chunk."""
        return (
            _node_indexes(margin.chunk)
            if not margin.spans
            else sorted({int(span.source_id) for span in margin.spans})
        )

    def margin_data(self, margin: Margin) -> dict[str, Any]:
        """A margin as plain data.

        Returns:
            ``index``, ``text``, ``relevance``, ``kept`` and ``note`` of the margin; ``evidence``, the signals of its
            relevance by name; ``node_ids`` and ``ref_doc_ids`` of the nodes it is about; ``spans``, the part of each
            node in its chunk, and ``quotes``, each sentence of a verbatim margin: with ``node_id``, ``start`` and
            ``end`` in the node's text, and ``start_char_idx`` and ``end_char_idx`` in the node's document (None if not
            known).
        """
        nodes = [self.nodes[index] for index in self.nodes_of(margin)]
        return {
            "index": margin.index,
            "text": margin.text,
            "relevance": margin.relevance,
            "kept": margin.kept,
            "evidence": dict(margin.evidence),
            "note": margin.note,
            "node_ids": [node.node_id for node in nodes],
            "ref_doc_ids": list(dict.fromkeys(node.ref_doc_id for node in nodes if node.ref_doc_id)),
            "spans": [self.location(span) for span in margin.chunk.spans if span.length],
            "quotes": [self.location(span) for span in margin.spans],
        }

    def result_data(self, result: WimResult) -> dict[str, Any]:
        """A result as a response's metadata: ``margins``, ``usage``, ``timings`` and ``stopped_early``."""
        return {
            "margins": [self.margin_data(margin) for margin in result.margins],
            "usage": asdict(result.usage),
            "timings": asdict(result.timings),
            "stopped_early": result.stopped_early,
        }

    def relevance_of_nodes(self, margins: Sequence[Margin]) -> list[float | None]:
        """The highest relevance of each node's chunks, in the order in which the nodes were given.

        None for nodes that were not read. Nodes are compared by index, since two nodes may have the same id.
        """
        found: list[float | None] = [None] * len(self.nodes)
        for margin in margins:
            for index in (int(span.source_id) for span in margin.chunk.spans if span.length):
                given = self._order[index]
                found[given] = max(found[given] or 0.0, margin.relevance)
        return found

    def location(self, span: Span) -> dict[str, Any]:
        """A span as plain data: its node, its characters in the node's text, and those in the node's document."""
        node = self.nodes[int(span.source_id)]
        begin = _offset_in_document(node)
        known = begin is not None and span.start is not None and span.end is not None
        return {
            "node_id": node.node_id,
            "start": span.start,
            "end": span.end,
            "start_char_idx": begin + span.start if known else None,  # type: ignore[operator]
            "end_char_idx": begin + span.end if known else None,  # type: ignore[operator]
        }

    def _chunks(self) -> list[Chunk]:
        """Each node as a chunk, whose span has the node's index in ``nodes`` as its source."""
        parts = [_parts(node) for node in self.nodes]
        kept = drop_overlaps(
            Chunk.of(part.content, _document(index, node), part.origin)
            for index, (node, part) in enumerate(zip(self.nodes, parts, strict=True))
        )
        chunks: list[Chunk] = []
        last: int | None = None  # the last node that added text
        for index, (rest, part) in enumerate(zip(kept, parts, strict=True)):
            before, after = part.before, part.after
            dropped = part.lead + len(part.content) - len(rest.text)
            if not rest.text:
                chunks.append(Chunk("", (Span(str(index), dropped, dropped, 0, 0),), {"nodes": [index]}))
                continue
            follows = False
            if last is not None and self._same_document(last, index):
                if (before, after) == (parts[last].before, parts[last].after):
                    before = after = ""  # the adjacent node has shown the same metadata
                follows = not before and not parts[last].after and contiguous(kept[last], rest)
            end = part.lead + len(part.content)
            span = Span(str(index), dropped, end, len(before), len(rest.text))
            chunks.append(Chunk(before + rest.text + after, (span,), {"nodes": [index]}, continues=follows))
            last = index
        return chunks

    def _same_document(self, index: int, other: int) -> bool:
        return _document(index, self.nodes[index]) == _document(other, self.nodes[other])

    def _document_of(self, chunk: Chunk) -> str:
        index = _node_indexes(chunk)[0]
        return _document(index, self.nodes[index])


def scored_nodes(
    source: NodeReading | None, margins: Sequence[Margin], nodes: Sequence[NodeWithScore]
) -> list[NodeWithScore]:
    """Nodes with their relevance as score; nodes that were not read keep their own score.

    Args:
        source: the reading; None if nothing was read.
        margins: the margins written on the reading.
        nodes: the nodes that were read, in the order given, then any others.
    """
    relevance = [] if source is None else source.relevance_of_nodes(margins)
    relevance += [None] * (len(nodes) - len(relevance))
    return [
        NodeWithScore(node=item.node, score=item.score if score is None else score)
        for item, score in zip(nodes, relevance, strict=True)
    ]


def check_reading_options(order: str, chunk_tokens: int | None) -> None:
    """Check the options of a reading.

    Raises:
        ValueError: for an unknown order, or ``chunk_tokens`` below 1.
    """
    if order not in get_args(Order):
        raise ValueError(f"order is one of {get_args(Order)}, not {order!r}.")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is at least 1, not {chunk_tokens}.")


def _document_order(nodes: Sequence[BaseNode]) -> list[int]:
    """Indexes of nodes by document, in order of first appearance, then by position; unknown positions come last."""
    first: dict[str, int] = {}
    keys = []
    for index, node in enumerate(nodes):
        document = first.setdefault(_document(index, node), index)
        begin = getattr(node, "start_char_idx", None)
        keys.append((document, begin is None, begin or 0, index))
    return [key[-1] for key in sorted(keys)]


def _as_nodes(nodes: Iterable[BaseNode | NodeWithScore]) -> list[BaseNode]:
    """Nodes, taken out of nodes with scores.

    Raises:
        TypeError: for an item that is no node.
    """
    found = [item.node if isinstance(item, NodeWithScore) else item for item in nodes]
    for index, item in enumerate(found):
        if not isinstance(item, BaseNode):
            raise TypeError(f"Nodes are BaseNodes; the one at position {index} is a {type(item).__name__}.")
    return found


def _document(index: int, node: BaseNode) -> str:
    """A key of a node's document; a node without a document is a document of its own."""
    return f"document {node.ref_doc_id}" if node.ref_doc_id else f"node {index}"


@dataclass(frozen=True)
class _Parts:
    """The text that a model reads of a node.

    Attributes:
        before: metadata before the node's own text.
        content: the node's own text, without white space around it.
        after: metadata behind the node's own text.
        lead: the offset of ``content`` in the node's own text.
        origin: the offset of ``content`` in the node's document; None if not known.
    """

    before: str
    content: str
    after: str
    lead: int
    origin: int | None


def _parts(node: BaseNode) -> _Parts:
    text, whole = node.get_content(MetadataMode.LLM), node.get_content(MetadataMode.NONE)
    content = whole.strip()
    lead, start = len(whole) - len(whole.lstrip()), text.rfind(content)
    if not content or start < 0:
        return _Parts("", text, "", 0, None)
    begin = _offset_in_document(node)
    after = text[start + len(content) :]
    if text[:start].strip() or after.strip():
        return _Parts(text[:start], content, after, lead, None if begin is None else begin + lead)
    return _Parts("", whole, "", 0, begin)


def _offset_in_document(node: BaseNode) -> int | None:
    """The offset of a node's text in its document; None if not known, or if the node's text was changed."""
    begin, end = getattr(node, "start_char_idx", None), getattr(node, "end_char_idx", None)
    if begin is None or (end is not None and end - begin != len(node.get_content(MetadataMode.NONE))):
        return None
    return int(begin)


def _node_indexes(chunk: Chunk) -> list[int]:
    joined: Sequence[Mapping[str, Any]] = chunk.metadata.get("joined") or [chunk.metadata]
    return [index for item in joined for index in item["nodes"]]
