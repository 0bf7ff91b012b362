"""The chapter on Recon uses what its search chose, and the code still gives rows of its records.

Training amplifies rounding, and another processor or number of threads rounds differently: the
accuracies of one training then differ by a point or two.
"""

import pandas as pd
import pytest

from experiments.mtl.experiment import MultiTaskExperiment
from experiments.mtl.parameters import GRADIENT_METHODS, ReconParameters
from experiments.mtl.report import RECON, SHARED, improvement_rows, reductions
from experiments.mtl.studies import study_difference
from experiments.mtl.tasks import LOWER_IS_BETTER
from experiments.run.paired import PairedDifference
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
    seed, known = record.seeds[0], record.parameters
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


def test_the_words_about_the_long_run_hold_in_its_record():
    """The chapter tells in words what the long run says; another record may need other words."""
    record = committed_record("recon", "full")
    gains = pd.DataFrame(improvement_rows(record.tables["mtl_results"], LOWER_IS_BETTER))
    wide = gains.pivot_table(index="seed", columns=["method", "layers"], values="improvement")

    def change(one, other):
        return PairedDifference.of(wide[one] - wide[other])

    surgery = set(GRADIENT_METHODS) - {"joint"}
    for method in (*GRADIENT_METHODS, "rotograd"):
        better = change((method, RECON), (method, SHARED))
        assert better.low > 0, method
        assert better.mean > 2, method
    mixture = change(("mmoe", RECON), ("mmoe", SHARED))
    assert mixture.low < 0 < mixture.high
    for method in record.parameters["recon_methods"]:
        found = wide[method, RECON]
        assert -1.1 < found.mean() < 0, method
    sizes = {(row["method"], row["layers"]): row for row in record.tables["mtl_costs"]}
    split, single = sizes["joint", RECON], sizes["single", SHARED]
    assert split["megabytes"] < 0.56 * single["megabytes"]
    assert split["gigaflops"] == pytest.approx(single["gigaflops"], rel=0.01)
    fewer = reductions(record.tables["conflict_histogram"], SHARED)
    for method in surgery:
        assert wide[method, SHARED].mean() < wide["joint", SHARED].mean(), method
        assert change((method, SHARED), ("joint", SHARED)).low <= 0, method
        assert fewer[method] < 0, method
    with_recon = reductions(record.tables["conflict_histogram"], RECON)
    assert all(30 < with_recon[method] < 45 for method in GRADIENT_METHODS)
    blind = reductions(record.tables["conflict_histogram"], "random_layers")["joint"]
    assert blind == pytest.approx(with_recon["joint"], abs=5)
    random = wide["joint", "random_layers"].sort_values()
    assert random.iloc[0] < random.iloc[1] - 8
    rows = [
        row["value"]
        for row in record.tables["mtl_results"]
        if (row["layers"], row["seed"]) == ("random_layers", random.index[0])
        and row["task"] == "item"
    ]
    assert rows[0] < 65
    for method in ("mmoe", "cross_stitch", "bmtas"):
        assert wide[method, SHARED].mean() > -1.5, method
        assert sizes[method, SHARED]["megabytes"] > 0.95 * single["megabytes"]


def test_the_words_about_the_long_run_of_the_studies_hold_in_its_record():
    record = committed_record("recon_studies", "full")
    rows = record.tables["studies"]
    table = record.frame("studies")

    def ahead(study, one, other, method="joint", column="accuracy"):
        return study_difference(rows, study, one, other, method, column)

    def mean(study, value, column="accuracy"):
        chosen = table[(table["study"] == study) & (table["value"] == value)]
        return chosen[column].mean()

    def spread(study, value):
        return table[(table["study"] == study) & (table["value"] == value)]["accuracy"].std()

    for method in record.parameters["control_methods"]:
        assert 6 < ahead("control", "Recon", "shared", method).mean < 8, method
        assert ahead("control", "Recon", "random_layers", method).mean > 3, method
        for other in ("random_parameters", "first", "last"):
            gap = ahead("control", "Recon", other, method)
            assert 0 < gap.mean < 2, (method, other)
            assert gap.low < 0 < gap.high, (method, other)
    shared, own = "random_layers, shared statistics", "random_layers, own statistics"
    assert mean("statistics", own) > mean("statistics", shared) + 4
    assert spread("statistics", shared) > 10 * spread("statistics", own)
    for recon in ("Recon, shared statistics", "Recon, own statistics"):
        assert 0 < ahead("statistics", recon, own).mean < 2
    lost = ahead("skip", "behind_stem, every task", "behind_stem, one task", column="item")
    kept = ahead("skip", "behind_stem, every task", "behind_stem, one task", column="digit")
    assert lost.mean > 5
    assert 1 < kept.mean < 2.5
    late = ahead("skip", "last, one task", "last, every task")
    assert late.low < 0 < late.high
    assert abs(late.mean) < 0.5
    whole, half = mean("count", 40) - mean("count", 0), mean("count", 10) - mean("count", 0)
    assert half > 0.6 * whole
    assert mean("count", 25) == pytest.approx(mean("count", 40), abs=0.5)
    assert mean("severity", 0.0) < mean("severity", -0.1) - 8
    assert mean("severity", -0.1) == pytest.approx(mean("severity", -0.15), abs=0.5)
    agree = record.frame("ranking_stability").groupby("compared")["correlation"].mean()
    assert agree["methods with one seed"] == pytest.approx(agree["seeds of one method"], abs=0.05)
    for source in record.parameters["transfer_from"]:
        gap = ahead("transfer", source, "own")
        assert gap.low < 0 < gap.high, source
        assert abs(gap.mean) < 1.5, source
    cost = record.frame("search_cost").pivot_table(index="method", columns="tasks", values="ms")[40]
    for method in cost.index.drop("joint, not counted"):
        assert cost[method] > 8 * cost["joint, not counted"], method
    others = [method for method in cost.index if not method.startswith("joint")]
    assert cost["joint, counted"] < 1.15 * cost[others].min()
