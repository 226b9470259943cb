"""A document prepared for an engine: its chunks, their token ids, and the passages that are searched for evidence."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wim_kernel.cache.disk import Saved
from wim_kernel.cache.volumes import SHARES, longest_chunk
from wim_kernel.common.chunk import Chunk
from wim_kernel.common.errors import ChunkError, ReadingFileError
from wim_kernel.engines.base import AnyEngine
from wim_kernel.engines.document import TokenizedDocument
from wim_kernel.run.relevance.passages import DocumentPassages
from wim_kernel.text.chunks import contiguous, split_chunk
from wim_kernel.text.run_text import Text


@dataclass(frozen=True)
class EncodedDocument:
    """A document as an engine reads it.

    Attributes:
        chunks: the chunks, in order.
        tokens: the token ids of the head and of each chunk.
        passages: the chunks' passages, which are runs of sentences.
        separator: the text between chunks that do not continue each other.
    """

    chunks: tuple[Chunk, ...]
    tokens: TokenizedDocument
    passages: DocumentPassages
    separator: str

    @classmethod
    def encode(
        cls, engine: AnyEngine, head: tuple[int, ...], chunks: Sequence[Chunk], separator: str
    ) -> EncodedDocument:
        """Tokenise chunks, with the separator before each chunk that does not continue the chunk before it."""
        between, ids, starts = engine.encode(Text(separator, trusted=True)), [], []
        previous: Chunk | None = None
        for chunk in chunks:
            apart = previous is not None and chunk.text and not contiguous(previous, chunk)
            # Token offsets are needed only to attribute attention to sentences.
            own, begins = (
                engine.encode_with_offsets(chunk.text)
                if engine.heads
                else (engine.encode(Text(chunk.text)), [])
            )
            ids.append((*(between if apart else ()), *own))
            starts.append(begins)
            previous = chunk if chunk.text else previous
        passages = DocumentPassages(chunks, list(map(len, ids)), starts)
        if engine.heads:
            _ = passages.index  # build it now: every question needs it
        return cls(tuple(chunks), TokenizedDocument(head, tuple(ids)), passages, separator)


def split_for_volumes(engine: AnyEngine, document: EncodedDocument) -> EncodedDocument:
    """Split the chunks of a document longer than the window so that each fits a volume."""
    window, tokens = engine.window, document.tokens
    if window is None or tokens.total <= window - window // SHARES[0]:
        return document
    longest = longest_chunk(window, len(tokens.head))
    if all(tokens.size(chunk) <= longest for chunk in range(len(tokens))):
        return document

    def count(text: str) -> int:
        return len(engine.encode(Text(text)))

    room = max(16, longest - count(document.separator) - 1)
    parts = (
        split_chunk(chunk, room, count) if tokens.size(index) > longest else [chunk]
        for index, chunk in enumerate(document.chunks)
    )
    chunks = list(itertools.chain.from_iterable(parts))
    return EncodedDocument.encode(engine, tokens.head, chunks, document.separator)


def saved_document(engine: AnyEngine, head: tuple[int, ...], path: Path, saved: Saved) -> EncodedDocument:
    """The document of a saved reading.

    Args:
        engine: the engine that will read it.
        head: token ids that precede every document.
        path: the file, for messages.
        saved: what the file holds.

    Raises:
        ReadingFileError: if it holds no document, or this engine makes other tokens of it.
    """
    if not saved.about:
        raise ReadingFileError(path, "it belongs to a cache and does not hold the document")
    try:
        chunks = [Chunk.from_dict(chunk) for chunk in saved.about["chunks"]]
        document = EncodedDocument.encode(engine, head, chunks, saved.about["separator"])
    except (KeyError, TypeError, AttributeError, ChunkError) as error:
        raise ReadingFileError(path, f"its document is not what `save` writes: {error!r}") from error
    shared = document.tokens.common_chunks(saved.document)
    if shared < 0:
        raise ReadingFileError(path, "its chat template or frame is another")
    if shared < len(saved.document):
        raise ReadingFileError(path, "its tokenizer is another")
    return document
