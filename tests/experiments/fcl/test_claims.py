"""The claims of chapter 3 on tables that were made up, so that every verdict is known."""

from itertools import product
from math import exp

import numpy as np
import pytest

from experiments.fcl.claims import EARLIER, Evidence, claims, summary
from experiments.fcl.evidence import NO_BOX, PARTS
from experiments.fcl.figures import COLUMNS
from experiments.fcl.parameters import EvidenceParameters
from experiments.run.claims import OWN_QUESTION, claim_rows
from experiments.run.records import RunRecord
from tests.chapters import check_cell
from workflow.ledger import places

SPLITS = ("random", "unseen_parts")
CHANGES = {
    "seeds": [*range(6)], "study_seeds": [*range(6)], "plane_rates": [0.02, 0.05],
    "plane_noises": [0.0, 0.01], "bounds_studied": [0.0025, 0.02, 0.08], "draws_studied": [1, 4],
    "shots_studied": [5, 50], "sessions": 7,
}  # fmt: skip
# Accuracies in the order that the thesis prints
METHODS = {
    "f2m_flat": 61, "crt": 60, "f2m": 59.5, "finetune": 58, "lda": 58, "ncm": 57, "sam": 56,
    "fsll": 55, "idlvq": 54, "icarl": 53, "lucir": 52, "joint": 50, "topic": 45,
}  # fmt: skip
NOISES = {"f2m": 0.01, "f2m_flat": 0.02}  # of trainings under noise
ABLATION = (10, 40, 36, 44, 44.2, 45)  # in the order of PARTS
BOUNDS = {  # all, base in session 1, base and new in the last
    "0.0025": (44, 65, 60, 20), "0.02": (45, 64, 59, 22), "0.08": (43, 62, 57, 21),
}  # fmt: skip
ONE_ARM = "The norms of base prototypes are as alike as printed"
COUNTED = "in every session"  # how often an interval is clear: no interval of its own
WITHIN = "F2M ends within 0.8 points of the upper bound cRT"


class Made:
    """Tables in which all that the thesis prints is there, or its opposite, or nothing.

    Args:
        scale: 1: effects of the printed sign; -1: of the other; 0: arms that agree.
        noise: standard deviation over seeds, in points.
        flat: the same as ``scale``, for flatness.
        moved: share of the weights that a clamp moved.
        pull: of the penalty, beside the step of the data.
    """

    def __init__(self, scale=1.0, noise=0.05, flat=1.0, moved=0.2, pull=0.5, **changes):
        parameters = check_cell(EvidenceParameters, "fcl_evidence", **CHANGES | changes)
        self.scale, self.noise, self.rng = scale, noise, np.random.default_rng(3)
        self.seeds = parameters.seeds
        self.record = record = RunRecord.start("fcl_evidence", parameters, data={})
        box = {"at_wall": moved, "moved": moved, "largest_shift": 0.001}
        tables = {name: [] for name in COLUMNS}

        def add(name, levels, **known):
            tables[name] += self.rows(levels, **known)

        for classes, (method, level) in product(SPLITS, METHODS.items()):
            first = 49 if method == "f2m" else 50
            for session, accuracy in ((1, first), (2, level), (3, level)):
                levels = {"accuracy": accuracy, "new_accuracy": 20 if method == "joint" else 30}
                add("methods", levels, classes=classes, method=method, session=session)
        for classes, noise, rate in product(SPLITS, (0.0, 0.01), (0.0, 0.02, 0.05)):
            known = {"classes": classes, "noise": noise, "rate": rate}
            boxes = {0.001: 45, 0.01: 45, NO_BOX: 40} if rate else {0.0: 60}
            for half, level in boxes.items():
                levels = dict.fromkeys(("accuracy", "base_accuracy"), level + 100 * noise)
                add("plane", levels, **known | box, box=half)
        for classes, (method, level) in product(SPLITS, (("f2m", 30), ("f2m unclamped", 35))):
            known = {"classes": classes, "shots": 50, "rate": 0.02, "method": method}
            add("shots", {"new_accuracy": level}, **known | box)
        for half, (parts, level) in product((0.001, 0.01), zip(PARTS, ABLATION, strict=True)):
            known = dict(zip(("fm", "pf", "pc", "pn"), parts, strict=True)) | box
            for session, accuracy in ((1, 50), (9, level)):
                levels = {"accuracy": accuracy}
                add("ablation", levels, classes="random", box=half, session=session, **known)
        for value, (everything, first, base, new) in BOUNDS.items():
            known = {"classes": "random", "study": "bound", "value": value, "method": "f2m"}
            add("studies", {"base_accuracy": first}, session=1, **known | box)
            levels = {"accuracy": everything, "base_accuracy": base, "new_accuracy": new}
            add("studies", levels, session=9, **known | box)
        for group, side in (("base", 1), ("new", -1)):
            for row in self.rows({"mean": 50 + side * 25, "std": 50 - side * 5}, group=group):
                middles = {"mean": 7.75, "std": 0.65}
                numbers = {name: mid + (row[name] - 50) / 100 for name, mid in middles.items()}
                tables["norms"].append(row | numbers | {"classes": "random", "training": "f2m"})
        for draws in (1, 4):
            for row in self.rows({"seconds": 50 + draws}, classes="random", draws=draws):
                tables["seconds"].append(row | {"seconds": exp((row["seconds"] - 50) / 20)})
        self.scale = flat
        for classes, training, part in product(
            SPLITS, ("ncm", "f2m", "f2m_flat", "sam"), ("train", "test")
        ):
            levels = dict.fromkeys(("indicator", "variance"), 62 if training == "ncm" else 38)
            known = {
                "classes": classes,
                "training": training,
                "part": part,
                "lr": 0.05,
                "bound": 0.01,
            }
            for row in self.rows(levels, noise=NOISES.get(training, 0.0), **known):
                logs = {name: exp((row[name] - 50) / 10) for name in levels}
                tables["flatness"].append(row | logs)
        for classes, seed in product(SPLITS, self.seeds):
            known = {"classes": classes, "seed": seed}
            tables["boxes"].append({**known, "method": "f2m", **box})
            tables["gradients"].append(
                {**known, "method": "fsll", "session": 2, "data": 1.0, "penalty": pull}
            )
        for name, rows in tables.items():
            columns = ("classes", "seed", *COLUMNS[name].split())
            record.table(name, [{c: row.get(c) for c in columns} for row in rows])

    def rows(self, levels, **known):
        """A row a seed; noise has mean 0 over the seeds, so that means are what they are."""
        noise = self.rng.normal(size=(len(levels), len(self.seeds)))
        noise = self.noise * (noise - noise.mean(1, keepdims=True))
        for number, seed in enumerate(self.seeds):
            yield {"seed": seed, **known} | {
                name: 50 + self.scale * (level - 50) + float(noise[place, number])
                for place, (name, level) in enumerate(levels.items())
            }


