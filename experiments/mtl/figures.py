"""Tables and figures of the multi-task chapters, drawn from the tables of a record.

No number of a record follows from this module; see :mod:`experiments.mtl.evidence` for those, and
:mod:`experiments.mtl.derived` for what is worked out of them first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from experiments.mtl.derived import (
    NORM,
    SEVERE,
    Rankings,
    conflicts,
    cosine_at,
    improvements,
    numbers,
    released_layers,
    severe_share_printed,
    share_below,
)
from experiments.mtl.parameters import METHODS
from experiments.run import charts
from experiments.run.plotting import PALETTE
from experiments.run.tables import released_ranking, thesis_table
from ktlib.mtl.metrics import ranking_correlation, ranking_distance, top_overlap

Tables = dict[str, pd.DataFrame]

LABELS = {
    "single": "single tasks", "joint": "joint training", "mgda": "MGDA", "pcgrad": "PCGrad",
    "graddrop": "GradDrop", "cagrad": "CAGrad", "upgrad": "UPGrad", "nashmtl": "Nash-MTL",
    "uw": "uncertainty weights", "gradnorm": "GradNorm", "famo": "FAMO", "rotograd": "RotoGrad",
    "mmoe": "MMoE", "cross_stitch": "Cross-Stitch", "bmtas": "BMTAS",
}  # fmt: skip
LAYERS = {
    "shared": "all shared", "recon": "Recon", "random_layers": "random layers",
    "random_parameters": "random parameters", "first": "first layers", "last": "last layers",
    "behind_stem": "random, behind the stem",
}  # fmt: skip
"""Choices of the layers that each task has for itself."""

PRINTED = {name: method for method, name in LABELS.items()}
PRINTED |= {"Single-task": "single", "Joint-train": "joint"}
"""Names in the printed tables -> ids."""

VARIANTS = {"base": "shared", "recon": "recon", "rsl": "random_layers", "rsp": "random_parameters"}
TESTED = {"own": ("own", "one"), "shared": ("shared", "one")}
"""Running statistics of a test; a network that has but one kind is in both."""

STATISTICS = {"own": "statistics of each task's own", "shared": "one set, as published"}
LOOKS: dict[str, dict[str, Any]] = {
    "own": {"color": PALETTE[0]},
    "shared": {"color": PALETTE[1], "markerfacecolor": "white"},
}
CUTS = {"quantile": f"joint training's {severe_share_printed():.1f} %", "printed": f"{SEVERE:g}"}
"""What is severe: below a quantile of the cosines of joint training, or below a number."""

GAIN = "Δm over single tasks (%)"
NEAR_TIE = 0.05
"""A branch of BMTAS with a smaller margin was hardly chosen."""


def label(method: str, layers: str = "shared") -> str:
    """The words for a method, and for its choice of layers where not all are shared."""
    words = LABELS.get(method, method)
    return words if layers == "shared" else f"{words} + {LAYERS.get(layers, layers)}"


def only(rows: pd.DataFrame, **known: Any) -> pd.DataFrame:
    """The rows with a value, or one of a tuple of values, in each column named."""
    for column, value in known.items():
        rows = rows[rows[column].isin(value if isinstance(value, tuple) else (value,))]
    return rows


def by_seed(rows: pd.DataFrame, column: str = "improvement") -> pd.Series[Any]:
    """A value a seed."""
    return rows.set_index("seed")[column].astype(float)


def with_reference(rows: pd.DataFrame, study: str) -> pd.DataFrame:
    """The rows of a study, behind those of its methods with all layers shared and with Recon."""
    mine = only(rows, study=study)
    base = only(rows, study="methods", layers=("shared", "recon"), method=(*set(mine["method"]),))
    return pd.concat([base, mine])


def above_recon(gains: pd.DataFrame, study: str, statistics: str) -> pd.DataFrame:
    """The runs of a study, with the ``difference`` to Recon's choice of the same seed."""
    rows = with_reference(only(gains, statistics=TESTED[statistics]), study)
    recon = only(rows, study="methods", layers="recon").set_index(["method", "seed"])
    before = recon["improvement"].to_dict()
    own = [before.get(pair, np.nan) for pair in zip(rows["method"], rows["seed"], strict=True)]
    rows = rows.assign(difference=rows["improvement"].astype(float) - np.array(own, dtype=float))
    return rows[(rows["study"] == study) | (rows["layers"] == "shared")]


