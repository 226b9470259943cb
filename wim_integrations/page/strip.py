"""The strip: one cell a chunk, which fills as the chunk is read and takes the colour of its relevance."""

from __future__ import annotations

from wim_integrations.page.elements import Tag
from wim_integrations.page.markup import chunk_name
from wim_kernel import ChunkRead, Margin


class Strip:
    """A progress bar for the eyes and the keyboard: every cell is a button that leads to its chunk."""

    def __init__(self) -> None:
        self.bar = Tag("div", classes="wim-strip", role="group", aria_label="Chunks of the document")
        self.cells: list[Tag] = []

    def fill(self, chunks: int) -> None:
        """Make the cells of a document that nobody has asked about yet."""
        self.bar.clear()
        self.cells = []
        with self.bar:
            for index in range(chunks):
                cell = Tag(
                    "button",
                    type="button",
                    classes="wim-cell",
                    tabindex="0" if index == 0 else "-1",
                    data_show=chunk_name(index),
                    data_state="unread",
                )
                self.cells.append(cell)
                self._say(index, "not read")

    def read(self, event: ChunkRead) -> None:
        """Fill a chunk's cell."""
        if event.index < len(self.cells):
            self.cells[event.index].set(data_state="read", data_cached=event.cached or None)
            self._say(event.index, "read before" if event.cached else "read")

    def score(self, margin: Margin) -> None:
        """Colour a chunk's cell by its margin's relevance."""
        cell = self.cells[margin.index]
        cell.set(data_state="scored", data_kept=margin.is_used or None)
        cell.style(f"--relevance: {margin.relevance:.3f}")
        kept = ", margin kept" if margin.is_used else ""
        self._say(margin.index, f"relevance {margin.relevance:.2f}{kept}")

    def _say(self, index: int, state: str) -> None:
        words = f"Chunk {index + 1}: {state}"
        self.cells[index].set(aria_label=words, title=words)
