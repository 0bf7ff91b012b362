"""Tables of the chapter on continual learning with PEFT, from rows of its records."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.cpeft.joint_analyses import rankings_over_tasks
from experiments.run.paired import PairedDifference
from experiments.run.tables import format_mean_std
from ktlib.cpeft.metrics import accuracies_alone, summary
from ktlib.ila.ranking import LayerRanking

Rows = Sequence[Mapping[str, Any]]

COLUMNS = {
    "final_accuracy": "final accuracy (%)",
    "average_accuracy": "average accuracy (%)",
    "forgetting": "forgetting",
    "backward_transfer": "backward transfer",
    "forward_transfer": "forward transfer",
    "final_accuracy_within": "task-IL accuracy (%)",
    "final_misallocated": "routing error (%)",
}
"""Measures, as records name them, and what they are called in tables."""

RECORD_NAMES = {"task_il_accuracy": "accuracy_within", "routing_error": "misallocated"}
"""Columns of :func:`ktlib.cpeft.learn_tasks` -> what they have been called in records so far."""

NO_SEQUENCE = ("joint", "ncm")
"""Methods that tune no model on the tasks one after the other: transfer has no meaning there."""

AGREEMENT_KINDS = (
    "two tasks, same first adapters",
    "two tasks, other first adapters",
    "one task, trained twice",
    "one expert, ranked twice",
)
"""How two rankings differ; an expert that is trained twice has other first adapters."""


def summary_rows(rows: Rows) -> list[dict[str, Any]]:
    """The measures of each run, as records name them: ``method``, ``seed``, ``metric``, ``value``.

    Forward transfer is relative to the expert of each task alone, of the same seed, and left out
    where the method ``oracle`` was not run.

    Args:
        rows: of :func:`as_recorded` with ``method`` and ``seed``.
    """
    runs: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        measured = {name: row[recorded] for name, recorded in RECORD_NAMES.items()}
        runs.setdefault((row["method"], row["seed"]), []).append({**row, **measured})
    found = []
    for (method, seed), own in runs.items():
        experts = runs.get(("oracle", seed))
        compared = experts is not None and method not in NO_SEQUENCE
        values = summary(own, accuracies_alone(experts) if experts and compared else None)
        known = {"method": method, "seed": seed}
        found += [
            known | {"metric": _recorded(name), "value": value} for name, value in values.items()
        ]
    return found


def as_recorded(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of :func:`ktlib.cpeft.learn_tasks` under the column names of records."""
    return {RECORD_NAMES.get(name, name): value for name, value in row.items()}


def _recorded(measure: str) -> str:
    name = measure.removeprefix("final_")
    return f"final_{RECORD_NAMES[name]}" if name in RECORD_NAMES else measure


def summary_table(rows: Rows) -> pd.DataFrame:
    """Methods by measures, mean +- standard deviation over seeds, from :func:`summary_rows`."""
    table = pd.DataFrame(list(rows))
    cells: dict[str, dict[str, str]] = {}
    for (method, metric), part in table.groupby(["method", "metric"], sort=False):
        values = part["value"]
        shown = format_mean_std(values.mean(), values.std(), digits=1)
        cells.setdefault(str(method), {})[COLUMNS[str(metric)]] = shown
    wanted = [name for name in COLUMNS.values() if any(name in row for row in cells.values())]
    return pd.DataFrame(cells).T[wanted].fillna("").rename_axis("method")


def method_difference(rows: Rows, one: str, other: str, metric: str) -> PairedDifference:
    """A measure of one method less that of another, within seeds, from :func:`summary_rows`.

    Raises:
        ValueError: a method was not run, or a measure is not known.
    """
    table = pd.DataFrame(list(rows))
    chosen = table[table["metric"] == metric]
    wide = chosen.pivot_table("value", "seed", "method")
    missing = [name for name in (one, other) if name not in wide.columns]
    if missing:
        raise ValueError(f"method must be one of {sorted(wide.columns)}. Found {missing}.")
    return PairedDifference.of(wide[one] - wide[other])


def accuracy_over_time(rows: Rows, key: str = "accuracy") -> pd.DataFrame:
    """Mean accuracy on all tasks so far after each task: columns method, after, mean, std."""
    table = pd.DataFrame(list(rows))
    per_seed = table.groupby(["method", "seed", "after"], sort=False)[key].mean().reset_index()
    spread = per_seed.groupby(["method", "after"], sort=False)[key].agg(["mean", "std"])
    return spread.reset_index()


def mean_matrix(rows: Rows, method: str, key: str = "accuracy") -> pd.DataFrame:
    """Accuracy on each task (columns) after each task (rows), mean over seeds."""
    table = pd.DataFrame([row for row in rows if row["method"] == method])
    wide = table.pivot_table(key, "after", "task")
    return wide.rename_axis("after task", axis=0).rename_axis("on task", axis=1)


def expert_agreement(
    rankings: Mapping[tuple[int, int, int, int], LayerRanking], top_fraction: float
) -> list[dict[str, Any]]:
    """How far rankings agree: of two tasks, of two experts of one task, and two of one expert.

    Args:
        rankings: seed, number of the task, number of the training of its expert (0 or 1) and of the
            draw of batches for the ranking (0 or 1) -> ranking. Both 1 is ignored.
        top_fraction: share of the layers that are compared as sets.

    Returns:
        Rows of :func:`~experiments.cpeft.joint_analyses.rankings_over_tasks` with ``seed`` and
        ``kind``, one of :data:`AGREEMENT_KINDS`.
    """
    found = []
    for seed in dict.fromkeys(key[0] for key in rankings):
        first, trained, ranked = (
            {task: one for (s, task, *two), one in rankings.items() if (s, *two) == (seed, *which)}
            for which in ((0, 0), (1, 0), (0, 1))
        )
        pairs = [
            (kind, a, b, {a: first[a], b: second[b]})
            for kind, second in zip(AGREEMENT_KINDS[:2], (first, trained), strict=True)
            for a, b in itertools.combinations(sorted(first), 2)
        ]
        pairs += [
            (kind, task, task, {1: first[task], 2: second[task]})
            for kind, second in zip(AGREEMENT_KINDS[2:], (trained, ranked), strict=True)
            for task in sorted(first)
        ]
        for kind, a, b, both in pairs:
            known: dict[str, Any] = {"kind": kind, "seed": seed}
            own = {"a": a, "b": b, "gap": b - a}
            found += [known | row | own for row in rankings_over_tasks(both, (top_fraction,))]
    return found


def without_verdict(difference: PairedDifference) -> str:
    """A difference and its interval, without "better" or "worse": less forgetting is better."""
    return str(difference).removesuffix(" (better)").removesuffix(" (worse)")


def short_layer(name: str) -> str:
    """A layer's name as axes show it: block and last word, such as ``2.key``."""
    words = name.split(".")
    block = next((word for word in words if word.isdecimal()), "")
    last = words[-1].removesuffix("_proj")
    last = {"q": "query", "k": "key", "v": "value"}.get(last, last)
    return f"{block}.{last}" if block else last


def occupancy_table(history: Rows) -> pd.DataFrame:
    """Share of each layer's input space that the memory holds after each task, mean over seeds.

    Args:
        history: of :class:`ktlib.cpeft.InfLora`, with ``layer``, ``task`` and ``occupied``.
    """
    wide = pd.DataFrame(list(history)).pivot_table("occupied", "layer", "task", sort=False)
    wide.index = pd.Index([short_layer(name) for name in wide.index], name="layer")
    return wide.rename_axis("after task", axis=1)
