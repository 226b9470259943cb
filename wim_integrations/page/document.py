"""The document on the page: its text by chunks, with what margins and citations quote marked."""

from __future__ import annotations

from collections.abc import Sequence

from nicegui import ui

from wim_integrations.page.elements import Tag, markup
from wim_integrations.page.markup import chunk_html, chunk_name, named_ranges
from wim_integrations.page.turn import Range, Turn
from wim_kernel import Chunk


class DocumentPane:
    """A region to scroll, with one section a chunk."""

    def __init__(self) -> None:
        self.pane = Tag(
            "div", classes="wim-document", role="region", tabindex="0", aria_label="The document's text"
        )
        self._chunks: Sequence[Chunk] = ()
        self._texts: list[ui.html] = []

    def fill(self, chunks: Sequence[Chunk]) -> None:
        """Show a document, each source under its name."""
        self._chunks, self._texts = chunks, []
        self.pane.clear()
        source = None
        with self.pane:
            for index, chunk in enumerate(chunks):
                first = chunk.source_ids[0] if chunk.source_ids else None
                if first != source and first is not None:
                    source = first
                    Tag("h3", source)
                label = f"Chunk {index + 1}"
                with Tag(
                    "section", classes="wim-chunk", id=chunk_name(index), tabindex="-1", aria_label=label
                ):
                    self._texts.append(markup(chunk_html(chunk.text, {}), classes="wim-text"))

    def mark(self, turn: Turn | None) -> None:
        """Mark what the kept margins quote and what the answer cites."""
        for index in range(len(self._texts)):
            self.mark_chunk(turn, index)

    def mark_chunk(self, turn: Turn | None, index: int) -> None:
        """Mark the passages of one chunk."""
        text = self._chunks[index].text
        self._texts[index].content = chunk_html(text, named_ranges(index, _ranges(turn, index)))


def _ranges(turn: Turn | None, index: int) -> list[Range]:
    if turn is None or index not in turn.written:
        return []
    ranges = turn.quoted(index) if turn.margin(index).is_used else []
    return ranges + [
        (citation.chunk_start, citation.chunk_start + len(citation.quote))
        for citation in turn.citations()
        if citation.margin == index and citation.chunk_start is not None
    ]
