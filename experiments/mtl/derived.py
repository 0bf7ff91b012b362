"""What follows from the tables of a record on multi-task learning: gains, conflicts, rankings.

No number of a record follows from this module; see :mod:`experiments.mtl.evidence` for those.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from experiments.mtl.tasks import LOWER_IS_BETTER
from experiments.run.records import RunRecord
from experiments.run.tables import released_ranking, thesis_table
from ktlib.mtl.metrics import ranking_distance, relative_improvement

RUN = ["size", "study", "value", "method", "layers"]
"""Columns that tell the runs of one seed apart."""

COLUMNS = {
    "results": "size study value method layers statistics task metric score",
    "costs": "size method layers megabytes gigaflops forward_ms",
    "choices": "study value layers names",
    "histograms": "size study value method layers quarter counts",
    "scores": "size study method layers quarter severity steps scores angles",
    "layers": "place layer kind parameters",
    "pairs": "quarter first second layer pairs conflicts cosines norm_ratio",
    "branches": "block groups margin steps",
    "seconds": "tasks method ms",
}
"""Tables of the record and their columns, besides ``seed``."""

NORM = "batch norm"  # kind of a layer
EDGES = np.linspace(-1, 1, 201)  # of the histograms of cosines
SEVERE = -0.01
"""Below it, a conflict counts as severe in table 4.11."""


def frames(record: RunRecord) -> dict[str, pd.DataFrame]:
    """The tables of a record; one without rows, or that an older record lacks, has its columns."""
    return {
        name: pd.DataFrame(record.tables.get(name, []), columns=["seed", *columns.split()])
        for name, columns in COLUMNS.items()
    }


def improvements(results: pd.DataFrame) -> pd.DataFrame:
    """Relative improvement Dm of each run over the single tasks of its size and seed, in percent.

    Args:
        results: the table of this name. Runs that diverged, and those of a seed without single
            tasks, are left out.

    Returns:
        A row a run: the columns of :data:`RUN`, ``statistics``, ``seed`` and ``improvement``.
    """
    finished = results.dropna(subset="score")
    scores: dict[Any, dict[str, dict[str, float]]] = {
        key: {str(task): dict(zip(own["metric"], own["score"].astype(float), strict=True))
              for task, own in run.groupby("task", sort=False)}
        for key, run in finished.groupby([*RUN, "statistics", "seed"], sort=False)
    }  # fmt: skip
    alone = {(key[0], key[-1]): run for key, run in scores.items() if key[3] == "single"}
    rows = []
    for key, run in scores.items():
        single = alone.get((key[0], key[-1]))
        if single and run.keys() == single.keys() and key[3] != "single":
            lower = {name for own in run.values() for name in own} & set(LOWER_IS_BETTER)
            rows.append((*key, relative_improvement(run, single, lower)))
    return pd.DataFrame(rows, columns=[*RUN, "statistics", "seed", "improvement"])


# Conflicts ----------------------------------------------------------------------------------------


def numbers(text: str) -> NDArray[np.float64]:
    """The numbers of a cell with spaces between; NaN for a dash."""
    return np.array([np.nan if word == "-" else float(word) for word in text.split()])


def share_below(counts: NDArray[np.float64], cosine: float) -> float:
    """Percent of the cosines of a histogram that lie below one; even within a bin."""
    return float(100 * np.interp(cosine, EDGES, _cumulated(counts)))


def cosine_at(counts: NDArray[np.float64], percent: float) -> float:
    """The cosine below which so many percent lie."""
    return float(np.interp(percent / 100, _cumulated(counts), EDGES))


def _cumulated(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.concatenate([[0.0], np.cumsum(counts)]) / max(counts.sum(), 1)
    return found


def severe_share_printed() -> float:
    """Percent of the steps of joint training below :data:`SEVERE` in the thesis's table 4.11."""
    table = thesis_table("4_11").set_index(["base_method", "variant"])
    row: Any = table.loc[("Joint-train", "base")]
    return float(row.filter(like="cos_neg").sum())


