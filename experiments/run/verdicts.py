"""The rules that turn a measurement into a verdict on a claim."""

from __future__ import annotations

import math
from typing import Literal, get_args

Verdict = Literal[
    "reproduced", "not reproduced", "undecided", "mixed", "not tested", "not testable here"
]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

# Of five cases that all point one way, 2 in 32 such sets do so by chance: no test at 5 %.
LEAST_CASES = 6


def verdict_of_difference(
    low: float,
    high: float,
    expected: Literal["above", "below"],
    *,
    cases: int = 0,
    acted: bool = True,
    least: float | None = None,
) -> Verdict:
    """Verdict on a claim that something is larger, or smaller, than something else.

    Reproduced when the whole interval lies on the claimed side of 0, not reproduced when it lies on
    the other side. An interval that contains 0 leaves it undecided: there may be a difference, up
    to the ends of the interval. Where the thesis prints how large the difference is, there is a
    third case: the interval contains 0 and excludes a difference as large as that, on either side.
    The run could have seen it, and it is not there: not reproduced.

    Nothing was tested by a single seed, by a handful of cases, by a mechanism that did not act, or
    by two arms that agree in every seed.

    Args:
        low: lower end of the 95 % confidence interval of the difference.
        high: upper end. Both are NaN for a single seed, which gives no interval. Both are 0 where
            the arms agree in every seed: one run under two names, or a measure that cannot tell
            them apart.
        expected: the side of 0 on which the thesis puts the difference.
        cases: held-out images or texts behind each value; fewer than six test nothing. 0: all of a
            test set.
        acted: whether the mechanism acted in this run, such as a search that counted at least one
            conflict.
        least: size of the printed difference, or of the smallest one that would matter; None where
            there is no such number, and so no clear absence.

    Raises:
        ValueError: only one end is NaN, the ends are swapped, the side is unknown, or ``least`` is
            not positive.
    """
    if least is not None and not 0 < least < math.inf:
        raise ValueError(f"least must be a positive number or None. Found least={least}.")
    if expected not in ("above", "below"):
        raise ValueError(f"expected must be 'above' or 'below'. Found {expected!r}.")
    one_seed, same_run = math.isnan(low) and math.isnan(high), low == high == 0
    if one_seed or same_run or 0 < cases < LEAST_CASES or not acted:
        return "not tested"
    if not low <= high:
        raise ValueError(f"low must be at most high. Found low={low}, high={high}.")
    above, below = low > 0, high < 0
    if not above and not below:
        absent = least is not None and -least < low and high < least
        return "not reproduced" if absent else "undecided"
    return "reproduced" if above == (expected == "above") else "not reproduced"


def verdict_of_share(hits: int, total: int, *, acted: bool = True) -> Verdict:
    """Verdict on a claim about several cases, such as "in every session".

    Reproduced when it holds in all cases, mixed when in some, not reproduced when in none. The
    words beside it show the count.

    Args:
        hits: number of cases in which it holds.
        total: number of cases.
        acted: whether the mechanism acted in this run; otherwise nothing was tested.

    Raises:
        ValueError: there are no cases, or ``hits`` is not between 0 and ``total``.
    """
    if total < 1:
        raise ValueError(f"total must be at least 1. Found {total}.")
    if not 0 <= hits <= total:
        raise ValueError(f"hits must be between 0 and total={total}. Found {hits}.")
    if not acted:
        return "not tested"
    if hits == total:
        return "reproduced"
    return "mixed" if hits else "not reproduced"
