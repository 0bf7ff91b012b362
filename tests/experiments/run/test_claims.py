"""Claims of the thesis: checked when they are made, judged by rules, listed by the book."""

import dataclasses
import math

import pytest

from experiments.run.claims import (
    VERDICTS,
    Claim,
    claim_rows,
    claims_table,
    not_testable,
    verdict_of_difference,
    verdict_of_share,
)
from experiments.run.results import load_record
from workflow import pages

TEXTS = {
    "claim": "Flat is better than steep.",
    "printed_in": "Table 3.1",
    "thesis": "+2.5 points",
    "found": "+1.5 points",
    "difference": "smaller network",
    "verdict": "reproduced",
    "anchor": "sec-pilot",
}
CHAPTER = """\
# %% [markdown]
# # A toy chapter
#
# (sec-pilot)=
# ## A pilot study

# %% mystnb={"figure": {"name": "fig-flat", "caption": "Flat."}}
1
"""


def claim(**changes):
    return Claim(**{**TEXTS, **changes})


@pytest.mark.parametrize("field", TEXTS)
@pytest.mark.parametrize("value", ["", "  ", None, 1.5])
def test_every_field_is_text(field, value):
    with pytest.raises(ValueError, match=f"`{field}` of a claim must be text. Found {value!r}."):
        claim(**{field: value})


def test_verdict_is_one_of_six():
    for verdict in VERDICTS:
        assert claim(verdict=verdict).verdict == verdict
    known = (
        "'reproduced', 'not reproduced', 'undecided', 'mixed', 'not tested', 'not testable here'"
    )
    with pytest.raises(ValueError, match=f"must be one of {known}. Found 'yes'."):
        claim(verdict="yes")


@pytest.mark.parametrize("anchor", ["sec pilot", "Sec-pilot", "#sec-pilot", "sec-pilot\n"])
def test_anchor_is_the_name_of_a_place(anchor):
    with pytest.raises(ValueError, match="`anchor` must be small letters, digits and hyphens"):
        claim(anchor=anchor)


def test_claim_cannot_be_changed_and_reads_back_from_its_row():
    with pytest.raises(dataclasses.FrozenInstanceError):
        claim().verdict = "undecided"
    assert claim().row() == TEXTS
    assert Claim.from_row(claim().row()) == claim()


@pytest.mark.parametrize(
    ("low", "high", "above", "below"),
    [
        (0.1, 2.0, "reproduced", "not reproduced"),
        (-2.0, -0.1, "not reproduced", "reproduced"),
        (-0.1, 2.0, "undecided", "undecided"),
        (0.0, 2.0, "undecided", "undecided"),  # 0 itself is in the interval
        (-2.0, 0.0, "undecided", "undecided"),
        (-math.inf, math.inf, "undecided", "undecided"),
        (math.nan, math.nan, "not tested", "not tested"),  # one seed
        (0.0, 0.0, "not tested", "not tested"),  # two names for one run
        (-0.0, 0.0, "not tested", "not tested"),
        (0.3, 0.3, "reproduced", "not reproduced"),
    ],
)
def test_verdict_of_a_difference(low, high, above, below):
    assert verdict_of_difference(low, high, "above") == above
    assert verdict_of_difference(low, high, "below") == below
    # The same difference taken the other way round, and expected on the other side
    assert verdict_of_difference(-high, -low, "below") == above
    # One held-out text says nothing, whatever the seeds; 0 stands for all of a test set.
    assert verdict_of_difference(low, high, "above", cases=5) == "not tested"
    assert verdict_of_difference(low, high, "above", cases=6) == above
    assert verdict_of_difference(low, high, "above", acted=False) == "not tested"


@pytest.mark.parametrize(
    ("low", "high", "expected", "message"),
    [
        (2.0, 1.0, "above", "low must be at most high. Found low=2.0, high=1.0."),
        (math.nan, 1.0, "above", "low must be at most high. Found low=nan"),
        (0.0, math.nan, "below", "low must be at most high. Found low=0.0, high=nan"),
        (0.0, 1.0, "larger", "expected must be 'above' or 'below'. Found 'larger'."),
    ],
)
def test_wrong_intervals_are_refused(low, high, expected, message):
    with pytest.raises(ValueError, match=message):
        verdict_of_difference(low, high, expected)


