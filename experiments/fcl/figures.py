"""Tables and figures of the few-shot chapters, drawn from the tables of a record.

No number of a record follows from this module; see :mod:`experiments.fcl.evidence` for those.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from experiments.fcl.baselines import LABELS, NearestMean
from experiments.fcl.embedding_map import project
from experiments.fcl.evidence import NO_BOX
from experiments.fcl.experiment import FewShotExperiment, Trained
from experiments.fcl.landscape import box_polygon, loss_plane, random_direction
from experiments.run.charts import MISSING
from experiments.run.paired import PairedDifference
from experiments.run.plotting import PALETTE, style_for
from experiments.run.records import RunRecord
from experiments.run.tables import format_mean_std
from ktlib.fcl.evaluation import embed
from ktlib.fcl.protocol import Session, positions_of
from ktlib.seeding import generator

SPLITS = {
    "random": "random classes",
    "unseen_parts": "unseen parts",
    "topic": "lists of TOPIC",
}
ACCURACIES = {
    "accuracy": "all classes",
    "base_accuracy": "base classes",
    "new_accuracy": "new classes",
    "harmonic": "harmonic mean",
}
TRAININGS = {"ncm": "plain", "f2m": "F2M", "f2m_flat": "F2M, flat", "sam": "SAM"}
PART_NAMES = {"fm": "FM", "pf": "PF", "pc": "PC", "pn": "PN"}
_ENDS = "accuracy base_accuracy new_accuracy harmonic"
_BOX = "at_wall moved largest_shift"
COLUMNS = {
    "methods": f"method session {_ENDS}",
    "plane": f"noise rate box {_ENDS} {_BOX}",
    "norms": "training group number mean std",
    "flatness": "training noise lr bound part indicator variance loss_at_minimum draws images",
    "shots": f"shots method rate {_ENDS} {_BOX}",
    "ablation": f"box fm pf pc pn session {_ENDS} {_BOX}",
    "distances": f"noise rate squared {_ENDS} first_gradient",
    "studies": f"study value method session {_ENDS} {_BOX}",
    "seconds": "draws seconds",
    "counts": "method predicted right stopped",
    "gradients": "method session data penalty",
    "boxes": f"method {_BOX}",
}
"""Tables of the record and their columns, besides ``classes`` and ``seed``."""


def frames(record: RunRecord) -> dict[str, pd.DataFrame]:
    """The tables of a record; one without rows, or that an older record lacks, has its columns."""
    found = {}
    for name, columns in COLUMNS.items():
        rows = record.tables.get(name, [])
        found[name] = pd.DataFrame(rows, columns=["classes", "seed", *columns.split()])
    return found


def label(method: str) -> str:
    """The words for a method; what follows a space is a variant of it."""
    word, _, variant = method.partition(" ")
    return f"{LABELS.get(word, word)} {variant}".strip()


def last_session(methods: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last session of each split; a run that ended before has none."""
    final = methods.groupby("classes")["session"].transform("max")
    return methods[methods["session"] == final]


def drops(rows: pd.DataFrame, by: str) -> pd.Series[Any]:
    """Accuracy after the first session minus that after the last, of each value and seed.

    Args:
        rows: of one split of the classes.
        by: column of the values.
    """
    first, last = (
        rows[rows["session"] == session].set_index([by, "seed"])["accuracy"].astype(float)
        for session in (rows["session"].min(), rows["session"].max())
    )
    found: pd.Series[Any] = (first - last).rename("drop")
    return found


# Tables -------------------------------------------------------------------------------------------


def spread(values: pd.Series[Any], digits: int = 1) -> str:
    """Mean and standard deviation over seeds, as text; a dash without a value."""
    known = values.dropna().astype(float)
    return format_mean_std(known.mean(), known.std(), digits) if len(known) else "-"


def percent(shares: pd.Series[Any]) -> str:
    """The same for shares, in percent."""
    return spread(100 * shares.astype(float))