def conflicts(histograms: pd.DataFrame) -> pd.DataFrame:
    """Severe conflicts of each run, and how many percent fewer than in joint training they are.

    Severe is what lies below the printed threshold, or below the *quantile*: the cosine below which
    joint training of the same size and seed has as many cosines as the thesis prints.

    Args:
        histograms: the table of this name.

    Returns:
        Four rows a run: ``quarters`` (``"all"`` or ``"last"``) and ``cut`` (``"printed"`` or
        ``"quantile"``), with ``share`` and ``reduction`` in percent.
    """
    found: dict[Any, dict[str, NDArray[np.float64]]] = {}
    for key, run in histograms.groupby([*RUN, "seed"], sort=False):
        by_quarter = dict(zip(run["quarter"], map(numbers, run["counts"]), strict=True))
        last = by_quarter[max(by_quarter)]
        found[key] = {"all": np.sum([*by_quarter.values()], axis=0), "last": last}
    joint = {
        (key[0], key[-1]): counts
        for key, counts in found.items()
        if key[1] in ("long", "methods") and key[3:5] == ("joint", "shared")
    }
    rows, printed = [], severe_share_printed()
    for key, counts in found.items():
        reference = joint.get((key[0], key[-1]))
        if reference is None:
            continue
        for quarters in ("all", "last"):
            cuts = {"printed": SEVERE, "quantile": cosine_at(reference[quarters], printed)}
            for cut, cosine in cuts.items():
                share = share_below(counts[quarters], cosine)
                before = share_below(reference[quarters], cosine)
                reduction = 100 * (1 - share / before) if before else np.nan
                rows.append((*key, quarters, cut, cosine, share, reduction))
    columns = [*RUN, "seed", "quarters", "cut", "cosine", "share", "reduction"]
    return pd.DataFrame(rows, columns=columns)


# Rankings -----------------------------------------------------------------------------------------


class Rankings:
    """Rankings of layers, from the conflicts that were counted in shared networks.

    Args:
        tables: of a record, see :func:`frames`.
        batch_norm: whether batch norms are ranked.
    """

    def __init__(self, tables: dict[str, pd.DataFrame], batch_norm: bool = True) -> None:
        known = tables["layers"].drop_duplicates("layer").sort_values("place")
        self.names = [str(name) for name in known["layer"]]
        self.ranked = set(known["layer"] if batch_norm else known[known["kind"] != NORM]["layer"])
        shared = tables["scores"]
        self.scores = shared[shared["layers"] == "shared"]

    def counted(
        self, seed: int, severity: float, quarters: Iterable[int] = (1, 2, 3, 4),
        *, size: str = "long", method: str = "joint",
    ) -> pd.DataFrame:  # fmt: skip
        """The rows of some quarters of one search."""
        rows = self.scores
        return rows[
            (rows["seed"] == seed) & (rows["severity"] == severity) & (rows["size"] == size)
            & (rows["method"] == method) & rows["quarter"].isin([*quarters])
        ]  # fmt: skip

    def of(self, seed: int, severity: float, *quarters: int, **known: str) -> list[str]:
        """The layers from most conflicts to fewest; empty where nothing was counted.

        Args:
            seed: of the search.
            severity: one of those that were counted.
            *quarters: of the training, from 1; all without.
            **known: ``size`` and ``method`` of the search; joint training of the long size without.
        """
        rows = self.counted(seed, severity, quarters or (1, 2, 3, 4), **known)
        return self._sorted(rows, "scores", np.ones(len(rows)))

    def by_angle(self, seed: int, *quarters: int, **known: str) -> list[str]:
        """The layers from the largest mean angle between two gradients to the smallest."""
        rows = self.counted(seed, 0.0, quarters or (1, 2, 3, 4), **known)
        return self._sorted(rows, "angles", rows["steps"].to_numpy(dtype=float))

    def _sorted(self, rows: pd.DataFrame, column: str, weights: NDArray[np.float64]) -> list[str]:
        if rows.empty or not self.names:
            return []
        per_quarter = [numbers(text) * w for text, w in zip(rows[column], weights, strict=True)]
        summed = np.sum(per_quarter, axis=0)
        if not np.nansum(summed):
            return []  # nothing was counted: the order of the network says nothing
        total = dict(zip(self.names, summed, strict=True))
        ordered = sorted(self.names, key=lambda name: -total[name])  # equal ones stay in order
        return [name for name in ordered if name in self.ranked]


