"""The chapter on Recon uses what its search chose, and the code still gives rows of its records.

Training amplifies rounding, and another processor or number of threads rounds differently: the
accuracies of one training then differ by a point or two.
"""

import pytest

from experiments.mtl.experiment import MultiTaskExperiment
from experiments.mtl.parameters import ReconParameters
from experiments.run.parameters import check_parameter_file
from experiments.run.results import committed_record
from experiments.searches import recon as search_recon
from tests.paths import ROOT

CHAPTER = ROOT / "chapters" / "recon.py"
POINTS = 4.0


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.chdir(ROOT)


def values_of(profile):
    """Parameters of the chapter in a profile."""
    file = CHAPTER.parent / "params" / f"recon.{profile}.yaml"
    return check_parameter_file(CHAPTER, file, ReconParameters)


@pytest.mark.parametrize("profile", ["cpu", "full"])
def test_every_method_uses_what_the_search_chose(profile):
    chosen = search_recon.choose(committed_record("recon", "search").frame("search"))
    used = values_of(profile)
    searched = [name for name in used.methods if name in chosen]
    assert {name: used.rate(name) for name in searched} == {name: chosen[name] for name in searched}


def test_every_method_of_the_live_run_and_of_a_kept_long_run_was_searched():
    found = set(committed_record("recon", "search").frame("search")["method"])
    assert set(values_of("cpu").methods) <= found
    full = committed_record("recon", "full")
    assert full is None or set(full.parameters["methods"]) <= found


def test_the_search_has_the_size_of_the_live_run():
    searched, live = committed_record("recon", "search").parameters, values_of("cpu").model_dump()
    apart = {"seeds", "profile", "run_dir", "methods", "method_lr", "lr", "device"}
    apart.add("test_images")  # a search never sees them
    different = {k for k, v in searched.items() if k not in apart and live[k] != v}
    assert not different
    assert not set(searched["seeds"]) & set(live["seeds"])


def test_the_best_rate_of_each_method_lies_inside_its_grid():
    """At an edge a better one may lie outside."""
    table = committed_record("recon", "search").frame("search")
    chosen = search_recon.choose(table)
    for method, part in table.groupby("method"):
        assert part["lr"].min() < chosen[method] < part["lr"].max(), method
        assert set(part.groupby("lr")["seed"].nunique()) == {2}, method


@pytest.mark.slow
def test_a_row_of_the_search_record():
    record = committed_record("recon", "search")
    rows = [row for row in record.tables["search"] if row["method"] == "joint"]
    row = max(rows, key=lambda row: row["mean_accuracy"])
    experiment = MultiTaskExperiment(
        search_recon.parameters_of([row["seed"]]),
        "cpu",
        validation_images=search_recon.VALIDATION_IMAGES,
    )
    found = search_recon.validation_scores(experiment, "joint", row["seed"], row["lr"])
    for task, values in found.items():
        assert values["accuracy"] == pytest.approx(row[task], abs=POINTS)


@pytest.mark.slow
def test_rows_of_the_full_record():
    record = committed_record("recon", "full")
    if record is None:
        pytest.skip("no record of profile full is committed")
    seed, known = record.seeds[0], {"tasks": [], "weights": ""} | record.parameters
    experiment = MultiTaskExperiment(
        ReconParameters.model_validate(known | {"device": "cpu", "profile": "test", "run_dir": ""}),
        "cpu",
    )
    run = experiment.train("joint", seed)
    found = experiment.scores(run.network)
    rows = [
        row
        for row in record.tables["mtl_results"]
        if (row["method"], row["recon"], row["seed"]) == ("joint", False, seed)
        and row["layers"] == "shared"
    ]
    assert {row["task"] for row in rows} == set(found)
    for row in rows:
        assert found[row["task"]][row["metric"]] == pytest.approx(row["value"], abs=POINTS)
