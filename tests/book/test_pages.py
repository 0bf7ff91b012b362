"""Every page of the built book, as a reader sees it."""

import nbformat
import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe

from tests.paths import ROOT

BOOK = ROOT / "book"
PHONE, DESKTOP = 390, 1440
pytestmark = pytest.mark.browser


def pages_of(toc):
    """Names of all pages in the table of contents."""
    if isinstance(toc, list):
        return [name for part in toc for name in pages_of(part)]
    names = [toc[key] for key in ("root", "file") if key in toc]
    return names + pages_of([*toc.get("parts", []), *toc.get("chapters", [])])


PAGES = pages_of(yaml.safe_load((BOOK / "_toc.yml").read_text()))
CHAPTERS = [name for name in PAGES if name.startswith("chapters/")]
MATH = [*CHAPTERS, "notation"]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_page_is_whole(tab, name, theme):
    """On a desk in the light and on a phone in the dark; loaded once, looked at in many ways."""
    width = PHONE if theme == "dark" else DESKTOP
    with tab(name, width, theme) as opened:
        page = opened.page
        assert_fits(page, width)
        if name in MATH:
            assert_math_is_typeset(page)
        if name in CHAPTERS:
            assert_figures_can_be_read(page, width)
            assert_charts_have_the_colours_of(page, theme)
        page.mouse.wheel(0, 100_000)  # also what is loaded when it comes into view
        assert opened.outside == []
        assert opened.complaints == []
        assert_no_barrier(page)  # the last, as it changes the page


def assert_fits(page, width):
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # What is wider than its place must lie in a box that scrolls, or a part would be cut off.
    assert page.evaluate(CUT_OFF) == []


CUT_OFF = """() => {
    const article = document.querySelector("article.bd-article");
    const scrolls = (e) => ["auto", "scroll"].includes(getComputedStyle(e).overflowX);
    const inBox = (e) => {
        for (let box = e; box && box !== article; box = box.parentElement) {
            if (scrolls(box)) { return true; }
        }
        return false;
    };
    return [...article.querySelectorAll("table, pre, img, mjx-container, p, li")]
        .filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !inBox(e))
        .map((e) => e.outerHTML.slice(0, 120));
}"""


def assert_no_barrier(page):
    page.evaluate(THIN_OUT)
    found = Axe().run(page, options={"rules": {"region": {"enabled": False}}})  # never serious
    serious = [
        f"{problem['id']}: {problem['nodes'][0]['html'][:200]}"
        for problem in found.response["violations"]
        if problem["impact"] in {"serious", "critical"}
    ]
    assert serious == []


# Half of the time goes into the colours of the thousandth word of code.
THIN_OUT = """() => {
    for (const code of [...document.querySelectorAll("pre")].slice(10)) {
        code.textContent = code.textContent;
    }
}"""


def assert_math_is_typeset(page):
    formulas = page.locator(".math").count()
    assert formulas > 5
    assert page.locator(".math mjx-container").count() >= formulas
    assert page.locator("mjx-merror").count() == 0
    widths = page.locator("mjx-container").evaluate_all("all => all.map(e => e.offsetWidth)")
    assert min(widths) > 0
    text = page.locator("article.bd-article").inner_text()
    assert not {r"\(", r"\[", "$$"} & set(text.split())


def assert_figures_can_be_read(page, width):
    figures = page.locator("article figure")
    assert figures.count() >= 3
    for figure in figures.all():
        image = figure.locator("img")
        box = image.bounding_box()
        assert image.evaluate("e => e.complete && e.naturalWidth") > 0
        assert box["width"] >= 300
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert len(image.get_attribute("alt")) > 30
        assert len(figure.locator("figcaption .caption-text").inner_text()) > 30


def assert_charts_have_the_colours_of(page, theme):
    """Charts are turned dark, pictures are not."""
    style = "all => all.map(e => getComputedStyle(e).filter)"
    if theme == "light":
        assert set(page.locator("article img").evaluate_all(style)) == {"none"}
        return
    charts = page.locator("article img.chart").evaluate_all(style)
    assert charts
    assert all("invert(" in value for value in charts)
    assert set(page.locator("article img.photo").evaluate_all(style)) <= {"none"}


def test_search_finds_a_word_of_the_chapter(tab):
    with tab("intro") as opened:
        page = opened.page
        page.locator("button.search-button-field:visible").click()
        page.keyboard.type("prototype")
        page.keyboard.press("Enter")
        page.wait_for_url("**/search.html?q=prototype")
        for name in ("chapters/fcl.html", "notation.html"):  # results appear one after the other
            page.locator(f'#search-results ul.search li a[href^="{name}"]').first.wait_for()
        assert opened.complaints == []
        assert opened.outside == []


def test_theme_can_be_switched(tab):
    theme = "document.documentElement.dataset.theme"
    with tab("intro") as opened:
        page = opened.page
        seen, colours = [], set()
        for _ in range(3):
            seen.append(page.evaluate(theme))
            colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            page.locator("button.theme-switch-button:visible").click()
        assert {"light", "dark"} <= set(seen)
        assert len(colours) == 2
        kept = page.evaluate(theme)
        page.reload()
        assert page.evaluate(theme) == kept
        assert opened.complaints == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_is_unfolded_and_downloaded_as_a_notebook(tab, served, name):
    with tab(name, address=served) as opened:
        page = opened.page
        folded = page.locator("details.hide").first
        assert not folded.locator("pre").first.is_visible()
        folded.locator("summary").click()
        assert folded.locator("pre").first.is_visible()
        page.get_by_role("button", name="Download this page").click()
        with page.expect_download() as download:
            page.locator(".btn-download-source-button").click()
        assert download.value.suggested_filename == f"{name.rpartition('/')[2]}.ipynb"
        assert nbformat.read(download.value.path(), as_version=4).cells
        assert [url for url in opened.outside if not url.startswith(served)] == []
        assert opened.complaints == []
