"""Nodes as a reading, and margins as data that says which characters of which nodes they are about."""

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

    Of each node is read what LlamaIndex would show a model: its text and such metadata as is not excluded. Metadata
    that a neighbour from the same document has too is read once, and so is text that they share.

    Args:
        kernel: reads.
        nodes: what to read.
        order: as given, or by document and position in it.
        chunk_tokens: longest chunk; longer nodes are split at sentence ends. By default the kernel's own.
        join_small: small neighbours of one document share a chunk.

    Raises:
        EmptyDocumentError: if no node holds text.
        ContextOverflowError: when asked, if the question leaves no room for them in the model's window.
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
        self.nodes = [self.given[place] for place in self._order]
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
        """Which nodes a margin is about, by their places in ``nodes``: those of its sentences, or of its chunk."""
        return (
            _places(margin.chunk)
            if not margin.spans
            else sorted({int(span.source_id) for span in margin.spans})
        )

    def margin_data(self, margin: Margin) -> dict[str, Any]:
        """A margin as plain data.

        Returns:
            ``index``, ``text``, ``relevance``, ``kept`` and ``note`` of the margin; ``evidence``, what its relevance
            is made of, by signal; ``node_ids`` and ``ref_doc_ids`` of the nodes it is about; ``spans``, what its chunk
            holds of each node, and ``quotes``, each sentence of a verbatim margin: with ``node_id``, ``start`` and
            ``end`` in the node's text, and ``start_char_idx`` and ``end_char_idx`` in the node's document (None where
            that is not known).
        """
        nodes = [self.nodes[place] for place in self.nodes_of(margin)]
        return {
            "index": margin.index,
            "text": margin.text,
            "relevance": margin.relevance,
            "kept": margin.kept,
            "evidence": dict(margin.evidence),
            "note": margin.note,
            "node_ids": [node.node_id for node in nodes],
            "ref_doc_ids": list(dict.fromkeys(node.ref_doc_id for node in nodes if node.ref_doc_id)),
            "spans": [self._place(span) for span in margin.chunk.spans if span.length],
            "quotes": [self._place(span) for span in margin.spans],
        }

    def result_data(self, result: WimResult) -> dict[str, Any]:
        """What a response's metadata says of a result: ``margins``, ``usage``, ``timings`` and ``stopped_early``."""
        return {
            "margins": [self.margin_data(margin) for margin in result.margins],
            "usage": asdict(result.usage),
            "timings": asdict(result.timings),
            "stopped_early": result.stopped_early,
        }

    def relevance_of_nodes(self, margins: Sequence[Margin]) -> list[float | None]:
        """The highest relevance of each node's chunks, in the order in which the nodes were given.

        None for nodes that were not read. By place and not by id: two nodes may have the same.
        """
        found: list[float | None] = [None] * len(self.nodes)
        for margin in margins:
            for place in (int(span.source_id) for span in margin.chunk.spans if span.length):
                given = self._order[place]
                found[given] = max(found[given] or 0.0, margin.relevance)
        return found

    def _place(self, span: Span) -> dict[str, Any]:
        node = self.nodes[int(span.source_id)]
        begin = _begin(node)
        known = begin is not None and span.start is not None and span.end is not None
        return {
            "node_id": node.node_id,
            "start": span.start,
            "end": span.end,
            "start_char_idx": begin + span.start if known else None,  # type: ignore[operator]
            "end_char_idx": begin + span.end if known else None,  # type: ignore[operator]
        }

    def _chunks(self) -> list[Chunk]:
        """Each node as a chunk whose span's source is the node's place in ``nodes``."""
        parts = [_parts(node) for node in self.nodes]
        kept = drop_overlaps(
            Chunk.of(part.content, _document(place, node), part.origin)
            for place, (node, part) in enumerate(zip(self.nodes, parts, strict=True))
        )
        chunks: list[Chunk] = []
        last: int | None = None  # the last node that added text
        for place, (rest, part) in enumerate(zip(kept, parts, strict=True)):
            before, after = part.before, part.after
            dropped = part.lead + len(part.content) - len(rest.text)
            if not rest.text:
                chunks.append(Chunk("", (Span(str(place), dropped, dropped, 0, 0),), {"nodes": [place]}))
                continue
            follows = False
            if last is not None and self._same_document(last, place):
                if (before, after) == (parts[last].before, parts[last].after):
                    before = after = ""  # said of the neighbour already
                follows = not before and not parts[last].after and contiguous(kept[last], rest)
            end = part.lead + len(part.content)
            span = Span(str(place), dropped, end, len(before), len(rest.text))
            chunks.append(Chunk(before + rest.text + after, (span,), {"nodes": [place]}, continues=follows))
            last = place
        return chunks

    def _same_document(self, place: int, other: int) -> bool:
        return _document(place, self.nodes[place]) == _document(other, self.nodes[other])

    def _document_of(self, chunk: Chunk) -> str:
        place = _places(chunk)[0]
        return _document(place, self.nodes[place])


