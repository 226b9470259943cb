"""The page of one person: a session, and the elements that show it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nicegui import ui

from wim_integrations.page.answer import AnswerPane, Earlier
from wim_integrations.page.cards import Cards
from wim_integrations.page.document import DocumentPane
from wim_integrations.page.elements import Tag, button
from wim_integrations.page.library import Library
from wim_integrations.page.session import Change, Session
from wim_integrations.page.strip import Strip
from wim_kernel import Answered, AnswerToken, Chunk, ChunkRead, MarginRevised, Options, Reading, WimKernel

_HERE = Path(__file__).parent
_ASK = """(event) => {
  event.preventDefault();
  emit(event.target.elements.question.value);
}"""
_WORDS = {
    "loading": "Opening the documents.",
    "reading": "Reading, and writing margins.",
    "answering": "Writing the answer.",
}


class PageView:
    """Everything on one person's page.

    Args:
        kernel: the kernel that all pages share.
        options: options of every question.
    """

    def __init__(self, kernel: WimKernel, options: Options) -> None:
        self.session = Session(kernel, options, self._show, self._fail)
        ui.add_css(_HERE / "page.css")
        ui.add_body_html(f"<script>{(_HERE / 'page.js').read_text(encoding='utf-8')}</script>")
        with Tag("header", classes="wim-header"):
            Tag("h1", "Writing in the Margins")
        with Tag("div", classes="wim-main"):  # within NiceGUI's own <main>
            with Tag("div", classes="wim-left"):
                self._build_question()
                self.answer = AnswerPane(self.session.answer_again)
                with Tag("section", aria_label="Margins") as self.margins:
                    self.margins_title = Tag("h2", "Margins")
                    self.cards = Cards(
                        lambda index, kept: self.session.judge(index, kept=kept), self.session.edit
                    )
                self.earlier = Earlier()
            with Tag("section", classes="wim-right", aria_label="Documents and their text"):
                Tag("h2", "Documents")
                self.library = Library(self.session.open, self._fail)
                self.document = DocumentPane()
        Tag("button", "Back to the answer", type="button", id="wim-back", classes="wim-button", hidden=True)
        self._show("phase")

    def _build_question(self) -> None:
        form = Tag("form", classes="wim-ask", aria_label="Question")
        form.on("submit", lambda event: self._ask(str(event.args)), js_handler=_ASK)
        with form:
            Tag("label", "Your question", _for="question")
            with Tag("div", classes="wim-row"):
                self.question = Tag("input", id="question", name="question", type="text", autocomplete="off")
                self.ask = Tag("button", "Ask", type="submit", classes="wim-button wim-primary")
        self.strip = Strip()
        with Tag("div", classes="wim-row"):
            self.status = Tag("p", role="status", classes="wim-status")
            self.now = button("Answer now", self.session.answer_now, icon="bolt")
            self.stop = button("Stop", self.session.stop, icon="stop")
        self.error = Tag("p", role="alert", classes="wim-error")

    def start(self, sources: Sequence[Chunk], reading: Reading | None) -> None:
        """Show the documents that the page starts with."""
        self.session.open(sources, reading)

    # -- what changes -------------------------------------------------------------------------------------------------

    def _ask(self, question: str) -> None:
        self.error.text = ""
        self.session.ask(question)

    def _fail(self, message: str) -> None:
        self.error.text = message

    def _show(self, change: Change) -> None:
        turn = self.session.turn
        match change:
            case "documents":
                self._show_documents()
            case "turn":
                self._show_turn()
            case ChunkRead() if self.session.phase == "reading":
                self.strip.read(change)
            case MarginRevised(margin=margin) if turn is not None:
                self.strip.score(margin)
                self.cards.show(margin, turn.quoted(margin.index))
                self.document.mark_chunk(turn, margin.index)
            case Answered():
                self.document.mark(turn)
            case _:
                pass
        if isinstance(change, AnswerToken | Answered | MarginRevised) or change in (
            "answer",
            "turn",
            "phase",
        ):
            self.cards.cite(turn.sources if turn is not None else ())
            self.answer.show(turn, busy=self.session.phase != "idle")
        self._show_phase()

    def _show_documents(self) -> None:
        reading, sources = self.session.reading, self.session.sources
        chunks = reading.chunks if reading is not None and sources else ()
        self.library.show(sources)
        self.document.fill(chunks)
        self._show_turn()

    def _show_turn(self) -> None:
        """Show a question that nothing is known of yet."""
        reading = self.session.reading
        self.strip.fill(len(reading.chunks) if reading is not None and self.session.sources else 0)
        self.cards.clear()
        self.document.mark(self.session.turn)
        self.earlier.show(self.session.earlier)

    def _show_phase(self) -> None:
        session = self.session
        phase = session.phase
        busy = session.phase != "idle"
        self.status.text = _WORDS.get(phase, self._rest())
        self.ask.set(disabled=True if busy or session.reading is None else None)
        self.now.show(phase == "reading")
        self.stop.show(busy)
        self.margins.show(self.cards.count > 0)

    def _rest(self) -> str:
        """The status while nothing goes on."""
        session = self.session
        if session.reading is None or not session.sources:
            return "Open a file or paste a text to begin."
        if session.turn is None:
            count = len(session.reading.chunks)
            chunks = "1 chunk" if count == 1 else f"{count:,} chunks"
            return f"{session.reading.tokens:,} tokens in {chunks}. Ask a question."
        if session.turn.result is None:
            return "Stopped."
        if session.turn.result.stopped_early:
            behind, whole = session.turn.chunks_before_answer, len(session.reading.chunks)
            return f"Answered from the first {behind} of {whole} chunks."
        return "Answered."