# Tables -------------------------------------------------------------------------------------------


def _place(run: tuple[str, ...]) -> tuple[int, int]:
    """Of a row that begins with method and layers, in the order of the tables."""
    return [*METHODS].index(run[0]), [*LAYERS].index(run[1])


def _in_words(table: pd.DataFrame) -> pd.DataFrame:
    """The rows in order, ids replaced by words."""
    ordered = table.loc[sorted(table.index, key=_place)].astype(object).fillna("")
    return ordered.rename(index=LABELS, level="method").rename(index=LAYERS, level="layers")


def _described(results: pd.DataFrame, gains: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Metrics of each task and Dm, mean and deviation over seeds; a row a group."""
    own = only(results, statistics=TESTED["own"]).dropna(subset="score")
    several = len(set(own["metric"])) > 1
    names = own["task"] + (" " + own["metric"].str.replace("_", " ") if several else "")
    table = own.assign(name=names).pivot_table(
        "score", by, "name", aggfunc=lambda values: charts.spread(values, 2)
    )
    columns = [*dict.fromkeys(names)] or [*dict.fromkeys(results["task"])]
    groups = pd.MultiIndex.from_frame(results[by].drop_duplicates())
    table = table.reindex(index=groups, columns=columns).rename_axis(columns=None).astype(object)
    table[table.isna().all(axis=1)] = "diverged"
    for words, statistics in (("own", TESTED["own"]), ("as published", "shared")):
        mine = only(gains, statistics=statistics).groupby(by)["improvement"]
        table[f"Δm (%), {words}"] = mine.agg(lambda values: charts.spread(values, 2))
    return table


def _printed(number: str, column: str) -> dict[tuple[str, str], str]:
    """Method and layers -> cell of a printed table, where there is one."""
    return {
        (PRINTED[row["base_method"]], VARIANTS[row["variant"]]): f"{row[column]:.2f}"
        for row in thesis_table(number).dropna(subset=column).to_dict("records")
        if row["variant"] in VARIANTS
    }


def _run_table(tables: Tables, size: str, study: str, printed: str) -> pd.DataFrame:
    rows = only(tables["results"], size=size, study=study)
    if rows.empty:
        return pd.DataFrame()
    by = ["method", "layers"]
    gains = only(improvements(tables["results"]), size=size, study=study)
    table = _described(rows, gains, by)
    table["Δm, thesis"] = table.index.map(_printed(printed, "delta_m"))
    costs = only(tables["costs"], size=size).groupby(by)
    for column, words in (("megabytes", "#P (MB)"), ("gigaflops", "GFLOPs"), ("forward_ms", "ms")):
        table[words] = costs[column].agg(lambda values: f"{values.astype(float).mean():.3g}")
    return _in_words(table)


def method_table(tables: Tables, printed: str = "4_1") -> pd.DataFrame:
    """One row a method and choice of layers: metrics, gain over single tasks, and costs.

    Args:
        tables: of a record.
        printed: number of the thesis's table of these data.
    """
    return _run_table(tables, "matrix", "methods", printed)


def long_table(tables: Tables, printed: str = "4_1") -> pd.DataFrame:
    """The same for the long comparison."""
    return _run_table(tables, "long", "long", printed)


def reduction_table(tables: Tables, printed: str = "4_11") -> pd.DataFrame:
    """How many percent fewer severe conflicts than in joint training; mean and 95 % interval."""
    known = only(conflicts(tables["histograms"]), study=("long", "methods", "control"))
    known = known[(known["method"] != "joint") | (known["layers"] != "shared")]
    if known.empty:
        return pd.DataFrame()
    by = ["method", "layers", "size"]
    texts = known.pivot_table("reduction", by, ["cut", "quarters"], aggfunc=charts.interval)
    quarters = {"all": "all steps", "last": "last quarter"}
    columns: dict[Any, Any] = {
        (f"below {cut}", part): texts[key, quarter]
        for key, cut in CUTS.items() for quarter, part in quarters.items()
    }  # fmt: skip
    theirs = _printed(printed, "reduction")
    columns["thesis", "all steps"] = [theirs.get(run[:2], "") for run in texts.index]
    return _in_words(pd.DataFrame(columns, index=texts.index))


def layers_in_common(choices: pd.DataFrame, study: str) -> pd.DataFrame:
    """Each choice of a study and Recon's own: its size, and the layers in common with the latter.

    Returns:
        A row a choice and seed: ``value``, ``layers``, ``seed``, ``number``, ``common``.
    """
    recon = only(choices, study=("long", "methods"), layers="recon").drop_duplicates("seed")
    own = {seed: {*names.split()} for seed, names in recon.set_index("seed")["names"].items()}
    rows = pd.concat([recon, only(choices, study=study)])
    rows = rows[rows["seed"].isin(own)]
    both = [({*row["names"].split()}, own[row["seed"]]) for row in rows.to_dict("records")]
    common = [len(mine & theirs) for mine, theirs in both]
    return rows.assign(number=[len(mine) for mine, _ in both], common=common)


def study_table(tables: Tables, study: str) -> pd.DataFrame:
    """One row a value of a study, behind its method with all layers shared and with Recon.

    Severe conflicts are those of the last quarter below joint training's quantile.
    """
    if only(tables["results"], study=study).empty:
        return pd.DataFrame()
    by = ["method", "layers"] if study == "control" else ["method", "layers", "value"]
    gains = improvements(tables["results"])
    severe = only(conflicts(tables["histograms"]), cut="quantile", quarters="last")
    table = _described(with_reference(tables["results"], study), with_reference(gains, study), by)
    differences = above_recon(gains, study, "own").groupby(by)["difference"]
    table["minus Recon"] = differences.agg(charts.interval)
    shares = with_reference(severe, study).groupby(by)["share"]
    table["severe conflicts (%)"] = shares.agg(charts.spread)
    chosen = layers_in_common(tables["choices"], study).groupby(by[1:])
    for column, words in {"number": "layers split", "common": "of Recon's"}.items():
        texts = chosen[column].mean().map("{:.4g}".format).to_dict()
        table[words] = [texts.get(run[1] if len(by) == 2 else run[1:], "") for run in table.index]
    return _in_words(table)


def control_table(tables: Tables) -> pd.DataFrame:
    """The study of other choices of layers."""
    return study_table(tables, "control")


def transfer_table(tables: Tables) -> pd.DataFrame:
    """The study of layers that were found on other data."""
    return study_table(tables, "transfer").rename(index=lambda text: text.replace("_", " "))


def ranking_table(
    tables: Tables, severity: float, top_k: int, batch_norm: bool = True
) -> pd.DataFrame:  # fmt: skip
    """How alike rankings of the layers are: with the released one, and among themselves.

    A cell has the mean over seeds, or pairs of seeds, the least and the largest. The distances of
    tables 4.6 and 4.8 of the thesis stand beside.

    Args:
        tables: of a record.
        severity: below it, a cosine was counted.
        top_k: how many of the first layers are compared.
        batch_norm: whether batch norms are ranked.
    """
    ranks = Rankings(tables, batch_norm)
    seeds = [*dict.fromkeys(only(ranks.scores, size="long", method="joint")["seed"])]
    theirs = [name for name in released_layers() if name in ranks.ranked]
    parts = {"quarter 1": (1,), "all quarters": ()}
    counts = {w: [ranks.of(seed, severity, *part) for seed in seeds] for w, part in parts.items()}
    angles = {w: [ranks.by_angle(seed, *part) for seed in seeds] for w, part in parts.items()}
    compared: list[tuple[str, str, Iterable[Any], str]] = [
        *(("the released one", w, [(one, theirs) for one in counts[w]], "") for w in parts),
        *(("two seeds", w, combinations(counts[w], 2), "") for w in parts),
        *(("two seeds, by angle", w, combinations(angles[w], 2), "") for w in parts),
        *(("counts and angles", w, zip(counts[w], angles[w], strict=True), "") for w in parts),
    ]
    for row in thesis_table("4_6").query("row != column").to_dict("records"):
        ends = [row["column"][0], row["row"][0]]  # a digit, or the a of all
        both = [
            [ranks.of(seed, severity, *(int(end) for end in ends[i] if end != "a")) for i in (0, 1)]
            for seed in seeds
        ]
        words = " and ".join("all" if end == "a" else end for end in ends)
        compared.append(("two quarters", words, both, f"{row['value']:.2f}"))
    for row in thesis_table("4_8").query("row != column").to_dict("records"):
        names = [PRINTED[row[side]] for side in ("column", "row")]
        both = [[ranks.of(s, severity, 1, size="matrix", method=n) for n in names] for s in seeds]
        words = " and ".join(map(label, names))
        compared.append(("two methods, quarter 1", words, both, f"{row['value']:.2f}"))
    rows = {}
    for what, detail, pairs, printed in compared:
        # Layers of another network than the released one cannot be compared with it.
        known = [(one, other) for one, other in pairs if one and {*one} == {*other}]
        if not known:
            continue
        overlaps = [100 * top_overlap(*both, min(top_k, len(both[0]))) for both in known]
        rows[what, detail] = {
            "pairs": str(len(known)),
            "overlap (%)": charts.extent(pd.Series(overlaps), 0),
            "rank correlation": charts.extent(pd.Series([ranking_correlation(*b) for b in known])),
            "distance": charts.extent(pd.Series([ranking_distance(*b) for b in known])),
            "distance, thesis": printed,
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    if rows:
        table.index = pd.MultiIndex.from_tuples(rows, names=["compared", ""])
    return table


def layer_kind_table(tables: Tables) -> pd.DataFrame:
    """How many of the chosen layers are batch norms, early or late, and what they hold."""
    known = tables["layers"].drop_duplicates("layer").sort_values("place").set_index("layer")
    chosen = only(tables["choices"], study=("long", "methods", "control"))
    if known.empty or chosen.empty:
        return pd.DataFrame()
    half = np.where(np.arange(len(known)) < len(known) / 2, "first half", "second half")
    known["group"] = np.where(known["kind"] == NORM, NORM, "other") + np.array(", ") + half
    groups = known.groupby("group").size()
    columns = {"all layers": [*groups.map(str), "100"]}
    for layers, rows in chosen.drop_duplicates(["layers", "seed"]).groupby("layers", sort=False):
        each = [known.loc[names.split()] for names in rows["names"]]
        counts = pd.DataFrame([one.groupby("group").size() for one in each])
        held = [100 * one["parameters"].sum() / known["parameters"].sum() for one in each]
        texts = [charts.spread(counts.get(name, pd.Series()).reindex(counts.index).fillna(0))
                 for name in groups.index]  # fmt: skip
        columns[LAYERS[str(layers)]] = [*texts, charts.spread(pd.Series(held), 2)]
    index = pd.Index([*groups.index, "of all parameters (%)"], name="kind of layer")
    return pd.DataFrame(columns, index=index)


def branch_table(tables: Tables) -> pd.DataFrame:
    """Which tasks share each block of the tree that BMTAS found, and how clear the choice was."""
    rows = tables["branches"]
    if rows.empty:
        return pd.DataFrame()
    rows = rows.assign(tie=rows["margin"].astype(float) < NEAR_TIE)
    blocks = rows.groupby("block", sort=False)
    return pd.DataFrame({
        "tasks together (seeds)": blocks["groups"].agg(lambda groups: "; ".join(
            f"{words} ({number})" for words, number in groups.value_counts().items())),
        "margin": blocks["margin"].agg(charts.extent),
        f"near ties, below {NEAR_TIE:g}": blocks["tie"].agg(lambda t: f"{t.sum()} of {len(t)}"),
        "steps of the search": blocks["steps"].max(),
    })  # fmt: skip


def _step_times(seconds: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds, mean over seeds: number of tasks x method."""
    rows = seconds.astype({"ms": float})
    means = rows.pivot_table(index="tasks", columns="method", values="ms", sort=False)
    return means.sort_index().rename(columns=LABELS)


def cost_table(tables: Tables) -> pd.DataFrame:
    """Milliseconds of a training step, and how many times that of uncounted joint training."""
    if tables["seconds"].empty:
        return pd.DataFrame()
    means = _step_times(tables["seconds"]).T
    times = means / means.loc["joint, not counted"]
    both = {"ms a step": means.map("{:.3g}".format), "times": times.map("{:.2g}".format)}
    return pd.concat(both, axis=1)


def _setting_words(setting: Mapping[str, float]) -> str:
    return ", ".join(f"{knob} {value:g}" for knob, value in setting.items())


def setting_table(settings: Mapping[tuple[str, str, str], Mapping[str, float]]) -> pd.DataFrame:
    """The chosen settings, a row a method and choice of layers, a column a size."""
    rows: dict[str, dict[str, str]] = {}
    for (size, method, layers), setting in settings.items():
        rows.setdefault(label(method, layers), {})[size] = _setting_words(setting)
    return pd.DataFrame.from_dict(rows, orient="index").fillna("").rename_axis("method")


def trial_table(trials: pd.DataFrame) -> pd.DataFrame:
    """Every trial of the search, best first within a method: mean over seeds, in percent."""
    keys = ["size", "method", "layers", "setting"]
    groups = trials.astype({"mean_accuracy": float}).groupby(keys, sort=False)
    table = groups.agg({"mean_accuracy": "mean", "diverged": "sum", "seconds": "sum"}).reset_index()
    place = table.groupby(keys[:3], sort=False).ngroup()
    table = table.assign(place=place).sort_values(
        ["place", "mean_accuracy"], ascending=[True, False]
    )
    table["setting"] = [_setting_words(json.loads(text)) for text in table["setting"]]
    table = table.drop(columns="place").replace({"method": LABELS, "layers": LAYERS})
    table = table.round({"mean_accuracy": 2, "seconds": 0}).astype(object).fillna("")
    return table.rename(columns={"mean_accuracy": "mean accuracy", "diverged": "runs diverged"})


# Figures ------------------------------------------------------------------------------------------


def long_figure(tables: Tables) -> Figure:
    """Gain of the long runs over single tasks, with both kinds of running statistics."""
    gains = only(improvements(tables["results"]), size="long", study="long")
    known = [name for name in LAYERS if name in set(gains["layers"])]
    if not known:
        return charts.nothing()
    fig, ax = plt.subplots(figsize=(5.4, 0.5 * len(known) + 1.4))
    for shift, which, tested in ((-0.14, "own", TESTED["own"]), (0.14, "shared", "shared")):
        mine = only(gains, statistics=tested)
        rows = [(LAYERS[name], by_seed(only(mine, layers=name))) for name in known]
        charts.forest(ax, rows, shift, label=STATISTICS[which], **LOOKS[which])
    ax.set_xlabel(GAIN)
    charts.key(fig, ax)
    return fig


def method_figure(tables: Tables) -> Figure:
    """Gain of each method over single tasks, with all layers shared and with Recon."""
    gains = only(improvements(tables["results"]), size="matrix", study="methods")
    known = [name for name in METHODS if name in set(gains["method"])]
    if not known:
        return charts.nothing()
    fig, ax = plt.subplots(figsize=(5.4, 0.3 * len(known) + 1.5))
    looks: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("all layers shared", {"layers": "shared"}, {"markerfacecolor": "white"}),
        ("Recon", {"layers": "recon", "statistics": "own"}, {}),
        ("Recon, as published", {"layers": "recon", "statistics": "shared"}, {"marker": "x"}),
    ]
    for place, name in enumerate(known):
        values = [by_seed(only(gains, method=name, **runs)) for _, runs, _ in looks]
        for shift, each in zip((-0.2, 0.2), values[:2], strict=True):
            ax.plot(each, np.full(len(each), place + shift), ".", color="0.7", markersize=3)
        ends = [each.mean() for each in values]
        ax.plot(ends[:2], [place, place], color=PALETTE[0], linewidth=1)
        for end, (words, _, look) in zip(ends, looks, strict=True):
            style = {"marker": "o", "color": PALETTE[0], "linestyle": "none", **look}
            ax.plot(end, place, zorder=3, label=words if place == 0 else None, **style)
    ax.axvline(0, color="black", linewidth=1)
    ax.set_yticks(range(len(known)), map(label, known))
    ax.set(ylim=(len(known) - 0.5, -0.5), xlabel=GAIN)
    charts.key(fig, ax, 3)
    return fig