def released_layers(data: str = "multi_fashion_mnist") -> list[str]:
    """The layers as the authors of Recon published them beside their code, most conflicts first."""
    return [str(name) for name in released_ranking(data).sort_values("rank")["layer"]]


# Networks, and what they are compared by ----------------------------------------------------------

NOTHING: pd.Series[float] = pd.Series(dtype=float)


class Arm(NamedTuple):
    """What tells the runs of one network from others, beside the seed."""

    size: str
    study: str
    method: str
    layers: str
    value: str = ""


class Measures:
    """Measures of the networks of one record, each a number a seed.

    Args:
        record: of ``chapters/recon_evidence.py``, live or kept.
    """

    def __init__(self, record: RunRecord) -> None:
        self.tables = frames(record)
        self.p: dict[str, Any] = {**record.parameters}
        self.quarters = range(1, self.p["search_quarters"] + 1)  # of the search
        self.rankings = Rankings(self.tables, self.p["batch_norm"])
        gains, severe = improvements(self.tables["results"]), conflicts(self.tables["histograms"])
        self._gains = _by_seed(gains, "improvement", *Arm._fields, "statistics")
        self._severe = {
            name: _by_seed(severe, name, *Arm._fields, "quarters", "cut")
            for name in ("reduction", "share", "cosine")
        }
        self._sizes = _by_seed(self.tables["costs"], "megabytes", "size", "method", "layers")

    def gain(self, arm: Arm, statistics: str = "own") -> pd.Series[float]:
        """Gain over single-task training; a shared network has one set of statistics."""
        both = (self._gains.get((*arm, each)) for each in (statistics, "one"))
        return next((found for found in both if found is not None), NOTHING)

    def severe(
        self, arm: Arm, quarters: str, cut: str, name: str = "reduction"
    ) -> pd.Series[float]:
        """A column of :func:`conflicts`: how many percent fewer than in joint training."""
        return self._severe[name].get((*arm, quarters, cut), NOTHING)

    def megabytes(self, size: str, method: str, layers: str = "shared") -> pd.Series[float]:
        """Size of a network."""
        return self._sizes.get((size, method, layers), NOTHING)

    def chosen(self) -> dict[Any, list[str]]:
        """The layers that Recon makes task-specific, by seed."""
        table = self.tables["choices"]
        rows = table[(table["study"] == "long") & (table["layers"] == "recon")]
        return dict(zip(rows["seed"], rows["names"].str.split(), strict=True))

    def split_share(self) -> pd.Series[float]:
        """Percent of the trunk's parameters that Recon makes task-specific."""
        found, layers = {}, self.tables["layers"]
        for seed, chosen in self.chosen().items():
            own = layers[layers["seed"] == seed]
            split = own[own["layer"].isin(chosen)]["parameters"].sum()
            found[seed] = 100 * split / own["parameters"].sum() if len(own) else np.nan
        return pd.Series(found, dtype=float)

    def excess(self) -> pd.Series[float]:
        """Share of the later conflicts on the layers of the search, less their share of layers.

        In points; counted in the quarters that the search has not seen, where chance has no part in
        the choice.
        """
        later = [quarter for quarter in (1, 2, 3, 4) if quarter not in self.quarters]
        names, found = self.rankings.names, {}
        for seed, chosen in self.chosen().items():
            rows = self.rankings.counted(seed, self.p["severity"], later)
            if names and len(rows):
                total = pd.Series(np.sum([*map(numbers, rows["scores"])], axis=0), index=names)
                total = total[total.index.isin(self.rankings.ranked)]
                own, everything = total.index.isin(chosen), max(total.sum(), 1)
                found[seed] = 100 * (total[own].sum() / everything - own.mean())
        return pd.Series(found, dtype=float)


def _by_seed(rows: pd.DataFrame, column: str, *keys: str) -> dict[Any, pd.Series[float]]:
    """A column of the rows with the same keys, by seed."""
    return {
        key: own.set_index("seed")[column].astype(float)
        for key, own in rows.groupby([*keys], sort=False)
    }


def farthest(rankings: Iterable[Sequence[str]]) -> float:
    """The largest distance between two of several rankings; NaN where one is missing."""
    known = [*rankings]
    if len(known) < 2 or not all(known):
        return float("nan")
    return max(ranking_distance(one, other) for one, other in combinations(known, 2))
