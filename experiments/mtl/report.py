"""Tables over the records of the chapters on multi-task learning."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from experiments.mtl.controls import parameter_count
from experiments.mtl.parameters import METHODS
from experiments.run.results import format_mean_std, mean_and_spread
from ktlib.mtl.conflict import ConflictMeter
from ktlib.mtl.metrics import ranking_distance, relative_improvement

Rows = Iterable[Mapping[str, Any]]

INTERVALS = ((0.0, 1.0), (-0.01, 0.0), (-0.02, -0.01), (-0.03, -0.02), (-1.0, -0.03))
"""Intervals of the cosine in table 4.11 of the thesis, from mild to severe."""

SEVERE = -0.01
"""Below it, a conflict counts as severe in the thesis's table of Multi-Fashion+MNIST."""

THESIS_NAMES = {
    "single": "Single-task",
    "joint": "Joint-train",
    "mgda": "MGDA",
    "pcgrad": "PCGrad",
    "graddrop": "GradDrop",
    "cagrad": "CAGrad",
    "rotograd": "RotoGrad",
    "mmoe": "MMoE",
    "cross_stitch": "Cross-Stitch",
    "bmtas": "BMTAS",
}
"""Our ids, and the names in the printed tables."""


SHARED, RECON = "shared", "recon"
"""Which layers are task-specific: none, or those of Recon. A control has the name of its choice."""


def run_name(method: str, layers: str) -> str:
    """How a row is called in tables and legends: ``joint`` or ``joint + Recon``.

    Args:
        method: id.
        layers: :data:`SHARED`, :data:`RECON`, or the name of another choice of layers.
    """
    if layers == SHARED:
        return method
    return f"{method} + {'Recon' if layers == RECON else layers.replace('_', ' ')}"


def in_order(rows: Rows) -> list[dict[str, Any]]:
    """Rows in the order of the tables: by method, the shared network first."""
    known = [dict(row) for row in rows]
    place = {SHARED: 0, RECON: 1}
    known.sort(key=lambda row: (METHODS.index(row["method"]), place.get(row["layers"], 2)))
    return known


# Conflicts ---------------------------------------------------------------------------------------


def histogram_rows(meter: ConflictMeter, **known: Any) -> list[dict[str, Any]]:
    """Shares of the cosines over all shared parameters, one row for every bin that is not empty.

    Args:
        meter: what was counted.
        known: further columns, such as ``method``, ``layers`` and ``seed``.
    """
    counts, edges = meter.histogram(), meter.bins
    total = sum(counts)
    return [
        known | {"bin_low": edges[i], "bin_high": edges[i + 1], "share": count / total}
        for i, count in enumerate(counts)
        if count
    ]


def interval_shares(rows: Rows) -> pd.DataFrame:
    """Percent of cosines in each of :data:`INTERVALS`, and below :data:`SEVERE`.

    Args:
        rows: of :func:`histogram_rows`, with ``method``, ``layers`` and ``seed``.

    Returns:
        One row for each method, choice of layers and seed; columns ``low to high`` and ``severe``.
    """
    table = pd.DataFrame(list(rows))
    middle = (table["bin_low"] + table["bin_high"]) / 2
    columns = {}
    for low, high in INTERVALS:
        columns[f"{high:g} to {low:g}"] = table["share"].where((middle > low) & (middle < high))
    columns["severe"] = table["share"].where(middle < SEVERE)
    keys = ["method", "layers", "seed"]
    shares = table[keys].assign(**{name: 100 * share for name, share in columns.items()})
    return shares.groupby(keys, sort=False).sum()


def interval_table(rows: Rows, printed: pd.DataFrame | None = None) -> pd.DataFrame:
    """The form of table 4.11: percent of cosines per interval, and the reduction.

    The reduction says how many percent fewer cosines lie below :data:`SEVERE` than in joint
    training of the same seed; below 0 there are more.

    Args:
        rows: of :func:`histogram_rows`, with ``method``, ``layers`` and ``seed``; joint training
            must be among them.
        printed: table 4.11 of the thesis, for a column with its reduction.

    Raises:
        ValueError: there are no rows of joint training.
    """
    shares = interval_shares(rows)
    joint = [key for key in shares.index if key[:2] == ("joint", SHARED)]
    if not joint:
        raise ValueError("rows must hold joint training. Found none of it.")
    reference = shares.loc[joint, "severe"].droplevel(["method", "layers"])
    seeds = shares.index.get_level_values("seed")
    before = reference.reindex(seeds).to_numpy()
    severe = shares["severe"].to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        shares["reduction"] = np.where(before > 0, 100 * (1 - severe / before), np.nan)
    out: dict[str, dict[str, str]] = {}
    for (method, layers), part in shares.groupby(level=["method", "layers"], sort=False):
        columns = [str(column) for column in part if column != "severe"]
        shown = {column: _shown(part[column], 1) for column in columns}
        if (method, layers) == ("joint", SHARED):
            shown["reduction"] = ""
        if printed is not None:
            shown["thesis"] = _printed(printed, str(method), str(layers), "reduction", 1)
        out[run_name(str(method), str(layers))] = shown
    table = pd.DataFrame(out).T
    return table.rename(columns={"reduction": "fewer severe (%)", "thesis": "thesis (%)"})


