"""The tables of the evidence, for one split of the classes and one seed, at a tiny size."""

import pytest

import experiments.fcl.evidence as evidence
from experiments.fcl.evidence import NO_BOX, Part, evidence_of, joined
from experiments.fcl.experiment import FewShotExperiment
from experiments.fcl.figures import COLUMNS
from ktlib.seeding import deterministic
from tests.experiments.fcl.tiny import TINY, tiny
from tests.paths import ROOT

STUDIED = {"shots", "ablation", "distances", "studies", "seconds"}
TINY_RATE = 0.02  # that of the chapter
NONE = dict.fromkeys(("accuracy", "base_accuracy", "new_accuracy", "harmonic"))


@pytest.fixture(autouse=True, scope="module")
def _here():
    with pytest.MonkeyPatch.context() as patch, deterministic():
        patch.chdir(ROOT)
        yield


def part(settings=None, **changes):
    return Part(FewShotExperiment(tiny(**changes), "cpu"), "random", 3, settings or {})


@pytest.fixture(scope="module")
def tables():
    return evidence_of(FewShotExperiment(tiny(), "cpu"), "random", 3, {})


def only(rows, **wanted):
    (row,) = (row for row in rows if row.items() >= wanted.items())
    return row


@pytest.mark.slow
def test_every_table_has_the_columns_that_are_drawn(tables):
    assert set(tables) == set(COLUMNS)
    for name, rows in tables.items():
        assert rows, name
        for row in rows:
            assert set(row) == {"classes", "seed", *COLUMNS[name].split()}, name
            assert (row["classes"], row["seed"]) == ("random", 3)


@pytest.mark.slow
def test_shares_are_shares_and_accuracies_percent(tables):
    for rows in tables.values():
        for row in rows:
            shares = [row.get("at_wall"), row.get("moved")]
            assert all(0 <= share <= 1 for share in shares if share is not None)
            percents = [row.get(name) for name in NONE]
            assert all(0 <= number <= 100 for number in percents if number is not None)


@pytest.mark.slow
def test_ends_of_the_plane_are_the_frozen_network_and_fine_tuning(tables):
    plane = [row for row in tables["plane"] if row["noise"] == 0]
    for method, rate, box in (("ncm", 0.0, 0.0), ("finetune", TINY_RATE, NO_BOX)):
        end = only(tables["methods"], method=method, session=3)
        found = only(plane, rate=rate, box=box)
        assert {name: found[name] for name in NONE} == {name: end[name] for name in NONE}
        assert found["moved"] is None
    one, other = (only(plane, rate=TINY_RATE, box=box) for box in (0.001, 0.01))
    assert one["largest_shift"] <= 0.001 + 1e-6
    assert one["moved"] > other["moved"]
    assert only(plane, rate=0.1, box=NO_BOX)["largest_shift"] > one["largest_shift"]


@pytest.mark.slow
def test_counts_add_up(tables):
    images = TINY["test_images"] * 8
    for row in tables["counts"]:
        predicted, right = ([*map(int, row[name].split())] for name in ("predicted", "right"))
        assert sum(predicted) == images
        end = only(tables["methods"], method=row["method"], session=3)
        assert 100 * sum(right) / images == pytest.approx(end["accuracy"])
        assert row["stopped"] == ""


@pytest.mark.slow
def test_seeds_that_are_not_studied_run_what_is_central():
    changes = {"study_seeds": [], "methods": ["ncm"], "plane_rates": [0.1], "plane_boxes": [0.001]}
    found = evidence_of(FewShotExperiment(tiny(**changes), "cpu"), "random", 3, {})
    assert {name for name, rows in found.items() if rows} == {
        "methods", "plane", "norms", "flatness", "counts"
    }  # fmt: skip
    assert set(found) == set(COLUMNS)


