"""Claims of the thesis beside what was found, with a verdict that follows from a fixed rule.

A chapter makes one :class:`Claim` for each claim that it examines and stores them in its record::

    record.table("claims", claim_rows(claims))

The book's list of claims is made from these tables.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

if TYPE_CHECKING:
    import pandas as pd

Verdict = Literal[
    "reproduced", "not reproduced", "undecided", "mixed", "not tested", "not testable here"
]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
ANCHOR = re.compile(r"[a-z][a-z0-9-]*")


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claim of the thesis and what became of it. The texts are plain, without Markdown.

    Attributes:
        claim: what is claimed, in a sentence; its identifier, so the same words in every run.
        printed_in: where it is printed, such as ``"Table 3.1"``.
        thesis: the number printed there, or the words where there is no number.
        found: our number with its spread and the number of seeds.
        difference: how our set-up differs from that of the thesis.
        verdict: from a rule of this module, never typed.
        anchor: name of the place in the chapter, such as ``"sec-pilot"`` for ``(sec-pilot)=``
            in front of a heading, or the name of a figure.

    Raises:
        ValueError: a text is empty, the verdict is not one of ``VERDICTS``, or the anchor is not a
            valid name.
    """

    claim: str
    printed_in: str
    thesis: str
    found: str
    difference: str
    verdict: Verdict
    anchor: str

    def __post_init__(self) -> None:
        for field in COLUMNS:
            value = getattr(self, field)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"`{field}` of a claim must be text. Found {value!r}.")
        if self.verdict not in VERDICTS:
            raise ValueError(
                f"`verdict` must be one of {', '.join(map(repr, VERDICTS))}. "
                f"Found {self.verdict!r}."
            )
        if not ANCHOR.fullmatch(self.anchor):
            raise ValueError(
                "`anchor` must be small letters, digits and hyphens, as in `sec-pilot`. "
                f"Found {self.anchor!r}."
            )

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Claim:
        """The claim in a row of a record.

        Raises:
            ValueError: a column is missing or unknown, or a value is not allowed.
        """
        missing = [name for name in COLUMNS if name not in row]
        unknown = [name for name in row if name not in COLUMNS]
        if missing or unknown:
            raise ValueError(
                f"A claim must have the columns {', '.join(COLUMNS)}. "
                f"Missing: {', '.join(missing) or 'none'}. Unknown: {', '.join(unknown) or 'none'}."
            )
        return cls(**{**row, "verdict": _of_today(row)})

    def row(self) -> dict[str, str]:
        """The claim as a row of a record."""
        return dataclasses.asdict(self)


COLUMNS = tuple(field.name for field in dataclasses.fields(Claim))


def _of_today(row: Mapping[str, Any]) -> Verdict:
    """The verdict of a row; records that have been kept since four verdicts know "partly"."""
    if row["verdict"] != "partly":
        return row["verdict"]  # type: ignore[no-any-return]  # checked by the claim itself
    found = str(row["found"])
    if "interval +0.0 to +0.0" in found:  # two arms that were the same run
        return "not tested"
    return "undecided" if "interval" in found else "mixed"


def claim_rows(claims: Iterable[Claim | Mapping[str, Any]]) -> list[dict[str, str]]:
    """Claims as the rows of a record's table ``claims``, each of them checked.

    Raises:
        ValueError: a claim is invalid or a duplicate; the message gives its row.
    """
    rows: list[dict[str, str]] = []
    for number, item in enumerate(claims):
        try:
            row = (item if isinstance(item, Claim) else Claim.from_row(item)).row()
        except ValueError as error:
            raise ValueError(f"Table `claims`, row {number}: {error}") from None
        if row["claim"] in [earlier["claim"] for earlier in rows]:
            raise ValueError(
                f"Table `claims`, row {number}: each claim may occur once. "
                f"Found again: {row['claim']!r}."
            )
        rows.append(row)
    return rows


def claims_table(claims: Iterable[Claim | Mapping[str, Any]]) -> pd.DataFrame:
    """Claims as a chapter shows them: claim, thesis, this run, difference in set-up, verdict.

    In a notebook ``claims_table(claims).style.hide(axis="index")`` wraps the long texts.

    Args:
        claims: claims, or the rows of a record's table ``claims``.

    Raises:
        ValueError: as :func:`claim_rows`.
    """
    import pandas as pd

    rows = claim_rows(claims)
    return pd.DataFrame(
        {
            "claim": [row["claim"] for row in rows],
            "thesis": [f"{row['thesis']} ({row['printed_in']})" for row in rows],
            "this run": [row["found"] for row in rows],
            "difference in set-up": [row["difference"] for row in rows],
            "verdict": [row["verdict"] for row in rows],
        }
    )


# Of five cases that all point one way, 2 in 32 such sets do so by chance: no test at 5 %.
LEAST_CASES = 6


def verdict_of_difference(
    low: float,
    high: float,
    expected: Literal["above", "below"],
    *,
    cases: int = 0,
    acted: bool = True,
) -> Verdict:
    """Verdict on a claim that something is larger, or smaller, than something else.

    Reproduced when the whole interval lies on the claimed side of 0, not reproduced when it lies on
    the other side. An interval that contains 0 leaves it undecided: there may be a difference, up
    to the ends of the interval. Nothing was tested by a single seed, by a handful of cases, by a
    mechanism that did not act, or by two arms that agree in every seed.

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

    Raises:
        ValueError: only one end is NaN, the ends are swapped, or the side is unknown.
    """
    if expected not in ("above", "below"):
        raise ValueError(f"expected must be 'above' or 'below'. Found {expected!r}.")
    one_seed, same_run = math.isnan(low) and math.isnan(high), low == high == 0
    if one_seed or same_run or 0 < cases < LEAST_CASES or not acted:
        return "not tested"
    if not low <= high:
        raise ValueError(f"low must be at most high. Found low={low}, high={high}.")
    above, below = low > 0, high < 0
    if not above and not below:
        return "undecided"
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


class NotTestable(TypedDict):
    """The fields of a claim that could not be tested."""

    found: str
    difference: str
    verdict: Verdict


def not_testable(reason: str) -> NotTestable:
    """The fields of a claim that cannot be tested here: ``Claim(..., **not_testable(reason))``.

    Args:
        reason: what is missing, such as the data or the time on a GPU.

    Raises:
        ValueError: there is no reason.
    """
    if not reason.strip():
        raise ValueError(f"reason must be text. Found {reason!r}.")
    return {"found": "not measured", "difference": reason, "verdict": "not testable here"}
