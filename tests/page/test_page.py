"""The page on a chat model by script: what a person sees and can do, in each state."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from page.script import Script, wait_until
from page.ship import ANSWER, OWNER, PLACE, QUESTION, TEXTS, document
from playwright.sync_api import Locator, Page, expect

from wim_integrations.page.server import Site
from wim_kernel import WimKernel

pytestmark = pytest.mark.slow

Picture = Callable[[Page, str], None]
Site_ = Callable[..., tuple[Site, str]]
Tab = Callable[..., Page]
SHOWN = ".wim-shown"
LATER = ("gull", "desk", "last pages")  # the third chunk and those behind it


@pytest.fixture
def script() -> Script:
    return Script(
        {"crew": OWNER, "desk": PLACE},
        {"own": ANSWER, "buy": "She bought it in Brill [1].", "loud": "The gull [1]."},
    )


@pytest.fixture
def url(site: Site_, script: Script) -> str:
    return site(kernel_on(script), document())[1]


def kernel_on(script: Script) -> WimKernel:
    return WimKernel.from_chat_model(script, first_look=False)


def ask(page: Page, question: str = QUESTION) -> None:
    page.get_by_label("Your question").fill(question)
    page.get_by_role("button", name="Ask").click()


def status(page: Page) -> Locator:
    return page.get_by_role("status")


def cells(page: Page) -> Locator:
    return page.get_by_role("group", name="Chunks of the document").get_by_role("button")


def card(page: Page, number: int) -> Locator:
    return page.get_by_role("article", name=f"Margin {number}", exact=True)


def answer(page: Page) -> Locator:
    return page.get_by_role("region", name="Answer").locator(".wim-words")


def test_margins_come_before_the_answer(tab: Tab, url: str, script: Script, picture: Picture) -> None:
    last, own = script.hold("last pages"), script.hold("Who owned")
    page = tab(url)
    expect(status(page)).to_contain_text("5 chunks. Ask a question.")
    expect(cells(page)).to_have_count(5)
    picture(page, "page-open")
    ask(page)
    expect(card(page, 4)).to_contain_text(PLACE)
    expect(card(page, 2)).to_contain_text(OWNER)
    expect(card(page, 2)).to_contain_text("relevance 0.80")
    expect(card(page, 2)).to_contain_text("log of the Aurora.txt, chars")
    expect(status(page)).to_have_text("Reading, and writing margins.")
    expect(cells(page).nth(1)).to_have_accessible_name("Chunk 2: relevance 0.80, margin kept")
    expect(cells(page).nth(2)).to_have_accessible_name("Chunk 3: relevance 0.10")
    expect(cells(page).nth(4)).to_have_attribute("data-state", "read")
    colours = [
        cells(page).nth(index).evaluate("cell => getComputedStyle(cell).backgroundColor") for index in (1, 2)
    ]
    assert colours[0] != colours[1]
    expect(page.locator("mark")).to_have_text([OWNER, PLACE])
    picture(page, "page-reading")
    last.set()
    expect(status(page)).to_have_text("Writing the answer.")
    expect(answer(page)).to_have_text("")
    own.set()
    expect(status(page)).to_have_text("Answered.")
    expect(answer(page)).to_have_text(ANSWER)
    expect(card(page, 4)).to_contain_text("[2]")


def test_a_number_leads_to_the_words_that_are_cited(tab: Tab, url: str, picture: Picture) -> None:
    page = tab(url)
    ask(page)
    page.get_by_role("link", name="Source 2").click()
    expect(page.locator(SHOWN)).to_have_text(PLACE)
    expect(page.locator(SHOWN)).to_be_in_viewport()
    expect(page.locator(SHOWN)).to_be_focused()
    before = "mark => { const range = new Range(); range.setStart(mark.closest('.wim-text'), 0);"
    start = page.locator(SHOWN).evaluate(
        f"{before} range.setEndBefore(mark); return range.toString().length; }}"
    )
    assert start == TEXTS[3].index(PLACE)
    expect(page.get_by_role("region", name="Chunk 4").locator(SHOWN)).to_be_visible()
    picture(page, "page-cited")
    page.keyboard.press("Escape")
    expect(page.get_by_role("link", name="Source 2")).to_be_focused()
    page.get_by_role("link", name="Source 1").press("Enter")
    expect(page.locator(SHOWN)).to_have_text(OWNER)
    page.get_by_role("button", name="Back to the answer").click()
    expect(page.get_by_role("link", name="Source 1")).to_be_focused()


def test_thumbs_and_edits_change_the_kept_margins_and_the_prompt(
    tab: Tab, url: str, script: Script, picture: Picture
) -> None:
    page = tab(url)
    ask(page)
    expect(answer(page)).to_have_text(ANSWER)
    expect(page.get_by_role("button", name="Keep margin 4")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Drop margin 4").click()
    expect(page.get_by_role("button", name="Keep margin 4")).to_have_attribute("aria-pressed", "false")
    expect(cells(page).nth(3)).to_have_accessible_name("Chunk 4: relevance 0.80")
    expect(page.get_by_text("You have changed the margins")).to_be_visible()
    card(page, 2).get_by_label("Edit margin 2").click()
    card(page, 2).get_by_label("The text of margin 2").fill("The owner {was} a <b>woman</b> from Emden.")
    picture(page, "page-judging")
    card(page, 2).get_by_role("button", name="Save").click()
    expect(card(page, 2).locator(".wim-words")).to_have_text("The owner {was} a <b>woman</b> from Emden.")
    expect(card(page, 2)).to_contain_text("not found in the text")
    script.answers["own"] = "A woman from Emden [1]."
    page.get_by_role("button", name="Answer from these margins").click()
    expect(answer(page)).to_have_text("A woman from Emden [1].")
    expect(page.get_by_text("You have changed the margins")).to_be_hidden()
    first, second = script.prompts
    assert OWNER in first
    assert PLACE in first
    assert "[1] The owner {was} a <b>woman</b> from Emden." in second
    assert OWNER not in second
    assert PLACE not in second
    page.get_by_role("link", name="Source 1").click()
    expect(card(page, 2)).to_be_focused()  # nothing of the text says it, so its number leads to the margin
    page.get_by_role("button", name="Keep margin 4").click()
    page.get_by_role("button", name="Answer from these margins").click()
    wait_until(lambda: len(script.prompts) == 3 and PLACE in script.prompts[2])


def test_a_margin_dropped_while_reading_is_not_in_the_answer_s_prompt(
    tab: Tab, url: str, script: Script
) -> None:
    last = script.hold("last pages")
    page = tab(url)
    ask(page)
    page.get_by_role("button", name="Drop margin 2").click()
    expect(card(page, 2)).to_have_attribute("data-kept", "no")
    last.set()
    expect(status(page)).to_have_text("Answered.")
    expect(card(page, 2)).to_have_attribute("data-kept", "no")
    (prompt,) = script.prompts
    assert OWNER not in prompt
    assert PLACE in prompt


def test_answer_now_leaves_the_rest_unread(tab: Tab, url: str, script: Script, picture: Picture) -> None:
    held, script.answers["own"] = [script.hold(word) for word in LATER], "Elsa Brandt owned it [1]."
    page = tab(url)
    ask(page)
    expect(card(page, 2)).to_be_visible()
    page.get_by_role("button", name="Answer now").click()
    expect(status(page)).to_have_text("Answered from the first 2 of 5 chunks.")
    expect(answer(page)).to_have_text("Elsa Brandt owned it [1].")
    picture(page, "page-early")
    for gate in held:
        gate.set()
    (prompt,) = script.prompts
    assert OWNER in prompt
    assert PLACE not in prompt
    assert len(script.asked[-1].blocks) == 3  # two chunks, and the question


def test_stop_keeps_what_was_written_and_answers_when_asked_to(tab: Tab, url: str, script: Script) -> None:
    held = [script.hold(word) for word in LATER]
    page = tab(url)
    ask(page)
    expect(card(page, 2)).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(status(page)).to_have_text("Stopped.")
    for gate in held:
        gate.set()
    page.get_by_role("button", name="Answer from these margins").click()
    expect(status(page)).to_have_text("Answered from the first 2 of 5 chunks.")
    assert OWNER in script.prompts[-1]


def test_earlier_answers_stay_on_the_page(tab: Tab, url: str) -> None:
    page = tab(url)
    ask(page)
    expect(status(page)).to_have_text("Answered.")
    ask(page, "Where did she buy it?")
    expect(page.get_by_role("heading", name="Where did she buy it?")).to_be_visible()
    expect(answer(page)).to_have_text("She bought it in Brill [1].")
    earlier = page.get_by_role("region", name="Earlier questions")
    earlier.get_by_text(QUESTION).click()
    expect(earlier).to_contain_text(ANSWER)


def test_closing_the_tab_stops_the_work(tab: Tab, site: Site_, script: Script) -> None:
    def endless() -> Iterator[str]:
        return (f"word {number}" for number in itertools.count())

    script.answers["own"] = endless
    shared, url = site(kernel_on(script), document())
    page = tab(url)
    ask(page)
    expect(answer(page)).to_contain_text("word 3")
    (view,) = shared.views.values()
    page.close()
    assert script.closed.wait(30)
    wait_until(lambda: not shared.views and not view.session.is_busy)


def test_two_tabs_have_sessions_of_their_own(tab: Tab, url: str, script: Script) -> None:
    own, buy = script.hold("Who owned"), script.hold("buy it?")
    script.answers = {"own": ANSWER, "buy": "In Brill [2]."}
    one, other = tab(url), tab(url)
    ask(one)
    ask(other, "Where did she buy it?")
    expect(status(one)).to_have_text("Writing the answer.")
    expect(status(other)).to_have_text("Writing the answer.")
    other.get_by_role("button", name="Drop margin 2").click()
    expect(card(other, 2)).to_have_attribute("data-kept", "no")
    own.set()
    buy.set()
    expect(answer(one)).to_have_text(ANSWER)
    expect(answer(other)).to_have_text("In Brill [2].")
    expect(card(one, 2)).to_have_attribute("data-kept", "yes")


def test_page_shows_an_error_and_answers_the_next_question(tab: Tab, url: str, script: Script) -> None:
    def broken() -> Iterator[str]:
        raise RuntimeError("no more credit")

    page = tab(url)
    said, script.answers["own"] = script.answers["own"], broken
    ask(page)
    expect(page.get_by_role("alert")).to_contain_text("no more credit")
    script.answers["own"] = said
    page.get_by_role("button", name="Answer from these margins").click()
    expect(answer(page)).to_have_text(ANSWER)
    ask(page, "   ")
    expect(page.get_by_role("alert")).to_have_text("")
    expect(answer(page)).to_have_text(ANSWER)
