"""Tables and comparisons over the records of the few-shot chapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy import stats

from ktlib.results import format_mean_std, mean_and_spread

Rows = Iterable[Mapping[str, Any]]


def session_table(rows: Rows, value: str = "accuracy") -> pd.DataFrame:
    """Mean ± standard deviation over seeds, one row a method and one column a session.

    Args:
        rows: the table ``session_accuracy`` of a record.
        value: ``accuracy``, ``base_accuracy`` or ``new_accuracy``, in percent.
    """
    spread = session_spread(rows, value)
    methods = list(spread["method"].unique())
    spread["shown"] = [
        format_mean_std(mean, std, 1)
        for mean, std in zip(spread["mean"], spread["std"], strict=True)
    ]
    table = spread.set_index(["method", "session"])["shown"].unstack("session")  # noqa: PD010
    return table.loc[methods]


def session_spread(rows: Rows, value: str = "accuracy") -> pd.DataFrame:
    """Columns ``method``, ``session``, ``mean``, ``std`` and ``n`` over seeds; for figures."""
    table = pd.DataFrame(list(rows)).dropna(subset=[value])
    return mean_and_spread(table, ["method", "session"], value)


def at_session(rows: Rows, method: str, session: int) -> str:
    """Accuracy of one method after one session, as mean ± standard deviation over seeds."""
    table = pd.DataFrame(list(rows))
    values = table[(table["method"] == method) & (table["session"] == session)]["accuracy"]
    return format_mean_std(float(values.mean()), float(values.std()), 1)


def comparison_summary(rows: Rows, upper_bound: str = "crt") -> pd.DataFrame:
    """One row a method: accuracies after the last session, the drop, the gap to the upper bound.

    Args:
        rows: with ``method``, ``seed``, ``session``, ``accuracy``, ``base_accuracy`` and
            ``new_accuracy``, in percent.
        upper_bound: the method that the gap is measured to, seed by seed.

    Returns:
        Columns ``first session``, ``all classes``, ``base classes``, ``new classes``, ``drop``
        (first minus last session) and ``behind <upper_bound>``, mean ± standard deviation over
        seeds, the mean alone for one seed.

    Raises:
        ValueError: if ``upper_bound`` has no rows.
    """
    table = pd.DataFrame(list(rows))
    if upper_bound not in set(table["method"]):
        found = list(table["method"].unique())
        raise ValueError(f"upper_bound must be one of {found}. Found {upper_bound!r}.")
    keys = ["method", "seed"]
    last = table[table["session"] == table["session"].max()].set_index(keys)
    first = table[table["session"] == table["session"].min()].set_index(keys)
    bound = last.loc[upper_bound]["accuracy"]
    columns = {
        "first session": first["accuracy"],
        "all classes": last["accuracy"],
        "base classes": last["base_accuracy"],
        "new classes": last["new_accuracy"],
        "drop": first["accuracy"] - last["accuracy"],
        f"behind {upper_bound}": bound.reindex(last.index, level="seed") - last["accuracy"],
    }
    shown = {}
    for name, values in columns.items():
        spread = mean_and_spread(values.rename("value").reset_index(), ["method"], "value")
        shown[name] = {
            method: format_mean_std(mean, std, 1)
            for method, mean, std in zip(
                spread["method"], spread["mean"], spread["std"], strict=True
            )
        }
    return pd.DataFrame(shown).loc[list(table["method"].unique())]


@dataclass(frozen=True)
class PairedDifference:
    """Accuracy of one method minus that of another at the last session, paired by seed.

    Attributes:
        mean: mean difference, in points.
        low: lower end of the 95 % confidence interval over seeds (Student's t); NaN for one seed.
        high: upper end.
        seeds: number of pairs.
    """

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        if self.seeds < 2:
            return f"{self.mean:+.1f} points (one seed, no interval)"
        better, worse = self.low > 0, self.high < 0
        verdict = "better" if better else "worse" if worse else "no clear difference"
        interval = f"95 % interval {self.low:+.1f} to {self.high:+.1f}"
        return f"{self.mean:+.1f} points, {interval} over {self.seeds} seeds ({verdict})"


def paired_difference(rows: Rows, method: str, reference: str) -> PairedDifference:
    """Compare two methods seed by seed at the last session.

    Raises:
        ValueError: if a method has no rows, naming those that have.
    """
    table = pd.DataFrame(list(rows))
    last = table[table["session"] == table["session"].max()]
    wide = last.pivot_table(index="seed", columns="method", values="accuracy")
    for name in (method, reference):
        if name not in wide:
            raise ValueError(f"method must be one of {list(wide.columns)}. Found {name!r}.")
    difference = (wide[method] - wide[reference]).dropna()
    mean, n = float(difference.mean()), len(difference)
    if n < 2:
        return PairedDifference(mean, float("nan"), float("nan"), n)
    half = float(stats.t.ppf(0.975, n - 1) * difference.sem())
    return PairedDifference(mean, mean - half, mean + half, n)


def flatness_ratios(
    table: pd.DataFrame, method: str = "f2m", reference: str = "ncm"
) -> pd.DataFrame:
    """How many times smaller the indicator of ``method`` is than that of ``reference``.

    Args:
        table: the table ``flatness`` of a record.
        method: the flatter one, if all is well.
        reference: what it is compared with.

    Returns:
        Columns ``split``, ``bound``, ``seed`` and ``ratio``.
    """
    keys = ["split", "bound", "seed"]
    wide = table.pivot_table(index=keys, columns="method", values="indicator")
    return (wide[reference] / wide[method]).rename("ratio").reset_index()


def flatness_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean indicator over seeds of each method, and mean ± standard deviation of their ratio."""
    keys = ["split", "bound"]
    mean = table.pivot_table(index=keys, columns="method", values="indicator")
    shown = mean.map("{:.1e}".format).add_prefix("indicator, ")
    ratio = mean_and_spread(flatness_ratios(table), keys, "ratio").set_index(keys)
    shown["ncm / f2m"] = [
        format_mean_std(m, s, 1) for m, s in zip(ratio["mean"], ratio["std"], strict=True)
    ]
    return shown
