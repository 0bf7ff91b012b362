"""Metrics of a sequence of tasks, against numbers by hand."""

import math

import pytest

from ktlib.cpeft.metrics import (
    accuracies_alone,
    accuracy_matrix,
    average_accuracy,
    backward_transfer,
    final_accuracy,
    forgetting,
    forward_transfer,
    summary,
)

WITHIN = {1: 90.0, 2: 80.0, 3: 70.0}
MATRIX = [[80.0], [60.0, 50.0], [70.0, 20.0, 30.0]]


def rows_of(matrix):
    return [
        {"after": i, "task": j, "accuracy": a, "task_il_accuracy": WITHIN[j] - i,
         "routing_error": 2 * i}
        for i, line in enumerate(matrix, start=1)
        for j, a in enumerate(line, start=1)
    ]  # fmt: skip


def test_numbers_by_hand():
    rows = rows_of(MATRIX)
    assert accuracy_matrix(rows) == MATRIX
    assert final_accuracy(rows) == pytest.approx(40)
    assert average_accuracy(rows) == pytest.approx((80 + 55 + 40) / 3)
    assert forgetting(rows) == pytest.approx((10 + 30) / 2)
    assert backward_transfer(rows) == pytest.approx((-10 - 30) / 2)
    # Right after each task: 89, 78, 67.
    assert forward_transfer(rows, {1: 80, 2: 80, 3: 70}) == pytest.approx((9 - 2 - 3) / 3)
    assert accuracies_alone(rows) == {1: 89, 2: 78, 3: 67}
    assert forward_transfer(rows, accuracies_alone(rows)) == 0


def test_forgetting_is_from_the_best_and_backward_transfer_from_the_first():
    rows = rows_of([[50.0], [70.0, 40.0], [60.0, 45.0, 10.0]])
    assert forgetting(rows) == pytest.approx((10 - 5) / 2)  # a task at its best at the end: below 0
    assert backward_transfer(rows) == pytest.approx((10 + 5) / 2)


def test_one_task_forgets_nothing():
    rows = rows_of([[80.0]])
    assert (forgetting(rows), backward_transfer(rows)) == (0, 0)
    assert final_accuracy(rows) == average_accuracy(rows) == 80


def test_the_order_of_the_rows_does_not_matter_but_that_of_the_tasks_does():
    rows = rows_of(MATRIX)
    shuffled = [rows[0], rows[2], rows[1], rows[5], rows[3], rows[4]]
    assert summary(shuffled) == summary(rows)
    renumbered = [row | {"after": 10 * row["after"], "task": 10 * row["task"]} for row in rows]
    assert summary(renumbered) == summary(rows)


def test_a_summary_has_all_by_name():
    rows = rows_of(MATRIX)
    found = summary(rows, alone=WITHIN)
    assert found == {
        "final_accuracy": final_accuracy(rows),
        "average_accuracy": average_accuracy(rows),
        "forgetting": forgetting(rows),
        "backward_transfer": backward_transfer(rows),
        "final_task_il_accuracy": pytest.approx(77),
        "final_routing_error": pytest.approx(6),
        "forward_transfer": pytest.approx(-2),
    }
    assert all(math.isfinite(value) for value in found.values())
    assert "forward_transfer" not in summary(rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:3] + rows[4:], r"\(after, task\) missing: \[\(3, 1\)\]"),
        (lambda rows: [*rows, rows[1]], r"each cell once. Found \(after, task\) = \(2, 1\) twice"),
        (lambda rows: [*rows, rows[0] | {"task": 3}], r"before it was learned: \[\(1, 3\)\]"),
        (lambda rows: [], "at least one task"),
    ],
)
def test_rows_that_are_no_triangle_are_refused(change, message):
    rows = change(rows_of(MATRIX))
    for metric in (final_accuracy, average_accuracy, forgetting, backward_transfer, summary):
        with pytest.raises(ValueError, match=message):
            metric(rows)


def test_accuracies_alone_must_be_of_the_same_tasks():
    with pytest.raises(ValueError, match=r"must have the tasks \[1, 2, 3\]. Found \[1, 2\]"):
        forward_transfer(rows_of(MATRIX), {1: 80, 2: 80})