def heat_figure(tables: Tables, severity: float, top_k: int, quarters: int = 1) -> Figure:
    """Share of the steps of the search in conflict, layers by seeds.

    Dots mark the layers that became task-specific. The first column is the ranking that the authors
    of Recon published, whose order the rows have, where the network is the same.

    Args:
        tables: of a record.
        severity: below it, a cosine is a conflict.
        top_k: how many layers of the first column are marked.
        quarters: of the training, that the search counts.
    """
    ranks = Rankings(tables)
    found = only(ranks.scores, size="long", method="joint", severity=severity,
                 quarter=(*range(1, quarters + 1),))  # fmt: skip
    if found.empty:
        return charts.nothing()
    tasks = only(tables["results"], size="long")["task"].nunique()
    shares = pd.DataFrame({
        str(seed): np.sum([*map(numbers, rows["scores"])], axis=0) / rows["steps"].sum()
        for seed, rows in found.groupby("seed")
    }, index=ranks.names) * 200 / max(2, tasks * (tasks - 1))  # fmt: skip
    top = float(shares.to_numpy().max()) or 1.0
    recon = only(tables["choices"], study=("long", "methods"), layers="recon")
    marked = {str(row["seed"]): row["names"].split() for row in recon.to_dict("records")}
    released = released_ranking("multi_fashion_mnist").set_index("layer")["score"]
    if set(released.index) == set(ranks.names):
        shares.insert(0, "released", released / released.max() * top)
        shares, marked["released"] = shares.loc[released.index], [*released.index[:top_k]]
    fig, (strip, ax) = plt.subplots(
        1, 2, figsize=(5.4, 1.6 + 0.155 * len(shares)), width_ratios=(0.4, len(shares.columns))
    )
    kinds = tables["layers"].drop_duplicates("layer").set_index("layer")["kind"]
    colors = dict(zip(dict.fromkeys(kinds), PALETTE[1:], strict=False))
    codes = [[[*colors].index(kinds[name])] for name in shares.index]
    style = {"cmap": ListedColormap([*colors.values()]), "vmin": -0.5, "vmax": len(colors) - 0.5}
    charts.heat(strip, codes, [*shares.index], [], **style)
    image = charts.heat(ax, shares, [], [*shares.columns], cmap="cividis", vmin=0, vmax=top)
    for column, name in enumerate(map(str, shares)):
        rows = [place for place, layer in enumerate(shares.index) if layer in marked.get(name, ())]
        dark = shares[name].iloc[rows] < 0.6 * top
        ax.scatter([column] * len(rows), rows, s=7, c=np.where(dark, "white", "black"))
    ax.xaxis.tick_top()
    ax.xaxis.set_label_position("top")
    ax.set_xlabel("seed")
    if "released" in shares:
        ax.get_xticklabels()[0].set_rotation(90)
        ax.axvline(0.5, color="white", linewidth=4)
    patches = [Patch(color=color, label=kind) for kind, color in colors.items()]
    key: dict[str, Any] = {"loc": "outside lower center", "ncols": 3, "fontsize": charts.SMALL}
    fig.legend(handles=patches, **key)
    fig.colorbar(image, ax=ax, label="steps in conflict (%)", aspect=40)
    return fig


