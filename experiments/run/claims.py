"""Claims of the thesis beside what was found, with a verdict that follows from a fixed rule.

A chapter makes one :class:`Claim` for each claim that it examines and stores them in its record::

    record.table("claims", claim_rows(claims))

Or its header names a module, ``ktlib: {claims: experiments.fcl.claims}``, whose function
``claims(record)`` makes them from the other tables. Then a record that has been kept follows the
rules of today. The book's list of claims is made by :func:`claims_of` either way.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from experiments.run.chapter_source import chapter_source, chapters
from experiments.run.provenance import chapter_header
from experiments.run.verdicts import VERDICTS, Verdict, verdict_of_difference, verdict_of_share

if TYPE_CHECKING:
    import pandas as pd

    from experiments.run.paired import PairedDifference
    from experiments.run.records import RunRecord

__all__ = [
    "OWN_QUESTION",
    "VERDICTS",
    "Claim",
    "Verdict",
    "claim_rows",
    "claims_of",
    "claims_table",
    "not_testable",
    "verdict_of_difference",
    "verdict_of_share",
]
OWN_QUESTION = "this book's question"  # where a claim is printed that the thesis does not make
ANCHOR = re.compile(r"[a-z][a-z0-9-]*")
TEXTS = ("claim", "printed_in", "thesis", "found", "difference", "verdict", "anchor")
NUMBERS = ("printed_effect", "effect", "low", "high")
# What chapters wrote before claims had numbers, such as "-0.6 points, 95 % interval -1.7 to +0.5"
# and "-0.228 nats (95 % interval -0.499 to +0.042, 3 seeds)"
SIGNED = r"[+-]\d+(?:\.\d+)?"
EFFECT = re.compile(
    rf"(?P<effect>{SIGNED})(?: (?P<unit>[a-z]+))?"
    rf"(?:,? \(?95 % interval (?P<low>{SIGNED}) to (?P<high>{SIGNED})| \(one seed)"
)
PRINTED = re.compile(rf"(?P<effect>{SIGNED})(?![\d.]| (?:to|and|\+-) )")  # one number, no range


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claim of the thesis and what became of it. The texts are plain, without Markdown.

    Attributes:
        claim: what is claimed, in a sentence; its identifier, so the same words in every run.
        printed_in: where it is printed, such as ``"Table 3.1"``.
        thesis: the number printed there, or the words where there is no number.
        found: our number with its spread and the number of seeds.
        difference: how our set-up differs from that of the thesis.
        verdict: from a rule of ``experiments.run.verdicts``, never typed.
        anchor: name of the place in the chapter, such as ``"sec-pilot"`` for ``(sec-pilot)=``
            in front of a heading, or the name of a figure.
        mechanism: what shows that the mechanism acted in this run, with its number, such as
            ``"the box held 12 % of the weights"``.
        printed_effect: the difference that the thesis prints, where it is a number.
        effect: our difference, in the same unit.
        low: lower end of its 95 % confidence interval.
        high: upper end.
        unit: of these four numbers; empty where they have none.

    Raises:
        ValueError: a text is empty, the verdict is not one of ``VERDICTS``, the anchor is not a
            valid name, or the numbers are not finite or make no interval.
    """

    claim: str
    printed_in: str
    thesis: str
    found: str
    difference: str
    verdict: Verdict
    anchor: str
    mechanism: str = ""
    printed_effect: float | None = None
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = "points"

    def __post_init__(self) -> None:
        for field in (*TEXTS, "mechanism", "unit"):
            value = getattr(self, field)
            if not isinstance(value, str) or (field in TEXTS and not value.strip()):
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
        self._check_numbers()

    def _check_numbers(self) -> None:
        for field in NUMBERS:
            value = getattr(self, field)
            known = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (known and math.isfinite(value)):
                raise ValueError(
                    f"`{field}` of a claim must be a finite number or None. Found {value!r}."
                )
        ends = (self.low, self.high)
        if None in ends and (ends != (None, None)):
            raise ValueError(f"`low` and `high` of a claim must both be known. Found {ends}.")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"`low` of a claim must be at most `high`. Found {ends}.")

    @property
    def least_seen(self) -> float | None:
        """The smallest difference that the run could have seen: half the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @classmethod
    def of_difference(
        cls,
        claim: str,
        printed_in: str,
        thesis: str,
        difference: PairedDifference,
        setting: str,
        expected: Literal["above", "below"],
        anchor: str,
        *,
        printed_effect: float | None = None,
        mechanism: str = "",
        acted: bool = True,
        cases: int = 0,
        unit: str = "points",
    ) -> Claim:
        """A claim that one thing is larger, or smaller, than another.

        Args:
            claim: as the attribute, and so are ``printed_in``, ``thesis``, ``anchor``,
                ``mechanism`` and ``unit``.
            printed_in: where it is printed.
            thesis: what is printed there.
            difference: what this run measured.
            setting: how our set-up differs from that of the thesis.
            expected: the side of 0 on which the thesis puts the difference.
            anchor: the place in the chapter.
            printed_effect: the printed difference. With it, the run can also show a clear absence,
                see :func:`verdict_of_difference`.
            mechanism: what shows whether the mechanism acted.
            acted: whether it did.
            cases: as in :func:`verdict_of_difference`.
            unit: of the difference.

        Raises:
            ValueError: the printed difference lies on the other side of 0, or a mechanism did not
                act and no words say so; and as :class:`Claim`.
        """
        least = None
        if printed_effect is not None:
            if not (printed_effect > 0 if expected == "above" else printed_effect < 0):
                raise ValueError(
                    f"printed_effect must lie {expected} 0. Found printed_effect={printed_effect}."
                )
            least = abs(printed_effect)
        low, high = difference.low, difference.high
        verdict = verdict_of_difference(low, high, expected, cases=cases, acted=acted, least=least)
        return cls(
            claim, printed_in, thesis, _in_words(difference, unit), setting, verdict, anchor,
            _require_words(mechanism, acted), printed_effect, _known(difference.mean), _known(low),
            _known(high), unit,
        )  # fmt: skip

    @classmethod
    def of_share(
        cls,
        claim: str,
        printed_in: str,
        thesis: str,
        hits: int,
        total: int,
        setting: str,
        anchor: str,
        *,
        counted: str = "cases",
        shown: str = "",
        mechanism: str = "",
        acted: bool = True,
    ) -> Claim:
        """A claim about several cases, such as "in every session".

        Args:
            claim: as the attribute, and so are ``printed_in``, ``thesis``, ``anchor`` and
                ``mechanism``.
            printed_in: where it is printed.
            thesis: what is printed there.
            hits: number of cases in which it holds.
            total: number of cases.
            setting: how our set-up differs from that of the thesis.
            anchor: the place in the chapter.
            counted: what the cases are, such as ``"sessions"``.
            shown: the numbers behind the count, if there is room for them.
            mechanism: what shows whether the mechanism acted.
            acted: whether it did.

        Raises:
            ValueError: a mechanism did not act and no words say so; and as
                :func:`verdict_of_share` and :class:`Claim`.
        """
        verdict = verdict_of_share(hits, total, acted=acted)
        found = f"in {hits} of {total} {counted}" + (f": {shown}" if shown else "")
        said = _require_words(mechanism, acted)
        return cls(claim, printed_in, thesis, found, setting, verdict, anchor, said)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Claim:
        """The claim in a row of a record; rows that were kept may lack what is optional.

        Raises:
            ValueError: a column is missing or unknown, or a value is not allowed.
        """
        missing = [name for name in TEXTS if name not in row]
        unknown = [name for name in row if name not in COLUMNS]
        if missing or unknown:
            raise ValueError(
                f"A claim must have the columns {', '.join(TEXTS)}. "
                f"Missing: {', '.join(missing) or 'none'}. Unknown: {', '.join(unknown) or 'none'}."
            )
        return cls(**{**row, "verdict": _of_today(row)})

    def row(self) -> dict[str, str | float | None]:
        """The claim as a row of a record."""
        return dataclasses.asdict(self)

    def with_numbers(self) -> Claim:
        """With the numbers that its texts hold, where it has none of its own."""
        if self.effect is not None or not (found := EFFECT.match(self.found)):
            return self
        numbers: dict[str, Any] = {
            key: None if found[key] is None else float(found[key])
            for key in ("effect", "low", "high")
        }
        if self.printed_effect is None and (printed := PRINTED.match(self.thesis)):
            numbers["printed_effect"] = float(printed["effect"])
        return dataclasses.replace(self, unit=found["unit"] or "", **numbers)


COLUMNS = tuple(field.name for field in dataclasses.fields(Claim))


def _of_today(row: Mapping[str, Any]) -> Verdict:
    """The verdict of a row; records that have been kept since four verdicts know "partly"."""
    if row["verdict"] != "partly":
        return row["verdict"]  # type: ignore[no-any-return]  # checked by the claim itself
    found = str(row["found"])
    if "interval +0.0 to +0.0" in found:  # two arms that were the same run
        return "not tested"
    return "undecided" if "interval" in found else "mixed"


def _known(number: float) -> float | None:
    """A number as a record holds it: there is no NaN."""
    return None if math.isnan(number) else float(number)


def _require_words(mechanism: str, acted: bool) -> str:
    if not acted and not mechanism.strip():
        raise ValueError(f"mechanism must say why it did not act. Found {mechanism!r}.")
    return mechanism


def _in_words(difference: PairedDifference, unit: str) -> str:
    """A difference with as many decimals as its interval allows, two digits of half its width."""
    if not difference.seeds:
        return str(difference)
    half = difference.half
    # A half far below the mean is rounding: differences of sizes that agree in every seed.
    known = half > 1e-6 * abs(difference.mean)
    digits = min(6, max(1, 1 - math.floor(math.log10(half)))) if known else 1
    mean = f"{difference.mean:+.{digits}f} {unit}".rstrip()
    if math.isnan(half):
        return f"{mean} (one {difference.pairs}, no interval)"
    interval = f"95 % interval {difference.low:+.{digits}f} to {difference.high:+.{digits}f}"
    return f"{mean}, {interval} over {difference.seeds} {difference.pairs}s"


def claims_of(record: RunRecord) -> list[Claim]:
    """The claims of a record, with their numbers.

    They are made by the module that the header of the record's chapter names, else taken from the
    table ``claims``.

    Raises:
        ValueError: the module has no function ``claims``, or a claim is invalid or a duplicate.
    """
    known = record.chapter in chapters()
    header = chapter_header(chapter_source(record.chapter)) if known else {}
    made: Iterable[Claim | Mapping[str, Any]] = record.tables.get("claims", [])
    if name := header.get("claims"):
        maker = getattr(importlib.import_module(name), "claims", None)
        if maker is None:
            raise ValueError(
                f"`claims` in the header of chapter {record.chapter!r} must name a module with a "
                f"function `claims`. Found {name!r}."
            )
        made = maker(record)
    return [claim.with_numbers() for claim in _checked(made)]


def claim_rows(
    claims: Iterable[Claim | Mapping[str, Any]],
) -> list[dict[str, str | float | None]]:
    """Claims as the rows of a record's table ``claims``, each of them checked.

    Raises:
        ValueError: a claim is invalid or a duplicate; the message gives its row.
    """
    return [claim.row() for claim in _checked(claims)]


def _checked(claims: Iterable[Claim | Mapping[str, Any]]) -> list[Claim]:
    found: dict[str, Claim] = {}
    for number, item in enumerate(claims):
        try:
            claim = item if isinstance(item, Claim) else Claim.from_row(item)
        except ValueError as error:
            raise ValueError(f"Table `claims`, row {number}: {error}") from None
        if claim.claim in found:
            raise ValueError(
                f"Table `claims`, row {number}: each claim may occur once. "
                f"Found again: {claim.claim!r}."
            )
        found[claim.claim] = claim
    return [*found.values()]


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
