"""The picture of the ledger: our effects divided by the printed ones, with their intervals."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.run.claims import VERDICTS, Claim

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from workflow.ledger import Entry

FIGURE = "ledger.svg"
LEFT, RIGHT = -2.0, 4.0  # what lies beyond is cut off, and an arrow says so
WIDTH = 4.6  # inches: a phone shows four fifths of it
STEP = 0.33  # inches for a claim: a line of text, and below it the mark
LETTERS = 52  # of a claim's text that have room in a line


def figure_part(entries: Sequence[Entry], titles: Mapping[str, str], folder: Path) -> str:
    """The picture in Markdown, its file written into a folder; empty without numbers.

    Args:
        entries: all claims.
        titles: chapter -> its title.
        folder: to write the file into.
    """
    drawn = [entry for entry in entries if entry.share is not None]
    if not drawn:
        return ""
    draw_ledger(drawn, titles, folder / FIGURE)
    shares = [entry.share or 0.0 for entry in drawn]
    none = len(entries) - len(drawn)
    return (
        "(ledger-picture)=\n## In one picture\n\n"
        f"```{{figure}} _generated/{FIGURE}\n"
        f":alt: One mark for each of {len(drawn)} claims: our effect divided by the printed one, "
        f"with its interval. At least as large as printed: {sum(s >= 1 for s in shares)}. Smaller, "
        f"of the same sign: {sum(0 < s < 1 for s in shares)}. Zero or of the other sign: "
        f"{sum(s <= 0 for s in shares)}.\n"
        ":class: chart\n:name: fig-ledger\n\n"
        "Our effect divided by the printed effect, with its 95 % interval over seeds: 1 is as "
        "large as printed, 0 is none. Numbers are those of the list above; arrows point to what "
        f"lies beyond {LEFT:g} or {RIGHT:g}. {none} of {len(entries)} claims have no number, of "
        "ours or in print, and are not in it.\n```"
    )


def draw_ledger(entries: Sequence[Entry], titles: Mapping[str, str], path: Path) -> None:
    """Draw claims that have a share, grouped by chapter, colour and marker by verdict."""
    import matplotlib as mpl  # late: a book without claims draws nothing
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from experiments.run.plotting import MARKERS, PALETTE, use_style

    looks = dict(zip(VERDICTS, zip(PALETTE, MARKERS, strict=True), strict=False))
    used = dict.fromkeys(entry.chapter for entry in entries)
    wrapped = {name: textwrap.wrap(titles[name], 46) for name in used}
    height = 0.0
    with mpl.rc_context():
        use_style()
        figure = Figure()
        axes = figure.subplots()
        for name in used:
            height += 0.2 + 0.19 * len(wrapped[name])
            heading = "\n".join(wrapped[name])
            axes.text(LEFT - 0.3, height - 0.05, heading, fontsize=10, fontweight="bold")
            for entry in (entry for entry in entries if entry.chapter == name):
                height += STEP
                claim = textwrap.shorten(entry.claim.claim.rstrip("."), LETTERS, placeholder=" ...")
                words = axes.text(LEFT - 0.3, height - 0.14, f"{entry.number}  {claim}")
                words.set(fontsize=8.5, bbox={"color": "white", "pad": 0.5})
                _draw_claim(axes, entry.claim, height, *looks[entry.claim.verdict])
        figure.set_size_inches(WIDTH, height + 1.5)
        axes.axvline(0, color="black", linewidth=0.8, zorder=0)
        axes.axvline(1, color="black", linewidth=0.8, linestyle="--", zorder=0)
        axes.set(
            xlim=(LEFT - 0.35, RIGHT + 0.35),
            ylim=(height + 0.25, 0),
            xlabel="our effect / printed effect",
            yticks=[],
        )
        axes.spines["left"].set_visible(False)
        there = {entry.claim.verdict for entry in entries}
        figure.legend(
            [
                Line2D([], [], color=colour, marker=marker, linestyle="")
                for verdict, (colour, marker) in looks.items()
                if verdict in there
            ],
            [verdict for verdict in VERDICTS if verdict in there],
            loc="outside upper center",
            ncols=2,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


def _draw_claim(axes: Axes, claim: Claim, height: float, colour: str, marker: str) -> None:
    """A mark with its interval, both cut off at the ends of the axis."""
    printed, effect = claim.printed_effect or 1.0, claim.effect or 0.0
    share = effect / printed
    ends = sorted(
        effect / printed if end is None else end / printed for end in (claim.low, claim.high)
    )
    low, high = (min(max(end, LEFT), RIGHT) for end in ends)
    axes.hlines(height, low, high, color=colour, linewidth=1.5)
    axes.plot(min(max(share, LEFT), RIGHT), height, marker=marker, color=colour, markersize=6)
    for beyond, edge, arrow in (
        (ends[0] < LEFT, LEFT - 0.17, "$\\leftarrow$"),
        (ends[1] > RIGHT, RIGHT + 0.17, "$\\rightarrow$"),
    ):
        if beyond:
            axes.plot(edge, height, marker=arrow, color=colour, markersize=9)
