"""Files as documents: what is read, where it stands, and what is refused."""

from __future__ import annotations

import html
import io
import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pypdf import PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from wim_kernel.text.files import FileError, pages, read_document, read_file


def make_pdf(*texts: str, password: str | None = None) -> bytes:
    """A PDF with one line of text a page."""
    writer = PdfWriter()
    font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
    fonts = {"/F1": DictionaryObject({NameObject(k): NameObject(v) for k, v in font.items()})}
    for text in texts:
        page = writer.add_blank_page(400, 400)
        content = DecodedStreamObject()
        content.set_data(f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET".encode())
        page[NameObject("/Contents")] = writer._add_object(content)
        resources = DictionaryObject({NameObject(k): v for k, v in fonts.items()})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): resources})
    if password is not None:
        writer.encrypt(password, algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def saved(folder: Path, name: str, data: bytes | str) -> str:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


@pytest.fixture
def given_stdin(monkeypatch: pytest.MonkeyPatch):
    def give(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return give


def test_each_file_is_a_chunk_with_its_characters(tmp_path: Path) -> None:
    first, second = (
        saved(tmp_path, "a.txt", "One ship.\n"),
        saved(tmp_path, "b.md", "# Two\n\n*ships* & <b>\n"),
    )
    chunks = read_document([first, Path(second)])
    assert [chunk.text for chunk in chunks] == ["One ship.\n", "# Two\n\n*ships* & <b>\n"]
    assert [chunk.source_ids for chunk in chunks] == [(first,), (second,)]
    span = chunks[1].spans[0]
    assert (span.start, span.end, span.offset, span.length) == (0, 21, 0, 21)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_is_read_with_and_without_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    text = "Größe: 5 m — 船\n"
    assert read_file(saved(tmp_path, "a.txt", text.encode(encoding))) == text


def test_big_endian_utf_16_is_read(tmp_path: Path) -> None:
    assert read_file(saved(tmp_path, "a.txt", b"\xfe\xff" + "naïve".encode("utf-16-be"))) == "naïve"


def test_other_bytes_are_read_as_windows_1252_with_a_warning(tmp_path: Path) -> None:
    path = saved(tmp_path, "old.txt", "naïve “quotes”".encode("cp1252"))
    with pytest.warns(UserWarning, match=r"old\.txt is not UTF-8"):
        assert read_file(path) == "naïve “quotes”"


def test_line_ends_become_plain(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.txt", b"one\r\ntwo\rthree\n")
    assert read_file(path) == "one\ntwo\nthree\n" == Path(path).read_text()


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.txt", b" \n\t\n", "holds no text"),
        ("a.txt", b"\x7fELF\x02\x01\x01\x00\x00", "is binary"),
        ("a.bin", b"\xff\xd8\xff\xe0\x00\x10JFIF", "is binary"),
        ("a.txt", b"\xff\xfea", "is binary"),
        ("a.html", b"<p>\x00</p>", "is binary"),
        ("a.html", b"<html><script>x</script></html>", "holds no text"),
        ("a.pdf", b"no PDF at all", "cannot be read as a PDF"),
        ("a", b"%PDF-1.7\n%%EOF", "cannot be read as a PDF"),
        ("a.pdf", make_pdf("", ""), "no text in its 2 pages"),
        ("a.pdf", make_pdf("secret", password="x"), "encrypted"),
    ],
)
def test_files_that_are_no_document_are_named(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    path = saved(tmp_path, name, data)
    with pytest.raises(FileError, match=reason) as caught:
        read_file(path)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"none\.txt cannot be read: No such file"):
        read_file(tmp_path / "none.txt")
    with pytest.raises(FileError, match="directory"):
        read_file(tmp_path)
    with pytest.raises(FileError, match="cannot be read"):
        read_file("a\0b")


@pytest.mark.skipif(os.name != "posix", reason="named pipes are made this way on POSIX only")
def test_a_named_pipe_is_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen([sys.executable, "-c", f"open({str(pipe)!r}, 'w').write('from a pipe')"]):
        assert read_file(pipe) == "from a pipe"


def test_html_gives_what_a_browser_shows(tmp_path: Path) -> None:
    page = """<!DOCTYPE html><html><head><title>T</title><style>p {}</style></head><body><!-- a comment -->
        <h1>The   ship</h1><p>The <b>Aurora</b>
        was <i>Vale</i>'s.</p><div style="display: none">unseen <p>deep</p></div><p hidden>unseen</p>
        <ul><li>one</li><li>two</li></ul><table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>
        <script>run()</script><pre>  x\n    y</pre>5 &lt; 6&nbsp;m<br>end</body></html>"""
    assert read_file(saved(tmp_path, "a.html", page)) == (
        "The ship\n\nThe Aurora was Vale's.\n\none\ntwo\n\na\tb\nc\n\n  x\n    y\n\n5 < 6 m\nend\n"
    )


def test_html_follows_its_own_declaration(tmp_path: Path) -> None:
    page = '<meta charset="{}"><p>{}</p>'
    for encoding, text in (
        ("shift_jis", "これは船です。"),
        ("iso-8859-1", "naïve “quotes”"),
        ("utf-16", "船"),
    ):
        written_in = {"iso-8859-1": "cp1252", "utf-16": "utf-8"}.get(
            encoding, encoding
        )  # as browsers take them
        data = page.format(encoding, text).encode(written_in)
        assert read_file(saved(tmp_path, "a.htm", data)) == text + "\n"


PIECES = {
    "paragraphs": "<p>a",
    "closed paragraphs": "<p>a</p>",
    "boxes": "<div>",
    "bold": "<b>x ",
    "items": "<li>x",
    "rows": "<tr><td>x",
    "tables": "<table>x",
    "links": "<a><p>x",
    "unclosed tags": "<a ",
    "unclosed quotes": "<a b='",
    "unclosed comments": "<!-- ",
    "unclosed declarations": "<!x",
    "unclosed instructions": "<?x",
    "unclosed ends": "</a ",
    "half a script": "<script></scrip",
    "brackets": "<",
    "ampersands": "&",
    "metas": "<meta ",
}


@pytest.mark.parametrize("piece", PIECES.values(), ids=PIECES)
def test_html_takes_time_in_proportion_to_its_length(tmp_path: Path, piece: str) -> None:
    def seconds(count: int) -> float:
        path = saved(tmp_path, "a.html", "<p>begins</p>" + piece * count)
        begun = time.process_time()
        assert read_file(path).startswith("begins")
        return time.process_time() - begun

    seconds(10)
    assert seconds(24_000) < 0.5 + 30 * seconds(3_000)  # eight times as long; by squares it would be 64 times


@pytest.mark.parametrize(
    "name", ["base64", "hex", "rot13", "zlib", "idna", "undefined", "unicode_escape", "nonsense", ""]
)
@pytest.mark.parametrize(
    "form", ['<meta charset="{}">', '<meta content="text/html; charset={}">', '<?xml encoding="{}"?>']
)
def test_declared_encodings_are_those_of_the_web(tmp_path: Path, name: str, form: str) -> None:
    assert read_file(saved(tmp_path, "a.html", form.format(name) + "<p>船, naïve</p>")) == "船, naïve\n"


@pytest.mark.parametrize(
    "name", ["koi8-r", "KOI8", "windows-1251", "cp1251", "x-mac-cyrillic", "iso-8859-5", "ibm866"]
)
def test_encodings_have_the_names_of_the_web(tmp_path: Path, name: str) -> None:
    codec = {"KOI8": "koi8-r", "x-mac-cyrillic": "mac-cyrillic"}.get(name, name)
    page = f"<meta charset={name}><p>Корабль</p>".encode(codec)
    assert read_file(saved(tmp_path, "a.html", page)) == "Корабль\n"


@pytest.mark.parametrize("file", ["a.txt", "a.md", "a.html"])
@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xe8\x88", b"\x81\x8d"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_single_bad_bytes_leave_the_rest_utf_8(tmp_path: Path, file: str, bad: bytes, mark: bytes) -> None:
    text = "Die Größe der Brücke über den Fluß. " * 20
    path = saved(tmp_path, file, mark + text.encode() + bad + b" end of " + text.encode())
    with pytest.warns(UserWarning, match=r"are not UTF-8 and were replaced"):
        read = read_file(path)
    assert read.count("Größe der Brücke über den Fluß.") == 40
    assert "\ufffd" in read
    assert "Ã" not in read


def test_a_bad_byte_in_a_declared_encoding_or_utf_16(tmp_path: Path) -> None:
    page = "<meta charset=shift_jis><p>これは船です。</p>".encode("shift_jis").replace(b"</p>", b"\x85</p>")
    with pytest.warns(UserWarning, match="cp932|shift_jis"):
        assert "これは船です。" in read_file(saved(tmp_path, "a.html", page))
    with pytest.warns(UserWarning, match="utf-16"):
        assert read_file(saved(tmp_path, "a.txt", ("船" * 200).encode("utf-16") + b"x")).startswith(
            "船" * 200
        )


@pytest.mark.parametrize("bad", [b"x", b"\x00\xdc", b"\x3d\xd8 \x00"])
def test_one_bad_byte_in_a_short_utf_16_file(tmp_path: Path, bad: bytes) -> None:
    data = b"\xff\xfe" + "a ship".encode("utf-16-le") + bad
    with pytest.warns(UserWarning, match="utf-16"):
        assert read_file(saved(tmp_path, "a.txt", data)).startswith("a ship\ufffd")


@pytest.mark.parametrize(
    "name", ["replacement", "x-user-defined", "iso-2022-kr", "hz-gb-2312", "utf-7", "rot13"]
)
def test_unknown_encoding_names_are_ignored(tmp_path: Path, name: str) -> None:
    page = f"<meta charset={name}><p>naïve 船</p>".encode()
    assert read_file(saved(tmp_path, "a.html", page)) == "naïve 船\n"


def test_html_spaces_across_tags(tmp_path: Path) -> None:
    page = "<p>a <b> b</b>\n<i> c</i></p><pre> one\n two</pre>x&nbsp;&nbsp;y"
    assert read_file(saved(tmp_path, "a.html", page)) == "a b c\n\n one\n two\n\nx  y\n"


def test_closed_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(FileError, match="standard input cannot be read: it is closed"):
        read_file("-")


def test_deeply_nested_html_is_read(tmp_path: Path) -> None:
    assert read_file(saved(tmp_path, "a.html", "<div>" * 3000 + "deep" + "</div>" * 3000)) == "deep\n"


def test_pdf_pages_are_one_text_with_known_starts(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.PDF", make_pdf("The first page", "The second", "The third one"))
    [chunk] = read_document([path])
    assert chunk.text == "The first page\nThe second\nThe third one"
    starts = chunk.metadata["page_starts"]
    assert [chunk.text[start:].split("\n")[0] for start in starts] == [
        "The first page",
        "The second",
        "The third one",
    ]
    assert chunk.source_ids == (path,)
    assert pages(chunk.spans, chunk.metadata) == (1, 3)


def test_pages_of_part_of_a_pdf(tmp_path: Path) -> None:
    [chunk] = read_document(
        [saved(tmp_path, "a.pdf", make_pdf("The first page", "The second", "The third one"))]
    )
    at = chunk.text.index("second")
    part = type(chunk).of("second", "a.pdf", at, chunk.metadata)
    assert pages(part.spans, part.metadata) == (2, 2)
    assert pages(part.spans, {}) is None
    assert pages((), chunk.metadata) is None


def test_standard_input_may_be_text_html_or_pdf(given_stdin) -> None:
    given_stdin(b"\xef\xbb\xbfplain")
    [chunk] = read_document(["-"])
    assert (chunk.text, chunk.source_ids) == ("plain", ("-",))
    given_stdin(b" <html><p>a page</p></html>")
    assert read_file("-") == "a page\n"
    given_stdin(make_pdf("a PDF"))
    assert read_file("-") == "a PDF"
    given_stdin(b"")
    with pytest.raises(FileError, match="standard input holds no text"):
        read_file("-")


def test_standard_input_is_read_once(given_stdin) -> None:
    given_stdin(b"text")
    with pytest.raises(FileError, match="once"):
        read_document(["-", "-"])


@given(st.text(min_size=1))
def test_any_text_is_read_unchanged(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = saved(tmp_path_factory.mktemp("any"), "a.txt", text)
    expected = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text or not expected.strip():
        with pytest.raises(FileError):
            read_file(path)
    else:
        assert read_file(path) == expected


@given(st.binary(min_size=1))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    for name in ("a.txt", "a.html", "a.pdf"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                text = read_file(saved(folder, name, data))
            except FileError:
                continue
        assert text.strip()
        text.encode()


@given(st.lists(st.text(st.characters(codec="ascii", min_codepoint=32), min_size=1), min_size=1))
def test_escaped_paragraphs_come_back(
    tmp_path_factory: pytest.TempPathFactory, paragraphs: list[str]
) -> None:
    page = "".join(f"<p>{html.escape(paragraph)}</p>" for paragraph in paragraphs)
    words = re.findall(r"\S+", " ".join(paragraphs))
    path = saved(tmp_path_factory.mktemp("any"), "a.html", page)
    if words:
        assert read_file(path).split() == words
    else:
        with pytest.raises(FileError):
            read_file(path)