def method_table(methods: pd.DataFrame, classes: str) -> pd.DataFrame:
    """One row a method: accuracies after the last session, their average over sessions, the drop.

    Mean and standard deviation over seeds, in percent.
    """
    rows = methods[methods["classes"] == classes]
    if rows.empty:
        return pd.DataFrame()
    own = last_session(rows).groupby("method", sort=False)
    table = pd.DataFrame({name: own[key].agg(spread) for key, name in ACCURACIES.items()})
    runs = rows.astype({"accuracy": float}).groupby(["method", "seed"], sort=False)["accuracy"]
    table["mean of all sessions"] = runs.mean().groupby("method").agg(spread)
    table["drop"] = drops(rows, "method").groupby("method").agg(spread)
    table = table.reindex([*dict.fromkeys(rows["method"])]).fillna("diverged")
    return table.rename(index=label).rename_axis("method")


def setting_table(settings: Mapping[tuple[str, str], Mapping[str, float]]) -> pd.DataFrame:
    """The chosen settings, a row a method and a column a split."""
    rows: dict[str, dict[str, str]] = {}
    for (classes, method), setting in settings.items():
        text = ", ".join(f"{knob} {value:g}" for knob, value in setting.items()) or "none"
        rows.setdefault(label(method), {})[SPLITS.get(classes, classes)] = text
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def trial_table(trials: pd.DataFrame) -> pd.DataFrame:
    """Every trial of the search, best first within a method: mean over seeds, in percent."""
    keys = ["classes", "method", "setting"]
    columns = {"mean_accuracy": "mean of sessions", "last_accuracy": "last session"}
    columns["flatness_gain"] = "times flatter than plain"
    means = trials.astype({"flatness_gain": float}).groupby(keys)[list(columns)].mean().round(2)
    table = means.reset_index().sort_values(
        ["classes", "method", "mean_accuracy"], ascending=[True, True, False]
    )
    table["method"] = table["method"].map(label)
    table["classes"] = table["classes"].map(lambda name: SPLITS.get(name, name))
    table["setting"] = table["setting"].str.strip("{}").str.replace('"', "", regex=False)
    return table.rename(columns=columns).astype(object).fillna("")


def gradient_table(gradients: pd.DataFrame) -> pd.DataFrame:
    """Length of the data's step and of the penalty's pull, mean over seeds and sessions."""
    numbers = gradients.astype({"data": float, "penalty": float})
    means = numbers.groupby(["classes", "method"], sort=False)[["data", "penalty"]].mean()
    means["penalty / data"] = means["penalty"] / means["data"]
    return means.map("{:.2g}".format).rename(index=label, level="method")


def distance_table(distances: pd.DataFrame) -> pd.DataFrame:
    """Plain beside squared distances: accuracies and the first gradient, mean over seeds."""
    keys = ["classes", "noise", "rate", "squared"]
    columns = ["accuracy", "base_accuracy", "new_accuracy", "first_gradient"]
    means = distances.astype(dict.fromkeys(columns, float)).groupby(keys)[columns].mean()
    return means.round(2).rename(columns=ACCURACIES | {"first_gradient": "first gradient"})


def training_name(training: str) -> str:
    """The words for a base training; what follows a space is the half-width of its noise."""
    word, _, noise = training.partition(" ")
    return f"noise {noise}" if noise else TRAININGS.get(word, word)


def flatness_table(flatness: pd.DataFrame) -> pd.DataFrame:
    """Mean indicator of each training, and how many times flatter than plain training it is."""
    if "ncm" not in set(flatness["training"]):
        return pd.DataFrame()
    keys = ["classes", "lr", "bound", "part"]
    table = flatness.astype({"indicator": float}).pivot_table(
        index=[*keys, "seed"], columns="training", values="indicator"
    )
    ratio = table.rdiv(table["ncm"], axis=0).groupby(keys).agg(spread)
    mean = table.groupby(keys).mean().map("{:.1e}".format)
    both = {"indicator": mean, "times flatter than plain": ratio.drop(columns="ncm")}
    return pd.concat(both, axis=1).rename(columns=training_name, level=1)


