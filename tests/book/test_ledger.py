"""The list of claims in a browser, and the statements of the thesis beside the live claims."""

import pytest

from experiments.run.claims import claims_of
from experiments.run.results import load_record, record_files
from tests.book.test_pages import PHONE
from workflow.ledger import LONG, places
from workflow.ledger_coverage import gaps, read_coverage
from workflow.project import ROOT, chapters

LIST = "table.ledger tbody tr"


def numbers(page):
    """The numbers of the claims that are shown, from top to bottom."""
    shown = page.locator(f"{LIST}:visible td:first-child").all_inner_texts()
    return [int(text) for text in shown]


@pytest.mark.browser
def test_list_is_filtered(tab):
    with tab("claims") as opened:
        page = opened.page
        everything = numbers(page)
        assert everything == list(range(1, len(everything) + 1))
        said = page.locator(".ledger-filter output")
        assert said.inner_text() == f"All {len(everything)} claims"
        page.get_by_label("Verdict").select_option("not reproduced")
        refuted = numbers(page)
        total = page.locator(".ledger-totals .not-reproduced b").inner_text()
        assert 0 < len(refuted) < len(everything)
        assert len(refuted) == int(total)
        assert said.inner_text() == f"{total} of {len(everything)} claims: {total} not reproduced"
        of = {n: page.locator(f"#claim-{n}").get_attribute("data-chapter") for n in refuted}
        chapter = of[refuted[0]]
        page.get_by_label("Chapter").select_option(chapter)
        assert numbers(page) == [n for n in refuted if of[n] == chapter]
        for label in ("Verdict", "Chapter"):
            page.get_by_label(label).select_option("")
        page.get_by_label("Words").fill("CelebA  recon improves")  # any order, any spaces
        (one,) = numbers(page)
        assert "CelebA" in page.locator(f"#claim-{one} summary").inner_text()
        page.get_by_label("Words").fill("no such words")
        assert numbers(page) == []
        assert said.inner_text() == f"0 of {len(everything)} claims"
        assert opened.complaints == []


@pytest.mark.browser
def test_list_is_sorted_with_the_keyboard(tab):
    with tab("claims") as opened:
        page = opened.page
        before = numbers(page)
        head = page.get_by_role("columnheader", name="Ours / printed")
        head.get_by_role("button").focus()
        for order in ("ascending", "descending"):
            page.keyboard.press("Enter")
            assert head.get_attribute("aria-sort") == order
            texts = page.locator(f"{LIST} td:nth-child(4)").all_inner_texts()
            known = [float(text) for text in texts if text]
            assert len(known) > 3
            assert known == sorted(known, reverse=order == "descending")
            assert not any(texts[len(known) :])  # what has no number comes last
        page.get_by_role("columnheader", name="Claim").get_by_role("button").click()
        assert head.get_attribute("aria-sort") == "none"
        claims = page.locator(f"{LIST} summary").all_inner_texts()
        assert claims[0].lower() < claims[-1].lower()
        page.get_by_role("columnheader", name="No.").get_by_role("button").click()
        assert numbers(page) == before


@pytest.mark.browser
def test_link_opens_its_claim_whatever_is_filtered(tab):
    with tab("claims") as opened:
        page = opened.page
        page.get_by_label("Words").fill("no such words")
        page.locator(".ledger-coverage summary").nth(1).click()
        link = page.locator(".ledger-coverage a[href^='#claim-']:visible").first
        address = link.get_attribute("href")
        link.click()
        details = page.locator(f"{address} details")
        details.locator("dl").wait_for()
        assert details.locator("dt").first.inner_text() == "Printed"
        details.get_by_role("link").click()
        page.wait_for_url("**/chapters/*.html#*")


@pytest.mark.browser
def test_list_is_whole_without_its_script(chromium, smoke_book):
    page = chromium.new_page(java_script_enabled=False)
    page.goto(f"{smoke_book.html.as_uri()}/claims.html")
    assert numbers(page) == list(range(1, page.locator(LIST).count() + 1))
    assert not page.locator(".ledger-filter").is_visible()
    page.close()


@pytest.mark.browser
def test_list_is_short_on_a_phone(tab):
    with tab("claims", PHONE) as opened:
        page = opened.page
        rows = page.locator(LIST)
        heights = rows.evaluate_all("all => all.map((e) => e.offsetHeight)")
        assert sum(heights) / len(heights) < 120  # two or three lines of text
        everything = page.evaluate("document.documentElement.scrollHeight")
        assert everything < 200 * len(heights)
        page.evaluate("document.querySelectorAll('details').forEach((e) => { e.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE


@pytest.mark.slow
def test_statements_and_claims_fit(smoke_book):
    """What is said to be examined is, by a live run or a committed record; and nothing else is."""
    kept = [load_record(path) for path in record_files(ROOT / "results")]
    kept = [r for r in kept if r.chapter in chapters() and r.profile in LONG]
    runs = [smoke_book.root / "runs" / name / "smoke" / "main" for name in chapters()]
    records = [*kept, *map(load_record, runs)]
    claims = {c.claim: c.printed_in for record in records for c in claims_of(record)}
    assert gaps(read_coverage(), claims, places(chapters())) == ([], [])
