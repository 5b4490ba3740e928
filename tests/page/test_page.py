"""The search page in a headless Chromium, by keyboard alone, wide and narrow, light and dark (`make test-page`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cclm.hub.open import OpenedModel
from cclm.retrieve.embed import Embedder, embed
from cclm.retrieve.embed_source import Shards
from tests.page.browser import PATIENCE_MS, chromium, open_browser, served
from tests.unit.data.data_sets import write_images
from tests.unit.hub.small_model import opened, tokenizer_folder
from tests.unit.hub.test_hub_folder import write
from tests.unit.retrieve.test_embed import facts_of

__all__ = ["opened", "tokenizer_folder"]
pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-page installs it")
pytestmark = [
    pytest.mark.page,
    pytest.mark.skipif(chromium() is None, reason="there is no Chromium: make test-page installs it"),
]


@pytest.fixture(scope="module")
def address(opened: OpenedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the command's page, on a small set with captions."""
    folder = tmp_path_factory.mktemp("served")
    write(opened, folder / "model")
    write_images(folder / "images", 12)
    source = Shards(folder / "images", True)
    embed(Embedder(opened=opened), source, folder / "embedded", facts_of(opened, source))
    with served(folder / "embedded", folder / "model", "--top-k", "5", "--rerank", "8") as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as found:
        yield found


class Opened:
    """A page, and what its console said."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.page.set_default_timeout(PATIENCE_MS)
        self.told: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.told.append(message.text))
        self.page.on("pageerror", lambda error: self.told.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)
        if "?" not in address:
            self.page.locator("#q:focus").wait_for()  # it comes with the first frame, which may be later than the page

    def ask(self, text: str) -> None:
        """Type into what has the focus, and press Enter; wait for the results."""
        self.page.keyboard.type(text)
        self.page.keyboard.press("Enter")
        self.page.locator("section ol li").first.wait_for()

    def focused(self) -> Any:
        return self.page.locator(":focus")


def images_are_there(page: Any) -> bool:
    page.wait_for_load_state("networkidle")
    script = "images => images.length > 0 && images.every(one => one.complete && one.naturalWidth > 0)"
    return bool(page.locator("section img").evaluate_all(script))


@pytest.mark.parametrize("has_script", [True, False])
def test_a_search_by_keyboard_alone(browser: Any, address: str, has_script: bool) -> None:
    """The box has the focus; Enter searches; Tab goes through the button to the first image of the first column."""
    shown = Opened(browser, address, java_script_enabled=has_script)
    page = shown.page
    assert shown.focused().get_attribute("id") == "q"
    shown.ask("ein rotes Auto")
    columns = page.locator("section")
    assert columns.count() == 2 and page.locator("section h2").all_inner_texts() == ["Dual encoder", "Re-ranked"]
    assert [columns.nth(number).locator("ol > li").count() for number in (0, 1)] == [5, 5]
    page.locator("section img").last.scroll_into_view_if_needed()
    if has_script:
        assert images_are_there(page)
        assert shown.focused().get_attribute("id") == "q", "the page was not loaded anew"
    else:
        page.locator("#q").focus()
    assert "?q=ein+rotes+Auto" in page.url and page.title().startswith("ein rotes Auto – ")
    assert page.get_by_role("status").inner_text().startswith("5 of 12 images for")
    page.keyboard.press("Tab")
    assert shown.focused().inner_text() == "Search"
    page.keyboard.press("Tab")
    first = columns.first.locator("a").first
    assert shown.focused().get_attribute("href") == first.get_attribute("href")
    page.keyboard.press("Enter")
    page.wait_for_url("**/image/*/large?*")
    page.go_back()
    assert shown.told == []
    assert all(url.startswith((address, "data:")) for url in shown.asked), "nothing from elsewhere"
    page.close()


def test_the_skip_link_leads_to_the_results(browser: Any, address: str) -> None:
    shown = Opened(browser, f"{address}?q=a")
    shown.page.keyboard.press("Tab")
    link = shown.focused()
    assert link.inner_text() == "Skip to the results" and link.bounding_box()["y"] >= 0, "seen when it has the focus"
    shown.page.keyboard.press("Enter")
    shown.page.keyboard.press("Tab")
    assert shown.focused().get_attribute("href").startswith("/image/")
    shown.page.close()


def test_what_is_wrong_is_told_in_place_and_the_next_search_works(browser: Any, address: str) -> None:
    shown = Opened(browser, address)
    shown.page.keyboard.press("Enter")
    status = shown.page.get_by_role("status")
    status.get_by_text("The query is empty.").wait_for()
    shown.ask("a red car")
    assert status.inner_text().startswith("5 of 12 images for")
    shown.page.go_back()
    shown.page.get_by_text("The query is empty.").wait_for()
    shown.page.close()


def test_a_server_that_has_gone_is_told(browser: Any, address: str) -> None:
    shown = Opened(browser, address)
    shown.page.route("**/?q=*", lambda route: route.abort())
    shown.page.keyboard.type("a")
    shown.page.keyboard.press("Enter")
    shown.page.get_by_role("status").get_by_text("The server does not answer.").wait_for()
    shown.page.close()


@pytest.mark.parametrize("query", ["", "?q=ein+rotes+Auto", "?q="])
@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_and_nothing_sticks_out(
    browser: Any, address: str, query: str, width: int, scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    shown = Opened(
        browser, f"{address}{query}", viewport={"width": width, "height": 740}, color_scheme=scheme, bypass_csp=True
    )
    widths = shown.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert widths[0] <= widths[1] == width
    boxes = [box.bounding_box() for box in shown.page.locator("section").all()]
    if boxes:
        assert (boxes[0]["y"] == boxes[1]["y"]) == (width > 1000), "side by side, or one below the other"
    found = axe.Axe().run(shown.page)
    assert found.violations_count == 0, found.generate_report()
    shown.page.close()


def test_dark_is_dark(browser: Any, address: str) -> None:
    colours = []
    for scheme in ("light", "dark"):
        shown = Opened(browser, address, color_scheme=scheme)
        script = "getComputedStyle(document.querySelector('.page')).backgroundColor"
        colours.append(shown.page.evaluate(script))
        shown.page.close()
    assert colours == ["rgb(255, 255, 255)", "rgb(23, 28, 34)"]
