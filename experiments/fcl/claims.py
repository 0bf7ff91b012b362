"""The claims of the thesis's chapter 3, as functions of the tables of a record.

:func:`claims` gives all rows of the ledger. No number of a record follows from this module, so
that a record that has been kept is judged by the rules of today.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd

from experiments.fcl.evidence import NO_BOX
from experiments.fcl.figures import (
    SPLITS,
    drops,
    frames,
    label,
    last_session,
    printed_parts,
    with_parts,
)
from experiments.run.claims import OWN_QUESTION, Claim, not_testable
from experiments.run.facts import (
    NO_FACT,
    Fact,
    beyond,
    cell,
    chosen_words,
    difference_claim,
    in_points,
    names_by_verdict,
)
from experiments.run.paired import PairedDifference
from experiments.run.records import RunRecord
from experiments.run.results import thesis_table

EARLIER = {"icarl": "iCaRL", "lucir": "Rebalance", "fsll": "FSLL", "topic": "TOPIC"}
"""Earlier incremental methods in table 3.1."""

UNSEEN = "Where new classes have unseen parts,"
PLAIN_BOX = f"{UNSEEN} the narrow box pays for the plain network"
NOISY_BOX = f"{UNSEEN} the narrow box pays for the network trained under noise"
FLATTER = "F2M's minimum is flatter than that of plain training"
WHOLE = "FM + PF + PC + PN"
GROUPS = ("new", "base")
LEAST_CLAMPED = 0.01  # share of the tuned weights that a clamp moved: the box acted
PULL = (0.01, 100.0)  # penalty over data: it acted, and left something to learn
LEAST_FLATTER = 1.5  # times, in the same box: the noise acted


def claims(record: RunRecord) -> list[Claim]:
    """Every claim of chapter 3, with the verdict that its tables give."""
    evidence = Evidence(record)
    return [
        *evidence.comparison(),
        *evidence.unseen_parts(),
        *evidence.flatness(),
        *evidence.parts(),
        *evidence.half_width(),
        *evidence.shots(),
        *evidence.norms(),
        *evidence.draws(),
        *elsewhere(),
    ]


class Evidence:
    """The tables of one record.

    Args:
        record: of ``chapters/fcl_evidence.py``, live or kept.
    """

    def __init__(self, record: RunRecord) -> None:
        self.tables = frames(record)
        self.p: dict[str, Any] = {**record.parameters}
        self.splits: Sequence[str] = self.p["class_splits"]
        self.main = next((name for name in self.splits if name != "unseen_parts"), "random")
        self.setting = (
            "{dataset}, width {width}, {base_images} base images a class "
            "(thesis: CIFAR-100, width 64, 500 images, 10 runs)".format_map(self.p)
        )
        self.printed = thesis_table("3_1")

    # Mechanisms --------------------------------------------------------------------------------

    def flatter(
        self, network: str | float, value: str = "indicator", part: str = "test", classes: str = ""
    ) -> PairedDifference:
        """Natural logarithm of how many times flatter than plain training, in the thesis's box.

        Args:
            network: name of a base training, or half-width of the noise it was trained under.
            value: ``"indicator"`` or ``"variance"``.
            part: of the images.
            classes: split of the classes.
        """
        table = self.tables["flatness"]
        rows = table[
            (table["classes"] == (classes or self.main))
            & (table["part"] == part)
            & (table["lr"] == self.p["lr"])
            & (table["bound"] == min(self.p["flatness_bounds"]))
        ]
        own = rows[rows["training" if isinstance(network, str) else "noise"] == network]
        plain = rows[rows["training"] == "ncm"].assign(arm="plain")
        both = pd.concat([plain, own.drop_duplicates("seed").assign(arm="noise")])
        positive = both[value].astype(float)
        logs = both.assign(log=np.log(positive.where(positive > 0)))
        return PairedDifference.between(logs, "arm", "plain", "noise", "log")

    def noise_acted(self, network: str | float = "", classes: str = "") -> Fact:
        """How many times flatter the noise made the minimum: that of the thesis, or another's."""
        gain = self.flatter(network or self.p["noise_bound"], classes=classes)
        if not gain.seeds:
            return Fact("the flatness of its network was not measured", False)
        times = math.exp(gain.mean)
        return Fact(f"the noise made the minimum {times:.1f} times flatter", times >= LEAST_FLATTER)

    def f2m_acted(self, classes: str) -> Fact:
        """Noise or box did something."""
        noise = self.noise_acted("f2m", classes)
        table = self.tables["boxes"]
        box = clamped(table[(table["classes"] == classes) & (table["method"] == "f2m")])
        return (noise & box)._replace(acted=noise.acted or box.acted)

    def penalty_acted(self, method: str) -> Fact:
        """The pull of a penalty beside the step of the data, median over sessions and seeds."""
        table = self.tables["gradients"]
        own = table[(table["classes"] == self.main) & (table["method"] == method)]
        pull = float((own["penalty"].astype(float) / own["data"].astype(float)).median())
        if math.isnan(pull):
            return Fact("the pull of the penalty was not measured", False)
        words = f"the penalty pulls with {pull:.2g} of the data"
        return Fact(words, PULL[0] <= pull <= PULL[1])

    # All methods -------------------------------------------------------------------------------

    def claim(
        self, claim: str, printed_in: str, thesis: str, found: PairedDifference, anchor: str,
        **options: Any,
    ) -> Claim:  # fmt: skip
        """A claim about a difference in this record."""
        return difference_claim(claim, printed_in, thesis, found, self.setting, anchor, **options)

    def better(
        self, claim: str, printed_in: str, effect: float | None, one: str, other: str,
        *, classes: str = "", value: str = "accuracy", session: int | None = None, **options: Any,
    ) -> Claim:  # fmt: skip
        """One method against another, at the last session unless another is named."""
        rows = self.methods(classes or self.main)
        rows = last_session(rows) if session is None else rows[rows["session"] == session]
        found, words = (
            PairedDifference.between(rows, "method", one, other, value),
            in_points(effect),
        )
        anchor = "sec-evidence-methods"
        return self.claim(claim, printed_in, words, found, anchor, effect=effect, **options)

    def methods(self, classes: str) -> pd.DataFrame:
        """Rows of all methods of a split."""
        table = self.tables["methods"]
        return table[table["classes"] == classes]

    def at_end(self, method: str, table: pd.DataFrame | None = None) -> float:
        """Printed accuracy after session 9, of the thesis's own run where there are two rows."""
        table = self.printed if table is None else table
        rows = table[table["method"] == method].sort_values("reimplemented", ascending=False)
        return float(rows["session_9"].iloc[0])

    def comparison(self) -> Iterator[Claim]:
        """Tables 3.1 to 3.3: who beats whom."""
        end, better, f2m = self.at_end, self.better, self.f2m_acted(self.main)
        fsll, second = self.penalty_acted("fsll"), thesis_table("3_2")
        arms = (("ncm", "Baseline", "The frozen network", Fact()), ("f2m", "F2M", "F2M", f2m))
        for method, name, words, own in arms:
            for other, theirs in EARLIER.items():
                fact, effect = own & fsll if other == "fsll" else own, end(name) - end(theirs)
                claim = f"{words} beats {label(other)}"
                yield better(claim, "Table 3.1", effect, method, other, fact=fact)
            effect = end(name, second) - end("IDLVQ-C", second)
            claim = f"{words} beats {label('idlvq')}"
            yield better(claim, "Table 3.2", effect, method, "idlvq", fact=own)
            claim = f"{words} leads the earlier methods in every session"
            yield self.in_every_session(claim, "Section 3.5.2", method, [*EARLIER], own & fsll)
        names = {"f2m": "F2M", "ncm": "Baseline", "crt": "cRT", "joint": "Joint-training"}
        for claim, one, other in (
            ("F2M beats the frozen network", "f2m", "ncm"),
            ("The upper bound cRT beats F2M", "crt", "f2m"),
            ("The upper bound cRT beats the frozen network", "crt", "ncm"),
            ("The frozen network beats joint training", "ncm", "joint"),
            ("Balanced re-training (cRT) beats joint training", "crt", "joint"),
        ):
            fact = f2m if "f2m" in (one, other) else Fact()
            effect = end(names[one]) - end(names[other])
            yield better(claim, "Table 3.1", effect, one, other, fact=fact)
        claim = "F2M beats the frozen network in every session"
        yield self.in_every_session(claim, "Table 3.1", "f2m", ["ncm"], f2m)
        yield self.within("F2M ends within 0.8 points of the upper bound cRT", 0.8, f2m)
        claim = (
            "Joint training starves the new classes: fewer are right than with the frozen network"
        )
        options: dict[str, Any] = {"value": "new_accuracy", "expected": "below"}
        yield better(claim, "Section 3.5.2", None, "joint", "ncm", **options)
        first = self.printed.set_index("method")["session_1"]
        effect = float(first["F2M"] - first["Baseline"])
        options = {"session": 1, "expected": "below", "fact": self.noise_acted("f2m")}
        claim = "Noise costs accuracy in the base session"
        yield better(claim, "Tables 3.1 and 3.6", effect, "f2m", "ncm", **options)

    def in_every_session(
        self, claim: str, printed_in: str, method: str, others: Sequence[str], fact: Fact
    ) -> Claim:
        """In how many few-shot sessions the interval above each of the others lies above zero."""
        rows = self.methods(self.main)
        found = [
            [PairedDifference.between(part, "method", method, other) for other in others]
            for _, part in rows[rows["session"] > 1].groupby("session")
        ]
        clear = sum(all(gap.low > 0 for gap in gaps) for gaps in found)
        every = [gap for gaps in found for gap in gaps]
        fact = fact.seen_in(every)
        nearest = ", ".join(f"{min(gap.mean for gap in gaps):+.1f}" for gaps in found)
        return Claim.of_share(
            claim, printed_in, "in all eight", clear, max(len(found), 1), self.setting,
            "fig-evidence-sessions", counted="sessions", mechanism=fact.words, acted=fact.acted,
            shown=f"points {'above the nearest ' if len(others) > 1 else ''}{nearest or '-'}",
        )  # fmt: skip

    def within(self, claim: str, points: float, fact: Fact) -> Claim:
        """That F2M is not further than so many points behind cRT."""
        gap = PairedDifference.between(
            last_session(self.methods(self.main)), "method", "crt", "f2m"
        )
        return self.claim(
            claim, "Tables 3.1 to 3.3", f"at most {points} points behind", beyond(gap, points),
            "sec-evidence-methods", expected="below", fact=fact,
            shown=f"Shown: distance to cRT minus {points} points.",
        )  # fmt: skip

    # New classes that are new ------------------------------------------------------------------

    def unseen_parts(self) -> Iterator[Claim]:
        """This book's own question."""
        if "unseen_parts" not in self.splits:
            return
        own = partial(self.better, printed_in=OWN_QUESTION, effect=None, classes="unseen_parts")
        f2m = self.f2m_acted("unseen_parts")
        yield own(f"{UNSEEN} fine-tuning beats the frozen network", one="finetune", other="ncm")
        yield own(f"{UNSEEN} F2M beats the frozen network", one="f2m", other="ncm", fact=f2m)
        yield own(f"{UNSEEN} F2M beats fine-tuning", one="f2m", other="finetune", fact=f2m)
        flat: dict[str, Any] = {"fact": self.noise_acted("f2m_flat", "unseen_parts")}
        words = f"{UNSEEN} F2M with a flat minimum beats"
        yield own(f"{words} the frozen network", one="f2m_flat", other="ncm", **flat)
        yield own(f"{words} fine-tuning", one="f2m_flat", other="finetune", **flat)
        yield own(f"{words} F2M chosen by accuracy alone", one="f2m_flat", other="f2m", **flat)
        claim = f"{UNSEEN} F2M beats training by SAM with the same sessions"
        yield own(claim, one="f2m", other="sam", fact=f2m)
        claim = f"{UNSEEN} LDA on frozen features beats the frozen network"
        yield own(claim, one="lda", other="ncm")
        for rate, words in self.rates().items():
            yield from self.boxes_pay(rate, words)

    def rates(self) -> dict[float, str]:
        """The thesis's rate and those above it, with what a claim says of them."""
        thesis = self.p["session_lr"]
        above = sorted(rate for rate in self.p["plane_rates"] if rate > thesis)
        return {thesis: ""} | {rate: f", at a rate of {rate:g}" for rate in above}

    def boxes_pay(self, rate: float, words: str) -> Iterator[Claim]:
        """What box and noise do at one rate, where there is something to learn."""
        box, noise = self.p["box"], self.p["noise_bound"]
        for claim, own in ((PLAIN_BOX, 0.0), (NOISY_BOX, noise)):
            yield self.box_gain(
                claim + words,
                OWN_QUESTION,
                "no number",
                box,
                noise=own,
                rate=rate,
                classes="unseen_parts",
            )
        rows = self.plane("unseen_parts", rate)
        found = PairedDifference.between(rows[rows["box"] == box], "noise", noise, 0.0)
        yield self.claim(
            f"{UNSEEN} training under noise pays inside the narrow box{words}", OWN_QUESTION,
            "no number", found, "sec-evidence-plane", fact=self.noise_acted(classes="unseen_parts"),
        )  # fmt: skip

    def plane(self, classes: str, rate: float, noise: float | None = None) -> pd.DataFrame:
        """Rows of the plane of rates and boxes at one rate, of one network or of all."""
        table = self.tables["plane"]
        rows = table[(table["classes"] == classes) & (table["rate"] == rate)]
        return rows if noise is None else rows[rows["noise"] == noise]

    def box_gain(
        self, claim: str, printed_in: str, thesis: str, box: float,
        *, noise: float, rate: float, classes: str = "", value: str = "accuracy",
    ) -> Claim:  # fmt: skip
        """A box minus no box, and whether learning without one beat freezing."""
        classes = classes or self.main
        rows = self.plane(classes, rate, noise)
        fact = clamped(rows[rows["box"] == box])
        both = pd.concat([rows, self.plane(classes, 0.0, noise)])
        learning = PairedDifference.between(both, "box", NO_BOX, 0.0)
        if learning.seeds:
            fact = fact.with_words(f"no box minus frozen {learning.mean:+.1f} points")
        found = PairedDifference.between(rows, "box", box, NO_BOX, value)
        return self.claim(claim, printed_in, thesis, found, "sec-evidence-plane", fact=fact)

    # Tables 3.5 to 3.8 -------------------------------------------------------------------------

    def flatness(self) -> Iterator[Claim]:
        """Table 3.5, and what the section says of it."""
        printed, noise = thesis_table("3_5").set_index("method"), self.p["noise_bound"]
        options: dict[str, Any] = {"anchor": "sec-evidence-flatness", "unit": "log"}
        shown, ratios = "Shown: natural logarithm of the ratio, plain over noise.", {}
        for part, where in (("train", "training"), ("test", "test")):
            for value in ("indicator", "variance"):
                column = f"{value}_{part}"
                ratios[column] = cell(printed, "Baseline", column) / cell(printed, "F2M", column)
                yield self.claim(
                    f"{FLATTER}: {value} on {where} images", "Table 3.5",
                    f"{ratios[column]:.1f} times", self.flatter(noise, value, part),
                    effect=math.log(ratios[column]), shown=shown, **options,
                )  # fmt: skip
        found = beyond(self.flatter(noise), math.log(ratios["indicator_test"]))
        yield self.claim(
            "F2M's minimum is at least as many times flatter as printed", "Table 3.5",
            f"{ratios['indicator_test']:.1f} times", found, **options,
            shown="Shown: natural logarithm of the ratio minus that of the printed one.",
        )  # fmt: skip

    def parts(self) -> Iterator[Claim]:
        """Table 3.6, at the thesis's learning rate: once with its box, once with a narrow one."""
        for box, words in self.boxes().items():
            yield from self.ablation(box, words)
        printed = printed_parts(thesis_table("3_6"))
        rate, noise = self.p["session_lr"], self.p["noise_bound"]
        both = pd.concat([self.plane(self.main, rate, 0.0), self.plane(self.main, 0.0, 0.0)])
        effect = self.at_end("Baseline") - cell(printed, "none", "session_9")
        yield self.claim(
            "At the thesis's learning rate the frozen network beats fine-tuning without a box",
            "Tables 3.1 and 3.6", in_points(effect),
            PairedDifference.between(both, "box", 0.0, NO_BOX), "sec-evidence-plane", effect=effect,
        )  # fmt: skip
        for box, words in self.boxes().items():
            claim = f"Clamping keeps the base classes, at the thesis's learning rate ({words})"
            yield self.box_gain(
                claim, "Section 3.4", "no number", box,
                noise=noise, rate=rate, value="base_accuracy",
            )  # fmt: skip

    def ablation(self, box: float, words: str) -> Iterator[Claim]:
        """The rows of table 3.6 against each other, with one box."""
        table, printed = self.tables["ablation"], printed_parts(thesis_table("3_6"))
        rows = with_parts(table[(table["classes"] == self.main) & (table["box"] == box)])
        last, noise = last_session(rows), self.noise_acted()
        alone, whole = (clamped(last[last["parts"] == name]) for name in ("PC", WHOLE))
        options: dict[str, Any] = {"anchor": "sec-evidence-ablation"}
        keeps = "Clamping keeps fine-tuning of the plain network from forgetting"
        beside = "beside the other three parts"
        for claim, one, other, fact in (
            (keeps, "PC", "none", alone),
            (f"Clamping helps {beside}", WHOLE, "FM + PF + PN", whole),
            (f"Prototype fixing helps {beside}", WHOLE, "FM + PC + PN", Fact()),
            (f"Normalising prototypes helps {beside}", WHOLE, "FM + PF + PC", Fact()),
            ("The other three parts help beside clamping", WHOLE, "PC", noise),
        ):
            effect = cell(printed, one, "session_9") - cell(printed, other, "session_9")
            found = PairedDifference.between(last, "parts", one, other)
            yield self.claim(
                f"{claim} ({words})", "Table 3.6", in_points(effect), found,
                effect=effect, fact=fact, **options,
            )  # fmt: skip
        effect = cell(printed, "PC", "pd") - cell(printed, WHOLE, "pd")
        found = PairedDifference.between(
            drops(rows, "parts").reset_index(), "parts", "PC", WHOLE, "drop"
        )
        yield self.claim(
            f"With clamping alone accuracy still drops more than with all four parts ({words})",
            "Table 3.6", in_points(effect), found, effect=effect, fact=noise, **options,
        )  # fmt: skip

    def boxes(self) -> dict[float, str]:
        """Half-widths of the ablation, and their names."""
        return {box: f"box of {box:g}" for box in (self.p["noise_bound"], self.p["box"])}

    def half_width(self) -> Iterator[Claim]:
        """Table 3.8: noise and box of one half-width."""
        table, printed = self.tables["studies"], thesis_table("3_8")
        studies = table[(table["study"] == "bound") & (table["classes"] == self.main)]
        ends = printed[(printed["session"] == 9) & (printed["class_group"] == "all")]
        known = ends.set_index("flat_region_bound_b")["accuracy"]
        bounds = self.p["bounds_studied"]
        narrow, wide = min(bounds), max(bounds)
        best = max(bounds, key=lambda bound: float(known.get(bound, 0.0)))
        last = last_session(studies)
        box = clamped(last[last["value"] == str(narrow)])

        def compare(
            claim: str, one: float, other: float, group: str,
            expected: Literal["above", "below"], fact: Fact = NO_FACT, session: int = 9,
        ) -> Claim:  # fmt: skip
            value = {"all": "accuracy", "base": "base_accuracy", "new": "new_accuracy"}[group]
            rows = studies[studies["session"] == 1] if session == 1 else last
            own = printed[(printed["class_group"] == group) & (printed["session"] == session)]
            numbers = own.set_index("flat_region_bound_b")["accuracy"]
            effect = None
            if one == other:
                fact = Fact(f"{one:g} is the only such half-width of this run", False)
            elif one in numbers and other in numbers:
                effect = float(numbers[one] - numbers[other])
            found = PairedDifference.between(rows, "value", str(one), str(other), value)
            return self.claim(
                claim, "Table 3.8", in_points(effect), found, "sec-evidence-studies",
                expected=expected, effect=effect, fact=fact, shown=f"b {one:g} minus {other:g}.",
            )  # fmt: skip

        yield compare("The best half-width beats the widest", best, wide, "all", "above")
        yield compare("The best half-width beats the narrowest", best, narrow, "all", "above", box)
        claim = "The narrowest half-width costs accuracy on new classes"
        yield compare(claim, narrow, best, "new", "below", box)
        claim = "The widest half-width costs accuracy in session 1"
        yield compare(claim, wide, narrow, "base", "below", session=1)
        claim = "The widest half-width costs accuracy on base classes in the end"
        yield compare(claim, wide, narrow, "base", "below")

    # Further statements ------------------------------------------------------------------------

    def shots(self) -> Iterator[Claim]:
        """The limit that the thesis names: with many images the box is in the way."""
        table, most = self.tables["shots"], max(self.p["shots_studied"])
        rate = min(self.p["plane_rates"][-2:])
        for classes in self.splits:
            same = (table["classes"] == classes) & (table["shots"] == most)
            rows = table[same & (table["rate"] == rate)]
            where = SPLITS.get(classes, classes)
            yield self.claim(
                f"With many images a narrow box costs accuracy on new classes ({where})",
                "Section 3.6", "named as a limit, no number",
                PairedDifference.between(rows, "method", "f2m", "f2m unclamped", "new_accuracy"),
                "sec-evidence-shots", expected="below", fact=clamped(rows[rows["method"] == "f2m"]),
                shown=f"{most} images a new class, rate {rate:g}.",
            )  # fmt: skip

    def norms(self) -> Iterator[Claim]:
        """Table 3.7, in percent of the mean norm of base prototypes."""
        table = self.tables["norms"].astype({"mean": float, "std": float})
        table = table[(table["classes"] == self.main) & (table["training"] == "f2m")]
        base = table[table["group"] == "base"].set_index("seed")
        printed = thesis_table("3_7").set_index("class_group")
        whole, noise = cell(printed, "base", "mean_prototype_norm"), self.noise_acted()
        options: dict[str, Any] = {"fact": noise, "unit": "% of the mean norm"}
        shorter = "Prototypes of new classes are shorter than those of base classes"
        differ = "The norms of new prototypes differ more among themselves than those of base ones"
        for value, claim in (("mean", shorter), ("std", differ)):
            rows = table.assign(share=100 * table[value] / table["seed"].map(base["mean"]))
            new, old = (cell(printed, group, f"{value}_prototype_norm") for group in GROUPS)
            effect = 100 * (new - old) / whole
            found = PairedDifference.between(rows, "group", *GROUPS, "share")
            yield self.claim(
                claim, "Table 3.7", f"{effect:+.1f} % of the mean norm", found,
                "sec-evidence-norms", expected="below" if value == "mean" else "above",
                effect=effect, **options,
            )  # fmt: skip
        share = 100 * cell(printed, "base", "std_prototype_norm") / whole
        found = PairedDifference.of(100 * base["std"] / base["mean"] - share)
        yield self.claim(
            "The norms of base prototypes are as alike as printed", "Table 3.7",
            f"a spread of {share:.1f} % of the mean norm", found, "sec-evidence-norms",
            expected="below", shown="Shown: our spread minus the printed one.", **options,
        )  # fmt: skip

    def draws(self) -> Iterator[Claim]:
        """What is said of the number of noise draws."""
        table, several = self.tables["seconds"], self.p["draws_studied"]
        most, few = max(several), min(several)
        rows = table[table["classes"] == self.main]
        rows = rows.assign(log=np.log(rows["seconds"].astype(float)))
        yield self.claim(
            "More draws of noise cost time", "Section 3.4", "no number",
            PairedDifference.between(rows, "draws", most, few, "log"), "sec-evidence-studies",
            unit="log", fact=Fact(f"{most} draws against {few}", most > few),
            shown=f"Shown: natural logarithm of the ratio, {most} draws over {few}.",
        )  # fmt: skip


