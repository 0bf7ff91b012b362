"""Tables of the chapter on continual PEFT, from rows written by hand."""

import math

import pandas as pd
import pytest

from experiments.cpeft.report import (
    accuracy_over_time,
    expert_agreement,
    mean_matrix,
    method_difference,
    occupancy_table,
    short_layer,
    summary_rows,
    summary_table,
    without_verdict,
)
from experiments.run.paired import PairedDifference
from ktlib.ila.ranking import LayerRanking


def rows_of(method, seed, first, first_at_end, second):
    """A run of two tasks; told the task, everything is 10 points better."""
    cells = [(1, 1, first), (2, 1, first_at_end), (2, 2, second)]
    return [
        {"method": method, "seed": seed, "after": i, "task": j, "accuracy": a,
         "accuracy_within": a + 10, "misallocated": 5.0}
        for i, j, a in cells
    ]  # fmt: skip


@pytest.fixture
def rows():
    found = []
    for seed, lost in ((0, 30.0), (1, 40.0)):
        found += rows_of("sequential", seed, 80.0, 80.0 - lost, 70.0)
        found += rows_of("inflora", seed, 80.0, 75.0, 60.0)
        found += rows_of("oracle", seed, 82.0, 82.0, 72.0)
        found += rows_of("ncm", seed, 50.0, 45.0, 50.0)
    return found


def value(rows, method, seed, metric):
    (found,) = [
        r["value"] for r in rows if (r["method"], r["seed"], r["metric"]) == (method, seed, metric)
    ]
    return found


def test_measures_of_each_run(rows):
    found = summary_rows(rows)
    assert value(found, "sequential", 1, "forgetting") == 40
    assert value(found, "sequential", 0, "final_accuracy") == 60
    assert value(found, "inflora", 0, "forward_transfer") == pytest.approx((-2 - 12) / 2)


def test_transfer_only_where_it_means_something(rows):
    found = {(r["method"], r["metric"]) for r in summary_rows(rows)}
    assert ("ncm", "forward_transfer") not in found
    alone = [row for row in rows if row["method"] == "inflora"]
    assert not [r for r in summary_rows(alone) if r["metric"] == "forward_transfer"]


def test_the_table_has_mean_and_spread(rows):
    table = summary_table(summary_rows(rows))
    assert list(table.index) == ["sequential", "inflora", "oracle", "ncm"]
    assert table.loc["sequential", "forgetting"].startswith("35.0")
    assert "7.1" in table.loc["sequential", "forgetting"]
    assert table.loc["ncm", "forward transfer"] == ""


def test_a_difference_is_within_seeds(rows):
    gap = method_difference(summary_rows(rows), "inflora", "sequential", "forgetting")
    assert (gap.mean, gap.seeds) == (-30, 2)
    assert gap.low < -30 < gap.high
    with pytest.raises(ValueError, match=r"\['joint'\]"):
        method_difference(summary_rows(rows), "joint", "ncm", "forgetting")


def test_accuracy_over_time_is_the_mean_of_tasks_then_of_seeds(rows):
    table = accuracy_over_time(rows).set_index(["method", "after"])
    assert table.loc[("sequential", 2), "mean"] == pytest.approx((60 + 55) / 2)
    assert table.loc[("sequential", 1), "std"] == 0


def test_the_matrix_has_no_number_for_tasks_to_come(rows):
    matrix = mean_matrix(rows, "sequential")
    assert matrix.loc[2, 1] == 45
    assert math.isnan(matrix.loc[1, 2])


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("model.layers.2.attention.k_proj", "2.key"),
        ("encoder.layer.0.attention.value", "0.value"),
        ("model.layers.1.mlp.fc1", "1.fc1"),
        ("head", "head"),
    ],
)
def test_short_names(name, short):
    assert short_layer(name) == short


def test_occupancy_is_the_mean_over_seeds():
    history = [
        {"seed": s, "task": t, "layer": f"layers.{b}.k_proj", "occupied": 0.1 * t + 0.2 * s}
        for s in (0, 1) for t in (1, 2) for b in (0, 1)
    ]  # fmt: skip
    table = occupancy_table(history)
    assert list(table.index) == ["0.key", "1.key"]
    assert table.loc["1.key", 2] == pytest.approx(0.3)


def test_rankings_of_two_tasks_of_one_task_and_of_one_expert():
    """Seed 4: the first task's expert is ranked the same twice, the second task's the other way."""
    layers = [f"{number}.key" for number in range(4)]

    def ranking(order):
        return LayerRanking(scores={layers[place]: -float(n) for n, place in enumerate(order)})

    up, down, mixed = ranking([0, 1, 2, 3]), ranking([3, 2, 1, 0]), ranking([0, 2, 1, 3])
    found = expert_agreement(
        {(4, 1, 0, 0): up, (4, 1, 1, 0): mixed, (4, 1, 0, 1): up,
         (4, 2, 0, 0): mixed, (4, 2, 1, 0): up, (4, 2, 0, 1): down,
         (5, 1, 0, 0): down, (5, 1, 1, 0): up, (5, 1, 0, 1): mixed,
         (5, 2, 0, 0): down, (5, 2, 1, 0): down, (5, 2, 0, 1): down},
        top_fraction=0.5,
    )  # fmt: skip
    shown = [
        (row["seed"], row["kind"], row["a"], row["b"], row["gap"], round(row["value"], 3))
        for row in found
    ]
    assert shown == [
        (4, "two tasks, same first adapters", 1, 2, 1, 0.333),
        (4, "two tasks, other first adapters", 1, 2, 1, 1.0),
        (4, "one task, trained twice", 1, 1, 0, 0.333),
        (4, "one task, trained twice", 2, 2, 0, 0.333),
        (4, "one expert, ranked twice", 1, 1, 0, 1.0),
        (4, "one expert, ranked twice", 2, 2, 0, 0.333),
        (5, "two tasks, same first adapters", 1, 2, 1, 1.0),
        (5, "two tasks, other first adapters", 1, 2, 1, 1.0),
        (5, "one task, trained twice", 1, 1, 0, 0.0),
        (5, "one task, trained twice", 2, 2, 0, 1.0),
        (5, "one expert, ranked twice", 1, 1, 0, 0.333),
        (5, "one expert, ranked twice", 2, 2, 0, 1.0),
    ]
    correlations = [round(row["rank_correlation"], 3) for row in found]
    assert correlations == [0.8, 1.0, 0.8, 0.8, 1.0, -0.8, 1.0, 1.0, -1.0, 1.0, -0.8, 1.0]
    assert {row["top"] for row in found} == {0.5}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            [1.0, 2.0, 3.0],
            "+2.0 points, 95 % interval -0.5 to +4.5 over 3 seeds "
            "(no clear difference: below 2.5 none can be told from 0)",
        ),
        ([-1.0, -1.1], "-1.1 points, 95 % interval -1.7 to -0.4 over 2 seeds"),
        ([1.0, 1.1], "+1.1 points, 95 % interval +0.4 to +1.7 over 2 seeds"),
        ([1.0], "+1.0 points (one seed, no interval)"),
    ],
)
def test_a_difference_without_better_or_worse(values, words):
    assert without_verdict(PairedDifference.of(pd.Series(values))) == words
