import math

import numpy as np
import pandas as pd
import pytest

from experiments.fcl.report import (
    ablation_label,
    ablation_table,
    accuracy_table,
    at_session,
    best_values,
    comparison_summary,
    flatness_ratios,
    flatness_summary,
    last_spread,
    norm_table,
    paired_difference,
    session_table,
    shift_table,
    study_flatness_table,
    study_rows,
    study_table,
    thesis_ablation,
)
from experiments.run.paired import PairedDifference
from experiments.run.results import thesis_table

ROWS = [
    {"method": method, "session": session, "seed": seed, "accuracy": accuracy, "new_accuracy": new}
    for method, session, seed, accuracy, new in (
        ("ncm", 1, 0, 80.0, None),
        ("ncm", 1, 1, 82.0, None),
        ("ncm", 2, 0, 70.0, 40.0),
        ("ncm", 2, 1, 72.0, 44.0),
        ("f2m", 1, 0, 79.0, None),
        ("f2m", 1, 1, 81.0, None),
        ("f2m", 2, 0, 71.0, 50.0),
        ("f2m", 2, 1, 75.0, 52.0),
    )
]


def flatness_rows():
    values = {("ncm", 0): 8.0, ("f2m", 0): 2.0, ("ncm", 1): 9.0, ("f2m", 1): 1.5}
    return pd.DataFrame(
        {"method": m, "seed": s, "split": "test", "bound": 0.01, "indicator": v}
        for (m, s), v in values.items()
    )


def test_session_table_shows_mean_and_sample_deviation_in_the_order_given():
    table = session_table(ROWS)
    assert list(table.index) == ["ncm", "f2m"]
    assert table.loc["ncm", 1] == "81.0 ± 1.4"
    assert table.loc["f2m", 2] == "73.0 ± 2.8"


def test_session_without_new_classes_is_left_out():
    assert list(session_table(ROWS, "new_accuracy").columns) == [2]


def test_accuracy_of_one_method_at_one_session():
    assert at_session(ROWS, "f2m", 2) == "73.0 ± 2.8"


def test_paired_difference_by_hand():
    """Differences 1 and 3: mean 2, standard error 1, t(0.975, 1) = 12.706."""
    found = paired_difference(ROWS, "f2m", "ncm")
    assert (found.mean, found.seeds) == (2.0, 2)
    assert found.high - found.mean == pytest.approx(12.706, abs=1e-3)
    assert found.mean - found.low == pytest.approx(12.706, abs=1e-3)
    unclear = "no clear difference: below 12.7 none can be told from 0"
    assert str(found).endswith(f"over 2 seeds ({unclear})")


@pytest.mark.parametrize(("shift", "verdict"), [(5.0, "better"), (-5.0, "worse")])
def test_verdict_when_the_interval_leaves_zero_out(shift, verdict):
    noise = np.random.RandomState(0).normal(0, 0.1, 6)
    rows = [
        {"method": m, "session": 1, "seed": s, "accuracy": 50 + (m == "f2m") * (shift + noise[s])}
        for m in ("ncm", "f2m")
        for s in range(6)
    ]
    assert str(paired_difference(rows, "f2m", "ncm")).endswith(f"({verdict})")


def test_one_seed_has_no_interval():
    found = paired_difference([r for r in ROWS if r["seed"] == 0], "f2m", "ncm")
    assert found.mean == 1.0
    assert math.isnan(found.low)
    assert "no interval" in str(found)


def test_unknown_method_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"one of \['f2m', 'ncm'\]. Found 'sam'"):
        paired_difference(ROWS, "sam", "ncm")


def test_flatness_ratio_is_taken_seed_by_seed():
    ratios = flatness_ratios(flatness_rows())
    assert ratios["ratio"].tolist() == [4.0, 6.0]
    assert flatness_summary(flatness_rows())["ncm / f2m"].tolist() == ["5.0 ± 1.4"]


