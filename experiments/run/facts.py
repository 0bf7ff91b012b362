"""What the modules of claims have in common: mechanisms, differences and their words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import pandas as pd

from experiments.run.charts import MISSING
from experiments.run.claims import Claim
from experiments.run.paired import PairedDifference

SAME = "the arms agree in every seed"


class Fact(NamedTuple):
    """What shows that a mechanism acted, and whether it did."""

    words: str = ""
    acted: bool = True

    def __and__(self, other: Fact) -> Fact:
        """That both acted."""
        return self.with_words(other.words)._replace(acted=self.acted and other.acted)

    def with_words(self, words: str) -> Fact:
        """The same, and something else that is worth knowing."""
        return self._replace(words="; ".join(filter(None, (self.words, words))))

    def seen_in(self, differences: Sequence[PairedDifference]) -> Fact:
        """The same, for a claim that counts: it needs an interval of each, and arms that differ."""
        if not differences or min(found.seeds for found in differences) < 2:
            return self.with_words("some pair has no interval")._replace(acted=False)
        if all(found.low == found.high == 0 for found in differences):
            return self.with_words(SAME)._replace(acted=False)
        return self


NO_FACT = Fact()
"""For a claim about no mechanism."""


def difference_claim(
    claim: str, printed_in: str, thesis: str, found: PairedDifference, setting: str, anchor: str,
    *, expected: Literal["above", "below"] = "above", fact: Fact = NO_FACT, shown: str = "",
    effect: float | None = None, unit: str = "points",
) -> Claim:  # fmt: skip
    """As :meth:`Claim.of_difference`, from a fact, a printed effect, and what the number is.

    Where no pair was finished, or both arms agree in every seed, the fact says so.
    """
    if not found.seeds:
        fact = fact.with_words(str(found))
    if found.low == found.high == 0:
        fact = fact.with_words(SAME)
    return Claim.of_difference(
        claim, printed_in, thesis, found, f"{shown} {setting}".strip(), expected, anchor,
        printed_effect=effect, mechanism=fact.words, acted=fact.acted, unit=unit,
    )  # fmt: skip


def cell(table: pd.DataFrame, row: Any, column: str) -> float:
    """A printed number."""
    value: Any = table.loc[row, column]
    return float(value)


def in_points(effect: float | None) -> str:
    """A printed difference in words."""
    return "no number" if effect is None else f"{effect:+.2f} points"


def beyond(found: PairedDifference, shift: float) -> PairedDifference:
    """A difference minus a fixed number; arms that agree in every seed stay at 0, untested."""
    if found.low == found.high == 0:
        return found
    ends = {name: getattr(found, name) - shift for name in ("mean", "low", "high")}
    return dataclasses.replace(found, **ends)


# For summaries ------------------------------------------------------------------------------------


def chosen_words(claim: Claim | None, words: Mapping[str, str]) -> str:
    """The words for a verdict, and the numbers, or why there are none."""
    if claim is None:
        return f"was {MISSING}"
    if claim.verdict != "not tested":
        return f"{words[claim.verdict]}: {_numbers(claim)}"
    one_seed = claim.effect is not None and claim.low is None
    return f"was not tested: {'a single seed gives no interval' if one_seed else claim.mechanism}"


def names_by_verdict(claims: Mapping[str, Claim], words: Mapping[str, str]) -> str:
    """Which names have which verdict, with their effects.

    Args:
        claims: name -> a claim about a difference in points.
        words: what is said in front of the names of each verdict, in the order of the sentence.
    """
    parts = []
    for verdict, said in words.items():
        names = [
            name + ("" if verdict == "not tested" else f" ({claim.effect:+.1f} points)")
            for name, claim in claims.items()
            if claim.verdict == verdict
        ]
        if names:
            parts.append(f"{said} {', '.join(names)}")
    return "; it ".join(parts)


def _numbers(claim: Claim) -> str:
    """Effect and interval with their unit; logarithms of ratios as ratios."""
    if claim.unit != "log" or claim.effect is None or claim.low is None or claim.high is None:
        return claim.found
    times, low, high = (math.exp(number) for number in (claim.effect, claim.low, claim.high))
    return f"{times:.1f} times, 95 % interval {low:.1f} to {high:.1f}"
