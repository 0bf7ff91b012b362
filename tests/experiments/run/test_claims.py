"""Claims of the thesis: checked when they are made, judged by rules, computed from records."""

import dataclasses
import math
import sys
from types import ModuleType

import pandas as pd
import pytest

from experiments.run import claims as module
from experiments.run.claims import (
    VERDICTS,
    Claim,
    claim_rows,
    claims_of,
    claims_table,
    not_testable,
    verdict_of_difference,
    verdict_of_share,
)
from experiments.run.paired import PairedDifference
from experiments.run.results import load_record, record_files
from tests.paths import ROOT

TEXTS = {
    "claim": "Flat is better than steep.",
    "printed_in": "Table 3.1",
    "thesis": "+2.5 points",
    "found": "+1.5 points",
    "difference": "smaller network",
    "verdict": "reproduced",
    "anchor": "sec-pilot",
}
NUMBERS = {"printed_effect": 2.5, "effect": 1.5, "low": 0.5, "high": 2.5}


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
    for made in (claim(), claim(**NUMBERS, mechanism="it held 12 %", unit="nats")):
        assert Claim.from_row(made.row()) == made
    assert Claim.from_row(TEXTS) == claim()  # a row that was kept before claims had numbers


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, "1.5", True])
def test_numbers_are_finite_or_none(field, value):
    with pytest.raises(ValueError, match=f"`{field}` of a claim must be a finite number or None"):
        claim(**{**NUMBERS, field: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low": None}, r"`low` and `high` of a claim must both be known. Found \(None, 2.5\)"),
        ({"high": None}, r"must both be known. Found \(0.5, None\)"),
        ({"low": 3.0}, r"`low` of a claim must be at most `high`. Found \(3.0, 2.5\)"),
        ({"mechanism": None}, "`mechanism` of a claim must be text. Found None"),
        ({"unit": 1}, "`unit` of a claim must be text. Found 1"),
    ],
)
def test_numbers_that_make_no_interval_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        claim(**{**NUMBERS, **changes})


def test_half_the_interval_is_the_least_that_a_run_sees():
    assert claim(**NUMBERS).least_seen == 1.0
    assert claim().least_seen is None


def of_difference(values, expected="above", **options):
    difference = PairedDifference.of(pd.Series(values))
    texts = (TEXTS["claim"], "Table 3.1", "2.5 points")
    return Claim.of_difference(*texts, difference, "smaller", expected, "sec-pilot", **options)


def test_claim_of_a_difference_has_its_numbers_and_verdict():
    made = of_difference([1.0, 1.5, 2.0], printed_effect=2.5, mechanism="held 12 %", unit="nats")
    assert (made.verdict, made.effect, made.printed_effect) == ("reproduced", 1.5, 2.5)
    # Student's t for two degrees of freedom, times 0.5 / sqrt(3)
    assert (made.low, made.high) == pytest.approx((1.5 - 1.2421, 1.5 + 1.2421), abs=1e-4)
    assert made.found == "+1.5 nats, 95 % interval +0.3 to +2.7 over 3 seeds"
    assert (made.mechanism, made.unit, made.difference) == ("held 12 %", "nats", "smaller")
    assert of_difference([1.0, 1.5, 2.0], "below").verdict == "not reproduced"


def test_claim_of_a_difference_is_as_exact_as_its_interval():
    found = of_difference([0.010, 0.012, 0.014], unit="").found
    assert found == "+0.0120, 95 % interval +0.0070 to +0.0170 over 3 seeds"
    rounded = [40.74, 40.74 + 1e-14, 40.74 - 1e-14]  # one size in every seed
    found = of_difference(rounded, unit="MB").found
    assert found == "+40.7 MB, 95 % interval +40.7 to +40.7 over 3 seeds"


def test_claim_of_a_difference_that_says_nothing():
    one = of_difference([1.5])
    assert (one.verdict, one.effect, one.low, one.high) == ("not tested", 1.5, None, None)
    assert one.found == "+1.5 points (one seed, no interval)"
    none = of_difference([math.nan])
    assert (none.verdict, none.effect, none.found) == (
        "not tested",
        None,
        "no pair was finished",
    )
    idle = of_difference([1.0, 1.5, 2.0], acted=False, mechanism="no weight at the wall")
    assert (idle.verdict, idle.mechanism) == ("not tested", "no weight at the wall")
    assert of_difference([1.0, 1.5, 2.0], cases=5).verdict == "not tested"
    assert of_difference([0.0, 0.0], printed_effect=2.5).verdict == "not tested"
    with pytest.raises(ValueError, match="mechanism must say why it did not act. Found ''"):
        of_difference([1.0, 1.5, 2.0], acted=False)


def test_a_printed_difference_makes_clear_absence_possible():
    values = [-0.1, 0.0, 0.1]
    assert of_difference(values).verdict == "undecided"
    assert of_difference(values, printed_effect=2.5).verdict == "not reproduced"
    assert of_difference(values, "below", printed_effect=-2.5).verdict == "not reproduced"
    assert of_difference(values, printed_effect=0.2).verdict == "undecided"  # could not be seen
    for side, effect in (("above", -2.5), ("above", 0.0), ("below", 2.5)):
        with pytest.raises(ValueError, match=f"printed_effect must lie {side} 0. Found"):
            of_difference(values, side, printed_effect=effect)


