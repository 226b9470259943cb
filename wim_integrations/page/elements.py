"""Plain HTML elements for NiceGUI: browsers and screen readers know what each of them is and does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement


class Tag(TextElement):
    """An element by its tag.

    Args:
        tag: the tag.
        text: its text, which is only text.
        classes: its classes.
        attributes: its attributes; ``_`` in a name is ``-``.
    """

    def __init__(self, tag: str, text: str = "", /, *, classes: str = "", **attributes: Any) -> None:
        super().__init__(tag=tag, text=text)
        self.classes(classes)
        self.set(**attributes)

    def set(self, **attributes: Any) -> None:
        """Set attributes; None removes one."""
        for name, value in attributes.items():
            attribute = name.strip("_").replace("_", "-")
            if value is None:
                self.props.pop(attribute, None)
            elif self.props.get(attribute) != value:
                self.props[attribute] = value

    def show(self, visible: bool) -> None:
        """Show or hide the element, from screen readers too."""
        self.set(hidden=None if visible else True)


def button(text: str, pressed: Callable[[], object], *, icon: str = "", **attributes: Any) -> Tag:
    """A button with a text and, before it, an icon that screen readers pass over."""
    with Tag("button", type="button", classes="wim-button", **attributes) as made:
        if icon:
            ui.icon(icon)
        Tag("span", text)
    made.on("click", lambda _: pressed(), js_handler="() => emit()")
    return made


def markup(html: str, *, tag: str = "div", classes: str = "") -> ui.html:
    """An element with HTML of `wim_integrations.page.markup`, in which every text is escaped."""
    return ui.html(html, sanitize=False, tag=tag).classes(classes)