def clamped(rows: pd.DataFrame) -> Fact:
    """Which share of the tuned weights a clamp moved, mean over seeds."""
    share = float(rows["moved"].astype(float).mean())
    if math.isnan(share):
        return Fact("no such box was measured", False)
    words = f"a clamp moved {100 * share:.1f} % of the tuned weights"
    return Fact(words, share >= LEAST_CLAMPED)


def elsewhere() -> Iterator[Claim]:
    """Claims about data that cannot be fetched here."""
    reason = "the images cannot be fetched here; loaders and profile are in the project"
    for claim, place in (
        ("F2M beats the frozen network on miniImageNet", "Table 3.2"),
        ("F2M beats the frozen network on CUB-200-2011", "Table 3.3"),
        ("F2M beats every earlier method on the fixed lists of CIFAR-100", "Table 3.9"),
        ("F2M beats every earlier method on the fixed lists of miniImageNet", "Table 3.10"),
        ("F2M beats every earlier method on the fixed lists of CUB-200-2011", "Table 3.11"),
        ("The re-implementation of FSLL reaches the published accuracy", "Table 3.4"),
        ("The re-implementations of iCaRL and Rebalance reach what is published", "Figure 3.3"),
    ):
        yield Claim(claim, place, "see there", anchor="sec-evidence-claims", **not_testable(reason))