def quarter_shares(histograms: pd.DataFrame) -> pd.DataFrame:
    """Percent of severe conflicts in each quarter of the long runs.

    One threshold for all quarters: the quantile is that of joint training as a whole.

    Returns:
        Columns ``layers``, ``seed``, ``quarter``, ``cut`` and ``share``.
    """
    rows = []
    for seed, own in only(histograms, size="long", study="long", method="joint").groupby("seed"):
        whole = np.sum([*map(numbers, only(own, layers="shared")["counts"])], axis=0)
        if not whole.any():
            continue
        cuts = {"quantile": cosine_at(whole, severe_share_printed()), "printed": SEVERE}
        for row in own.to_dict("records"):
            for cut, cosine in cuts.items():
                share = share_below(numbers(row["counts"]), cosine)
                rows.append((row["layers"], seed, row["quarter"], cut, share))
    return pd.DataFrame(rows, columns=["layers", "seed", "quarter", "cut", "share"])


def conflict_figure(tables: Tables) -> Figure:
    """Severe conflicts in each quarter of the long training, over the layers still shared."""
    shares = quarter_shares(tables["histograms"])
    if shares.empty:
        return charts.nothing()
    fig, axes = plt.subplots(1, 2, figsize=(5.4, 3.2))
    quarters = sorted(set(shares["quarter"]))
    for ax, (cut, words) in zip(axes, CUTS.items(), strict=True):
        for number, name in enumerate(LAYERS):
            mine = only(shares, cut=cut, layers=name)
            if mine.empty:
                continue
            values = [by_seed(only(mine, quarter=quarter), "share") for quarter in quarters]
            places = [quarter + 0.06 * (number - 1.5) for quarter in quarters]
            look = {"color": PALETTE[number - 1], "marker": "osD^vPX"[number]}
            charts.line(ax, places, values, label=LAYERS[name], **look)
        ax.set_title(f"below {words}", fontsize=10)
        ax.set(xlabel="quarter of the training", xticks=quarters)
        ax.set_ylim(bottom=0)
    axes[0].set_ylabel("severe conflicts (% of steps)")
    charts.key(fig, axes[0])
    return fig