def norm_table(norms: pd.DataFrame, printed: pd.DataFrame) -> pd.DataFrame:
    """Norms of base and new prototypes beside table 3.7 of the thesis."""
    own = norms.groupby(["classes", "training", "group"], sort=False)
    names = {"mean": "mean over classes", "std": "std over classes"}
    found = pd.DataFrame({new: own[old].agg(lambda v: spread(v, 2)) for old, new in names.items()})
    columns = dict(zip(names.values(), ("mean_prototype_norm", "std_prototype_norm"), strict=True))
    theirs = pd.DataFrame({n: printed[c].map("{:.2f}".format) for n, c in columns.items()})
    index = [("CIFAR-100", "thesis, F2M", group) for group in printed["class_group"]]
    theirs.index = pd.MultiIndex.from_tuples(index, names=found.index.names)
    return pd.concat([theirs, found])


def part_names(row: Mapping[Any, Any]) -> str:
    """Name of a combination of the parts, such as ``FM + PC``."""
    return " + ".join(name for part, name in PART_NAMES.items() if row[part]) or "none"


def with_parts(ablation: pd.DataFrame) -> pd.DataFrame:
    """The rows with a column ``parts``, the name of their combination."""
    return ablation.assign(parts=[part_names(row) for row in ablation.to_dict("records")])


def printed_parts(printed: pd.DataFrame) -> pd.DataFrame:
    """Table 3.6 of the thesis by the names of the combinations."""
    short = dict(zip(printed.columns[:4], PART_NAMES, strict=True))
    return with_parts(printed.rename(columns=short)).set_index("parts")


def ablation_table(ablation: pd.DataFrame, printed: pd.DataFrame) -> pd.DataFrame:
    """Table 3.6 of the thesis beside this run: last session, and the drop since the first."""
    theirs = printed_parts(printed)
    columns = {("thesis", "last session"): theirs["session_9"].map("{:.2f}".format)}
    columns["thesis", "drop"] = theirs["pd"].map("{:.2f}".format)
    groups: Any = with_parts(ablation).groupby(["classes", "box"], sort=False)
    for (classes, box), rows in groups:
        words = f"{SPLITS.get(classes, classes)}, box {box:g}"
        last = last_session(rows).groupby("parts")
        columns[words, "last session"] = last["accuracy"].agg(spread)
        columns[words, "drop"] = drops(rows, "parts").groupby("parts").agg(spread)
        columns[words, "weights clamped (%)"] = last["moved"].agg(percent)
    return pd.DataFrame(columns).reindex(theirs.index)


def study_table(studies: pd.DataFrame, study: str) -> pd.DataFrame:
    """One row a value: accuracies after the last session, mean and spread over seeds."""
    rows = studies[studies["study"] == study]
    if rows.empty:
        return pd.DataFrame()
    keys = ["classes", "value", "method"]
    own = last_session(rows).groupby(keys, sort=False)
    table = pd.DataFrame({name: own[key].agg(spread) for key, name in ACCURACIES.items()})
    first = rows[rows["session"] == 1].groupby(keys)["accuracy"].agg(spread)
    table.insert(0, "session 1", first)
    table["weights clamped (%)"] = own["moved"].agg(percent)
    return table.rename_axis(["classes", study, "method"])


# Figures ------------------------------------------------------------------------------------------


def class_grids(sessions: Mapping[str, Sequence[Session]], size: int = 10) -> Figure:
    """Which pairs of a garment and a digit are base classes, and which come later."""
    fig, axes = plt.subplots(1, len(sessions), figsize=(2.7 * len(sessions), 3.0), squeeze=False)
    for ax, (name, found) in zip(axes[0], sessions.items(), strict=True):
        grid = np.full(size * size, np.nan)
        for session in found:
            grid[session.classes.numpy()] = 0 if session.number == 1 else 1
        ax.imshow(grid.reshape(size, size), cmap="viridis", vmin=-0.3, vmax=1.3)
        ax.set(title=SPLITS.get(name, name), xlabel="digit", xticks=range(size), yticks=range(size))
        ax.title.set_fontsize(9)
        ax.grid(visible=False)
    axes[0, 0].set_ylabel("garment")
    return fig


def nothing() -> Figure:
    """A panel that says that there is nothing to draw."""
    fig, ax = plt.subplots(figsize=(5.4, 1.0))
    ax.text(0.5, 0.5, MISSING, ha="center", va="center")
    ax.set_axis_off()
    return fig


