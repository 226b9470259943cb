"""Margins as cards: the note, its place, thumbs, and an edit box."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from wim_integrations.page.elements import Tag, button
from wim_integrations.page.markup import card_name, place_name
from wim_integrations.page.turn import Range
from wim_kernel import Margin
from wim_kernel.cli.format import place

Judge = Callable[[int, bool], None]
Edit = Callable[[int, str], None]

# Saving closes the edit box and leaves the focus where it was opened.
_SAVE = """(event) => {
  event.preventDefault();
  emit(event.target.elements.text.value);
  const box = event.target.closest('details');
  box.open = false;
  box.querySelector('summary').focus();
}"""


class Card:
    """One margin. Its two thumbs show whether it goes into the answer's prompt.

    Args:
        margin: the margin.
        quoted: the characters of its chunk that it quotes.
        judge: called with the chunk and whether to keep its margin.
        edit: called with the chunk and its margin's new text.
    """

    def __init__(self, margin: Margin, quoted: Sequence[Range], judge: Judge, edit: Edit) -> None:
        index, name = margin.index, card_name(margin.index)
        self.element = Tag(
            "article", classes="wim-card", id=name, tabindex="-1", aria_labelledby=f"{name}-title"
        )
        with self.element:
            with Tag("header"):
                Tag("h3", f"Margin {index + 1}", id=f"{name}-title")
                self.relevance = Tag("span", classes="wim-relevance")
                self.number = Tag("span", classes="wim-source", hidden=True)
                self.lost = Tag("span", "not found in the text", classes="wim-lost")
            self.place = Tag("a", classes="wim-place")
            self.text = Tag("p", classes="wim-words")
            with Tag("div", classes="wim-row"):
                self.up = button("Keep", lambda: judge(index, True), icon="thumb_up")
                self.down = button("Drop", lambda: judge(index, False), icon="thumb_down")
                with Tag("details", classes="wim-edit"):
                    Tag("summary", "Edit", aria_label=f"Edit margin {index + 1}")
                    form = Tag("form")
                    form.on("submit", lambda event: edit(index, str(event.args)), js_handler=_SAVE)
                    with form:
                        label = f"The text of margin {index + 1}"
                        self.box = Tag("textarea", name="text", rows="4", aria_label=label)
                        Tag("button", "Save", type="submit", classes="wim-button")
        self.show(margin, quoted)

    def show(self, margin: Margin, quoted: Sequence[Range]) -> None:
        """Show the margin as it is now."""
        name = place_name(margin, quoted)
        self.element.set(data_kept="yes" if margin.is_used else "no")
        self.relevance.text = f"relevance {margin.relevance:.2f}"
        self.lost.show(not quoted)
        self.place.text = place(margin)
        self.place.set(href=f"#{name}", data_show=name)
        self.text.text = self.box.text = margin.text
        for thumb, word, pressed in (
            (self.up, "Keep", margin.is_used),
            (self.down, "Drop", not margin.is_used),
        ):
            thumb.set(aria_pressed=str(pressed).lower(), aria_label=f"{word} margin {margin.index + 1}")


class Cards:
    """The cards of a question's margins, in chunk order; a margin without text has none.

    Args:
        judge: see `Card`.
        edit: see `Card`.
    """

    def __init__(self, judge: Judge, edit: Edit) -> None:
        self.list = Tag("div", classes="wim-cards")
        self._judge = judge
        self._edit = edit
        self._cards: dict[int, Card] = {}

    def clear(self) -> None:
        """Remove all cards."""
        self.list.clear()
        self._cards = {}

    def show(self, margin: Margin, quoted: Sequence[Range]) -> None:
        """Show a margin on its card, or on a new one."""
        card = self._cards.get(margin.index)
        if card is not None:
            card.show(margin, quoted)
        elif margin.text.strip():
            with self.list:
                card = Card(margin, quoted, self._judge, self._edit)
            position = sum(index < margin.index for index in self._cards)
            self._cards[margin.index] = card
            card.element.move(target_index=position)

    def cite(self, sources: Sequence[Margin]) -> None:
        """Show which numbers the answer has for which margins."""
        numbers = {margin.index: number for number, margin in enumerate(sources, 1)}
        for index, card in self._cards.items():
            card.number.text = f"[{numbers.get(index)}]"
            card.number.show(index in numbers)

    @property
    def count(self) -> int:
        """How many cards there are."""
        return len(self._cards)
