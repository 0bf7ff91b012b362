"""Paired differences, such as of two methods with the same seed, with a confidence interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class PairedDifference:
    """The mean of paired differences and its confidence interval.

    Attributes:
        mean: mean difference, in points; NaN without a pair.
        low: lower end of the 95 % confidence interval over seeds (Student's t); NaN for one seed.
        high: upper end.
        seeds: number of pairs.
        pairs: what the pairs have in common, such as ``"seed"``.
    """

    mean: float
    low: float
    high: float
    seeds: int
    pairs: str = "seed"

    @classmethod
    def of(cls, differences: pd.Series[float], pairs: str = "seed") -> PairedDifference:
        """Mean and interval of differences, one per pair; NaN are left out."""
        from scipy import stats  # seconds to import

        known = differences.dropna()
        mean, n = float(known.mean()), len(known)
        if n < 2:
            return cls(mean, float("nan"), float("nan"), n, pairs)
        half = float(stats.t.ppf(0.975, n - 1)) * float(known.std()) / math.sqrt(n)
        return cls(mean, mean - half, mean + half, n, pairs)

    @classmethod
    def between(
        cls, rows: pd.DataFrame, column: str, one: Any, other: Any, value: str = "accuracy"
    ) -> PairedDifference:
        """One value of a column minus another, within seeds.

        Args:
            rows: one row for each seed and value of the column.
            column: what tells the two apart.
            one: its value in the rows of interest.
            other: its value in those it is compared with.
            value: what is compared.
        """
        table = rows.astype({value: float}).pivot_table(index="seed", columns=column, values=value)
        missing = pd.Series(float("nan"), index=table.index)
        return cls.of(table.get(one, missing) - table.get(other, missing))

    @property
    def half(self) -> float:
        """Half of the interval: a mean nearer to 0 has 0 in its interval. NaN for one seed."""
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        if not self.seeds:
            return "no pair was finished"
        if self.seeds < 2:
            return f"{self.mean:+.1f} points (one {self.pairs}, no interval)"
        unclear = f"no clear difference: below {self.half:.1f} none can be told from 0"
        verdict = "better" if self.low > 0 else "worse" if self.high < 0 else unclear
        interval = f"95 % interval {self.low:+.1f} to {self.high:+.1f}"
        return f"{self.mean:+.1f} points, {interval} over {self.seeds} {self.pairs}s ({verdict})"
