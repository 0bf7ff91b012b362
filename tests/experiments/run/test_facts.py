"""What the modules of claims have in common."""

import math

import pytest

from experiments.run.facts import (
    NO_FACT,
    SAME,
    Fact,
    beyond,
    chosen_words,
    difference_claim,
    in_points,
    names_by_verdict,
)
from experiments.run.paired import PairedDifference

CLEAR = PairedDifference(1.0, 0.5, 1.5, 6)
AGREE = PairedDifference(0.0, 0.0, 0.0, 6)
ONE = PairedDifference(1.0, math.nan, math.nan, 1)
NONE = PairedDifference(math.nan, math.nan, math.nan, 0)
WORDS = {"reproduced": "pays", "not reproduced": "costs", "not tested": "was not tried with"}


def claim(found, words="x", **options):
    return difference_claim(words, "Table 1", "+1", found, "small.", "sec-a", **options)


def test_two_facts_are_one():
    assert Fact("a") & Fact("b", acted=False) == Fact("a; b", acted=False)
    assert Fact("a") & NO_FACT == Fact("a")
    assert NO_FACT.with_words("b") == Fact("b")


def test_a_claim_that_counts_needs_intervals_and_arms_that_differ():
    assert Fact("a").seen_in([CLEAR, AGREE]) == Fact("a")
    for found in ([], [CLEAR, ONE], [NONE]):
        assert Fact("a").seen_in(found) == Fact("a; some pair has no interval", acted=False)
    assert NO_FACT.seen_in([AGREE, AGREE]) == Fact(SAME, acted=False)


def test_claim_says_why_it_was_not_tested():
    known = claim(CLEAR, fact=Fact("it acted"), shown="Shown: points.", effect=2.0)
    assert (known.verdict, known.mechanism, known.printed_effect) == ("reproduced", "it acted", 2.0)
    assert known.difference == "Shown: points. small."
    for found, words in ((AGREE, SAME), (NONE, "no pair was finished")):
        assert claim(found, fact=Fact("it acted")).mechanism == f"it acted; {words}"
        assert claim(found).verdict == "not tested"


def test_distance_from_a_fixed_number():
    assert beyond(AGREE, 0.8) == AGREE
    assert beyond(CLEAR, 0.8) == PairedDifference(*map(pytest.approx, (0.2, -0.3, 0.7)), 6)


def test_words_of_a_summary():
    assert chosen_words(None, WORDS) == "was not part of this run"
    assert chosen_words(claim(CLEAR), WORDS).startswith("pays: +1.00 points, 95 % interval +0.50")
    ratio = chosen_words(claim(CLEAR, unit="log"), WORDS)
    assert ratio == "pays: 2.7 times, 95 % interval 1.6 to 4.5"
    assert chosen_words(claim(ONE, fact=Fact("it acted")), WORDS) == (
        "was not tested: a single seed gives no interval"
    )
    assert chosen_words(claim(NONE), WORDS) == "was not tested: no pair was finished"
    found = {"A": claim(CLEAR), "B": claim(NONE), "C": claim(CLEAR)}
    assert names_by_verdict(found, WORDS) == (
        "pays A (+1.0 points), C (+1.0 points); it was not tried with B"
    )
    assert names_by_verdict({}, WORDS) == ""
    assert in_points(None) == "no number"
    assert in_points(0.5) == "+0.50 points"
