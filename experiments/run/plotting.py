"""The style of the book's charts: legible in print, on a phone, and with colour blindness.

Charts are dark text on white; the book's dark theme inverts them (photos keep their colours).
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito, "Color Universal Design" (2008), without their yellow, which vanishes on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINESTYLES = ("-", "--", "-.", ":")
# Names with fixed styles, in the order of the styles; the others get one from a hash.
FIXED = (
    "f2m",
    "ncm",
    "finetune",
    "sam",
    "crt",
    "icarl",
    "lucir",
    "ewc_wide",
    "joint",
    "topic",
    "fsll",
    "idlvq",
    "sequential",
    "inflora",
    "l2c",
    "key",
    "oracle",
    "value",
)


class Style(TypedDict):
    """Keyword arguments for ``Axes.plot``."""

    color: str
    marker: str
    linestyle: str


def use_style() -> None:
    """Set the style of the book for all figures, and make their files reproducible.

    In a notebook, figures are SVG without a date and with ids that depend on the picture only: an
    unchanged figure is an unchanged file.
    """
    mpl.rcParams.update(
        {
            "figure.figsize": (5.4, 3.4),  # inches: the width of a column of the book
            "figure.dpi": 100,
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "font.size": 11,  # a phone shows the figure at two thirds of its size
            "axes.prop_cycle": cycler(color=PALETTE),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "lines.markersize": 5,
            "legend.frameon": False,
            "legend.fontsize": 10,
            "svg.hashsalt": "ktlib",
        }
    )
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg", metadata={"Date": None})  # type: ignore[no-untyped-call]


def style_for(name: str) -> Style:
    """Colour, marker and line style of a method, the same in every figure.

    Methods that the book compares have styles of their own. Any other name gets one from a hash of
    its letters, so two of them may look alike.

    Args:
        name: name of a method; case is ignored, and what follows a space is a variant: ``"F2M"``
            and ``"f2m without noise"`` share a colour and differ in marker and line.
    """
    word, _, variant = name.lower().partition(" ")
    place = FIXED.index(word) if word in FIXED else _number(word)
    # A variant never gets the marker or the line of the method itself.
    marker_shift = 1 + _number(variant) % (len(MARKERS) - 1) if variant else 0
    line = 1 + _number(variant) % (len(LINESTYLES) - 1) if variant else 0
    # Names that share a colour because there are more names than colours differ in both as well.
    turn = place // len(PALETTE)
    return Style(
        color=PALETTE[place % len(PALETTE)],
        marker=MARKERS[(place + turn + marker_shift) % len(MARKERS)],
        linestyle=LINESTYLES[(turn + line) % len(LINESTYLES)],
    )


def band(
    ax: Axes,
    x: Sequence[float],
    mean: Sequence[float],
    std: Sequence[float],
    label: str,
) -> None:
    """Draw a line with a band of one standard deviation around it, in the style of ``label``.

    Args:
        ax: where to draw.
        x: positions, shape (n,).
        mean: heights of the line, shape (n,).
        std: half the height of the band, shape (n,); NaN (a single seed) draws no band.
        label: name of the method, for the style and the legend.

    Raises:
        ValueError: the three do not have the same length.
    """
    if not len(x) == len(mean) == len(std):
        raise ValueError(
            "Parameters `x`, `mean` and `std` must have the same length. "
            f"Found {len(x)}, {len(mean)} and {len(std)}."
        )
    style = style_for(label)
    positions, centre, half = (np.asarray(v, dtype=float) for v in (x, mean, std))
    ax.plot(positions, centre, label=label, **style)
    ax.fill_between(
        positions, centre - half, centre + half, color=style["color"], alpha=0.2, linewidth=0
    )


def save_figure(fig: Figure, run_dir: Path | str, name: str) -> None:
    """Save a figure as ``figures/<name>.svg`` in the folder of the run; ``""`` saves nothing.

    Returns nothing, so that the figure stays the only output of a cell that ends with this call.
    """
    if not str(run_dir):
        return
    path = Path(run_dir) / "figures" / f"{name}.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, metadata={"Date": None})


def _number(text: str) -> int:
    """A hash of the text that is the same in every process."""
    return hashlib.sha256(text.encode()).digest()[0]
