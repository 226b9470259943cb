"""`wim ui --chat-model`: LangChain's own classes against a provider on this machine, asked through the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from benchmarks.provider import Provider

pytest.importorskip("langchain_openai")
pytestmark = pytest.mark.slow

OWNER = "Elsa Brandt bought the Aurora at Emden and sold the vessel again in May of that year."
FILLER = "The harbour master wrote down the weather of the day, the price of salt and his guests. "


def test_a_chat_model_named_on_the_command_line_answers(
    command: Callable[..., str], tab: Callable[..., Page], tmp_path: Path
) -> None:
    log = tmp_path / "log.txt"
    log.write_text(FILLER * 30 + OWNER + " " + FILLER * 30)
    provider = Provider("openai-automatic")
    with provider.running() as url:
        address = command(
            *(str(log), "--chat-model", "openai:gpt-5-mini", "--chunk-tokens", "600"),
            OPENAI_API_BASE=f"{url}/v1",
            OPENAI_API_KEY="none",
        )
        page = tab(address)
        page.get_by_label("Your question").fill("Who bought the vessel Aurora at Emden?")
        page.get_by_role("button", name="Ask").click()
        expect(page.get_by_role("status")).to_have_text("Answered.")
        expect(page.get_by_role("region", name="Answer").locator(".wim-words")).to_contain_text(
            "Elsa Brandt owned the Aurora."
        )
        expect(page.locator("mark").first).to_have_text(OWNER)
        assert provider.requests


def test_provider_error_is_shown_on_the_page(
    command: Callable[..., str], tab: Callable[..., Page], tmp_path: Path
) -> None:
    log = tmp_path / "log.txt"
    log.write_text(OWNER)
    address = command(
        *(str(log), "--chat-model", "openai:gpt-5-mini"),
        OPENAI_API_BASE="http://127.0.0.1:9/v1",
        OPENAI_API_KEY="none",
    )
    page = tab(address)
    page.get_by_label("Your question").fill("Who bought the Aurora?")
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("alert")).to_contain_text("The chat model gpt-5-mini: a request failed")