@pytest.mark.parametrize(
    ("hits", "total", "verdict"),
    [(8, 8, "reproduced"), (7, 8, "mixed"), (1, 8, "mixed"), (0, 8, "not reproduced")],
)
def test_verdict_of_a_share(hits, total, verdict):
    assert verdict_of_share(hits, total) == verdict
    assert verdict_of_share(hits, total, acted=False) == "not tested"


@pytest.mark.parametrize(("hits", "total"), [(0, 0), (-1, 3), (4, 3)])
def test_wrong_shares_are_refused(hits, total):
    with pytest.raises(ValueError, match="must be (at least 1|between 0 and total=3). Found"):
        verdict_of_share(hits, total)


def test_what_cannot_be_tested_says_why():
    fields = {key: TEXTS[key] for key in ("claim", "printed_in", "thesis", "anchor")}
    made = Claim(**fields, **not_testable("the photographs are missing"))
    assert made.verdict == "not testable here"
    assert made.difference == "the photographs are missing"
    with pytest.raises(ValueError, match="reason must be text. Found ' '."):
        not_testable(" ")


def test_rows_go_through_a_record_unchanged(record, tmp_path):
    claims = [claim(), claim(claim="Another.", verdict="undecided")]
    record.table("claims", claim_rows(claims))
    rows = load_record(record.save(tmp_path)).tables["claims"]
    assert [Claim.from_row(row) for row in rows] == claims


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ("-0.6 points, 95 % interval -1.7 to +0.5 over 10 seeds", "undecided"),
        ("+0.0 points, 95 % interval +0.0 to +0.0 over 10 seeds", "not tested"),
        ("clearly better than 4 of 5", "mixed"),
    ],
)
def test_partly_in_a_record_that_was_kept_is_told_apart(found, verdict):
    """It stood for an interval around 0, for one run under two names, and for some of the cases."""
    kept = {**TEXTS, "found": found, "verdict": "partly"}
    assert Claim.from_row(kept).verdict == verdict
    assert claim_rows([kept])[0]["verdict"] == verdict


def test_row_that_is_no_claim_is_refused_at_writing():
    short = {key: value for key, value in TEXTS.items() if key != "printed_in"}
    with pytest.raises(ValueError, match="row 1: .* Missing: printed_in. Unknown: none."):
        claim_rows([claim(), short])
    with pytest.raises(ValueError, match="row 0: .* Missing: none. Unknown: note."):
        claim_rows([{**TEXTS, "note": "x"}])
    with pytest.raises(ValueError, match="row 0: `verdict` must be one of"):
        claim_rows([{**TEXTS, "verdict": "yes"}])
    with pytest.raises(ValueError, match="row 1: .* Found again: 'Flat is"):
        claim_rows([claim(), claim(verdict="undecided")])


def test_table_for_a_chapter():
    table = claims_table([claim(), {**TEXTS, "claim": "Another."}])
    assert table.columns.tolist() == [
        "claim",
        "thesis",
        "this run",
        "difference in set-up",
        "verdict",
    ]
    assert table.iloc[0].tolist() == [
        "Flat is better than steep.",
        "+2.5 points (Table 3.1)",
        "+1.5 points",
        "smaller network",
        "reproduced",
    ]
    assert len(table) == 2
    assert claims_table([]).columns.tolist() == table.columns.tolist()


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    """The source of a chapter that the pages are made from."""
    source = tmp_path / "toy.py"
    source.write_text(CHAPTER)
    monkeypatch.setattr(pages, "chapter_source", lambda name: source)
    return source


@pytest.fixture
def run(record, tmp_path):
    """A saved run of a profile that noted claims: ``run("full", claim())``."""

    def make(profile, *claims, **changes):
        rows = claim_rows(claims)
        made = record.model_copy(update={"profile": profile, "tables": {"claims": rows}, **changes})
        return load_record(made.save(tmp_path / profile))

    return make


def test_page_without_claims_says_so(record, run, chapter):
    assert pages.claims_part([record], []) == "No run has noted a claim yet.\n"
    assert pages.claims_part([run("cpu")], [run("full")]) == "No run has noted a claim yet.\n"


