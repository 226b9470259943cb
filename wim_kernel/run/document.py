"""A document prepared for an engine: its chunks, their token ids, and the passages that are searched for evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wim_kernel.common.chunk import Chunk
from wim_kernel.engines.base import AnyEngine
from wim_kernel.engines.document import TokenizedDocument
from wim_kernel.run.relevance.passages import DocumentPassages
from wim_kernel.text.chunks import contiguous
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
