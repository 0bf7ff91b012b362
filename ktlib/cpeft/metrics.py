"""Measures of a sequence of tasks: final and average accuracy, forgetting, transfer.

All take the rows of :func:`ktlib.cpeft.tasks.learn_tasks`. Let ``a_ij`` be the accuracy on task
``j`` after task ``i`` and ``T`` the last task. Every task weighs the same, and so does every image
where tasks have equally many. All results are in percent, or differences of percents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def accuracy_matrix(rows: Rows, key: str = "accuracy") -> list[list[float]]:
    """``a_ij`` as a triangle: one list for each task ``i``, with one number for each ``j <= i``.

    Args:
        rows: with ``after``, ``task`` and ``key``; tasks come in the order in which they are first
            found in ``after``.
        key: ``"accuracy"``, ``"task_il_accuracy"`` or ``"routing_error"``.

    Raises:
        ValueError: there are no rows, a cell is missing or occurs twice, or belongs to a task that
            was not learned yet.
    """
    tasks = list(dict.fromkeys(int(row["after"]) for row in rows))
    if not tasks:
        raise ValueError("rows must have at least one task. Found none.")
    cells: dict[tuple[int, int], float] = {}
    for row in rows:
        place = int(row["after"]), int(row["task"])
        if place in cells:
            raise ValueError(f"rows must have each cell once. Found (after, task) = {place} twice.")
        cells[place] = float(row[key])
    wanted = [[(i, j) for j in tasks[: n + 1]] for n, i in enumerate(tasks)]
    expected = {place for line in wanted for place in line}
    for problem, places in (
        ("missing", expected - cells.keys()),
        ("of a task before it was learned", cells.keys() - expected),
    ):
        if places:
            raise ValueError(
                "rows must have every task up to the one that was learned last. Of "
                f"(after, task) {problem}: {sorted(places)[:5]}."
            )
    return [[cells[place] for place in line] for line in wanted]


def final_accuracy(rows: Rows) -> float:
    """Mean over tasks of ``a_Tj``: accuracy after the last task. InfLoRA's ``ACC_T``.

    Raises:
        ValueError: as :func:`accuracy_matrix`, as in all functions of this module.

    Example:
        >>> rows = [{"after": i, "task": j, "accuracy": a}
        ...         for i, j, a in ((1, 1, 90.0), (2, 1, 60.0), (2, 2, 80.0))]
        >>> final_accuracy(rows)
        70.0
    """
    return fmean(accuracy_matrix(rows)[-1])


def average_accuracy(rows: Rows) -> float:
    """Mean over ``i`` of the mean of ``a_ij`` over ``j <= i``. InfLoRA's mean of ``ACC_i``.

    Example:
        >>> rows = [{"after": i, "task": j, "accuracy": a}
        ...         for i, j, a in ((1, 1, 90.0), (2, 1, 60.0), (2, 2, 80.0))]
        >>> average_accuracy(rows)
        80.0
    """
    return fmean(fmean(line) for line in accuracy_matrix(rows))


def forgetting(rows: Rows) -> float:
    """Mean over ``j < T`` of the best earlier ``a_ij`` less ``a_Tj``; 0 for one task.

    The best of ``i < T`` (Chaudhry et al., "Riemannian walk for incremental learning", ECCV 2018):
    below 0 where a task is at its best at the end.

    Example:
        >>> rows = [{"after": i, "task": j, "accuracy": a}
        ...         for i, j, a in ((1, 1, 90.0), (2, 1, 60.0), (2, 2, 80.0))]
        >>> forgetting(rows)
        30.0
    """
    *before, last = accuracy_matrix(rows)
    lost = [max(line[task] for line in before[task:]) - last[task] for task in range(len(before))]
    return fmean(lost) if lost else 0.0


def backward_transfer(rows: Rows) -> float:
    """Mean over ``j < T`` of ``a_Tj - a_jj``; 0 for one task.

    What later tasks changed, for better or for worse (Lopez-Paz and Ranzato, "Gradient episodic
    memory", NeurIPS 2017).
    """
    *before, last = accuracy_matrix(rows)
    changes = [last[task] - line[task] for task, line in enumerate(before)]
    return fmean(changes) if changes else 0.0


def forward_transfer(rows: Rows, alone: Mapping[int, float]) -> float:
    """Mean over tasks of ``a_jj`` less that of a model that learned task ``j`` alone.

    Both are ``task_il_accuracy``, as a model of one task knows no other classes. That model is
    tuned from the pre-trained one: more than 0 says that the tasks before helped.

    Args:
        rows: of the learner.
        alone: number of a task -> ``task_il_accuracy`` of the model tuned on it alone, such as
            :func:`accuracies_alone` takes from the rows of a
            :class:`~ktlib.cpeft.comparisons.LoraOracle`.

    Raises:
        ValueError: ``alone`` has other tasks.
    """
    tasks = list(dict.fromkeys(int(row["after"]) for row in rows))
    if alone.keys() != set(tasks):
        raise ValueError(f"alone must have the tasks {tasks}. Found {sorted(alone)}.")
    matrix = accuracy_matrix(rows, "task_il_accuracy")
    return fmean(line[-1] - alone[task] for task, line in zip(tasks, matrix, strict=True))


def accuracies_alone(rows: Rows) -> dict[int, float]:
    """Task -> ``task_il_accuracy`` right after it, as :func:`forward_transfer` wants it."""
    tasks = dict.fromkeys(int(row["after"]) for row in rows)
    matrix = accuracy_matrix(rows, "task_il_accuracy")
    return {task: line[-1] for task, line in zip(tasks, matrix, strict=True)}


def summary(rows: Rows, alone: Mapping[int, float] | None = None) -> dict[str, float]:
    """All measures of this module by name.

    Besides those with functions of their own: ``final_task_il_accuracy`` and
    ``final_routing_error``, means over tasks after the last one.

    Args:
        rows: of a learner.
        alone: as for :func:`forward_transfer`, which is left out without it.

    Example:
        >>> cell = {"task_il_accuracy": 95.0, "routing_error": 10.0}
        >>> rows = [{"after": i, "task": j, "accuracy": a} | cell
        ...         for i, j, a in ((1, 1, 90.0), (2, 1, 60.0), (2, 2, 80.0))]
        >>> found = summary(rows)
        >>> found["forgetting"], found["final_routing_error"]
        (30.0, 10.0)
    """
    found = {
        "final_accuracy": final_accuracy(rows),
        "average_accuracy": average_accuracy(rows),
        "forgetting": forgetting(rows),
        "backward_transfer": backward_transfer(rows),
        "final_task_il_accuracy": fmean(accuracy_matrix(rows, "task_il_accuracy")[-1]),
        "final_routing_error": fmean(accuracy_matrix(rows, "routing_error")[-1]),
    }
    if alone is not None:
        found["forward_transfer"] = forward_transfer(rows, alone)
    return found
