"""The page without a mouse, on a phone, in the dark, and for screen readers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from page.script import Script
from page.ship import ANSWER, OWNER, PLACE, QUESTION, document
from playwright.sync_api import Page, expect

from wim_integrations.page.server import Site
from wim_kernel import WimKernel

pytestmark = pytest.mark.slow

Picture = Callable[[Page, str], None]
Site_ = Callable[..., tuple[Site, str]]
Tab = Callable[..., Page]
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@pytest.fixture
def script() -> Script:
    return Script({"crew": OWNER, "desk": PLACE}, {"own": ANSWER, "else": "Nothing else."})


@pytest.fixture
def url(site: Site_, script: Script) -> str:
    return site(WimKernel.from_chat_model(script, first_look=False), document())[1]


def serious(page: Page) -> list[str]:
    """What axe finds that keeps people out."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {each['nodes'][0]['html']}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("settings", [{}, {"color_scheme": "dark"}, PHONE], ids=["desktop", "dark", "phone"])
def test_axe_finds_nothing_serious_in_any_state(
    tab: Tab, url: str, script: Script, picture: Picture, settings: dict[str, Any]
) -> None:
    last = script.hold("last pages")
    page = tab(url, **settings)
    expect(page.get_by_role("status")).to_contain_text("Ask a question")
    assert not serious(page)
    page.get_by_label("Your question").fill(QUESTION)
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("article", name="Margin 4")).to_be_visible()
    assert not serious(page)
    last.set()
    expect(page.get_by_role("status")).to_have_text("Answered.")
    page.get_by_role("button", name="Drop margin 4").click()
    page.get_by_label("Edit margin 2").click()
    page.get_by_text("Paste text", exact=True).click()
    page.get_by_role("link", name="Source 1").click()
    expect(page.locator("mark.wim-shown")).to_be_visible()
    assert not serious(page)
    if settings.get("color_scheme"):
        picture(page, "page-dark")


def test_page_works_from_the_keyboard(tab: Tab, url: str) -> None:
    page = tab(url)
    expect(page.get_by_role("status")).to_contain_text("Ask a question")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Your question")).to_be_focused()
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("Answered.")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Ask")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("button", name="Chunk 2")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("region", name="Chunk 2")).to_be_focused()
    page.get_by_role("button", name="Chunk 2").focus()
    for name in ("Source 1", "Source 2"):
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name=name)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("mark.wim-shown")).to_have_text(PLACE)
    page.keyboard.press("Escape")
    expect(page.get_by_role("link", name="Source 2")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Keep margin 2")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Drop margin 2")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_label("The text of margin 2")).to_be_focused()
    page.keyboard.press("End")
    page.keyboard.type("!")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("article", name="Margin 2").locator(".wim-words")).to_have_text(f"{OWNER}!")
    expect(page.get_by_label("Edit margin 2")).to_be_focused()


def test_page_is_one_column_on_a_phone(tab: Tab, url: str, picture: Picture) -> None:
    page = tab(url, **PHONE)
    page.get_by_label("Your question").fill(QUESTION)
    page.get_by_role("button", name="Ask").tap()
    expect(page.get_by_role("status")).to_have_text("Answered.")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    picture(page, "page-phone")
    page.get_by_role("link", name="Source 2").tap()
    expect(page.locator("mark.wim-shown")).to_be_in_viewport()
    page.get_by_role("button", name="Back to the answer").tap()
    expect(page.get_by_role("link", name="Source 2")).to_be_in_viewport()


def test_what_a_person_types_stays_while_margins_come(tab: Tab, url: str, script: Script) -> None:
    crew, last = script.hold("crew"), script.hold("last pages")
    page = tab(url)
    page.get_by_label("Your question").fill(QUESTION)
    page.get_by_role("button", name="Ask").click()
    page.get_by_label("Your question").fill("What else")
    crew.set()
    page.get_by_label("Edit margin 2").click()
    page.get_by_label("The text of margin 2").fill("Half a")
    last.set()
    expect(page.get_by_role("status")).to_have_text("Answered.")
    expect(page.get_by_label("Your question")).to_have_value("What else")
    expect(page.get_by_label("The text of margin 2")).to_have_value("Half a")


def test_page_has_a_language_and_named_regions(tab: Tab, url: str) -> None:
    page = tab(url)
    expect(page.locator("html")).to_have_attribute("lang", "en-US")
    expect(page).to_have_title("Writing in the Margins")
    expect(page.get_by_role("main")).to_have_count(1)
    expect(page.get_by_role("main").get_by_role("heading", level=1)).to_have_text("Writing in the Margins")
    for name in ("Documents and their text", "The document's text"):
        expect(page.get_by_role("region", name=name)).to_be_visible()
    expect(page.locator("[aria-live=polite]")).to_have_count(1)