def verdicts(record):
    return {
        claim.claim: claim.verdict
        for claim in claims(record)
        if claim.verdict != "not testable here"
    }


def about(record, *words):
    return [claim for claim in claims(record) if any(word in claim.claim for word in words)]


def test_each_claim_is_one_and_has_a_place():
    made = claims(Made().record)
    assert len(made) >= 35
    assert len(claim_rows(made)) == len(made)  # refuses duplicates
    known = places(["fcl_evidence"])
    assert {claim.anchor for claim in made} <= known.keys()
    own = [
        claim for claim in made if claim.claim.startswith("Where new classes have unseen parts,")
    ]
    assert {claim.printed_in for claim in own} == {OWN_QUESTION}
    assert sum(claim.printed_in == OWN_QUESTION for claim in made) == len(own)
    assert {claim.claim for claim in own} >= {
        f"Where new classes have unseen parts, {words}, at a rate of 0.05"
        for words in (
            "the narrow box pays for the plain network",
            "the narrow box pays for the network trained under noise",
            "training under noise pays inside the narrow box",
        )
    }


def test_clear_effects_of_the_printed_sign_are_reproduced():
    found = verdicts(Made().record)
    assert {claim: verdict for claim, verdict in found.items() if verdict != "reproduced"} == {}


def test_clear_effects_of_the_other_sign_are_not_reproduced():
    found = verdicts(Made(scale=-1.0).record)
    flat = {claim for claim in found if claim.startswith("F2M's minimum is")}
    expected = dict.fromkeys(found, "not reproduced") | dict.fromkeys({*flat, WITHIN}, "reproduced")
    assert found == expected
    found = verdicts(Made(flat=-1.0).record)
    assert {found[claim] for claim in flat} == {"not reproduced"}


def test_wide_intervals_leave_it_undecided():
    found = verdicts(Made(noise=400.0, flat=1.0).record)
    counted = {claim for claim in found if COUNTED in claim}
    acted = {
        claim.claim
        for claim in claims(Made(noise=400.0).record)
        if "flatter" not in claim.mechanism
    }
    rest = {claim: verdict for claim, verdict in found.items() if claim in acted - counted}
    assert {claim: verdict for claim, verdict in rest.items() if verdict != "undecided"} == {}
    assert len(rest) > 30


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_arms_that_agree_in_every_seed_test_nothing(noise):
    """However the claim is worded; with a little noise the same arms are a clear absence."""
    made = claims(Made(scale=0.0, flat=0.0, noise=noise, moved=0.2).record)
    rest = [c for c in made if c.verdict != "not testable here" and c.claim != ONE_ARM]
    if noise:
        assert {c.verdict for c in rest} > {"not tested"}
    else:
        assert {c.claim for c in rest if c.verdict != "not tested"} == set()
        assert all("agree in every seed" in c.mechanism for c in rest)


