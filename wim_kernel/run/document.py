"""A document made ready for an engine: its chunks, their tokens, and the passages in which evidence is looked for."""

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
        chunks: its chunks, in order.
        tokens: their token ids, behind the head's.
        passages: runs of their sentences.
        separator: what stands between chunks that are not one run of one source.
    """

    chunks: tuple[Chunk, ...]
    tokens: TokenizedDocument
    passages: DocumentPassages
    separator: str

    @classmethod
    def encode(
        cls, engine: AnyEngine, head: tuple[int, ...], chunks: Sequence[Chunk], separator: str
    ) -> EncodedDocument:
        """Tokenise chunks, with the separator in front of each that does not go on in the text before it."""
        between, ids, starts = engine.encode(Text(separator, trusted=True)), [], []
        previous: Chunk | None = None
        for chunk in chunks:
            apart = previous is not None and chunk.text and not contiguous(previous, chunk)
            # where tokens begin in the text is of use only with an engine that shows the model's attention
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
            _ = passages.index  # every question will ask for it
        return cls(tuple(chunks), TokenizedDocument(head, tuple(ids)), passages, separator)
