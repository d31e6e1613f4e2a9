"""The page in a real browser: Debian's Chromium, driven by Playwright."""

import os
import shutil

import pytest

PHONE, DESKTOP = {"width": 375, "height": 800}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    # Chromium's sandbox refuses to run as root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(params=["light", "dark"])
def open_page(request, browser, analysis):
    """Open the page at a size, with all that it asks for and complains about."""
    contexts = []

    def opened(viewport):
        context = browser.new_context(viewport=viewport, color_scheme=request.param)
        contexts.append(context)
        page = context.new_page()
        requests, complaints = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto((analysis.output_dir / "analysis.html").as_uri(), wait_until="load")
        return page, requests, complaints

    yield opened
    for context in contexts:
        context.close()


def test_nothing_is_fetched_from_outside(open_page):
    page, requests, complaints = open_page(DESKTOP)
    addresses = [address for address in requests if not address.startswith("data:image/svg+xml")]
    assert addresses == [page.url]
    assert page.url.startswith("file://")
    assert complaints == []


def test_every_figure_is_shown_and_says_what_it_shows(open_page):
    page, _, _ = open_page(DESKTOP)
    figures = page.locator("figure")
    assert figures.count() == 4
    for figure in figures.all():
        picture = figure.get_by_role("img")
        assert len(picture.get_attribute("alt")) > len(figure.locator("figcaption").inner_text())
        assert picture.evaluate("image => image.complete && image.naturalWidth") > 300


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_the_page_reads_at_every_width(open_page, viewport, tmp_path):
    page, _, _ = open_page(viewport)
    # Wide tables scroll by themselves; the page does not.
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    for element in page.locator("img, p, h1, h2, figcaption").all():
        box = element.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= viewport["width"]
    size = page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)")
    assert size >= 14
    picture = page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert len(picture) > 50_000


def test_a_page_that_is_too_wide_would_be_noticed(open_page):
    page, _, _ = open_page(PHONE)
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<pre>' + 'x'.repeat(500))")
    assert page.evaluate("document.documentElement.scrollWidth") > PHONE["width"]
