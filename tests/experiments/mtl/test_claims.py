"""The claims of chapter 4 on tables that were made up, so that every verdict is known."""

from functools import cache

import pytest

from experiments.mtl.claims import (
    AS_PUBLISHED,
    CENTRAL,
    LEAVE_MORE,
    ON_RANDOM,
    Evidence,
    claims,
    printed,
    summary,
)
from experiments.mtl.derived import COLUMNS
from experiments.run.claims import OWN_QUESTION, claim_rows
from tests.experiments.mtl.made import Made
from workflow.ledger import places
from workflow.ledger_coverage import gaps, read_coverage

# Fewer methods, and a network in which the layers of Recon hold as little as in print
CHANGES = {
    "methods": ["single", "joint", "mgda", "pcgrad", "graddrop", "cagrad", "famo", "mmoe", "bmtas"],
    "recon_methods": ["joint", "mgda", "pcgrad", "graddrop", "cagrad", "famo", "mmoe"],
    "seeds": [*range(4)],
    "study_seeds": [*range(4)],
    "widening": 20.0,
}
NARROW = "Recon removes more than half of the severe conflicts, whatever the method, at the printed"
TIES = {"Recon with CAGrad does at least as well as BMTAS", "Many split layers bring no more"}
TIMED = ("A step of the search", "With many tasks")
OTHER_WAY = {"scale": -1.0, "fewer": -1.0, "alike": 0.2, "angles_alike": 1.0, "added": 5.0,
             "widening": 1.0}  # fmt: skip


def made(**changes):
    """A record of made-up tables."""
    return Made(**CHANGES | changes).record


@cache
def whole():
    """Its claims, by their words, where all is as printed."""
    return found_in(made())


def found_in(record):
    """The claims that could be tested here, by their words."""
    return {c.claim: c for c in claims(record) if c.verdict != "not testable here"}


def verdicts(record, *parts):
    """Claim -> verdict, for claims with one of these parts; all without."""
    found = found_in(record).items()
    return {
        words: claim.verdict
        for words, claim in found
        if not parts or any(part in words for part in parts)
    }


def test_each_claim_is_one_and_has_a_place():
    found = claims(Made().record)
    assert len(found) >= 130
    assert len(claim_rows(found)) == len(found)  # refuses duplicates
    assert {claim.anchor for claim in found} <= places(["recon_evidence"]).keys()
    assert "nan" not in str(claim_rows(found))
    own = {claim.claim for claim in found if claim.printed_in == OWN_QUESTION}
    assert own >= {
        "Recon improves FAMO",
        ON_RANDOM,
        ON_RANDOM + AS_PUBLISHED,
        "With joint training, Recon's layers are better than the last K layers",
        "The search has at least 23 of the first 25 released layers, in every seed",
    }
    assert not own & {CENTRAL, "Recon improves MMoE", LEAVE_MORE}


def test_list_of_statements_and_claims_fit():
    rows = [row for row in read_coverage() if row.chapter == "4"]
    words = {claim.claim: claim.printed_in for claim in claims(made())}
    loose, missing = gaps(rows, words, places(["recon_evidence", "proofs/recon"]))
    assert (loose, missing) == ([], [])


def test_clear_effects_of_the_printed_sign_are_reproduced():
    other = {words: claim.verdict for words, claim in whole().items()}
    other = {words: verdict for words, verdict in other.items() if verdict != "reproduced"}
    narrow = other.pop(next(words for words in other if words.startswith(NARROW)))
    assert narrow == "not reproduced"  # -0.01 cuts off far more of wide cosines
    assert other == dict.fromkeys(TIES, "undecided")


def test_clear_effects_of_the_other_sign_are_not_reproduced():
    found = verdicts(made(**OTHER_WAY))
    others = {w: v for w, v in found.items() if v != "not reproduced" and not w.startswith(TIMED)}
    surgery = {words for words in others if "removes no more severe" in words}
    assert {others.pop(words) for words in surgery} == {"reproduced"}
    assert len(surgery) == 12
    chance = {words for words in others if "less than by chance" in words}
    assert {others.pop(words) for words in chance} <= {"undecided"}
    (concentrated,) = (words for words in others if words.startswith("Conflicts are conc"))
    assert others == {concentrated: "reproduced"} | dict.fromkeys(TIES, "undecided")


