"""The server of the page: who may reach it, what it tells browsers, and the command that starts it."""

from __future__ import annotations

import http.client
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from chat_server import MODEL, chat_server
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from wim_integrations.page import serve
from wim_integrations.page.cli import show
from wim_integrations.page.markup import answer_html, chunk_html
from wim_integrations.page.server import Site
from wim_kernel import Citation, WimKernel

ROOT = Path(__file__).parents[2]


def status_of(url: str, **headers: str) -> tuple[int, dict[str, str]]:
    """The status and headers of a page, asked for under other headers."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    connection.request("GET", parts.path, headers=headers)
    reply = connection.getresponse()
    reply.read()
    connection.close()
    return reply.status, dict(reply.getheaders())


@pytest.fixture
def url(site: Callable[..., tuple[Site, str]], kernel: WimKernel) -> str:
    return site(kernel, "The gull sat on the mast.")[1]


def test_requests_of_other_hosts_and_origins_are_refused(url: str) -> None:
    host = urlsplit(url).netloc
    port = host.rpartition(":")[2]
    assert status_of(url)[0] == 200
    assert status_of(url, Host=f"localhost:{port}")[0] == 200
    assert status_of(url, Host=f"[::1]:{port}")[0] == 200
    assert status_of(url, Origin=f"http://{host}")[0] == 200
    assert status_of(url, Host=f"rebound.example:{port}")[0] == 403
    assert status_of(url, Host="")[0] == 403
    assert status_of(url, Origin="https://elsewhere.example")[0] == 403
    assert status_of(url, Origin="null")[0] == 403


def test_content_security_policy_forbids_other_sources(url: str) -> None:
    policy = status_of(url)[1]["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "script-src-attr 'none'" in policy
    assert "http" not in policy
    assert "*" not in policy


def test_a_kernel_and_options_are_checked_before_anything_is_served(kernel: WimKernel) -> None:
    with pytest.raises(TypeError, match="The page reads with a WimKernel, not a str"):
        serve("embedded")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stop_after is the page's own"):
        serve(kernel, stop_after=2)
    with pytest.raises(TypeError, match="Unknown option: treshold"):
        serve(kernel, treshold=0.5)  # type: ignore[call-arg]


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(tmp_path: Path, command: Callable[..., str]) -> None:
    document = tmp_path / "log.txt"
    document.write_text("The gull sat on the mast.")
    with chat_server() as server:
        assert status_of(command(str(document), "--server", server.url, "--model", MODEL))[0] == 200


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["missing.txt"], "missing.txt cannot be read"),
        (["--tokenizer", "t"], "--tokenizer belongs to --server"),
        (["--server", "http://127.0.0.1:9/v1"], "nobody answers there"),
        (["--chat-model", "nobody:model"], "Write PROVIDER:NAME"),
        (["--chat-model", "openai:m", "--server", "http://127.0.0.1:9/v1"], "--chat-model or --server"),
        (["--cache-dir", __file__], "it is no folder"),
        (["--port", "70000"], "Invalid value for '--port'"),
        (["--threshold", "2"], "Invalid value for '--threshold'"),
    ],
)
def test_wrong_arguments_of_wim_ui_are_refused_with_a_reason(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(show, arguments)
    assert result.exit_code in (1, 2)
    assert says in result.output


def test_a_missing_extra_is_named() -> None:
    code = "import sys; sys.modules['nicegui'] = None; from wim_integrations.page.cli import show; show([])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'wim-integrations[ui]'" in done.stderr


class Parsed(HTMLParser):
    """The text and the tags of HTML, as a browser reads them."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text = ""
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.feed(html)
        self.close()

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.just("<b>&amp;</b><!-- [1]")


@given(TEXT, st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=4))
def test_a_chunk_s_html_is_its_text_and_marks(text: str, ranges: list[tuple[int, int]]) -> None:
    passages = {
        f"p{index}": (min(each), max(each)) for index, each in enumerate(ranges) if max(each) <= len(text)
    }
    parsed = Parsed(chunk_html(text, passages))
    assert parsed.text == text
    assert {tag for tag, _ in parsed.tags} <= {"mark"}
    marked = {name for _, attributes in parsed.tags for name in attributes["data-passage"].split()}
    assert marked == {name for name, (start, end) in passages.items() if start < end}


@given(TEXT, TEXT)
def test_an_answer_s_html_is_its_text_and_links(answer: str, quote: str) -> None:
    citation = Citation(0, len(answer), quote, 0, 1, "log", 0, len(quote), 0, None, None, "exact")
    parsed = Parsed(answer_html(f"{answer} end", [citation], []))
    assert parsed.text == "[1] end"
    ((tag, attributes),) = parsed.tags
    assert (tag, attributes["title"]) == ("a", quote)