def forest(ax: Axes, rows: Iterable[tuple[str, pd.Series[Any]]]) -> None:
    """Differences within seeds, a row each: a point a seed, the mean and its 95 % interval.

    Args:
        ax: where to draw.
        rows: label, and the differences of all seeds.
    """
    names = []
    for place, (name, values) in enumerate(rows):
        found = PairedDifference.of(values)
        names.append(name)
        ax.plot(values, np.full(len(values), place), ".", color="0.6", markersize=4)
        half = found.half
        ax.errorbar(found.mean, place, xerr=half, fmt="o", color=PALETTE[0], markersize=5)
    ax.axvline(0, color="black", linewidth=1)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)


def method_figure(methods: pd.DataFrame, reference: str = "ncm", value: str = "accuracy") -> Figure:
    """Every method minus the frozen network, at the last session of each split."""
    splits = list(dict.fromkeys(methods["classes"]))
    order = [name for name in dict.fromkeys(methods["method"]) if name != reference]
    if not order:
        return nothing()
    fig, axes = plt.subplots(1, len(splits), figsize=(6.4, 0.27 * len(order) + 1.2), sharey=True)
    fig.supxlabel(f"points above {label(reference)}", fontsize=11)
    for ax, classes in zip(np.atleast_1d(axes), splits, strict=True):
        last = last_session(methods[methods["classes"] == classes]).astype({value: float})
        wide = last.pivot_table(index="seed", columns="method", values=value).reindex(
            columns=[*order, reference]
        )
        forest(ax, [(label(name), wide[name] - wide[reference]) for name in order])
        ax.set_title(SPLITS.get(classes, classes), fontsize=10)
    return fig


def session_figure(methods: pd.DataFrame, chosen: Sequence[str]) -> Figure:
    """Accuracy on all classes seen, after each session: mean and one standard deviation."""
    splits = list(dict.fromkeys(methods["classes"]))
    if not splits:
        return nothing()
    fig, axes = plt.subplots(1, len(splits), figsize=(6.4, 2.9), sharey=True, squeeze=False)
    for ax, classes in zip(axes[0], splits, strict=True):
        for name in chosen:
            rows = methods[(methods["classes"] == classes) & (methods["method"] == name)]
            if rows.empty:
                continue
            own = rows.astype({"accuracy": float}).groupby("session")["accuracy"]
            mean, std = own.mean(), own.std().fillna(0)
            style = style_for(name)
            ax.plot(mean.index, mean, label=label(name), **style)
            ax.fill_between(mean.index, mean - std, mean + std, color=style["color"], alpha=0.15)
        ax.set(title=SPLITS.get(classes, classes), xlabel="session")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.title.set_fontsize(10)
    axes[0, 0].set_ylabel("accuracy (%)")
    handles = axes[0, 0].get_legend_handles_labels()
    fig.legend(*handles, loc="outside lower center", ncols=3, fontsize=9)
    return fig


def box_gains(plane: pd.DataFrame, value: str = "accuracy") -> pd.DataFrame:
    """What a box adds at each rate: the difference within seeds to the sessions without a box.

    Returns:
        Columns ``classes``, ``noise``, ``rate``, ``box``, ``mean``, ``low``, ``high`` (points) and
        ``moved`` (mean share of the weights that a clamp moved).
    """
    found = []
    keys = ["classes", "noise", "rate"]
    for key, rows in plane[plane["rate"] > 0].groupby(keys, sort=False):
        for box in sorted(set(rows["box"]) - {NO_BOX}):
            gain = PairedDifference.between(rows, "box", box, NO_BOX, value)
            moved = rows.loc[rows["box"] == box, "moved"].astype(float).mean()
            numbers = {"mean": gain.mean, "low": gain.low, "high": gain.high, "moved": moved}
            found.append({**dict(zip(keys, key, strict=True)), "box": box, **numbers})
    return pd.DataFrame(found, columns=[*keys, "box", "mean", "low", "high", "moved"])


def _noise_words(noise: float) -> str:
    return f"noise {noise:g}" if noise else "plain"


