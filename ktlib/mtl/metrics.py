"""Numbers that compare methods and rankings of layers (thesis, chapter 4)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence


def relative_improvement(
    results: Mapping[str, Mapping[str, float]],
    single_task: Mapping[str, Mapping[str, float]],
    lower_is_better: Collection[str] = (),
) -> float:
    """Relative improvement ``Dm`` over training each task on its own (thesis, section 4.5.1).

    For each task the mean over its metrics of ``(M - S) / S``, its sign turned where lower is
    better; then the mean over the tasks, so that a task with many metrics counts no more than one
    with few.

    Args:
        results: task -> metric -> value ``M`` of the method.
        single_task: task -> metric -> value ``S``.
        lower_is_better: names of the metrics that are errors.

    Returns:
        Percent; above 0 is better than training each task on its own.

    Raises:
        ValueError: there are no tasks, the two sides differ in tasks or metrics, a value is not
            finite, a value of ``single_task`` is 0, or ``lower_is_better`` names no metric.

    Example:
        >>> single = {"seg": {"miou": 50.0}, "depth": {"error": 2.0}}
        >>> results = {"seg": {"miou": 55.0}, "depth": {"error": 1.6}}
        >>> round(relative_improvement(results, single, lower_is_better=["error"]), 6)
        15.0
    """
    if not results or results.keys() != single_task.keys():
        raise ValueError(
            f"results must be of the tasks {list(single_task)}. Found {list(results)}."
        )
    metrics = {name for values in results.values() for name in values}
    unknown = sorted(set(lower_is_better) - metrics)
    if unknown:
        raise ValueError(
            f"lower_is_better must name metrics of {sorted(metrics)}. Found {unknown}."
        )
    tasks = []
    for task, values in results.items():
        alone = single_task[task]
        if not values or values.keys() != alone.keys():
            raise ValueError(
                f"results of task {task!r} must have the metrics {list(alone)}. "
                f"Found {list(values)}."
            )
        changes = []
        for name, value in values.items():
            if not (math.isfinite(value) and math.isfinite(alone[name]) and alone[name] != 0):
                raise ValueError(
                    f"{name} of task {task!r} must be finite, and not 0 for the single task. "
                    f"Found {value!r} against {alone[name]!r}."
                )
            change = (value - alone[name]) / alone[name]
            changes.append(-change if name in lower_is_better else change)
        tasks.append(math.fsum(changes) / len(changes))
    return 100 * math.fsum(tasks) / len(tasks)


def ranking_distance(one: Sequence[str], other: Sequence[str]) -> float:
    """Mean shift in position of the layers between two rankings (thesis, equation 4.20).

    Returns:
        0 for equal rankings; for ``n`` layers at most about ``n / 2``, for one turned round, and
        about ``n / 3`` for two rankings by chance.

    Raises:
        ValueError: a ranking is empty, names a layer twice, or has other layers than the other.

    Example:
        >>> ranking_distance(["conv", "norm", "fc"], ["norm", "conv", "fc"])
        0.6666666666666666
    """
    positions = _positions(one, other)
    return math.fsum(abs(place - positions[name]) for place, name in enumerate(one)) / len(one)


def ranking_correlation(one: Sequence[str], other: Sequence[str]) -> float:
    """Spearman's rank correlation of two rankings of the same layers.

    Returns:
        From -1, for one ranking turned round, to 1, for equal ones; by chance about 0.

    Raises:
        ValueError: there are fewer than two layers, or as :func:`ranking_distance`.

    Example:
        >>> round(ranking_correlation(["conv", "norm", "fc"], ["norm", "conv", "fc"]), 6)
        0.5
    """
    positions = _positions(one, other)
    if len(one) < 2:
        raise ValueError(f"rankings must have at least 2 layers. Found {list(one)}.")
    from scipy import stats  # seconds to import

    found = stats.spearmanr(range(len(one)), [positions[name] for name in one])
    return float(found.statistic)


def top_overlap(one: Sequence[str], other: Sequence[str], top_k: int) -> float:
    """Share of the first ``top_k`` layers of one ranking that are among those of the other.

    Returns:
        From 0 to 1. Two rankings of ``n`` layers by chance have ``top_k / n``.

    Raises:
        ValueError: ``top_k`` does not lie between 1 and the number of layers, or as
            :func:`ranking_distance`.

    Example:
        >>> top_overlap(["conv", "norm", "fc"], ["norm", "fc", "conv"], top_k=2)
        0.5
    """
    _positions(one, other)
    if not 1 <= top_k <= len(one):
        raise ValueError(f"top_k must lie between 1 and {len(one)}. Found top_k={top_k!r}.")
    return len(set(one[:top_k]) & set(other[:top_k])) / top_k


def _positions(one: Sequence[str], other: Sequence[str]) -> dict[str, int]:
    """Place of each layer in the second ranking, once both are known to rank the same layers."""
    for ranking in (one, other):
        if not ranking or len(set(ranking)) < len(ranking):
            raise ValueError(f"a ranking must name layers, each once. Found {list(ranking)}.")
    if set(one) != set(other):
        different = sorted(set(one) ^ set(other))
        raise ValueError(f"the rankings must be of the same layers. Found {different} in one only.")
    return {name: place for place, name in enumerate(other)}
