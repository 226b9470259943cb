"""The answer on the page, with numbers to click; what it cost; and the questions before it."""

from __future__ import annotations

from collections.abc import Callable

from wim_integrations.page.elements import Tag, button, markup
from wim_integrations.page.markup import answer_html
from wim_integrations.page.turn import Turn


class AnswerPane:
    """The question, its answer and its cost.

    Args:
        again: called when the person wants the question answered again.
    """

    def __init__(self, again: Callable[[], None]) -> None:
        with Tag("section", classes="wim-answer", aria_label="Answer") as self.pane:
            self.question = Tag("h2", id="answer", tabindex="-1")
            self.text = markup("", classes="wim-words")
            self.text.props["aria-live"] = "polite"
            self.outdated = Tag(
                "p", "You have changed the margins since this was written.", classes="wim-about"
            )
            self.again = button("Answer from these margins", again, icon="refresh")
            self.cost = Tag("p", classes="wim-about wim-cost")
        self.pane.show(False)

    def show(self, turn: Turn | None, *, busy: bool) -> None:
        """Show a question's answer as far as it is written."""
        self.pane.show(turn is not None)
        if turn is None:
            return
        self.question.text = turn.question or "Summary"
        self.text.content = answer_html(turn.answer, turn.citations(), turn.sources)
        self.text.props["aria-busy"] = str(busy).lower()
        self.outdated.show(turn.is_outdated)
        self.again.show(not busy and (turn.is_outdated or turn.result is None))
        self.cost.text = cost(turn) if turn.result is not None and not busy else ""


class Earlier:
    """Earlier questions and their answers, each closed until it is opened."""

    def __init__(self) -> None:
        with Tag("section", classes="wim-earlier", aria_label="Earlier questions") as self.pane:
            Tag("h2", "Earlier questions")
            self.list = Tag("div")
        self.pane.show(False)

    def show(self, turns: list[Turn]) -> None:
        """Show the questions, the last one first."""
        self.pane.show(bool(turns))
        self.list.clear()
        with self.list:
            for turn in reversed(turns):
                with Tag("details"):
                    Tag("summary", turn.question or "Summary")
                    Tag("p", turn.answer, classes="wim-words")


def cost(turn: Turn) -> str:
    """What a question cost, beginning with what it did not; the prompts of margins that were cut short are unknown."""
    usage = turn.usage
    read = f"{usage.prefill_tokens:,}"
    if usage.cached_tokens is None:
        words = [f"Read {read} tokens of the document; how many of them were reused is not reported."]
    else:
        words = [f"Reused {usage.cached_tokens:,} tokens of the document, read {read}."]
    if turn.is_complete:
        words.append(f"Prompts: {usage.prompt_tokens:,} tokens, written: {usage.output_tokens:,}.")
    return " ".join([*words, f"{turn.seconds:.1f} s."])
