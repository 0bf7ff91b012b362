"""Tables of the Recon chapters, against numbers worked out by hand."""

import pandas as pd
import pytest
import torch
from torch import nn

from experiments.mtl.report import (
    INTERVALS,
    RECON,
    SHARED,
    distance_table,
    histogram_rows,
    improvement_rows,
    in_order,
    interval_shares,
    interval_table,
    layer_kinds,
    layer_task_table,
    pair_table,
    printed_distances,
    reductions,
    results_table,
    run_name,
    score_rows,
)
from experiments.mtl.studies import difference_table, ranking_pair, study_difference, study_table
from experiments.run.results import thesis_table
from ktlib.mtl.conflict import ConflictMeter


def hist(method, layers, seed, shares):
    """Rows with one bin in each interval, from mild to severe."""
    lows = (0.3, -0.01, -0.02, -0.03, -0.5)
    return [
        {"method": method, "layers": layers, "seed": seed, "bin_low": low, "bin_high": low + 0.01,
         "share": share}
        for low, share in zip(lows, shares, strict=True)
    ]  # fmt: skip


HISTOGRAMS = [
    *hist("joint", SHARED, 0, (0.5, 0.1, 0.1, 0.1, 0.2)),  # severe: 40 %
    *hist("joint", SHARED, 1, (0.6, 0.2, 0.1, 0.1, 0.0)),  # 20 %
    *hist("joint", RECON, 0, (0.7, 0.2, 0.1, 0.0, 0.0)),  # 10 %: 75 % fewer
    *hist("joint", RECON, 1, (0.7, 0.2, 0.0, 0.0, 0.1)),  # 10 %: 50 % fewer
    *hist("pcgrad", SHARED, 0, (0.5, 0.1, 0.1, 0.1, 0.2)),
]


def test_shares_fall_into_the_intervals_of_the_thesis():
    shares = interval_shares(HISTOGRAMS)
    assert list(shares.columns)[:-1] == ["1 to 0", "0 to -0.01", "-0.01 to -0.02",
                                         "-0.02 to -0.03", "-0.03 to -1"]  # fmt: skip
    assert shares.loc[("joint", SHARED, 0)].tolist() == pytest.approx([50, 10, 10, 10, 20, 40])
    assert shares.drop(columns="severe").sum(axis=1).tolist() == pytest.approx([100] * 5)
    assert len(INTERVALS) == 5


def test_reduction_compares_with_joint_training_of_the_same_seed():
    table = interval_table(HISTOGRAMS)
    assert list(table.index) == ["joint", "joint + Recon", "pcgrad"]
    assert table.loc["joint + Recon", "fewer severe (%)"] == "62.5 ± 17.7"
    assert table.loc["pcgrad", "fewer severe (%)"] == "0.0"
    assert table.loc["joint", "fewer severe (%)"] == ""


def test_a_seed_of_joint_training_without_severe_conflicts_has_no_reduction():
    none = [*hist("joint", SHARED, 0, (1, 0, 0, 0, 0)), *hist("mgda", SHARED, 0, (0, 0, 0, 0, 1))]
    assert interval_table(none).loc["mgda", "fewer severe (%)"] == "not defined"
    with pytest.raises(ValueError, match="must hold joint training"):
        interval_table(hist("mgda", SHARED, 0, (1, 0, 0, 0, 0)))


def test_the_thesis_stands_beside():
    table = interval_table(
        [*HISTOGRAMS, *hist("joint", "random_layers", 0, (1, 0, 0, 0, 0))], thesis_table("4_11")
    )
    assert table.loc["joint + Recon", "thesis (%)"] == "69.8"
    assert table.loc["joint + random layers", "thesis (%)"] == "-52.9"
    assert table.loc["joint", "thesis (%)"] == ""