def _printed(printed: pd.DataFrame, method: str, layers: str, column: str, digits: int) -> str:
    """A cell of a table of the thesis; empty where there is none."""
    variants = {SHARED: "base", RECON: "recon", "random_layers": "rsl", "random_parameters": "rsp"}
    mine = printed["base_method"] == THESIS_NAMES.get(method)
    found = printed[mine & (printed["variant"] == variants.get(layers))][column]
    return f"{found.iloc[0]:.{digits}f}" if len(found) and pd.notna(found.iloc[0]) else ""


def severe_shares(rows: Rows) -> pd.Series[float]:
    """(method, layers, seed) -> percent of cosines below :data:`SEVERE`."""
    return interval_shares(rows)["severe"].sort_index()


def reductions(rows: Rows, layers: str) -> dict[str, float]:
    """Method -> percent fewer severe conflicts than joint training, mean over seeds.

    Args:
        rows: of :func:`histogram_rows`, with ``method``, ``layers`` and ``seed``.
        layers: which networks; of the shared ones joint training itself is left out.
    """
    known = list(rows)
    severe = severe_shares(known)
    table = pd.DataFrame(known)
    joint = severe.xs(("joint", SHARED))
    found = {}
    for method in dict.fromkeys(table["method"][table["layers"] == layers]):
        if (method, layers) != ("joint", SHARED):
            part = severe.xs((method, layers))
            found[str(method)] = float((100 * (1 - part / joint.reindex(part.index))).mean())
    return found


# Rankings ----------------------------------------------------------------------------------------


def score_rows(meter: ConflictMeter, **known: Any) -> list[dict[str, Any]]:
    """Conflict scores of all layers at all severities."""
    return [
        known | {"severity": severity, "layer": layer, "score": score}
        for severity in meter.severities
        for layer, score in meter.scores(severity).items()
    ]


def pair_table(meter: ConflictMeter, severity: float) -> pd.DataFrame:
    """Percent of the steps in which two tasks conflict, over all shared parameters: task x task.

    Args:
        meter: made with ``task_pairs``.
        severity: below which a cosine is a conflict.
    """
    cells: dict[str, dict[str, float]] = {}
    for row in meter.pair_rows(severity):
        if row["layer"] is None:
            for one, other in itertools.permutations((row["first"], row["second"])):
                cells.setdefault(one, {})[other] = 100 * row["conflicts"] / row["pairs"]
    return pd.DataFrame(cells).sort_index().sort_index(axis=1)


def layer_task_table(meter: ConflictMeter) -> pd.DataFrame:
    """What the gradients of the other tasks add to a task's own step: layer x task.

    The sum over the other tasks ``i`` of mean cosine times ratio of lengths, the left side of the
    theorem's condition: at -1 a step along the sum of all gradients does nothing for the task.

    Args:
        meter: made with ``task_pairs``.
    """
    table = pd.DataFrame(meter.pair_rows(meter.severities[0])).dropna(subset="layer")
    cosine = table["cosines"] / table["pairs"]
    added = pd.concat([
        table.assign(task=table["second"], added=cosine * table["norm_ratio"]),
        table.assign(task=table["first"], added=cosine / table["norm_ratio"]),
    ])  # fmt: skip
    return added.pivot_table("added", "layer", "task", aggfunc="sum").reindex(list(meter.layers))