def scored_nodes(
    source: NodeReading | None, margins: Sequence[Margin], nodes: Sequence[NodeWithScore]
) -> list[NodeWithScore]:
    """Nodes with their relevance as score, those that were not read with their own.

    Args:
        source: the reading; None if nothing was read.
        margins: what was written on it.
        nodes: those that were read, in the order given, and behind them any others.
    """
    relevance = [] if source is None else source.relevance_of_nodes(margins)
    relevance += [None] * (len(nodes) - len(relevance))
    return [
        NodeWithScore(node=item.node, score=item.score if score is None else score)
        for item, score in zip(nodes, relevance, strict=True)
    ]


def check_reading_options(order: str, chunk_tokens: int | None) -> None:
    """See that options make sense.

    Raises:
        ValueError: if they do not.
    """
    if order not in get_args(Order):
        raise ValueError(f"order is one of {get_args(Order)}, not {order!r}.")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is at least 1, not {chunk_tokens}.")


def in_document_order(nodes: Sequence[BaseNode]) -> list[BaseNode]:
    """Nodes by document, documents in the order they first come in, and by position; unknown positions stay put."""
    return [nodes[place] for place in _document_order(nodes)]


def _document_order(nodes: Sequence[BaseNode]) -> list[int]:
    first: dict[str, int] = {}
    keys = []
    for place, node in enumerate(nodes):
        document = first.setdefault(_document(place, node), place)
        begin = getattr(node, "start_char_idx", None)
        keys.append((document, begin is None, begin or 0, place))
    return [key[-1] for key in sorted(keys)]


def _as_nodes(nodes: Iterable[BaseNode | NodeWithScore]) -> list[BaseNode]:
    """Nodes, out of what holds them.

    Raises:
        TypeError: for anything else.
    """
    found = [item.node if isinstance(item, NodeWithScore) else item for item in nodes]
    for place, item in enumerate(found):
        if not isinstance(item, BaseNode):
            raise TypeError(f"Nodes are BaseNodes; the one at position {place} is a {type(item).__name__}.")
    return found


def _document(place: int, node: BaseNode) -> str:
    """What nodes of one document have in common; a node of none is a document of its own."""
    return f"document {node.ref_doc_id}" if node.ref_doc_id else f"node {place}"


@dataclass(frozen=True)
class _Parts:
    """What is read of a node: its own text without white space around it, between what else is shown of it.

    ``lead`` is where that text begins in the node's, ``origin`` where it begins in the node's document, if that is
    known.
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
    begin = _begin(node)
    after = text[start + len(content) :]
    if text[:start].strip() or after.strip():
        return _Parts(text[:start], content, after, lead, None if begin is None else begin + lead)
    return _Parts("", whole, "", 0, begin)


def _begin(node: BaseNode) -> int | None:
    """Where a node's text begins in its document; None where that is not known, or the node holds another text now."""
    begin, end = getattr(node, "start_char_idx", None), getattr(node, "end_char_idx", None)
    if begin is None or (end is not None and end - begin != len(node.get_content(MetadataMode.NONE))):
        return None
    return int(begin)


def _places(chunk: Chunk) -> list[int]:
    joined: Sequence[Mapping[str, Any]] = chunk.metadata.get("joined") or [chunk.metadata]
    return [place for item in joined for place in item["nodes"]]