def test_comparison_by_hand():
    """f2m: 80 to 73 is a drop of 7; ncm as upper bound: 71 - 73 = -2, seed by seed -1 and -3."""
    rows = [row | {"base_accuracy": 1.0} for row in ROWS]
    table = comparison_summary(rows, upper_bound="ncm")
    assert list(table.index) == ["ncm", "f2m"]
    assert table.loc["f2m", "drop"] == "7.0 ± 1.4"
    assert table.loc["f2m", "behind ncm"] == "-2.0 ± 1.4"
    assert table.loc["ncm", "new classes"] == "42.0 ± 2.8"
    one = comparison_summary([row for row in rows if row["seed"] == 0], upper_bound="ncm")
    assert one.loc["f2m", "all classes"] == "71.0"
    for seeds, behind in (((0, 1), "diverged"), ((1,), "-1.0")):  # the bound in all, in one
        left = [r for r in rows if not (r["method"] == "ncm" and r["session"] == 2
                                        and r["seed"] in seeds)]  # fmt: skip
        short = comparison_summary(left, upper_bound="ncm")
        assert short.loc["f2m", "behind ncm"] == behind
        assert (short.loc["ncm", "all classes"] == "diverged") == (behind == "diverged")
        assert short.loc["f2m", "drop"] == "7.0 ± 1.4"
    with pytest.raises(ValueError, match="upper_bound must be one of .* Found 'crt'"):
        comparison_summary(rows)


def test_paired_difference_of_another_session_group_and_pair():
    assert paired_difference(ROWS, "f2m", "ncm", session=1).mean == -1.0
    assert paired_difference(ROWS, "f2m", "ncm", value="new_accuracy").mean == 9.0
    orders = [{**row, "class_order": row["seed"]} for row in ROWS]
    found = paired_difference(orders, "f2m", "ncm", pairs="class_order")
    assert "over 2 class orders" in str(found)


def test_seed_whose_run_ended_early_makes_no_pair():
    rows = [r for r in ROWS if (r["method"], r["session"], r["seed"]) != ("f2m", 2, 1)]
    found = paired_difference(rows, "f2m", "ncm")
    assert (found.mean, found.seeds) == (1.0, 1)
    none = paired_difference([r for r in rows if r["session"] == 1 or r["method"] == "ncm"],
                             "f2m", "ncm")  # fmt: skip
    assert none.seeds == 0
    assert str(none) == "no pair was finished"


def test_missing_differences_are_left_out():
    found = PairedDifference.of(pd.Series([1.0, None, 3.0]))
    assert (found.mean, found.seeds) == (2.0, 2)


def study(value, accuracies, seed=0, study="rate", method="f2m"):
    """Rows of one run; fewer accuracies than elsewhere: it diverged."""
    known = {"study": study, "value": value, "method": method, "seed": seed}
    return [
        known | {"session": n, "accuracy": a, "base_accuracy": a, "new_accuracy": a - 1 if a else a}
        for n, a in enumerate(accuracies, start=1)
    ]


STUDY = [
    *study(0.1, [80.0, 70.0]),
    *study(0.1, [82.0, 74.0], seed=1),
    *study(0.3, [80.0, 60.0]),
    *study(0.3, [82.0], seed=1),
    *study(1.0, [80.0]),
    *study(1.0, [None], seed=1),
    *study("other", [1.0, 1.0], study="noise"),
]


def test_study_table_by_hand_and_what_diverged():
    table = study_table(STUDY, "rate")
    last = table["all classes, last session"]
    assert list(last.index) == [(0.1, "f2m"), (0.3, "f2m"), (1.0, "f2m")]
    assert last[0.1, "f2m"] == "72.0 ± 2.8"
    assert last[0.3, "f2m"] == "60.0 (1 of 2 runs, others diverged)"
    assert last[1.0, "f2m"] == "diverged"
    assert table["session 1"].tolist() == [
        "81.0 ± 1.4", "81.0 ± 1.4", "80.0 (1 of 2 runs, others diverged)"
    ]  # fmt: skip
    assert table["new classes, last session"].iloc[0] == "71.0 ± 2.8"
    with pytest.raises(ValueError, match=r"one of \['noise', 'rate'\]. Found 'shots'"):
        study_table(STUDY, "shots")


