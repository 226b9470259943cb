"""The text of an HTML page as a browser shows it, in one walk over the page."""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_UNSEEN = frozenset(["head", "title", "script", "style", "template", "noscript", "svg", "object", "iframe"])
_HIDING_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_PARAGRAPHS = frozenset(
    [
        *(
            "address",
            "article",
            "aside",
            "blockquote",
            "body",
            "details",
            "div",
            "dl",
            "fieldset",
            "figcaption",
        ),
        *(
            "figure",
            "footer",
            "form",
            "h1",
            "h2",
            "h3",
            "h4",
            "h5",
            "h6",
            "header",
            "hr",
            "main",
            "nav",
            "ol",
        ),
        *("p", "pre", "section", "summary", "table", "ul"),
    ]
)
_LINES = frozenset(["br", "caption", "dd", "dt", "li", "option", "tr"])
_CELLS = frozenset(["td", "th"])
_SPACES = re.compile(r"[ \t\r\n\f]+")
# Where a page may say its encoding; browsers look no further than the first kilobyte.
_LOOKED_AT = 4096
_DECLARATIONS = (
    re.compile(rb"^\s*<\?xml[^>]{0,200}?\bencoding\s*=\s*[\"']([^\"'>]{1,40})[\"']", re.IGNORECASE),
    re.compile(rb"<meta\b[^>]{0,400}?\bcharset\s*=\s*[\"']?\s*([^\s\"'/>;]{1,40})", re.IGNORECASE),
)


def text_of(markup: str) -> str:
    """The text that a browser would show, with an empty line between paragraphs.

    Raises:
        ModuleNotFoundError: without lxml.
    """
    from lxml import etree

    page = _Page()
    parser = etree.HTMLParser(target=page, encoding="utf-8", huge_tree=True)
    try:
        parser.feed(markup.encode("utf-8", "replace"))
        parser.close()
    except etree.XMLSyntaxError:  # nothing that is shown, such as an empty page
        pass
    return page.text


def declared_encoding(data: bytes) -> str | None:
    """The encoding that a page says it is in, as a codec's name; None for those that browsers do not know.

    As in browsers, names are the WHATWG's: Latin-1 is Windows-1252, and no page can say of itself that it is UTF-16.

    Raises:
        ModuleNotFoundError: without webencodings.
    """
    import webencodings

    for declaration in _DECLARATIONS:
        found = declaration.search(data[:_LOOKED_AT])
        encoding = found and webencodings.lookup(found[1].decode("ascii", "replace"))
        if encoding:
            name: str = encoding.codec_info.name
            return None if encoding.name.startswith("utf-16") or not _is_known(name) else name
    return None


def _is_known(name: str) -> bool:
    """Whether Python has the encoding: the web's list holds names, such as ``replacement``, that stand for none."""
    try:
        codecs.lookup(name)
    except LookupError:
        return False
    return True


class _Page:
    """Takes a parser's events and lays text out."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._last = "\n"  # character
        self._hidden = 0  # how many open tags there are from the outermost hidden one on
        self._pre = 0

    def start(self, tag: str, attributes: Mapping[str, Any]) -> None:
        """A tag opens."""
        if self._hidden or tag in _UNSEEN or "hidden" in attributes or _hides(attributes):
            self._hidden += 1
            return
        if tag in _PARAGRAPHS:
            self._put("\n\n")
        self._pre += tag == "pre"

    def end(self, tag: str) -> None:
        """A tag closes; each that opened does."""
        if self._hidden:
            self._hidden -= 1
            return
        self._pre -= tag == "pre"
        if tag in _PARAGRAPHS:
            self._put("\n\n")
        elif tag in _LINES:
            self._put("\n")
        elif tag in _CELLS:
            self._put("\t")

    def data(self, text: str) -> None:
        """Text, in pieces of any length."""
        if self._hidden:
            return
        if not self._pre:
            text = _SPACES.sub(" ", text)
            if self._last in " \t\n":
                text = text.removeprefix(" ")
        self._put(text)

    def comment(self, text: str) -> None:
        """Nothing that is shown."""

    def pi(self, target: str, text: str | None = None) -> None:
        """Nothing that is shown."""

    def close(self) -> None:
        """The page ends."""

    @property
    def text(self) -> str:
        """All of it."""
        text = "".join(self._pieces).replace("\xa0", " ")
        text = re.sub(r"\n{3,}", "\n\n", _without_trailing_spaces(text))
        return text.strip("\n") + "\n"

    def _put(self, text: str) -> None:
        if text:
            self._pieces.append(text)
            self._last = text[-1]


def _hides(attributes: Mapping[str, Any]) -> bool:
    style = attributes.get("style")
    return bool(style) and _HIDING_STYLE.search(str(style)) is not None


def _without_trailing_spaces(text: str) -> str:
    return "\n".join(line.rstrip(" \t") for line in text.split("\n"))