def test_long_run_decides_and_the_live_one_stands_beside_it(run, chapter):
    live = run("cpu", claim(verdict="undecided", found="+0.5 points"), claim(claim="Only here."))
    other = claim(claim="Not in full.", verdict="undecided")
    gpu = run("gpu", claim(verdict="not reproduced"), other)
    full = run("full", claim(), git_commit="0123456789abcdef", seeds=[0, 1, 2])
    text = pages.claims_part([live], [gpu, full])
    assert text.startswith("## A toy chapter\n")
    assert "Verdicts: 2 reproduced, 1 undecided.\n" in text
    rows = text.partition("```{list-table}")[2].split("\n* - ")[2:]
    assert [row.partition(" (")[0] for row in rows] == [
        "Flat is better than steep",
        "Only here",
        "Not in full",
    ]
    assert rows[0].index("**full:**") < rows[0].index("**gpu:**") < rows[0].index("**cpu, this")
    found = "+0.5 points. *Set-up:* smaller network. *Verdict:* undecided."
    assert f"**cpu, this copy:** {found}" in rows[0]
    assert "(Table 3.1)\n\n    *Printed:* +2.5 points\n" in rows[0]
    assert rows[0].endswith("  - **reproduced**\n\n    (full)")
    assert rows[1].endswith("  - **reproduced**\n\n    (cpu, this copy)")
    assert "  - **undecided**\n\n    (gpu)" in rows[2]
    assert f"- **full**: 3 seeds, {full.started_at[:10]}, commit `0123456789`" in text
    assert "- **cpu, this copy**: 2 seeds, " in text


def test_other_records_decide_nothing(run, chapter):
    live = run("cpu", claim(verdict="undecided"))
    search = run("search", claim())
    other = run("full", claim(), chapter="other")
    assert pages.claims_part([live], [search, other]) == pages.claims_part([live], [])


@pytest.mark.parametrize("anchor", ["sec-pilot", "fig-flat"])
def test_link_leads_to_the_place_in_the_chapter(run, chapter, anchor):
    assert f"[Where it is examined](#{anchor})" in pages.claims_part(
        [run("cpu", claim(anchor=anchor))], []
    )


def test_place_that_the_chapter_lost(run, chapter):
    gone = claim(anchor="sec-gone")
    text = pages.claims_part([run("cpu")], [run("full", gone)])
    assert "[Where it is examined](</chapters/toy.ipynb>)" in text
    with pytest.raises(ValueError, match="toy.py: .* must name a place .* Found 'sec-gone'"):
        pages.claims_part([run("cpu", gone)], [])


def test_broken_record_is_named(run, chapter):
    good = run("full", claim())
    row = {key: value for key, value in TEXTS.items() if key != "found"}
    broken = good.model_copy(update={"tables": {"claims": [row]}})
    with pytest.raises(
        ValueError, match="Record toy, profile full: Table `claims`, row 0: .* Missing: found"
    ):
        pages.claims_part([run("cpu")], [broken])


def test_text_is_not_taken_for_markup(run, chapter):
    text = pages.claims_part([run("cpu", claim(found="a_b | *c* [d](e) {f}`g` $h$\n<i>.."))], [])
    assert r"a\_b \| \*c\* \[d\](e) \{f\}\`g\` \$h\$ \<i\>.. *Set-up:*" in text


def test_page_is_written_from_the_records_on_disk(run, chapter, tmp_path, monkeypatch):
    root = tmp_path / "project"
    monkeypatch.setattr(pages, "ROOT", root)
    monkeypatch.setattr(pages, "RUNS", root / "runs")
    monkeypatch.setattr(pages, "chapters", lambda: ["toy"])
    monkeypatch.setattr(pages, "parameters_part", lambda names: "")
    run("cpu", claim(verdict="undecided")).save(root / "runs/toy/cpu/main")
    (root / "results").mkdir()
    (root / "results/toy.full.json").write_text(run("full", claim()).to_json())
    pages.write_pages("cpu", root / "generated")
    text = (root / "generated/claims.md").read_text()
    assert "  - **reproduced**\n\n    (full)" in text
    pages.write_pages("cpu", root / "generated")
    assert (root / "generated/claims.md").read_text() == text