def meter_of(*cosines):
    """A meter that has seen two unit gradients at each of these cosines."""
    layer = nn.Linear(1, 2, bias=False)
    meter = ConflictMeter(layer, severities=(0.0, -0.1), bins=(-1.0, -0.5, 0.0, 1.0))
    for cosine in cosines:
        meter.count({"": torch.tensor([[1.0, cosine], [cosine, 1.0]], dtype=torch.float64)})
    return meter


def test_rows_of_a_meter():
    meter = meter_of(-0.7, -0.05, 0.3, 0.4)
    rows = histogram_rows(meter, method="joint", seed=3)
    assert [(row["bin_low"], row["bin_high"], row["share"]) for row in rows] == [
        (-1.0, -0.5, 0.25), (-0.5, 0.0, 0.25), (0.0, 1.0, 0.5)
    ]  # fmt: skip
    assert all(row["method"] == "joint" and row["seed"] == 3 for row in rows)
    scores = score_rows(meter, stage=1)
    assert [(row["severity"], row["score"]) for row in scores] == [(0.0, 2), (-0.1, 1)]
    assert len(histogram_rows(meter_of(0.5))) == 1  # empty bins have no row


def test_which_tasks_conflict_by_hand():
    """Lengths 1, 2 and 1; cosines on the first layer -1/2 (a, b), 1 (a, c), 0 (b, c)."""
    layers = {name: [nn.Parameter(torch.ones(2))] for name in ("y", "x")}
    meter = ConflictMeter(layers, severities=(0.0, -0.3), task_pairs=True)
    first = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 4.0, 0.0], [1.0, 0.0, 1.0]]).double()
    for second in (torch.eye(3).double(), torch.zeros(3, 3).double()):
        meter.count({"y": first, "x": second}, ["a", "b", "c"])
    shares = pair_table(meter, 0.0)
    assert shares.loc["a", ["b", "c"]].tolist() == [100.0, 0.0]
    assert shares.loc[["a", "c"], "b"].tolist() == [100.0, 0.0]
    # Over all parameters -1 / sqrt(2 * 5) = -0.32, then -1 / 2.
    assert pair_table(meter, -0.3).loc["b", "a"] == 100.0
    added = layer_task_table(meter)
    assert list(added.index) == ["y", "x"]
    # For a: -1/2 * 2 of b, 1 of c. For b: -1/2 * 1/2 of a. For c: 1 of a.
    assert added.loc["y"].tolist() == pytest.approx([0.0, -0.25, 1.0])
    assert added.loc["x"].tolist() == pytest.approx([0.0, 0.0, 0.0])


def test_distances_below_the_diagonal():
    table = distance_table({"one": ["a", "b", "c"], "two": ["c", "b", "a"]})
    assert table.loc["two", "one"] == "1.33"
    assert table.loc["one", "two"] == ""
    printed = printed_distances(thesis_table("4_6"))
    assert printed.iloc[1, 0] == "2.39"
    assert printed.iloc[0, 1] == ""


def results(method, layers, seed, left, right):
    return [
        {"method": method, "layers": layers, "seed": seed, "task": task, "metric": "accuracy",
         "value": value}
        for task, value in (("left", left), ("right", right))
    ]  # fmt: skip


RESULTS = [
    *results("single", SHARED, 0, 80.0, 50.0),
    *results("single", SHARED, 1, 90.0, 60.0),
    *results("joint", SHARED, 0, 88.0, 50.0),  # (10 % + 0 %) / 2
    *results("joint", SHARED, 1, 90.0, 54.0),  # (0 % - 10 %) / 2
]


def test_improvement_over_the_single_task_of_the_same_seed():
    rows = improvement_rows(RESULTS)
    assert [row["improvement"] for row in rows] == pytest.approx([0, 0, 5, -5])
    assert improvement_rows(RESULTS, ["accuracy", "no_metric_here"])[2]["improvement"] == (
        pytest.approx(-5)
    )
    with pytest.raises(ValueError, match="seed 7"):
        improvement_rows([*RESULTS, *results("joint", SHARED, 7, 1.0, 1.0)])