def test_shifted_claims_of_agreeing_arms_test_nothing_while_the_noise_acts():
    found = {c.claim: c for c in claims(Made(scale=0.0, noise=0.0).record)}
    for claim in (WITHIN, "F2M leads the earlier methods in every session"):
        assert found[claim].verdict == "not tested"
        assert "agree in every seed" in found[claim].mechanism


@pytest.mark.parametrize(
    ("changes", "idle", "words", "busy"),
    [
        ({"moved": 0.009}, ["the narrow box pays", "Clamping", "narrow box costs", "narrowest"],
         "a clamp moved 0.9 % of the tuned weights", "F2M beats the frozen network"),
        ({"flat": 0.1}, ["Noise costs", "training under noise pays", "Prototypes of new classes",
                         "The other three parts", "With clamping alone"],
         "the noise made the minimum 1.3 times flatter", "F2M beats the frozen network"),
        ({"pull": 0.009}, ["beats FSLL", "leads the earlier"],
         "pulls with 0.009 of", "F2M beats iCaRL"),
        ({"pull": 101.0}, ["beats FSLL", "leads the earlier"],
         "pulls with 1e+02 of", "F2M beats iCaRL"),
        ({"moved": 0.0, "flat": 0.0}, ["F2M beats", "cRT beats F2M", "F2M ends", "F2M leads"],
         "1.0 times flatter; a clamp moved 0.0 %", "The upper bound cRT beats the frozen network"),
    ],
)  # fmt: skip
def test_a_mechanism_that_did_not_act_tests_nothing(changes, idle, words, busy):
    record = Made(**changes).record
    for part in idle:
        claims_of_it = [c for c in about(record, part) if c.verdict != "not testable here"]
        assert claims_of_it, part
        assert {c.verdict for c in claims_of_it} == {"not tested"}, part
        assert all(words in c.mechanism for c in claims_of_it)
    assert verdicts(record)[busy] == "reproduced"


def test_fsll_needs_both_mechanisms():
    for changes in ({"moved": 0.0, "flat": 0.0}, {"pull": 0.0}):
        assert verdicts(Made(**changes).record)["F2M beats FSLL"] == "not tested"
    frozen = verdicts(Made(moved=0.0, flat=0.0).record)["The frozen network beats FSLL"]
    assert frozen == "reproduced"


def test_noise_is_that_of_the_thesis_where_the_search_chose_another():
    """The method F2M has its own; ablation, plane, norms and table 3.5 have the thesis's."""
    record = Made().record
    rows = record.tables["flatness"]
    for row in rows:
        if row["training"] == "f2m":
            row["noise"] = 0.04
    other = [
        row | {"training": "f2m 0.01", "noise": 0.01} for row in rows if row["training"] == "ncm"
    ]
    record.tables["flatness"] = rows + other  # as sharp as plain training
    found = {claim.claim: claim for claim in claims(record)}
    own = "the noise made the minimum 11.0 times flatter"
    assert own in found["F2M beats the frozen network"].mechanism
    assert own in found["Noise costs accuracy in the base session"].mechanism
    thesis = "the noise made the minimum 1.0 times flatter"
    for words in ("The other three parts", "training under noise pays", "Prototypes of new"):
        (claim, *_) = (claim for claim in found.values() if words in claim.claim)
        assert claim.mechanism.startswith(thesis)
        assert claim.verdict == "not tested"
    assert (
        found["F2M's minimum is at least as many times flatter as printed"].verdict == "not tested"
    )


def test_box_claims_say_whether_learning_beat_freezing():
    (claim,) = about(Made().record, "for the plain network, at a rate of 0.05")
    assert claim.mechanism.endswith("of the tuned weights; no box minus frozen -20.0 points")


def test_one_seed_reproduces_nothing():
    made = claims(Made(seeds=[3], study_seeds=[3]).record)
    assert {claim.verdict for claim in made} == {"not tested", "not testable here"}
    assert all(claim.mechanism or claim.found for claim in made)


@pytest.mark.parametrize("gone", [*COLUMNS, "all of them"])
def test_tables_that_are_not_there_test_nothing(gone):
    record = Made().record
    whole = verdicts(record)
    for name in COLUMNS if gone == "all of them" else [gone]:
        del record.tables[name]
    found = claims(record)
    assert [claim.claim for claim in found][: len(whole)] == [*whole]
    lost = {c.claim: c for c in found if c.verdict not in ("reproduced", "not testable here")}
    assert {claim.verdict for claim in lost.values()} <= {"not tested"}
    assert bool(lost) == (gone not in ("distances", "counts", "boxes"))
    for claim in lost.values():
        assert "nan" not in f"{claim.found} {claim.mechanism}"
    assert summary(record).count("\n") == 4