def test_wide_intervals_leave_it_undecided():
    found = found_in(made(noise=400.0, jitter=1.0))
    gains = {w: c.verdict for w, c in found.items() if c.unit == "points" and c.low is not None}
    steady = [words for words in gains if "tatistics" in words and AS_PUBLISHED not in words]
    assert len(steady) == 2  # the same weights, tested twice: the noise is the same
    rest = {w for w, v in gains.items() if v != "undecided"} - {*steady}
    assert {words.partition(":")[0] for words in rest} == {"Conflicts are concentrated"}
    assert len(gains) > 50
    assert found[LEAVE_MORE].verdict == "undecided"


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_arms_that_agree_in_every_seed_test_nothing(noise):
    """However the claim is worded; with a little noise the same arms are a clear absence."""
    found = found_in(made(scale=0.0, fewer=0.0, noise=noise, jitter=0.0))
    arms = {
        w: c for w, c in found.items()
        if not w.startswith(TIMED) and c.anchor not in ("sec-recon-layers", "fig-recon-heat")
        and "network" not in w.partition(" than")[0].replace("a network ends", "")
    }  # fmt: skip
    assert len(arms) > 90
    if noise:
        assert found[CENTRAL].verdict == "not reproduced"
        assert found[ON_RANDOM].verdict == "undecided"  # nothing printed
    else:
        assert {words for words, c in arms.items() if c.verdict != "not tested"} == set()
        assert all("agree in every seed" in c.mechanism for c in arms.values())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 78}, "the search counted 78 steps and 768 conflicts below -0.1 (the fewest)"),
        ({"severe": 0.0}, "the search counted 600 steps and 0 conflicts below -0.1 (the fewest)"),
    ],
)
def test_an_idle_search_tests_nothing(changes, words):
    record = made(**changes)
    found = found_in(record)
    about_layers = (
        "Recon",
        "split layers",
        "Severities",
        "Layers of",
        "Layers found",
        "The search",
    )
    idle = {w: c for w, c in found.items() if any(part in w for part in about_layers)}
    busy = [w for w in idle if w.startswith("One set of statistics")]  # two networks, whatever
    assert {w for w, c in idle.items() if c.verdict != "not tested"} == {*busy}
    assert len(idle) > 60
    assert words in found[CENTRAL].mechanism
    assert words in summary(record)
    for claim in (
        "With joint training a network ends below single-task training",
        "Random layers make severe conflicts more frequent",
        "Random parameters remove severe conflicts",
    ):
        assert found[claim].verdict == "reproduced"


def test_a_near_tie_of_bmtas_tests_nothing():
    found = found_in(made(margin=0.04))
    idle = {words: c for words, c in found.items() if "BMTAS" in words}
    assert len(idle) == 4
    assert {claim.verdict for claim in idle.values()} == {"not tested"}
    assert all("margin of 0.04 (median over blocks and seeds), a near tie" in c.mechanism
               for c in idle.values())  # fmt: skip
    assert found[CENTRAL].verdict == "reproduced"


def test_a_severity_that_was_not_met_chose_nothing():
    record = made()
    for row in record.tables["scores"]:
        if row["severity"] == -0.15:
            row["scores"] = " ".join("0" for _ in row["scores"].split())
    found = found_in(record)
    claim = found["Severities between 0 and -0.15 are better than -0.15"]
    assert claim.verdict == "not tested"
    assert "600 steps and 0 conflicts below -0.15" in claim.mechanism
    assert found["Severities between 0 and -0.15 are better than 0"].verdict == "reproduced"


def test_one_seed_reproduces_nothing():
    record = made(seeds=[3], study_seeds=[3])
    found = found_in(record)
    assert {w for w, c in found.items() if c.verdict != "not tested"} == {
        words for words in found if words.startswith(TIMED)
    }  # of one seed by design: its cases are numbers of tasks
    assert all(claim.mechanism or claim.found for claim in found.values())


@pytest.mark.parametrize("gone", [*COLUMNS, "all of them"])
def test_tables_that_are_not_there_test_nothing(gone):
    record = made(task_counts=[2, 40])
    for name in COLUMNS if gone == "all of them" else [gone]:
        del record.tables[name]
    found = claims(record)
    words = [claim.claim for claim in found]
    assert words[: len(whole())] == [*whole()]
    lost = {
        claim.claim: claim for claim in found
        if claim.verdict not in ("not testable here", whole().get(claim.claim, claim).verdict)
    }  # fmt: skip
    assert {claim.verdict for claim in lost.values()} <= {"not tested"}
    assert bool(lost) == (gone != "pairs")
    assert "nan" not in str(claim_rows(found))
    assert summary(record).count("\n") == 4


def test_runs_that_diverged_are_left_out():
    found = found_in(made(diverged=("mgda",)))
    assert found["Recon improves MGDA"].found == "no pair was finished"
    assert found["Recon improves MGDA"].verdict == "not tested"
    assert found["Recon improves MGDA"].mechanism.endswith("; no pair was finished")
    every = found["Recon improves every method that the thesis trains with it"]
    assert every.verdict == "not tested"
    assert "some pair has no interval" in every.mechanism
    assert found["Recon improves PCGrad"].verdict == "reproduced"


