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
# Bytes that are searched for a declared encoding; browsers search the first kilobyte only.
_DECLARATION_BYTES = 4096
_DECLARATIONS = (
    re.compile(rb"^\s*<\?xml[^>]{0,200}?\bencoding\s*=\s*[\"']([^\"'>]{1,40})[\"']", re.IGNORECASE),
    re.compile(rb"<meta\b[^>]{0,400}?\bcharset\s*=\s*[\"']?\s*([^\s\"'/>;]{1,40})", re.IGNORECASE),
)


def text_of(markup: str) -> str:
    """The text of a page as a browser shows it, with an empty line between paragraphs.

    Raises:
        ModuleNotFoundError: without lxml.
    """
    from lxml import etree

    page = _Page()
    parser = etree.HTMLParser(target=page, encoding="utf-8", huge_tree=True)
    try:
        parser.feed(markup.encode("utf-8", "replace"))
        parser.close()
    except etree.XMLSyntaxError:  # a page without visible content, such as an empty one
        pass
    return page.text


def declared_encoding(data: bytes) -> str | None:
    """A page's declared encoding, as a codec's name; None without one, or for one that browsers do not know.

    Names are the WHATWG's, as in browsers: Latin-1 means Windows-1252, and a declaration of UTF-16 is ignored.

    Raises:
        ModuleNotFoundError: without webencodings.
    """
    import webencodings

    for declaration in _DECLARATIONS:
        found = declaration.search(data[:_DECLARATION_BYTES])
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
    """A parser target that collects a page's visible text."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._last = "\n"  # the last character
        self._hidden = 0  # the number of open tags from the outermost hidden one on
        self._pre = 0

    def start(self, tag: str, attributes: Mapping[str, Any]) -> None:
        """Handle an opening tag."""
        if self._hidden or tag in _UNSEEN or "hidden" in attributes or _hides(attributes):
            self._hidden += 1
            return
        if tag in _PARAGRAPHS:
            self._put("\n\n")
        self._pre += tag == "pre"

    def end(self, tag: str) -> None:
        """Handle a closing tag; the parser closes every tag."""
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
        """Handle text, which comes in pieces of any length."""
        if self._hidden:
            return
        if not self._pre:
            text = _SPACES.sub(" ", text)
            if self._last in " \t\n":
                text = text.removeprefix(" ")
        self._put(text)

    def comment(self, text: str) -> None:
        """Ignore what is not visible."""

    def pi(self, target: str, text: str | None = None) -> None:
        """Ignore what is not visible."""

    def close(self) -> None:
        """Handle the end of the page."""

    @property
    def text(self) -> str:
        """The page's text."""
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