def test_a_run_that_diverges_leaves_an_empty_row_and_the_others(monkeypatch):
    real = FewShotExperiment.learner

    def learner(self, method, trained, seed, **setting):
        if setting.get("lr") == 5.0:
            raise FloatingPointError("weights are not finite")
        return real(self, method, trained, seed, **setting)

    monkeypatch.setattr(FewShotExperiment, "learner", learner)
    changes = {"plane_noises": [0.0], "plane_rates": [0.02, 5.0], "plane_boxes": [0.01]}
    made = part({("random", "finetune"): {"lr": 5.0}}, methods=["ncm", "finetune"], **changes)
    rows = list(made.plane())
    assert [row["accuracy"] is None for row in rows] == [False, False, False, True, True]
    assert only(rows, rate=5.0, box=NO_BOX).items() >= NONE.items()
    rows = list(made.methods())
    assert [row["method"] for row in rows] == ["ncm"] * 3 + ["finetune"]
    assert rows[-1] == {"method": "finetune", "session": 1} | NONE
    assert [row["stopped"] for row in made.noted["counts"]] == ["", "weights are not finite"]


@pytest.mark.slow
def test_a_base_training_that_diverges_costs_no_other_table(monkeypatch):
    real = FewShotExperiment.train_f2m

    def train(self, seed, **released):
        if self.parameters.noise_bound != 0.08:
            raise FloatingPointError("the loss is not finite")
        return real(self, seed, **released)

    monkeypatch.setattr(FewShotExperiment, "train_f2m", train)
    changes = {"plane_rates": [0.1], "plane_boxes": [0.001], "bounds_studied": [0.01, 0.08]}
    found = evidence_of(FewShotExperiment(tiny(**changes), "cpu"), "random", 3, {})
    assert only(found["methods"], method="f2m")["accuracy"] is None
    assert only(found["counts"], method="f2m")["stopped"] == "the loss is not finite"
    assert len([row for row in found["methods"] if row["method"] == "finetune"]) == 3
    assert {row["noise"] for row in found["plane"]} == {0.0}
    assert {row["training"] for row in found["flatness"]} == {"ncm", "sam"}
    bounds = [row for row in found["studies"] if row["study"] == "bound"]
    assert [(row["value"], row["accuracy"] is None) for row in bounds] == [
        ("0.01", True), *[("0.08", False)] * 3
    ]  # fmt: skip


def test_flatness_of_every_noise_that_is_used():
    """The settings of the search first; then what ablation and plane use beside them."""
    settings = {("random", "f2m"): {"noise_bound": 0.02}, ("random", "f2m_flat"): {}}
    made = part(settings, plane_noises=[0.0, 0.01, 0.04], methods=["f2m", "f2m_flat"])
    rows = list(made.flatness(first=False, studied=False))
    assert {row["training"]: row["noise"] for row in rows} == {
        "f2m": 0.02, "f2m_flat": 0.04, "f2m 0.01": 0.01, "ncm": 0.0, "sam": 0.0
    }  # fmt: skip
    assert {row["part"] for row in rows} == {"test"}
    assert all(row["indicator"] > 0 and row["variance"] > 0 for row in rows)


def test_networks_are_trained_once(monkeypatch):
    trained = []
    real = FewShotExperiment.train_plain

    def train(self, seed, **options):
        trained.append(options)
        return real(self, seed, **options)

    monkeypatch.setattr(FewShotExperiment, "train_plain", train)
    made = part(methods=["ncm", "finetune"])
    list(made.methods()), list(made.norms())
    assert len(trained) == 1


def test_settings_are_those_of_the_search_unless_a_parameter_replaces_them():
    found = {("random", "f2m"): {"lr": 0.5}, ("random", "finetune"): {"lr": 0.1}}
    experiment = FewShotExperiment(tiny(method_settings={"f2m": {"lr": 0.2}}), "cpu")
    assert Part(experiment, "random", 3, found).settings == {
        "ncm": {}, "finetune": {"lr": 0.1}, "f2m": {"lr": 0.2}, "fsll": {}
    }  # fmt: skip


def test_tables_of_parts_are_put_one_after_the_other():
    one, other = {"a": [{"x": 1}], "b": []}, {"a": [{"x": 2}]}
    assert joined([one, other]) == {"a": [{"x": 1}, {"x": 2}], "b": []}


def test_seconds_are_the_fastest(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr(evidence.time, "perf_counter", lambda: next(ticks) ** 2)
    rows = list(part(draws_studied=[1, 2]).seconds())
    assert rows == [{"draws": 1, "seconds": 1}, {"draws": 2, "seconds": 5}]
