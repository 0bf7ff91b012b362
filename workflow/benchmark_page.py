"""The part of the page on speed that comes from ``results/benchmarks.json``: tables and a figure.

The file is written by ``make bench``, never by a build. All its numbers are ratios.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.run.atomic import write_text
from workflow.markdown import table

PARTS = {
    "recon": "Conflicts between tasks",
    "fcl": "Few-shot continual learning",
    "ila": "Layers of language models",
    "cpeft": "Adapters for many tasks",
}
FIGURE = "growth.svg"
COLUMNS = ("Work", "Ratio (lowest to highest)", "Side")  # a phone shows the first two


def benchmarks_part(found: Mapping[str, Any] | None) -> str:
    """What was measured, in Markdown; without a measurement how to make one.

    Args:
        found: the content of ``results/benchmarks.json``, or None where it is missing.
    """
    if found is None:
        return "Not measured yet: `make bench` does it.\n"
    parts = ["## What measured it", table(["What", "Value"], _facts(found))]
    for part, heading in PARTS.items():
        rows = [line for row in found["rows"] if row["part"] == part for line in _lines(row)]
        if rows:
            parts += [f"## {heading}", table(COLUMNS, rows)]
    if found["growth"]:
        parts += ["## How time grows", _figure(found["growth"]), _growth_table(found["growth"])]
    return "\n\n".join(parts) + "\n"


def write_benchmarks(found: Mapping[str, Any] | None, folder: Path) -> None:
    """Write ``benchmarks.md``, and beside it the figure that it shows."""
    if found is not None and found["growth"]:
        draw_growth(found["growth"], folder / FIGURE)
    write_text(folder / "benchmarks.md", benchmarks_part(found))


def draw_growth(growth: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Time against size, both in multiples of the smallest, on logarithmic axes."""
    import matplotlib as mpl  # late: a build without measurements draws nothing
    from matplotlib.figure import Figure

    from experiments.run.plotting import LINESTYLES, MARKERS, use_style

    with mpl.rc_context():
        use_style()
        figure = Figure(figsize=(5.4, 4.2))
        axes = figure.subplots()
        longest = 1.0
        for number, line in enumerate(growth):
            sizes = [size / line["sizes"][0] for size in line["sizes"]]
            longest = max(longest, *sizes)
            axes.plot(
                sizes,
                line["times"],
                marker=MARKERS[number % len(MARKERS)],
                linestyle=LINESTYLES[number % len(LINESTYLES)],
                label=f"{_name(line)}: {line['exponent']:.2f}",
            )
        axes.plot([1, longest], [1, longest], color="black", alpha=0.5, label="linear: 1")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set(xlabel="size, times the smallest", ylabel="time, times that of the smallest")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
        axes.legend(title="fitted exponents", fontsize=9)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


def _facts(found: Mapping[str, Any]) -> list[list[str]]:
    changed = ", with changes" if found["git_dirty"] else ""
    commit = f"`{found['git_commit'][:10]}`{changed}" if found["git_commit"] else "not known"
    facts = {"Machine": found["machine"], "Threads": str(found["threads"]), "Commit": commit}
    facts["Started (UTC)"] = found["started_at"][:16].replace("T", " ")
    return [list(fact) for fact in (facts | found["packages"]).items()]


def _lines(row: Mapping[str, Any]) -> list[list[str]]:
    """A line for each side; one without ratios where the sides did not compute the same."""
    work = f"{row['work']}, {row['size']}: {row['measure']} against {row['unit']}"
    if not row["sides"]:
        return [[work, "refused", f"results differ by {row['difference']:.0e}"]]
    return [
        [work if number == 0 else "",
         f"{side['ratio']:.2f} ({side['low']:.2f} to {side['high']:.2f})",
         f"{side['name']} ({side['kind']})"]
        for number, side in enumerate(row["sides"])
    ]  # fmt: skip


def _name(line: Mapping[str, Any]) -> str:
    return f"{line['work']}, {line['over']}"


def _figure(growth: Sequence[Mapping[str, Any]]) -> str:
    slopes = "; ".join(f"{_name(line)}: {line['exponent']:.2f}" for line in growth)
    return (
        f"```{{figure}} _generated/{FIGURE}\n"
        f":alt: Lines of time against size on logarithmic axes. Fitted exponents: {slopes}.\n"
        ":class: chart\n:name: fig-growth-of-time\n\n"
        "Time against size, both in multiples of the smallest. An exponent is the slope over the "
        "upper half of the sizes, by least squares: a fixed cost weighs most below.\n```"
    )


def _growth_table(growth: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [line["work"], line["over"], ", ".join(map(str, line["sizes"])),
         ", ".join(f"{time:.2f}" for time in line["times"]), f"{line['exponent']:.2f}"]
        for line in growth
    ]  # fmt: skip
    columns = ["Work", "What grows", "Sizes", "Time, times that of the smallest", "Exponent"]
    return table(columns, rows)