def test_printed_effects_are_those_of_the_thesis():
    found = whole()
    single = {"task_1": 98.37, "task_2": 89.63}
    assert printed("4_1", "params_mb", "single") == 85.62
    for claim, effect in {
        CENTRAL: -0.33 + 0.94,
        "Recon improves MMoE": 0.08,
        "With CAGrad a network ends below single-task training": -0.90,
        "Recon with PCGrad does at least as well as BMTAS": 0.08,
        "Recon with CAGrad does at least as well as BMTAS": None,  # as much, so no side
        "A network split by Recon is smaller than that of BMTAS": 100 * (43.43 / 85.61 - 1),
        "Recon removes severe conflicts, with MGDA": 79.62,
        "Recon removes severe conflicts, with joint training, at the printed threshold": 69.82,
        LEAVE_MORE: 69.82 + 52.94,
        "Random layers make severe conflicts more frequent, in the last quarter": -52.94,
        "Random parameters remove severe conflicts": 40.13,
        "With CAGrad, Recon's layers are better than as many random layers": 50 * (
            (98.28 - (97.60 + 97.11 + 94.62) / 3) / single["task_1"]
            + (89.65 - (64.39 + 87.61 + 87.68) / 3) / single["task_2"]
        ),
        "With PCGrad, Recon's layers are better than the first K layers": 50 * (
            (98.30 - 98.19) / single["task_1"] + (89.77 - 89.51) / single["task_2"]
        ),
        "With PCGrad, Recon's layers are better than the last K layers": 50 * (
            (98.30 - 97.63) / single["task_1"] + (89.77 - 88.98) / single["task_2"]
        ),
        ON_RANDOM: None,
        "Layers of quarter 2 do at least as well as those of the search": None,  # other data
    }.items():  # fmt: skip
        expected = None if effect is None else pytest.approx(effect)
        assert found[claim].printed_effect == expected, claim
    swapped = found["With PCGrad, Recon's layers are better than the first K layers"].thesis
    assert swapped.endswith("(row FSK; the text exchanges the two names)")
    assert found["MGDA removes no more severe conflicts than surgery in print"].thesis == (
        "+7.80 %, at most 7.8 %"
    )
    elsewhere = found["Layers found on images of two digits improve CAGrad"].thesis
    assert elsewhere == "+0.87 points on NYUv2, +14.41 points on CityScapes"
    places_moved = found["The ranking of layers moves no more than in print between methods"]
    assert places_moved.thesis == "at most 1.90 places"
    assert found[CENTRAL].effect == pytest.approx(6.1)


def test_statistics_as_published_stand_beside_and_have_rows_of_their_own():
    record = made(published=2.0)
    found = found_in(record)
    own, published = found[ON_RANDOM], found[ON_RANDOM + AS_PUBLISHED]
    assert own.effect == pytest.approx(4.7)
    assert published.effect == pytest.approx(4.7 + 2 * (5.0 - 0.2))
    assert own.difference.startswith("With one set of statistics for all tasks: +14.30 points. ")
    assert "set of statistics" not in published.difference
    gained = found["Statistics of its own for each task improve a network with random layers"]
    assert gained.effect == pytest.approx(10.0)
    assert found["One set of statistics costs random layers more than Recon's"].effect == (
        pytest.approx(9.6)
    )
    mild = "Severities between 0 and -0.15 are better than 0"
    assert {mild, mild + AS_PUBLISHED} <= found.keys()


def test_severe_is_judged_at_the_quantile_and_shown_at_the_printed_threshold():
    found = whole()
    assert "Severe: below -0.1" in found[LEAVE_MORE].difference
    assert ", 12.6 % of the steps of joint training." in found[LEAVE_MORE].difference
    threshold = found[LEAVE_MORE + ", at the printed threshold"]
    assert "Severe: below -0.010, " in threshold.difference
    assert (
        threshold.effect
        < found[LEAVE_MORE].effect
        < found[LEAVE_MORE + ", in the last quarter"].effect
    )


def test_surgery_that_removes_conflicts_is_no_absence():
    record = made()
    rows = record.tables["histograms"]
    kept = {(r["method"], r["layers"], r["quarter"], r["seed"]): r["counts"] for r in rows
            if r["study"] == "methods"}  # fmt: skip
    for row in rows:
        if (row["study"], row["method"], row["layers"]) == ("methods", "pcgrad", "shared"):
            row["counts"] = kept["pcgrad", "recon", row["quarter"], row["seed"]]
    found = verdicts(record, "removes no more severe conflicts")
    changed = {words for words, verdict in found.items() if verdict != "reproduced"}
    assert changed == {words for words in found if words.startswith("PCGrad")}
    assert {found[words] for words in changed} == {"not reproduced"}