def plane_figure(plane: pd.DataFrame, classes: str) -> Figure:
    """Accuracy above the frozen plain network, for each rate and box; a panel a network.

    Under each number stands the share of the weights that a clamp moved.
    """
    rows = plane[plane["classes"] == classes].astype({"accuracy": float})
    frozen = rows[(rows["noise"] == 0) & (rows["rate"] == 0)].set_index("seed")["accuracy"]
    noises = sorted(set(rows["noise"]))
    boxes = [*sorted(set(rows["box"]) - {NO_BOX, 0.0}), NO_BOX]
    rates = sorted(set(rows["rate"]) - {0.0})
    if not rates:
        return nothing()
    fig, axes = plt.subplots(
        len(noises), 1, figsize=(5.4, (0.5 + 0.4 * len(rates)) * len(noises) + 0.4), sharex=True
    )
    for ax, noise in zip(np.atleast_1d(axes), noises, strict=True):
        part = rows[(rows["noise"] == noise) & (rows["rate"] > 0)]
        gain = part["accuracy"] - part["seed"].map(frozen)
        both = part.assign(gain=gain).astype({"moved": float}).groupby(["rate", "box"])
        table = both[["gain", "moved"]].mean()
        gains: NDArray[np.float64] = np.array(
            [[table["gain"].get((rate, box), np.nan) for box in boxes] for rate in rates]
        )
        ax.imshow(gains, cmap="PuOr", vmin=-15, vmax=15, aspect="auto")
        for i, rate in enumerate(rates):
            for j, box in enumerate(boxes):
                moved = table["moved"].get((rate, box), np.nan)
                share = "" if np.isnan(moved) else f"\n{100 * moved:.0f} %"
                number = "-" if np.isnan(gains[i, j]) else f"{gains[i, j]:+.1f}"
                ink = "white" if abs(gains[i, j]) > 10 else "black"
                options = {"ha": "center", "va": "center", "fontsize": 8.5, "color": ink}
                ax.text(j, i, number + share, **options)
        own = rows[(rows["noise"] == noise) & (rows["rate"] == 0)].set_index("seed")["accuracy"]
        ahead = (own - frozen).mean()
        left = "" if np.isnan(ahead) else f"; left frozen {ahead:+.1f}"
        ax.set_title(_noise_words(noise) + left, fontsize=9)
        ax.set_xticks(range(len(boxes)), ["no box" if b == NO_BOX else f"{b:g}" for b in boxes])
        ax.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        ax.set_ylabel("rate")
        ax.grid(visible=False)
    ax.set_xlabel("half-width of the box")
    return fig


def shots_figure(shots: pd.DataFrame, rate: float, value: str = "accuracy") -> Figure:
    """Learning minus freezing over the number of images a new class, mean and 95 % interval."""
    splits = list(dict.fromkeys(shots["classes"]))
    if not splits:
        return nothing()
    fig, axes = plt.subplots(1, len(splits), figsize=(6.4, 3.1), sharey=True, squeeze=False)
    for ax, classes in zip(axes[0], splits, strict=True):
        rows = shots[(shots["classes"] == classes) & shots["rate"].isin([0.0, rate])]
        counts = sorted(set(rows["shots"]))
        for shift, name in enumerate(dict.fromkeys(rows["method"])):
            if name == "ncm":
                continue
            gains = [
                PairedDifference.between(rows[rows["shots"] == k], "method", name, "ncm", value)
                for k in counts
            ]
            mean = [gain.mean for gain in gains]
            half = [gain.half for gain in gains]
            places = np.arange(len(counts)) + 0.07 * (shift - 2)
            ax.errorbar(places, mean, yerr=half, label=label(name), **style_for(name))
        ax.axhline(0, color="black", linewidth=1)
        ax.set_xticks(range(len(counts)), counts)
        ax.set(title=SPLITS.get(classes, classes), xlabel="images per new class")
        ax.title.set_fontsize(10)
    axes[0, 0].set_ylabel(f"points above freezing,\n{ACCURACIES[value]}")
    handles = axes[0, 0].get_legend_handles_labels()
    fig.legend(*handles, loc="outside lower center", ncols=2, fontsize=9)
    return fig


