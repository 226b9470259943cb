"""Files as documents: text, Markdown, HTML and PDF; each file is one source with character offsets."""

from __future__ import annotations

import codecs
import io
import itertools
import os
import re
import sys
import warnings
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from wim_kernel.common.chunk import Chunk, Span
from wim_kernel.common.errors import WimError

STDIN = "-"

_HTML_SUFFIXES = {".html", ".htm", ".xhtml"}
_HTML_START = re.compile(rb"\s*(<\?xml[^>]*>\s*)?<(!doctype\s+html|html)\b", re.IGNORECASE)
# UTF-32 before UTF-16: the little-endian mark of UTF-32 begins with that of UTF-16.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class FileError(WimError):
    """A file cannot be read as a document."""


def read_file(path: str | os.PathLike[str]) -> str:
    """Read one file's text.

    A PDF is recognised by its first bytes, HTML by its suffix or, without a suffix, by its first bytes; all else is
    text. Text is UTF-8, or the encoding of a byte order mark or an HTML declaration; single invalid bytes are replaced,
    with a warning. Text that is mostly no UTF-8 is read as Windows-1252, with a warning; other encodings are not
    guessed, since wrong guesses go unnoticed. Line ends become line feeds, as when Python opens a text file.

    Args:
        path: a file; ``-`` is standard input.

    Raises:
        FileError: the file is missing, a folder, unreadable, binary or empty.
    """
    return _read(os.fspath(path)).text


def read_document(paths: Sequence[str | os.PathLike[str]]) -> list[Chunk]:
    """Read files as one document; each file becomes a chunk whose source is the path as given.

    The chunks are as long as the files: ``WimKernel.read`` splits them. A PDF's chunk has the first character of each
    page in ``metadata["page_starts"]``.

    Args:
        paths: files, in order; ``-``, standard input, may stand among them once.

    Raises:
        FileError: as in `read_file`.
    """
    names = [os.fspath(path) for path in paths]
    if names.count(STDIN) > 1:
        raise FileError("`-` can be given once only: standard input is read once.")
    return [_read(name) for name in names]


def pages(spans: Sequence[Span], metadata: Mapping[str, Any]) -> tuple[int, int] | None:
    """The first and last page, from 1, of spans of a PDF; None if not known."""
    starts = metadata.get("page_starts")
    if not starts or not spans or spans[0].start is None or not spans[-1].end:
        return None
    return bisect_right(starts, spans[0].start), bisect_right(starts, spans[-1].end - 1)


def read_bytes(name: str, data: bytes) -> Chunk:
    """Read a file's bytes as a chunk, as `read_document` reads the file.

    Args:
        name: the file's name, whose suffix tells HTML; the chunk's source.
        data: all of its bytes.

    Raises:
        FileError: the file is binary or empty.
    """
    return _chunk(name, name, data)


def _read(name: str) -> Chunk:
    shown = "standard input" if name == STDIN else name
    return _chunk(name, shown, _bytes(name, shown))


def _chunk(name: str, shown: str, data: bytes) -> Chunk:
    suffix = PurePath(name).suffix.lower()
    starts: list[int] = []
    if data.startswith(b"%PDF-") or suffix == ".pdf":
        text, starts = _pdf_text(data, shown)
    elif suffix in _HTML_SUFFIXES or (not suffix and _HTML_START.match(data)):
        text = _html_text(data, shown)
    else:
        text = _decode(data, shown)
    if not text.strip():
        raise FileError(f"{shown} holds no text.")
    return Chunk.of(text, name, 0, {"page_starts": starts} if starts else None)


def _bytes(name: str, shown: str) -> bytes:
    try:
        if name == STDIN:
            return _stdin()
        with open(name, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise FileError(f"{shown} cannot be read: {reason}.") from error


def _stdin() -> bytes:
    """All of standard input.

    Raises:
        OSError: if there is none.
    """
    if sys.stdin is None:
        raise OSError("it is closed")
    return sys.stdin.buffer.read()


def _decode(data: bytes, shown: str, declared: str | None = None) -> str:
    marked = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), None)
    encoding = marked or declared or "utf-8"
    try:
        text = data.decode(encoding)
    except UnicodeError as error:
        if b"\0" in data and not encoding.startswith(("utf-16", "utf-32")):
            raise _binary(shown) from error
        text = _repaired(data, encoding, shown, marked=marked is not None)
    if "\0" in text:
        raise _binary(shown)
    return _with_plain_line_ends(text)


def _repaired(data: bytes, encoding: str, shown: str, *, marked: bool) -> str:
    """Decode text with invalid bytes: replace them if they are few, otherwise decode it as Windows-1252.

    Raises:
        FileError: if the text has a byte order mark and many invalid bytes.
    """
    text = data.decode(encoding, "replace")
    bad = text.count("\ufffd")
    if marked and (bad * 2 > len(text) or (bad > 1 and bad * 100 > len(text))):
        raise _binary(shown)
    is_utf_8 = encoding in ("utf-8", "utf-8-sig")
    if not marked and is_utf_8 and bad > sum(character > "\x7f" for character in text) - bad:
        warnings.warn(f"{shown} is not UTF-8 and was read as Windows-1252.", stacklevel=2)
        return data.decode("cp1252", "replace")
    name = "UTF-8" if is_utf_8 else encoding
    warnings.warn(f"Some bytes of {shown} (about {bad:,}) are not {name} and were replaced.", stacklevel=2)
    return text


def _binary(shown: str) -> FileError:
    return FileError(f"{shown} is binary: neither text nor HTML nor PDF.")


def _with_plain_line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _pdf_text(data: bytes, shown: str) -> tuple[str, list[int]]:
    """The text of all pages, and the first character of each page in it."""
    try:
        from pypdf import PdfReader
        from pypdf.errors import DependencyError, FileNotDecryptedError
    except ModuleNotFoundError as error:
        raise _missing("pypdf", "PDF", shown) from error

    try:
        texts = [_well_formed(page.extract_text()) for page in PdfReader(io.BytesIO(data)).pages]
    except (FileNotDecryptedError, DependencyError) as error:
        raise FileError(f"{shown} is an encrypted PDF: save it without its password first.") from error
    except Exception as error:  # pypdf raises almost any exception for a broken file
        raise FileError(f"{shown} cannot be read as a PDF: {error}") from error
    if not any(text.strip() for text in texts):
        raise FileError(
            f"{shown} has no text in its {len(texts)} pages (scanned?): run text recognition on it first."
        )
    # Pages are joined by one line end, not by an empty line, since most pages end within a sentence.
    starts = itertools.accumulate((len(text) + 1 for text in texts[:-1]), initial=0)
    return "\n".join(texts), list(starts)


def _well_formed(text: str) -> str:
    """Text without lone surrogates and NULs, which a PDF's font tables may produce."""
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return _with_plain_line_ends(whole.replace("\0", ""))


def _html_text(data: bytes, shown: str) -> str:
    from wim_kernel.text.html import declared_encoding, text_of

    try:
        return text_of(_decode(data, shown, declared_encoding(data)))
    except ModuleNotFoundError as error:
        raise _missing(error.name or "lxml", "HTML", shown) from error


def _missing(package: str, kind: str, shown: str) -> FileError:
    return FileError(f"Reading {shown} as {kind} needs {package}: pip install 'wim-integrations[cli]'.")