def test_claim_of_a_share_counts():
    texts = (TEXTS["claim"], "Table 3.1", "in every session")
    made = Claim.of_share(*texts, 7, 8, "smaller", "sec-pilot", counted="sessions", shown="+1, -2")
    assert (made.found, made.verdict) == ("in 7 of 8 sessions: +1, -2", "mixed")
    assert Claim.of_share(*texts, 8, 8, "smaller", "sec-pilot").found == "in 8 of 8 cases"
    idle = {"acted": False, "mechanism": "nothing moved"}
    assert Claim.of_share(*texts, 8, 8, "smaller", "sec-pilot", **idle).verdict == "not tested"
    with pytest.raises(ValueError, match="mechanism must say why"):
        Claim.of_share(*texts, 8, 8, "smaller", "sec-pilot", acted=False)


@pytest.mark.parametrize(
    ("found", "thesis", "numbers"),
    [
        ("-0.6 points, 95 % interval -1.7 to +0.5 over 10 seeds (no clear difference)",
         "+0.84 points at session 9", (0.84, -0.6, -1.7, 0.5, "points")),
        ("-0.228 nats (95 % interval -0.499 to +0.042, 3 seeds)",
         "better in most columns", (None, -0.228, -0.499, 0.042, "nats")),
        ("-0.58, 95 % interval -0.70 to -0.45 over seeds",
         "-0.49", (-0.49, -0.58, -0.7, -0.45, "")),
        ("+2.2 points (one seed, no interval)", "+0.61 points", (0.61, 2.2, None, None, "points")),
        ("+5.0 points, 95 % interval -13.0 to +23.0 over 3 seeds",
         "+2.0 and +3.3 points", (None, 5.0, -13.0, 23.0, "points")),
        ("-1.0 points, 95 % interval -2.0 to +0.0 over 3 seeds",
         "-0.1 to 7.8 %", (None, -1.0, -2.0, 0.0, "points")),
        ("0.91 times", "0.87 times", (None, None, None, None, "points")),
        ("10.0 %", "+1.4 %", (None, None, None, None, "points")),
        ("no pair was finished", "+1.4 points", (None, None, None, None, "points")),
    ],
)  # fmt: skip
def test_numbers_of_a_kept_row_are_read_from_its_texts(found, thesis, numbers, record):
    record.table("claims", [{**TEXTS, "found": found, "thesis": thesis}])
    (made,) = claims_of(record)
    assert (made.printed_effect, made.effect, made.low, made.high, made.unit) == numbers
    assert made.found == found


def test_numbers_of_its_own_stay():
    made = claim(found="+9.9 points, 95 % interval +9.0 to +9.9 over 3 seeds", **NUMBERS)
    assert made.with_numbers() == made


@pytest.fixture
def named(tmp_path, monkeypatch):
    """The chapter of the record names a module for its claims: ``named(function)``."""
    source = tmp_path / "toy.py"
    header = "# ---\n# jupyter:\n#   ktlib:\n#     claims: toy_claims\n# ---\n"
    source.write_text(header, encoding="utf-8")
    monkeypatch.setattr(module, "chapters", lambda: ["toy"])
    monkeypatch.setattr(module, "chapter_source", lambda name: source)

    def with_function(function=None):
        made = ModuleType("toy_claims")
        if function is not None:
            made.claims = function
        monkeypatch.setitem(sys.modules, "toy_claims", made)

    return with_function


def test_claims_of_a_record_follow_the_module_that_its_chapter_names(record, named):
    record.table("claims", [TEXTS])
    record.table("methods", [{"accuracy": 1.5}])
    named(lambda kept: [claim(found=f"{kept.tables['methods'][0]['accuracy']} points")])
    assert [made.found for made in claims_of(record)] == ["1.5 points"]
    named(lambda kept: [claim(), claim()])
    with pytest.raises(ValueError, match="Table `claims`, row 1: each claim may occur once"):
        claims_of(record)
    named()
    with pytest.raises(ValueError, match="chapter 'toy' must name a module .* Found 'toy_claims'"):
        claims_of(record)


def test_claims_of_a_record_whose_chapter_names_none(record):
    assert claims_of(record) == []
    record.table("claims", claim_rows([claim()]))
    assert claims_of(record) == [claim()]


@pytest.mark.parametrize("path", record_files(ROOT / "results"))
def test_numbers_are_read_from_every_interval_that_was_kept(path):
    for row in load_record(path).tables.get("claims", []):
        if "low" not in row:  # kept before claims had numbers
            read = Claim.from_row(row).with_numbers().least_seen is not None
            assert read == ("95 % interval" in row["found"]), row["found"]


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
    # The size of what is printed matters only where the interval holds 0.
    if "undecided" not in (above, below):
        assert verdict_of_difference(low, high, "above", least=0.01) == above


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.4, 0.4, "not reproduced"),
        (-0.5, 0.4, "undecided"),  # the printed size itself, on the other side
        (-0.4, 0.5, "undecided"),
        (-3.0, 0.4, "undecided"),  # too wide to have seen it
        (0.0, 0.4, "not reproduced"),
        (0.1, 0.4, "reproduced"),
        (-math.inf, math.inf, "undecided"),
    ],
)
def test_clear_absence(low, high, verdict):
    assert verdict_of_difference(low, high, "above", least=0.5) == verdict


@pytest.mark.parametrize("least", [0.0, -1.0, math.inf, math.nan])
def test_least_difference_is_positive(least):
    with pytest.raises(ValueError, match="least must be a positive number or None. Found"):
        verdict_of_difference(-1.0, 1.0, "above", least=least)


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
