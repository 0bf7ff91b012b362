import itertools
import random
import statistics

import pytest

from experiments.run.tables import thesis_table
from ktlib.mtl.metrics import (
    ranking_correlation,
    ranking_distance,
    relative_improvement,
    top_overlap,
)

TASKS = {
    "4_1": {"one": ["task_1_acc"], "two": ["task_2_acc"]},
    "4_3": {
        "segmentation": ["seg_miou", "seg_pix_acc"],
        "depth": ["depth_abs_err", "depth_rel_err"],
    },
}
ERRORS = {"4_1": (), "4_3": ("depth_abs_err", "depth_rel_err")}


def printed(number):
    """Rows of a printed table as results, and the single-task row."""
    frame = thesis_table(number)
    shaped = [
        {task: {name: row[name] for name in names} for task, names in TASKS[number].items()}
        for row in frame.to_dict("records")
    ]
    return frame, shaped, shaped[list(frame["base_method"]).index("Single-task")]


def bound(number, results, alone, digits):
    """How far Dm can move when every printed metric moves inside its rounding."""
    reach = 0.0
    for task, values in results.items():
        for name, value in values.items():
            # Of a metric M / S - 1, with both rounded to the digits that are printed.
            half = 0.5 * 10.0 ** -digits[name]
            single = alone[task][name]
            reach += (half / single + half * value / single**2) / len(values) / len(results)
    return 100 * reach + 0.005


@pytest.mark.parametrize("number", ["4_1", "4_3"])
def test_printed_improvements_follow_from_their_rows(number):
    frame, rows, alone = printed(number)
    digits = dict.fromkeys([name for names in TASKS[number].values() for name in names], 2)
    if number == "4_3":
        digits["depth_abs_err"] = 4
    checked = 0
    for method, variant, results, expected in zip(
        frame["base_method"], frame["variant"], rows, frame["delta_m"], strict=True
    ):
        if method == "Single-task" or (number, method, variant) == ("4_3", "PCGrad", "base"):
            continue  # PCGrad's depth error is printed as 0.02: two digits, where others have four
        found = relative_improvement(results, alone, ERRORS[number])
        assert found == pytest.approx(expected, abs=bound(number, results, alone, digits)), method
        checked += 1
    assert checked == {"4_1": 14, "4_3": 11}[number]


def test_the_row_printed_with_two_digits_follows_from_a_value_that_rounds_to_them():
    frame, rows, alone = printed("4_3")
    row = next(i for i, name in enumerate(frame["base_method"]) if name == "PCGrad")
    rows[row]["depth"]["depth_abs_err"] = 0.0168
    found = relative_improvement(rows[row], alone, ERRORS["4_3"])
    assert found == pytest.approx(frame["delta_m"][row], abs=0.25)


def test_improvement_by_hand():
    """Task a: +10 %; task b: error halved (+50 %) and accuracy down by a quarter: +12.5 %."""
    alone = {"a": {"acc": 50.0}, "b": {"err": 0.2, "miou": 40.0}}
    results = {"a": {"acc": 55.0}, "b": {"err": 0.1, "miou": 30.0}}
    assert relative_improvement(results, alone, ["err"]) == pytest.approx(11.25)
    assert relative_improvement(alone, alone, ["err"]) == 0.0
    assert relative_improvement(results, alone) == pytest.approx(100 * (0.1 - 0.375) / 2)


@pytest.mark.parametrize(
    ("results", "alone", "lower", "message"),
    [
        ({}, {}, (), "results must be of the tasks"),
        ({"a": {"x": 1.0}}, {"b": {"x": 1.0}}, (), r"tasks \['b'\]. Found \['a'\]"),
        ({"a": {"x": 1.0}}, {"a": {"y": 1.0}}, (), r"task 'a' must have the metrics \['y'\]"),
        ({"a": {"x": 1.0}}, {"a": {"x": 0.0}}, (), "x of task 'a' must be finite, and not 0"),
        ({"a": {"x": float("nan")}}, {"a": {"x": 1.0}}, (), "Found nan"),
        ({"a": {"x": 1.0}}, {"a": {"x": 1.0}}, ["z"], r"lower_is_better .* Found \['z'\]"),
    ],
)
def test_improvement_refuses(results, alone, lower, message):
    with pytest.raises(ValueError, match=message):
        relative_improvement(results, alone, lower)


def test_distance_by_hand():
    """a moves by 2, b by 1, c by 1, d stays."""
    assert ranking_distance(list("abcd"), list("bcad")) == 1.0
    assert ranking_distance(list("abcd"), list("dcba")) == 2.0
    assert ranking_distance(list("abcd"), list("abcd")) == 0.0


def test_distance_is_a_metric_and_about_a_third_by_chance():
    drawn = random.Random(0)
    names = [f"layer{k}" for k in range(41)]
    rankings = [drawn.sample(names, len(names)) for _ in range(30)]
    for a, b, c in itertools.combinations(rankings[:8], 3):
        assert ranking_distance(a, b) == ranking_distance(b, a) > 0
        assert ranking_distance(a, c) <= ranking_distance(a, b) + ranking_distance(b, c)
    mean = statistics.mean(ranking_distance(a, b) for a, b in itertools.combinations(rankings, 2))
    assert mean == pytest.approx(41 / 3, rel=0.05)


def test_correlation_by_hand():
    """a moves by 2, b and c by 1: 1 - 6 (4 + 1 + 1 + 0) / (4 (16 - 1)) = 0.4."""
    assert ranking_correlation(list("abcd"), list("bcad")) == pytest.approx(0.4)
    assert ranking_correlation(list("abcd"), list("dcba")) == pytest.approx(-1.0)
    assert ranking_correlation(list("abcd"), list("abcd")) == pytest.approx(1.0)


def test_correlation_is_symmetric_turns_its_sign_and_is_about_0_by_chance():
    drawn = random.Random(0)
    names = [f"layer{k}" for k in range(41)]
    rankings = [drawn.sample(names, len(names)) for _ in range(12)]
    pairs = list(itertools.combinations(rankings, 2))
    found = [ranking_correlation(a, b) for a, b in pairs]
    assert found == pytest.approx([ranking_correlation(b, a) for a, b in pairs])
    assert found == pytest.approx([-ranking_correlation(a[::-1], b) for a, b in pairs])
    assert statistics.mean(found) == pytest.approx(0, abs=0.05)
    assert statistics.pstdev(found) == pytest.approx(1 / 40**0.5, rel=0.2)


def test_overlap_by_hand():
    assert top_overlap(list("abcd"), list("bcad"), 1) == 0.0
    assert top_overlap(list("abcd"), list("bcad"), 2) == 0.5
    assert top_overlap(list("abcd"), list("bcad"), 3) == 1.0


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ([], [], "a ranking must name layers"),
        (["a", "a"], ["a", "b"], r"each once. Found \['a', 'a'\]"),
        (["a", "b"], ["a", "c"], r"same layers. Found \['b', 'c'\] in one only"),
    ],
)
def test_rankings_of_other_layers_are_refused(one, other, message):
    for compare in (ranking_distance, ranking_correlation):
        with pytest.raises(ValueError, match=message):
            compare(one, other)


def test_a_correlation_needs_two_layers():
    with pytest.raises(ValueError, match=r"at least 2 layers. Found \['a'\]"):
        ranking_correlation(["a"], ["a"])


@pytest.mark.parametrize("count", [0, 3])
def test_overlap_refuses_a_count_outside(count):
    with pytest.raises(ValueError, match=f"between 1 and 2. Found top_k={count}"):
        top_overlap(["a", "b"], ["b", "a"], count)