def flatness_figure(flatness: pd.DataFrame, classes: str) -> Figure:
    """Indicator of each training, a point a seed, on test images in the box of the thesis."""
    rows = flatness[(flatness["classes"] == classes) & (flatness["part"] == "test")]
    if rows.empty:
        return nothing()
    bound = rows["bound"].min()
    rows = rows[rows["bound"] == bound]
    rates = sorted(set(rows["lr"]))
    known = set(rows["training"])
    names = [*(n for n in TRAININGS if n in known), *sorted(known - TRAININGS.keys())]
    fig, axes = plt.subplots(1, len(rates), figsize=(6.4, 2.8), sharey=True, squeeze=False)
    for ax, lr in zip(axes[0], rates, strict=True):
        part = rows[rows["lr"] == lr]
        for place, name in enumerate(names):
            values = part.loc[part["training"] == name, "indicator"]
            jitter = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else 0.0
            ax.plot(place + jitter, values, ".", color=style_for(name)["color"])
        ax.set(yscale="log", title=f"learning rate {lr:g}")
        ax.title.set_fontsize(10)
        ax.set_xticks(range(len(names)), map(training_name, names), rotation=40, ha="right")
    axes[0, 0].set_ylabel(f"indicator, b = {bound:g}")
    return fig


def ablation_figure(ablation: pd.DataFrame, printed: pd.DataFrame) -> Figure:
    """Accuracy after the last session minus that of all four parts: the thesis beside this run."""
    if ablation.empty:
        return nothing()
    groups: Any = with_parts(ablation).groupby(["classes", "box"], sort=False)
    theirs = printed_parts(printed)["session_9"]
    whole, names = theirs.index[-1], list(theirs.index[:-1])
    fig, ax = plt.subplots(figsize=(5.4, 3.6))
    ax.plot(theirs[names] - theirs[whole], range(len(names)), "x", color="black", label="thesis")
    for number, ((classes, box), rows) in enumerate(groups):
        last = last_session(rows)
        gaps = [PairedDifference.between(last, "parts", name, whole) for name in names]
        half = [gap.half for gap in gaps]
        places = np.arange(len(names)) + 0.13 * (number + 1)
        words = f"{SPLITS.get(classes, classes)}, box {box:g}"
        mean = [gap.mean for gap in gaps]
        ax.errorbar(mean, places, xerr=half, fmt="o", markersize=4, label=words)
    ax.axvline(0, color="black", linewidth=1)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set(xlabel="accuracy minus that of all four parts (points)")
    fig.legend(loc="outside lower center", ncols=2, fontsize=9)
    return fig


def study_figure(studies: pd.DataFrame, titles: Mapping[str, str], classes: str) -> Figure:
    """One panel a study: accuracy after the last session against the value of the setting."""
    studies = studies[(studies["classes"] == classes) & studies["study"].isin(titles)]
    if studies.empty:
        return nothing()
    fig, axes = plt.subplots(2, 2, figsize=(6.4, 4.8), squeeze=False)
    for ax, (study, title) in zip(axes.flat, titles.items(), strict=True):
        rows = last_session(studies[studies["study"] == study])
        values = sorted(set(rows["value"]), key=float)
        for column in ("accuracy", "base_accuracy", "new_accuracy"):
            own = rows.astype({column: float}).groupby("value")[column]
            mean, std = own.mean().reindex(values), own.std().reindex(values).fillna(0)
            ax.errorbar(range(len(values)), mean, yerr=std, marker="o", label=ACCURACIES[column])
        ax.set_xticks(range(len(values)), values)
        ax.set_title(title if values else f"{title}: {MISSING}", fontsize=10)
    for row in axes:
        row[0].set_ylabel("accuracy (%)")
    handles = axes[0, 0].get_legend_handles_labels()
    fig.legend(*handles, loc="outside lower center", ncols=3, fontsize=9)
    return fig


