"""Tables over the studies of ``chapters/recon_studies.py``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.mtl.experiment import Scores, TrainedRun
from experiments.mtl.report import histogram_rows, severe_shares
from experiments.run.paired import PairedDifference
from experiments.run.results import format_mean_std
from ktlib.mtl.metrics import ranking_correlation, ranking_distance, top_overlap

Rows = Iterable[Mapping[str, Any]]

# What is known of a run beforehand; every other column is a result.
_KEYS = ("study", "value", "method", "seed")


def ranking_pair(one: Sequence[str], other: Sequence[str], top_k: int) -> dict[str, float]:
    """How near two rankings are: distance, rank correlation, overlap of their first layers.

    Args:
        one: layers from first to last.
        other: the same layers in another order.
        top_k: how many of the first are compared; all, if there are fewer.
    """
    return {
        "distance": ranking_distance(one, other),
        "correlation": ranking_correlation(one, other),
        "overlap": top_overlap(one, other, min(top_k, len(one))),
    }


def run_result(run: TrainedRun, scores: Scores) -> dict[str, float | None]:
    """What the studies report of a trained network, in percent.

    Args:
        run: the network, and the conflicts that were counted while it trained.
        scores: task -> metric -> value, with ``accuracy`` among the metrics.

    Returns:
        ``accuracy``, the mean over tasks; the accuracy of each task; ``severe``, the share of steps
        with severe conflicts on the layers still shared, None where there are none.
    """
    by_task = {task: values["accuracy"] for task, values in scores.items()}
    severe = None
    if run.meters:
        rows = histogram_rows(run.conflicts(), method="", layers="", seed=0)
        severe = float(severe_shares(rows).iloc[0])
    return {"accuracy": sum(by_task.values()) / len(by_task), **by_task, "severe": severe}


def rows_of(rows: Rows, study: str) -> pd.DataFrame:
    """The rows of one study.

    Raises:
        ValueError: the study has no rows; the message lists the known studies.
    """
    table = pd.DataFrame(list(rows))
    known = list(dict.fromkeys(table["study"])) if len(table) else []
    if study not in known:
        raise ValueError(f"study must be one of {known}. Found {study!r}.")
    return table[table["study"] == study]


def study_table(rows: Rows, study: str) -> pd.DataFrame:
    """One row for each value and method: accuracies, severe conflicts, size; mean ± deviation.

    Args:
        rows: with ``study``, ``value``, ``method``, ``seed`` and result columns, in percent or MB.
        study: which one.
    """
    table = rows_of(rows, study)
    columns = [str(name) for name in table if name not in _KEYS]
    columns = [name for name in columns if table[name].notna().any()]
    several = len(set(table["method"])) > 1
    out: dict[str, dict[str, str]] = {}
    for (value, method), part in table.groupby(["value", "method"], sort=False):
        shown = {}
        for name in columns:
            known = part[name].dropna().astype(float)
            mean, spread = float(known.mean()), float(known.std())
            exact = name in ("layers", "megabytes") and not spread > 0
            digits = 0 if name == "layers" else 2
            missing = "nothing shared" if name == "severe" else "not defined"
            text = format_mean_std(mean, None if exact else spread, digits)
            shown[name] = text if len(known) else missing
        label = str(value).replace("_", " ")
        out[f"{label}, {method}" if several else label] = shown
    table = pd.DataFrame(out).T.rename_axis(study)
    return table.rename(columns={"megabytes": "#P (MB)", "severe": "severe conflicts (%)"})


def study_difference(
    rows: Rows, study: str, value: Any, reference: Any, method: str, column: str = "accuracy"
) -> PairedDifference:
    """A result with one value of a study minus that with another, within pairs of one seed.

    Raises:
        ValueError: the study has no such rows.
    """
    table = rows_of(rows, study)
    table = table[table["method"] == method]
    known = list(dict.fromkeys(table["value"]))
    for name in (value, reference):
        if name not in known:
            raise ValueError(f"value must be one of {known}. Found {name!r}.")
    wide = table.pivot_table(index="seed", columns="value", values=column)
    return PairedDifference.of(wide[value] - wide[reference])


def difference_table(
    rows: Rows, study: str, reference: Any, column: str = "accuracy"
) -> pd.DataFrame:
    """The reference minus every other value, with its interval, for every method of a study."""
    known = list(rows)
    table = rows_of(known, study)
    out = [
        {
            "method": method,
            f"{reference} against": str(value).replace("_", " "),
            "difference": str(study_difference(known, study, reference, value, method, column)),
        }
        for method in dict.fromkeys(table["method"])
        for value in dict.fromkeys(table["value"])
        if value != reference
    ]
    return pd.DataFrame(out).set_index(["method", f"{reference} against"])
