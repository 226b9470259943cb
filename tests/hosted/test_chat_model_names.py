"""Chat models by name: LangChain's own classes, against a provider on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hosted.conftest import QUESTION, pages

from benchmarks.provider import Provider, Rules
from wim_kernel import ModelNotFoundError, WimKernel
from wim_kernel.cli.main import main

pytest.importorskip("langchain_openai")
pytest.importorskip("langchain_anthropic")

Start = Callable[[Rules], tuple[Provider, str]]
ROOT = Path(__file__).parents[2]
KEYS = ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "ANTHROPIC_API_KEY", "OPENAI_API_BASE", "OPENAI_BASE_URL")


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without keys and addresses, and what sets them."""
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.txt"
    path.write_text("\n\n".join(pages(3)))
    return path


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["ask", *arguments])


@pytest.mark.parametrize(
    ("rules", "name", "address", "key"),
    [
        ("openai-automatic", "openai:gpt-5-mini", "OPENAI_API_BASE", "OPENAI_API_KEY"),
        ("openai-compatible", "openai:some-model", "OPENAI_BASE_URL", "OPENAI_API_KEY"),
        ("anthropic", "anthropic:claude-sonnet-5", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY"),
    ],
)
def test_ask_command_takes_a_chat_model_by_name(
    provider: Start, keys: pytest.MonkeyPatch, log: Path, rules: Rules, name: str, address: str, key: str
) -> None:
    owner, url = provider(rules)
    keys.setenv(address, url if rules == "anthropic" else f"{url}/v1")
    keys.setenv(key, "none")
    done = ask(QUESTION, str(log), "--chat-model", name, "--chunk-tokens", "1500", "--json")
    assert done.exit_code == 0, done.output
    *_, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert last["result"]["answer"] == "Elsa Brandt owned the Aurora. That is what it says."
    assert any(margin["kept"] for margin in last["result"]["margins"])
    assert last["result"]["usage"]["calls"] == len(owner.requests) > 0


def test_provider_of_a_name_follows_the_environments_address(keys: pytest.MonkeyPatch) -> None:
    keys.setenv("OPENAI_API_KEY", "none")

    def row() -> str:
        engine: Any = WimKernel.from_chat_model("openai:gpt-5.6").engine
        return str(engine.provider.name)

    assert row() == "openai"
    keys.setenv("OPENAI_BASE_URL", "http://gateway.example/v1")
    assert row() == "openai-compatible"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("openai:gpt-5-mini", "OPENAI_API_KEY"),
        ("anthropic:claude-sonnet-5", "it has no key. Set ANTHROPIC_API_KEY"),
        ("google_genai:gemini-4", "pip install langchain-google-genai"),
        ("nobody:model", "Write PROVIDER:NAME"),
        ("unheard-of", "Write PROVIDER:NAME"),
        ("openai:", "write PROVIDER:NAME"),
        ("", "write PROVIDER:NAME"),
    ],
)
def test_missing_key_or_package_is_one_line(
    keys: pytest.MonkeyPatch, log: Path, name: str, says: str
) -> None:
    with pytest.raises(ModelNotFoundError, match="cannot be made") as raised:
        WimKernel.from_chat_model(name)
    assert says in str(raised.value)
    done = ask(QUESTION, str(log), "--chat-model", name)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == f"wim: {raised.value}"


@pytest.mark.parametrize("missing", ["langchain", "langchain_core"])
def test_missing_langchain_names_the_extra(missing: str, log: Path) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from wim_kernel.cli.main import main; main()"
    command = [sys.executable, "-c", code, "ask", QUESTION, str(log), "--chat-model", "openai:gpt-5-mini"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'wim-integrations[chat-model]'" in done.stderr
    assert "Traceback" not in done.stderr