def control_figure(tables: Tables) -> Figure:
    """Gain with other choices of layers minus that with Recon's, a panel a method."""
    gains = improvements(tables["results"])
    both = {which: above_recon(gains, "control", which) for which in TESTED}
    methods = [name for name in METHODS if name in set(both["own"]["method"])]
    names = [name for name in LAYERS if name in set(both["own"]["layers"])]
    if not methods:
        return charts.nothing()
    size = 5.4, 0.5 * len(names) + 1.6
    fig, axes = plt.subplots(1, len(methods), figsize=size, sharex=True, sharey=True, squeeze=False)
    for ax, method in zip(axes[0], methods, strict=True):
        for shift, (which, rows) in zip((-0.14, 0.14), both.items(), strict=True):
            mine = only(rows, method=method)
            each = [(LAYERS[n], by_seed(only(mine, layers=n), "difference")) for n in names]
            charts.forest(ax, each, shift, label=STATISTICS[which], **LOOKS[which])
        ax.set_title(label(method), fontsize=10)
    axes[0, len(methods) // 2].set_xlabel("points of Δm above Recon's choice")
    charts.key(fig, axes[0, 0])
    return fig


def curves_figure(tables: Tables) -> Figure:
    """Gain and severe conflicts of joint training against the number of layers and the severity."""
    gains = only(improvements(tables["results"]), method="joint")
    severe = only(conflicts(tables["histograms"]), method="joint", cut="quantile", quarters="last")
    studies = {"count": "split layers K", "severity": "severity S"}
    if only(gains, study=(*studies,)).empty:
        return charts.nothing()
    fig, axes = plt.subplots(2, 2, figsize=(5.4, 4.9), sharey="row", sharex="col")
    for column, (study, words) in zip(axes.T, studies.items(), strict=True):
        values = sorted(set(only(gains, study=study)["value"]), key=lambda text: abs(float(text)))
        runs = [{"study": "methods", "layers": "shared"},
                *({"study": study, "value": value} for value in values)]  # fmt: skip
        for shift, (which, look) in zip((-0.06, 0.06), LOOKS.items(), strict=True):
            mine = only(gains, statistics=TESTED[which])
            each = [by_seed(only(mine, **run)) for run in runs]
            style = {"marker": "o", "label": STATISTICS[which], **look}
            charts.line(column[0], np.arange(len(runs)) + shift, each, **style)
        each = [by_seed(only(severe, **run), "share") for run in runs]
        charts.line(column[1], range(len(runs)), each, marker="o", color="black")
        column[1].set_xticks(range(len(runs)), ["none", *values], rotation=40)
        column[1].set_xlabel(words)
    axes[0, 0].set_ylabel("Δm (%)")
    axes[1, 0].set_ylabel("severe conflicts,\nlast quarter (%)")
    charts.key(fig, axes[0, 0])
    return fig


def cost_figure(tables: Tables) -> Figure:
    """Time of a training step against the number of tasks."""
    if tables["seconds"].empty:
        return charts.nothing()
    means = _step_times(tables["seconds"])
    fig, ax = plt.subplots(figsize=(5.4, 3.6))
    colors = {str(name): PALETTE[number % len(PALETTE)] for number, name in enumerate(means)}
    for number, (name, color) in enumerate(colors.items()):
        line = "-" if number < len(PALETTE) else "--"
        ax.plot(means.index, means[name], line, color=color, marker="osD^vPX"[number % 7])
    ax.set(xscale="log", yscale="log", xlabel="tasks T", ylabel="time of a step (ms)")
    ax.set_xticks(means.index, [str(tasks) for tasks in means.index])
    ends = {name: float(means[name].iloc[-1]) for name in colors}
    charts.end_labels(ax, means.index[-1], ends, colors)
    return fig


def added_by_others(pairs: pd.DataFrame) -> pd.DataFrame:
    """What the gradients of the other tasks add to a task's own step: layer x task.

    The sum over the other tasks of mean cosine times ratio of lengths, the left side of the
    theorem's condition: at -1 a step along the sum of all gradients does nothing for the task. Mean
    over seeds and quarters.
    """
    rows = pairs.dropna(subset="layer")
    cosine = rows["cosines"] / rows["pairs"]
    both = pd.concat([
        rows.assign(task=rows["second"], added=cosine * rows["norm_ratio"]),
        rows.assign(task=rows["first"], added=cosine / rows["norm_ratio"]),
    ])  # fmt: skip
    each = both.pivot_table("added", ["seed", "quarter", "layer"], "task", aggfunc="sum")
    return each.groupby("layer").mean()


def pair_figure(tables: Tables) -> Figure:
    """Which tasks conflict, and what the others add to a step of each task, layer by layer."""
    whole = tables["pairs"][tables["pairs"]["layer"].isna()]
    if whole.empty:
        return charts.nothing()
    conflicting, counted = (
        whole.pivot_table(column, "first", "second", aggfunc="sum")
        for column in ("conflicts", "pairs")
    )
    share = 100 * conflicting.div(counted)
    tasks = sorted({*whole["first"], *whole["second"]})
    share = share.reindex(index=tasks, columns=tasks)
    share = share.combine_first(share.T)
    few = len(tasks) <= 6
    names = tasks if few else [str(number) for number in range(1, len(tasks) + 1)]
    order = tables["layers"].sort_values("place")["layer"].drop_duplicates()
    added = added_by_others(tables["pairs"])
    added = added.reindex([name for name in order if name in added.index])
    fig, axes = plt.subplots(
        1, 2 if len(added) else 1, figsize=(5.4, 1.2 + max(0.155 * len(added), 3)), squeeze=False
    )
    top = max(1.0, float(np.nanmax(share.to_numpy())))
    style: dict[str, Any] = {"cmap": "Blues", "vmin": 0, "vmax": top}
    images = [charts.heat(axes[0, 0], share, tasks, names, **style)]
    axes[0, 0].set_aspect("equal")
    for (i, j), value in np.ndenumerate(share.to_numpy()):
        if few and not np.isnan(value):
            ink = "white" if value > 0.6 * top else "black"
            options: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": charts.SMALL}
            axes[0, 0].text(j, i, f"{value:.0f} %", color=ink, **options)
    if len(added):
        style = {"cmap": "RdBu", "vmin": -1, "vmax": 1}
        images.append(charts.heat(axes[0, 1], added, [*added.index], [*added.columns], **style))
    for ax, image, words in zip(axes[0], images, ("steps in conflict (%)", "added by the others"),
                                strict=False):  # fmt: skip
        bar = fig.colorbar(image, ax=ax, location="top", label=words)
        bar.ax.tick_params(labelsize=charts.SMALL)
    return fig