def released_figure(studies: pd.DataFrame, classes: str) -> Figure:
    """Each choice of the released code minus the method as printed, all classes."""
    rows = studies[(studies["study"] == "released") & (studies["classes"] == classes)]
    names = [name for name in dict.fromkeys(rows["value"]) if name != "as printed"]
    if not names:
        return nothing()
    last = last_session(rows).astype({"accuracy": float})
    wide = last.pivot_table(index="seed", columns="value", values="accuracy", sort=False)
    wide = wide.reindex(columns=[*names, "as printed"])
    fig, ax = plt.subplots(figsize=(5.4, 0.3 * len(names) + 1))
    forest(ax, [(name, wide[name] - wide["as printed"]) for name in names])
    ax.set_xlabel("points above the method as printed")
    return fig


def landscape_figure(
    experiment: FewShotExperiment[Any],
    trainings: Mapping[str, Trained],
    seed: int,
    points: int = 13,
) -> Figure:
    """Loss above the minimum on a filter-normalised plane through each, and the box in it.

    Args:
        experiment: gives the test images and the half-width.
        trainings: name -> network and classifier.
        seed: of the directions, the same for all.
        points: on a side of the plane.
    """
    p = experiment.parameters
    sample = experiment.base_sample(seed, "test", p.flatness_images)
    steps = np.linspace(-1, 1, points)  # in units of each filter's own norm
    planes = {}
    for name, trained in trainings.items():
        rng = generator(seed, "plane")
        right, up = (random_direction(trained[0], rng, scale="filter") for _ in range(2))
        losses = loss_plane(*trained, *sample, right, up, steps.tolist()).numpy().T
        polygon = box_polygon(right, up, p.noise_bound)
        planes[name] = losses - losses[points // 2, points // 2], polygon
    top = max(float(losses.max()) for losses, _ in planes.values())
    low = min(float(losses.min()) for losses, _ in planes.values())
    fig, panels = plt.subplots(1, len(planes), figsize=(6.4, 2.6), sharey=True, squeeze=False)
    for ax, (name, (losses, polygon)) in zip(panels[0], planes.items(), strict=True):
        drawn = ax.contourf(
            steps, steps, losses, levels=np.linspace(low, top + 1e-9, 13), cmap="cividis"
        )
        ax.plot(*np.concatenate([polygon, polygon[:1]]).T, color="white", linewidth=1.5)
        ax.set(title=name, xlabel="first direction", xlim=(-1, 1), ylim=(-1, 1), xticks=[-1, 0, 1])
    panels[0, 0].set(ylabel="second direction", yticks=[-1, 0, 1])
    fig.colorbar(drawn, ax=panels[0], label="loss above the minimum", format="%.1f")
    return fig


def map_figure(
    experiment: FewShotExperiment[Any],
    arms: Mapping[str, tuple[Trained, str, Mapping[str, Any]]],
    seed: int,
) -> Figure:
    """Where the embeddings of some test images go in the sessions.

    Args:
        experiment: gives sessions and test images.
        arms: name -> network, method and its setting.
        seed: which repetition.
    """
    sessions = experiment.sessions(seed)
    chosen = torch.cat([sessions[0].classes[:3], sessions[-1].classes[:3]])
    pool, labels = experiment.evaluation_data(seed)
    among = torch.isin(labels, chosen.to(labels))
    images, marks = pool[among], positions_of(labels[among], chosen).cpu().numpy()
    fig, axes = plt.subplots(1, len(arms), figsize=(6.4, 3.0), squeeze=False)
    for ax, (name, (trained, method, setting)) in zip(axes[0], arms.items(), strict=True):
        before = embed(trained[0].network, images)
        learner, _, _ = experiment.run_method(method, trained, seed, setting, only_last=True)
        if isinstance(learner, NearestMean):
            found = project(before, embed(learner.split.network, images))
            for number in range(len(chosen)):
                ends = np.stack([found.before[marks == number], found.after[marks == number]])
                ax.plot(ends[..., 0], ends[..., 1], color=f"C{number}", alpha=0.3, linewidth=0.8)
                sign = "o" if number < 3 else "x"
                ax.scatter(*ends[1].T, s=12, color=f"C{number}", marker=sign)
        ax.set(title=name, xlabel="first axis", xticks=[], yticks=[])
    axes[0, 0].set_ylabel("second axis")
    return fig
