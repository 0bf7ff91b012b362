"""What charts and tables of several parts share: cells with a spread, rows with an interval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter
from numpy.typing import ArrayLike

from experiments.run.paired import PairedDifference
from experiments.run.plotting import PALETTE
from experiments.run.tables import format_mean_std

MISSING = "not part of this run"
SMALL = 9  # points: letters of ticks and keys, in a figure as wide as a column
Values = pd.Series  # one value a seed; None or NaN where a run diverged

# Cells of tables ----------------------------------------------------------------------------------


def spread(values: Values[Any], digits: int = 1) -> str:
    """Mean and standard deviation over seeds, as text; a dash without a value."""
    known = values.dropna().astype(float)
    return format_mean_std(known.mean(), known.std(), digits) if len(known) else "-"


def extent(values: Values[Any], digits: int = 2) -> str:
    """Mean, and the least and the largest value, as text; a dash without a value."""
    known = values.dropna().astype(float)
    if known.empty:
        return "-"
    ends = f" ({known.min():.{digits}f} to {known.max():.{digits}f})" if len(known) > 1 else ""
    return f"{known.mean():.{digits}f}{ends}"


def interval(values: Values[Any], digits: int = 1) -> str:
    """Mean and its 95 % interval over seeds, as text; a dash without a value."""
    found = PairedDifference.of(values.astype(float))
    if not found.seeds:
        return "-"
    ends = f" ({found.low:+.{digits}f} to {found.high:+.{digits}f})" if found.seeds > 1 else ""
    return f"{found.mean:+.{digits}f}{ends}"


# Parts of figures ---------------------------------------------------------------------------------


def nothing() -> Figure:
    """A panel that says that there is nothing to draw."""
    fig, ax = plt.subplots(figsize=(5.4, 1.0))
    ax.text(0.5, 0.5, MISSING, ha="center", va="center")
    ax.set_axis_off()
    return fig


def forest(
    ax: Axes, rows: Iterable[tuple[str, Values[Any]]], shift: float = 0.0, **style: Any
) -> None:
    """A row each: a grey point a seed, the mean and its 95 % interval; a line at zero.

    Args:
        ax: where to draw.
        rows: label, and the values of all seeds.
        shift: down from the middle of each row, for a second set of values.
        **style: of the means.
    """
    names = []
    for place, (name, values) in enumerate(rows):
        names.append(name)
        ax.plot(values, np.full(len(values), place + shift), ".", color="0.6", markersize=4)
        found = PairedDifference.of(values.astype(float))
        look: dict[str, Any] = {"color": PALETTE[0], "markersize": 5, **style}
        ax.errorbar(found.mean, place + shift, xerr=found.half, fmt="o", **look)
        style.pop("label", None)  # one entry of the key for all rows
    ax.axvline(0, color="black", linewidth=1)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)


def line(ax: Axes, places: ArrayLike, values: Iterable[Values[Any]], **style: Any) -> None:
    """A line through means over seeds, with their 95 % intervals.

    Args:
        ax: where to draw.
        places: along the axis.
        values: of all seeds, at each place.
        **style: as for ``Axes.errorbar``.
    """
    found = [PairedDifference.of(each.astype(float)) for each in values]
    half = [one.half for one in found]
    ax.errorbar(places, [one.mean for one in found], yerr=half, capsize=2, **style)


def heat(
    ax: Axes, values: Any, rows: Sequence[str], columns: Sequence[str], **style: Any
) -> Any:  # fmt: skip
    """A map of numbers with a name for each row and column.

    Returns:
        The image, for a colour bar.
    """
    image = ax.imshow(values, aspect="auto", **style)
    ax.set_yticks(range(len(rows)), rows, fontsize=SMALL)
    ax.set_xticks(range(len(columns)), columns, fontsize=SMALL)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    return image


def key(fig: Figure, ax: Axes, columns: int = 2) -> None:
    """The key of one panel, below the figure; none where it has no entries."""
    handles, labels = ax.get_legend_handles_labels()
    if labels:
        options: dict[str, Any] = {"ncols": columns, "fontsize": SMALL}
        fig.legend(handles, labels, loc="outside lower center", **options)


def end_labels(
    ax: Axes, x: float, ends: Mapping[str, float], colors: Mapping[str, str], *, gap: float = 0.06
) -> None:  # fmt: skip
    """Names to the right of the ends of lines on logarithmic axes, moved apart.

    Args:
        ax: a panel whose lines are drawn.
        x: where the lines end.
        ends: name -> height of its end.
        colors: name -> colour of its line.
        gap: least distance of two names, as a share of the height.
    """
    ax.minorticks_off()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(ScalarFormatter())
    low, high = np.log10(ax.get_ylim())
    gap *= high - low
    names = sorted(ends, key=ends.__getitem__)
    places = np.log10([ends[name] for name in names])
    for i in range(1, len(names)):
        places[i] = max(places[i], places[i - 1] + gap)
    top = high
    for i in reversed(range(len(names))):  # a crowd at the top goes down
        places[i] = min(places[i], top)
        top = places[i] - gap
    beside = ax.get_yaxis_transform()  # shares of the width, and heights of the data
    for name, place in zip(names, places, strict=True):
        arrow = {"arrowstyle": "-", "color": colors[name], "relpos": (0, 0.5), "shrinkA": 0}
        text: dict[str, Any] = {"va": "center", "fontsize": SMALL, "annotation_clip": False}
        text |= {"xytext": (1.03, 10**place), "textcoords": beside}
        ax.annotate(name, (x, ends[name]), arrowprops=arrow, **text)