# In five sentences --------------------------------------------------------------------------------


def summary(record: RunRecord) -> str:
    """What held, what did not, and when: five sentences, each chosen by the verdicts."""
    evidence = Evidence(record)
    known = {claim.claim: claim for claim in claims(record)}
    frozen = f"{UNSEEN} F2M beats the frozen network"
    sentences = [
        "On random classes F2M " + _against_frozen(known.get("F2M beats the frozen network")),
        "On new classes with unseen parts F2M " + _against_frozen(known.get(frozen)),
        _box_by_rate(evidence, known),
        _flatter(known.get(f"{FLATTER}: indicator on test images")),
        _earlier_methods(known),
    ]
    return "\n".join(f"{number}. {text}." for number, text in enumerate(sentences, start=1))


def _against_frozen(claim: Claim | None) -> str:
    words = {
        "reproduced": "ends above the frozen network",
        "not reproduced": "does not end above the frozen network",
        "undecided": "cannot be told from the frozen network",
    }
    return chosen_words(claim, words)


def _flatter(claim: Claim | None) -> str:
    words = {
        "reproduced": "made the minimum flatter",
        "not reproduced": "did not make the minimum flatter",
        "undecided": "made no clear difference to the flatness of the minimum",
    }
    return f"Training under noise {chosen_words(claim, words)}"


def _box_by_rate(evidence: Evidence, known: Mapping[str, Claim]) -> str:
    """When the narrow box pays: a part of the sentence for each rate."""
    words = {"reproduced": "pays", "not reproduced": "costs accuracy", "undecided": "is unclear"}
    parts = [
        f"at a rate of {rate:g} it {chosen_words(known.get(NOISY_BOX + suffix), words)}"
        for rate, suffix in evidence.rates().items()
    ]
    return f"There the narrow box, around the network trained under noise: {'; '.join(parts)}"


def _earlier_methods(known: Mapping[str, Claim]) -> str:
    """Which earlier methods the frozen network beats."""
    beaten = {
        label(other).partition(" (")[0]: known[f"The frozen network beats {label(other)}"]
        for other in (*EARLIER, "idlvq")
    }
    words = {
        "reproduced": "ends above",
        "not reproduced": "does not end above",
        "undecided": "cannot be told from",
        "not tested": "was not tested against",
    }
    return f"The frozen network {names_by_verdict(beaten, words)}"
