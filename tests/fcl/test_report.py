import math

import numpy as np
import pandas as pd
import pytest

from ktlib.fcl.report import (
    at_session,
    comparison_summary,
    flatness_ratios,
    flatness_summary,
    paired_difference,
    session_table,
)

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
    assert str(found).endswith("over 2 seeds (no clear difference)")


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
    with pytest.raises(ValueError, match="upper_bound must be one of .* Found 'crt'"):
        comparison_summary(rows)