def test_last_spread_counts_runs_and_takes_the_session_asked_for():
    rows = study_rows(STUDY, "rate")
    assert last_spread(rows, "value")[["n", "runs"]].to_numpy().tolist() == [[2, 2], [1, 2], [0, 2]]
    assert last_spread(rows, "value", session=1)["mean"].tolist() == [81.0, 81.0, 80.0]
    early = [row for row in rows if row["value"] == 1.0]
    assert last_spread(early, "value", session=2)["n"].tolist() == [0]


def test_accuracy_table_averages_over_what_is_not_named():
    table = accuracy_table(study_rows(STUDY, "rate")[:4], ["method"])
    assert table.loc["f2m", "all classes, last session"].item() == "72.0 ± 2.8"


def test_best_value_of_each_seed_leaves_out_diverged_runs():
    assert best_values(STUDY, "rate", 2).to_dict() == {0: 0.1, 1: 0.1}
    assert best_values(STUDY, "rate", 1).to_dict() == {0: 0.1, 1: 0.1}


def test_names_of_combinations_are_those_of_the_printed_table():
    off = dict.fromkeys(("fm", "pf", "pc", "pn"), False)
    assert ablation_label(off) == "none"
    assert ablation_label(off | {"fm": True, "pn": True}) == "FM + PN"
    printed = thesis_ablation(thesis_table("3_6"))
    assert list(printed.index) == [
        "none", "PC", "FM + PF + PN", "FM + PC + PN", "FM + PF + PC", "FM + PF + PC + PN"
    ]  # fmt: skip


def test_ablation_table_by_hand():
    """Seeds 60 -> 50 and 62 -> 54: drops of 10 and 8. A run that ended early has no drop."""
    parts = {"fm": False, "pf": False, "pc": True, "pn": False}
    rows = [
        parts | {"seed": seed, "session": n, "accuracy": a}
        for seed, run in enumerate(([60.0, 50.0], [62.0, 54.0]))
        for n, a in enumerate(run, start=1)
    ]
    rows += [row | {"pc": False} for row in rows if row["session"] == 1]
    printed = thesis_table("3_6").iloc[:2]
    table = ablation_table(rows, printed)
    assert list(table.index) == ["none", "PC"]
    assert table.loc["PC", ("PD", "this run")] == "9.0 ± 1.4"
    assert table.loc["PC", ("last session", "this run")] == "52.0 ± 2.8"
    assert table.loc["PC", ("last session", "thesis")] == "42.55"
    assert table.loc["none", ("session 1", "this run")] == "61.0 ± 1.4"
    assert table.loc["none", ("last session", "this run")] == "diverged"
    assert table.loc["none", ("PD", "this run")] == "diverged"


def test_flatness_and_shift_of_a_study():
    row = {"study": "bound", "value": 0.1, "split": "test", "bound": 0.1, "loss_at_minimum": 2.0}
    rows = [row | {"seed": 0, "indicator": 1e-3}, row | {"seed": 1, "indicator": 3e-3}]
    rows.append(row | {"value": 0.2, "seed": 0, "indicator": None})
    table = study_flatness_table(rows, "bound")
    assert table["indicator"].tolist() == ["2.0e-03 ± 1.4e-03", "diverged"]
    shifts = [
        {"study": "rate", "value": 1.0, "method": m, "seed": 0, "shift_in_b": s}
        for m, s in (("f2m", 1.0), ("free", None))
    ]
    assert shift_table(shifts, "rate").loc[1.0].tolist() == ["1.00", "diverged"]


def test_norms_stand_below_those_of_the_thesis():
    rows = [
        {"method": "ncm", "seed": seed, "group": "new", "classes": 40, "mean": m, "std": 0.5}
        for seed, m in enumerate((3.0, 5.0))
    ]
    table = norm_table(rows, thesis_table("3_7"))
    assert table.loc[("thesis", "base"), "mean over classes"] == "7.97"
    assert table.loc[("ncm", "new"), "mean over classes"] == "4.00 ± 1.41"
    assert list(norm_table(rows).index) == [("ncm", "new")]