def test_runs_that_did_not_finish_are_left_out():
    record = Made().record
    for row in record.tables["methods"]:
        if row["method"] == "icarl":
            row["accuracy"] = None
    found = {claim.claim: claim for claim in claims(record)}
    assert found["The frozen network beats iCaRL"].found == "no pair was finished"
    assert found["The frozen network beats iCaRL"].verdict == "not tested"
    lead = found["The frozen network leads the earlier methods in every session"]
    assert lead.verdict == "not tested"
    assert "no interval" in lead.mechanism


def test_half_widths_that_table_3_8_lacks_have_no_printed_effect():
    made = Made(bounds_studied=[0.003, 0.08]).record
    for row in made.tables["studies"]:
        row["value"] = {"0.0025": "0.003"}.get(row["value"], row["value"])
    found = {claim.claim: claim for claim in claims(made)}
    assert found["The widest half-width costs accuracy in session 1"].printed_effect is None
    assert found["The widest half-width costs accuracy in session 1"].verdict == "reproduced"
    one = Made(bounds_studied=[0.02]).record
    same = {claim.claim: claim for claim in claims(one)}["The best half-width beats the widest"]
    assert (same.verdict, same.printed_effect) == ("not tested", None)
    assert "0.02 is the only such half-width" in same.mechanism


def test_printed_effects_are_those_of_the_thesis():
    found = {claim.claim: claim for claim in claims(Made().record)}
    assert found["F2M beats the frozen network"].printed_effect == pytest.approx(44.67 - 43.83)
    assert found["The frozen network beats iCaRL"].printed_effect == pytest.approx(43.83 - 39.49)
    best = found["The best half-width beats the narrowest"]
    assert best.printed_effect == pytest.approx(44.67 - 44.16)
    assert best.effect == pytest.approx(1.0)
    alike = found[ONE_ARM]
    assert alike.effect == pytest.approx(100 * 0.6 / 8 - 100 * 0.63 / 7.97, abs=0.1)
    assert found["F2M beats the frozen network"].effect == pytest.approx(2.5)


def test_only_a_split_with_unseen_parts_answers_this_books_question():
    made = claims(Made(class_splits=["random"]).record)
    assert not [claim for claim in made if claim.printed_in == OWN_QUESTION]
    assert "On new classes with unseen parts F2M was not part of this run" in summary(
        Made(class_splits=["random"]).record
    )


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ({}, ["On random classes F2M ends above the frozen network: +2.500 points, 95 % interval",
              "at a rate of 0.02 it pays: +5.0", "at a rate of 0.05 it pays: +5.0",
              "made the minimum flatter: 11.0 times, 95 % interval",
              "The frozen network ends above iCaRL (+4.0 points), LUCIR (+5.0 points)"]),
        ({"scale": -1.0, "flat": -1.0},
         ["does not end above the frozen network: -2.5", "costs accuracy: -5.0",
          "did not make the minimum flatter: 0.1 times", "network does not end above iCaRL (-4.0"]),
        ({"noise": 400.0},
         ["cannot be told from the frozen network", "is unclear: ", "cannot be told from iCaRL"]),
        ({"scale": 0.0, "noise": 0.0, "moved": 0.0, "flat": 0.0},
         ["F2M was not tested: the noise made the minimum 1.0 times flatter",
          "it was not tested: a clamp",
          "Training under noise was not tested: the arms agree",
          "was not tested against iCaRL, LUCIR, FSLL, TOPIC, IDLVQ-C"]),
        ({"seeds": [1], "study_seeds": [1]}, ["was not tested: a single seed gives no interval"]),
    ],
)  # fmt: skip
def test_summary_follows_the_verdicts(changes, sentences):
    text = summary(Made(**changes).record)
    assert [line[:3] for line in text.splitlines()] == [f"{n}. " for n in range(1, 6)]
    for words in sentences:
        assert words in text
    assert " log" not in text


def test_noise_that_was_not_measured_did_not_act():
    record = Made().record
    record.tables["flatness"] = []
    fact = Evidence(record).noise_acted()
    assert fact == ("the flatness of its network was not measured", False)


def test_earlier_methods_are_those_of_table_3_1():
    evidence = Evidence(Made().record)
    assert evidence.at_end("FSLL") == 42.22  # its own run, not the published one
    assert {evidence.at_end(name) for name in EARLIER.values()} == {39.49, 38.35, 42.22, 29.37}