def distance_table(rankings: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Ranking distance (4.20) of each pair; below the diagonal, as in tables 4.6 and 4.8."""
    names = list(rankings)
    cells = {
        column: {
            row: f"{ranking_distance(rankings[row], rankings[column]):.2f}"
            if names.index(row) >= names.index(column)
            else ""
            for row in names
        }
        for column in names
    }
    return pd.DataFrame(cells)


def printed_distances(printed: pd.DataFrame) -> pd.DataFrame:
    """The thesis's table 4.6 or 4.8 in the same form."""
    order = list(dict.fromkeys(printed["row"]))
    table = printed.pivot_table(index="row", columns="column", values="value", sort=False)
    table = table.reindex(index=order, columns=[name for name in order if name in table]).map(
        lambda value: "" if pd.isna(value) else f"{value:.2f}"
    )
    quarters = {name: f"quarter {name[0]}" for name in order if name.endswith("_25_percent")}
    return table.rename(index=quarters, columns=quarters).rename_axis(index=None, columns=None)


# Results -----------------------------------------------------------------------------------------


def result_rows(scores: Mapping[str, Mapping[str, float]], **known: Any) -> list[dict[str, Any]]:
    """Rows of ``mtl_results``: one for each task and metric."""
    return [
        known | {"task": task, "metric": metric, "value": value}
        for task, metrics in scores.items()
        for metric, value in metrics.items()
    ]


def improvement_rows(rows: Rows, lower_is_better: Collection[str] = ()) -> list[dict[str, Any]]:
    """Relative improvement Dm of every run over single-task training of the same seed.

    Args:
        rows: of ``mtl_results``; those of ``single`` are the reference.
        lower_is_better: metrics that are errors.

    Returns:
        Rows with ``method``, ``layers``, ``seed`` and ``improvement`` in percent.

    Raises:
        ValueError: a seed has no single-task results.
    """
    table = pd.DataFrame(list(rows))
    runs = {
        key: {
            str(task): dict(zip(part["metric"], part["value"], strict=True))
            for task, part in run.groupby("task", sort=False)
        }
        for key, run in table.groupby(["method", "layers", "seed"], sort=False)
    }
    metrics = {metric for run in runs.values() for values in run.values() for metric in values}
    errors = set(lower_is_better) & metrics
    out = []
    for (method, layers, seed), run in runs.items():
        alone = runs.get(("single", SHARED, seed))
        if alone is None:
            raise ValueError(f"rows must hold single-task training of seed {seed}. Found none.")
        value = relative_improvement(run, alone, errors)
        out.append({"method": method, "layers": layers, "seed": seed, "improvement": value})
    return out


def results_table(
    rows: Rows,
    costs: Rows = (),
    lower_is_better: Collection[str] = (),
    printed: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The form of table 4.1: metrics of all tasks, Dm and costs, mean ± deviation over seeds.

    Args:
        rows: of ``mtl_results``.
        costs: rows with ``method``, ``layers``, ``megabytes``, ``gigaflops``, ``forward_ms``.
        lower_is_better: metrics that are errors.
        printed: table 4.1 of the thesis, for a column with its Dm.
    """
    known = list(rows)
    table = pd.DataFrame(known)
    gains = pd.DataFrame(improvement_rows(known, lower_is_better))
    cost_of = {(row["method"], row["layers"]): row for row in costs}
    several = any(len(set(part["metric"])) > 1 for _, part in table.groupby("task"))
    out: dict[str, dict[str, str]] = {}
    for key, run in table.groupby(["method", "layers"], sort=False):
        method, layers = str(key[0]), str(key[1])
        shown = {
            f"{task} {metric}" if several else str(task): _shown(part["value"], 2)
            for (task, metric), part in run.groupby(["task", "metric"], sort=False)
        }
        mine = gains[(gains["method"] == method) & (gains["layers"] == layers)]["improvement"]
        shown["Dm (%)"] = "" if method == "single" else _shown(mine, 2)
        if printed is not None:
            shown["Dm, thesis"] = _printed(printed, method, layers, "delta_m", 2)
        if (method, layers) in cost_of:
            cost = cost_of[method, layers]
            shown["#P (MB)"] = f"{cost['megabytes']:.2f}"
            shown["GFLOPs"] = f"{cost['gigaflops']:.4g}"
            shown["forward (ms)"] = f"{cost['forward_ms']:.3g}"
        out[run_name(method, layers)] = shown
    return pd.DataFrame(out).T.fillna("")


def layer_kinds(
    layers: Mapping[str, Sequence[nn.Parameter]],
    without_norms: Collection[str],
    chosen: Collection[str],
) -> pd.DataFrame:
    """How many of the chosen layers are batch norms, early or late, and how much they hold.

    Args:
        layers: of the trunk, in the order of the network.
        without_norms: names of those that are not batch norms.
        chosen: names.
    """
    names = list(layers)
    kind = {
        name: "batch norm"
        if name not in without_norms
        else f"other layer, {'first' if place < len(names) / 2 else 'second'} half"
        for place, name in enumerate(names)
    }
    table = pd.DataFrame(
        {
            "kind": [kind[name] for name in names],
            "layers": 1,
            "chosen": [int(name in chosen) for name in names],
            "size": [parameter_count(layers[name]) for name in names],
        }
    )
    share = 100 * table["size"] * table["chosen"] / table["size"].sum()
    table = table.assign(**{"of all parameters (%)": share}).drop(columns="size")
    return table.groupby("kind").sum().round(2)


def value_spread(rows: Rows, by: str | Sequence[str], value: str) -> pd.DataFrame:
    """Mean and standard deviation over seeds, for figures."""
    return mean_and_spread(pd.DataFrame(list(rows)), by, value)


def _shown(values: pd.Series, digits: int) -> str:
    values = values.dropna()
    if values.empty:
        return "not defined"
    return format_mean_std(float(values.mean()), float(values.std()), digits)