def test_layers_found_must_hold_later_conflicts_not_those_that_they_were_found_by():
    claim = next(words for words in whole() if words.startswith("Conflicts are concentrated"))
    assert whole()[claim].effect == pytest.approx(12.2, abs=0.2)
    assert found_in(made(alike=0.0))[claim].effect == pytest.approx(0.0, abs=4)
    late = found_in(made(search_quarters=4))[claim]
    assert (late.verdict, late.found) == ("not tested", "no pair was finished")


def test_released_ranking_is_of_one_data_set():
    record = made()
    record.parameters["dataset"] = "multi_mnist"
    parts = ("released layers", "as released")
    assert {*verdicts(record, *parts).values()} == {"not tested"}
    assert len(verdicts(record, *parts)) == 4


def test_times_are_compared_for_each_number_of_tasks():
    record = made()
    for row in record.tables["seconds"]:
        if row["method"] == "joint, counted":
            row["ms"] *= 20 if row["tasks"] > 2 else 1
        if row["method"] == "joint, not counted":
            row["ms"] = 1e6
    found = found_in(record)
    slow = found["A step of the search takes no longer than a step of CAGrad"]
    assert slow.verdict == "mixed"
    assert slow.found.startswith("in 1 of 3 numbers of tasks: ")
    many = "With many tasks the search, CAGrad and GradDrop are all slower than joint training"
    assert found[many].verdict == "not reproduced"
    fewer = found_in(made(timed_methods=["joint", "cagrad"]))
    assert fewer[many].verdict == "not tested"
    assert (
        fewer["A step of the search takes no longer than a step of GradDrop"].verdict
        == "not tested"
    )
    assert (
        fewer["A step of the search takes no longer than a step of CAGrad"].verdict == "reproduced"
    )


def test_number_of_layers_needs_a_smaller_and_a_larger_one():
    found = found_in(made(counts_studied=[25]))
    for claim in ("Few split layers are worse", "Many split layers bring no more"):
        assert found[claim].verdict == "not tested"
        assert "K = 25, 25 and 25" in found[claim].mechanism
    record = made()
    for row in record.tables["results"]:
        if row["study"] == "count" and row["value"] == "40":
            row["score"] += 1.0
    assert found_in(record)["Many split layers bring no more"].verdict == "not reproduced"


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ({}, ["Recon's network ends above joint training: +6.10 points, 95 % interval",
              "Recon improves MGDA (+14.9 points), PCGrad (+10.8 points), GradDrop (+9.7 points)",
              "Recon's choice of layers beats as many random ones: +4.7",
              "as published, it beats as many random ones: +9.5",
              "random layers keeps more severe conflicts than Recon's: +1",
              "in its last quarter it keeps more severe conflicts than Recon's: +1",
              "The search finds the layers that the authors released: in 4 of 4 seeds: 25 to 25"]),
        (OTHER_WAY,
         ["does not end above joint training: -6.1", "Recon does not improve MGDA (-14.9",
          "does not beat as many random ones: -4.7", "keeps no more of them than Recon's: -",
          "The search finds other layers than they released: in 0 of 4 seeds: "]),
        ({"noise": 400.0, "jitter": 1.0},
         ["cannot be told from joint training: +6.1", "makes no clear difference to MGDA",
          "cannot be told from as many random ones", "from Recon's by its severe conflicts: "]),
        ({"scale": 0.0, "noise": 0.0, "fewer": 0.0, "jitter": 0.0},
         ["Recon's network was not tested: the search counted 600 steps",
          "Recon was not tested with MGDA, PCGrad, GradDrop, CAGrad, FAMO, MMoE.",
          "the arms agree in every seed; in its last quarter it was not tested"]),
        ({"seeds": [1], "study_seeds": [1]},
         ["Recon's network was not tested: a single seed gives no interval",
          "fewer than two seeds ranked the released layers"]),
        ({"recon_methods": ["joint"]}, ["Recon was tried with joint training alone."]),
    ],
)  # fmt: skip
def test_summary_follows_the_verdicts(changes, sentences):
    text = summary(made(**changes))
    assert [line[:3] for line in text.splitlines()] == [f"{n}. " for n in range(1, 6)]
    for words in sentences:
        assert words in text


def test_search_that_was_not_counted_did_not_act():
    record = made()
    record.tables["scores"] = record.tables["branches"] = []
    evidence = Evidence(record)
    assert evidence.searched == ("no search has counted conflicts", False)
    assert evidence.branched() == ("the margin of BMTAS was not measured", False)