def test_results_table():
    cost = {
        "method": "joint",
        "layers": SHARED,
        "megabytes": 2.5,
        "gigaflops": 0.25,
        "forward_ms": 3,
    }
    table = results_table(RESULTS, [cost], printed=thesis_table("4_1"))
    assert table.loc["joint", "left"] == "89.00 ± 1.41"
    assert table.loc["joint", "Dm (%)"] == "0.00 ± 7.07"
    assert table.loc["joint", "#P (MB)"] == "2.50"
    assert table.loc["joint", "Dm, thesis"] == "-0.94"
    assert table.loc["single", "Dm (%)"] == ""
    assert table.loc["single", "#P (MB)"] == ""


def test_reductions_are_means_over_seeds():
    assert reductions(HISTOGRAMS, RECON) == {"joint": pytest.approx(62.5)}
    assert reductions(HISTOGRAMS, SHARED) == {"pcgrad": pytest.approx(0.0)}


def test_kinds_of_layers_by_hand():
    sizes = {"a": 1, "a_bn": 2, "b": 3, "c": 4}
    layers = {name: [nn.Parameter(torch.zeros(size))] for name, size in sizes.items()}
    table = layer_kinds(layers, {"a", "b", "c"}, {"a_bn", "c"})
    assert table.loc["batch norm"].tolist() == [1, 1, 20.0]
    assert table.loc["other layer, first half"].tolist() == [1, 0, 0.0]
    assert table.loc["other layer, second half"].tolist() == [2, 1, 40.0]


def test_order_of_the_tables():
    rows = [{"method": m, "layers": k} for m, k in (("cagrad", RECON), ("joint", "first"),
            ("cagrad", SHARED), ("joint", RECON), ("single", SHARED))]  # fmt: skip
    assert [run_name(r["method"], r["layers"]) for r in in_order(rows)] == [
        "single", "joint + Recon", "joint + first", "cagrad", "cagrad + Recon"
    ]  # fmt: skip


def test_names_of_rows():
    assert run_name("joint", SHARED) == "joint"
    assert run_name("joint", RECON) == "joint + Recon"
    assert run_name("joint", "random_layers") == "joint + random layers"


def study(value, seed, accuracy, severe=1.0, layers=3):
    known = {"study": "count", "value": value, "method": "joint", "seed": seed}
    return known | {"layers": layers, "accuracy": accuracy, "severe": severe}


STUDIES = [study(0, 0, 80.0), study(0, 1, 82.0), study(5, 0, 83.0, None), study(5, 1, 84.0, None)]


def test_study_tables():
    table = study_table(STUDIES, "count")
    assert table.loc["0", "accuracy"] == "81.00 ± 1.41"
    assert table.loc["0", "layers"] == "3"
    assert table.loc["5", "severe conflicts (%)"] == "nothing shared"
    with pytest.raises(ValueError, match="study must be one of"):
        study_table(STUDIES, "control")


def test_study_differences_are_within_seeds():
    gain = study_difference(STUDIES, "count", 5, 0, "joint")
    assert gain.mean == pytest.approx(2.5)
    assert gain.seeds == 2
    table = difference_table(STUDIES, "count", 0)
    assert isinstance(table, pd.DataFrame)
    assert table.iloc[0, 0].startswith("-2.5 points")
    with pytest.raises(ValueError, match="value must be one of"):
        study_difference(STUDIES, "count", 7, 0, "joint")


def test_two_rankings_by_hand():
    found = ranking_pair(["a", "b", "c", "d"], ["b", "a", "c", "d"], 1)
    assert found == {"distance": 0.5, "correlation": pytest.approx(0.8), "overlap": 0.0}
    assert ranking_pair(["a", "b"], ["b", "a"], 9)["overlap"] == 1.0
