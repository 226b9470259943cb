"""The documents of the page: files to open, text to paste, and a list of what is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from nicegui import events, ui

from wim_integrations.page.elements import Tag, button
from wim_kernel import Chunk
from wim_kernel.common.concurrency import in_thread
from wim_kernel.text.files import FileError, read_bytes

MOST_BYTES = 64 * 2**20
"""Bytes of a file, at most."""

# Pasted text goes the way of files, so that nothing but their size limits it.
_PASTE = """(event) => {{
  event.preventDefault();
  const box = event.target.elements.pasted;
  if (!box.value.trim()) return box.focus();
  const file = new File([box.value], 'Pasted text.txt', {{type: 'text/plain'}});
  getElement({upload}).$refs.qRef.addFiles([file]);
  event.target.reset();
  event.target.closest('details').open = false;
}}"""


class Library:
    """What a person opened.

    Args:
        changed: called with all documents, in order, when some were added or removed.
        failed: called with an error's message.
    """

    def __init__(self, changed: Callable[[Sequence[Chunk]], None], failed: Callable[[str], None]) -> None:
        self._changed = changed
        self._failed = failed
        self._sources: list[Chunk] = []
        self.upload = ui.upload(
            multiple=True,
            auto_upload=True,
            max_file_size=MOST_BYTES,
            on_multi_upload=self._opened,
            on_rejected=lambda: failed(f"A file is larger than {MOST_BYTES // 2**20} MB."),
        )
        self.upload.classes("wim-upload")
        with Tag("div", classes="wim-row"):
            opener = Tag("button", type="button", classes="wim-button")
            with opener:
                ui.icon("upload_file")
                Tag("span", "Open files")
            opener.on("click", js_handler=f"() => getElement({self.upload.id}).$refs.qRef.pickFiles()")
            with Tag("details", classes="wim-paste"):
                Tag("summary", "Paste text")
                form = Tag("form")
                form.on("submit", js_handler=_PASTE.format(upload=self.upload.id))
                with form:
                    Tag("textarea", name="pasted", rows="6", aria_label="Text to read")
                    Tag("button", "Add this text", type="submit", classes="wim-button")
        self.list = Tag("ul", classes="wim-sources", aria_label="Documents")

    def show(self, sources: Sequence[Chunk]) -> None:
        """List the documents; chunks of one source are one document."""
        self._sources = list(sources)
        lengths: Counter[str] = Counter()
        for source in self._sources:
            lengths[_name(source)] += len(source.text)
        self.list.clear()
        with self.list:
            for name, length in lengths.items():
                with Tag("li"):
                    Tag("span", f"{name}, {length:,} characters")
                    button("Remove", partial(self._remove, name), aria_label=f"Remove {name}")

    def _remove(self, name: str) -> None:
        self._changed([source for source in self._sources if _name(source) != name])

    async def _opened(self, event: events.MultiUploadEventArguments) -> None:
        self.upload.reset()
        found: list[Chunk] = []
        for file in event.files:
            try:
                chunk = await in_thread(read_bytes, file.name, await file.read())
            except FileError as error:
                self._failed(str(error))
                continue
            taken = {_name(source) for source in (*self._sources, *found)}
            found.append(_renamed(chunk, taken))
        if found:
            self._changed([*self._sources, *found])


def _name(source: Chunk) -> str:
    return ", ".join(source.source_ids) or "document"


def _renamed(chunk: Chunk, taken: set[str]) -> Chunk:
    """A chunk whose source has a name of its own."""
    name = first = _name(chunk)
    number = 2
    while name in taken:
        name, number = f"{first} ({number})", number + 1
    return replace(chunk, spans=tuple(replace(span, source_id=name) for span in chunk.spans))
