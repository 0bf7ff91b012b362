"""The claims of the thesis's chapter 3, as functions of the tables of a record.

:func:`claims` gives all rows of the ledger. No number of a record follows from this module, so
that a record that has been kept is judged by the rules of today.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd

from experiments.fcl.evidence import NO_BOX
from experiments.fcl.figures import difference, frames, label, last_session, part_names
from experiments.run.claims import Claim, not_testable
from experiments.run.paired import PairedDifference
from experiments.run.records import RunRecord
from experiments.run.results import thesis_table

EARLIER = {"icarl": "iCaRL", "lucir": "Rebalance", "fsll": "FSLL", "topic": "TOPIC"}
"""Earlier incremental methods in table 3.1."""

LEAST_CLAMPED = 0.01  # share of the tuned weights that a clamp moved: the box acted
PULL = (0.01, 100.0)  # penalty over data: it acted, and left something to learn
LEAST_FLATTER = 1.5  # times, in the same box: the noise acted
Fact = tuple[str, bool]
"""What shows that a mechanism acted, and whether it did."""


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
        p = record.parameters
        self.p: dict[str, Any] = p
        self.main = p["class_splits"][0]
        self.setting = (
            f"{p['dataset']}, width {p['width']}, {p['base_images']} base images a class "
            "(thesis: CIFAR-100, width 64, 500 images, 10 runs)"
        )
        self.printed = thesis_table("3_1")

    # Mechanisms --------------------------------------------------------------------------------

    def noise_acted(self, classes: str) -> Fact:
        """How many times flatter the noise made the minimum, mean over seeds, on test images."""
        ratio = np.exp(self.flatter("f2m", "indicator", "test", classes).mean)
        return f"the noise made the minimum {ratio:.1f} times flatter", bool(ratio >= LEAST_FLATTER)

    def f2m_acted(self, classes: str) -> Fact:
        """Noise or box did something."""
        noise, flatter = self.noise_acted(classes)
        boxes = self.tables["boxes"].query("classes == @classes and method == 'f2m'")
        box, held = clamped(boxes["moved"])
        return f"{noise}; {box}", flatter or held

    def penalty_acted(self, method: str, classes: str) -> Fact:
        """The pull of a penalty beside the step of the data, median over sessions and seeds."""
        own = self.tables["gradients"].query("classes == @classes and method == @method")
        if own.empty:
            return "the method was not run", False
        pull = float((own["penalty"] / own["data"]).median())
        return f"the penalty pulls with {pull:.2g} of the data", PULL[0] <= pull <= PULL[1]

    # Claims ------------------------------------------------------------------------------------

    def better(
        self, claim: str, printed_in: str, effect: float | None, one: str, other: str,
        *, classes: str = "", value: str = "accuracy", fact: Fact = ("", True),
        thesis: str = "", expected: Literal["above", "below"] = "above", session: int | None = None,
    ) -> Claim:  # fmt: skip
        """One method against another, at the last session unless another is named."""
        classes = classes or self.main
        rows = self.tables["methods"].query("classes == @classes")
        rows = last_session(rows) if session is None else rows[rows["session"] == session]
        found = difference(rows, "method", one, other, value)
        words = thesis or (f"{effect:+.2f} points" if effect is not None else "no number")
        return Claim.of_difference(
            claim, printed_in, words, found, self.setting, expected, "sec-evidence-methods",
            printed_effect=effect, mechanism=fact[0], acted=fact[1],
        )  # fmt: skip

    def at_end(self, method: str, table: pd.DataFrame | None = None) -> float:
        """Printed accuracy after session 9, of the thesis's own run where there are two rows."""
        table = self.printed if table is None else table
        rows = table[table["method"] == method].sort_values("reimplemented", ascending=False)
        return float(rows["session_9"].iloc[0])

    def comparison(self) -> Iterator[Claim]:
        """Tables 3.1 and 3.2: who beats whom."""
        end, acted = self.at_end, self.f2m_acted(self.main)
        penalties = {"fsll": self.penalty_acted("fsll", self.main)}
        ids = {"ncm": "Baseline", "f2m": "F2M"}
        for method, words in (("ncm", "The frozen network"), ("f2m", "F2M")):
            for other, name in EARLIER.items():
                fact = penalties.get(other, acted if method == "f2m" else ("", True))
                effect = end(ids[method]) - end(name)
                claim = f"{words} beats {label(other)}"
                yield self.better(claim, "Table 3.1", effect, method, other, fact=fact)
            table = thesis_table("3_2")
            effect = end(ids[method], table) - end("IDLVQ-C", table)
            fact = acted if method == "f2m" else ("", True)
            claim = f"{words} beats {label('idlvq')}"
            yield self.better(claim, "Table 3.2", effect, method, "idlvq", fact=fact)
        effect = end("F2M") - end("Baseline")
        claim = "F2M beats the frozen network"
        yield self.better(claim, "Table 3.1", effect, "f2m", "ncm", fact=acted)
        yield self.in_every_session("F2M beats the frozen network in every session", "f2m", acted)
        effect = end("cRT") - end("F2M")
        claim = "The upper bound cRT beats F2M"
        yield self.better(claim, "Table 3.1", effect, "crt", "f2m", fact=acted)
        yield self.within("F2M ends within 0.8 points of the upper bound cRT", 0.8, acted)
        effect = end("cRT") - end("Baseline")
        claim = "The upper bound cRT beats the frozen network"
        yield self.better(claim, "Table 3.1", effect, "crt", "ncm")
        effect = end("Baseline") - end("Joint-training")
        claim = "The frozen network beats joint training"
        yield self.better(claim, "Table 3.1", effect, "ncm", "joint")
        effect = end("cRT") - end("Joint-training")
        claim = "Balanced re-training (cRT) beats joint training"
        yield self.better(claim, "Table 3.1", effect, "crt", "joint")
        claim = (
            "Joint training starves the new classes: fewer are right than with the frozen network"
        )
        yield self.better(
            claim, "Section 3.4", None, "joint", "ncm", value="new_accuracy", expected="below"
        )
        claim = "Noise costs accuracy in the base session"
        first = self.printed.set_index("method")["session_1"]
        effect = float(first["F2M"] - first["Baseline"])
        yield self.better(
            claim, "Table 3.1", effect, "f2m", "ncm", expected="below", session=1,
            fact=self.noise_acted(self.main),
        )  # fmt: skip

    def in_every_session(self, claim: str, method: str, fact: Fact) -> Claim:
        """In how many few-shot sessions the interval lies above zero."""
        rows = self.tables["methods"].query("classes == @self.main and session > 1")
        found = [difference(part, "method", method, "ncm") for _, part in rows.groupby("session")]
        clear = sum(gap.low > 0 for gap in found)
        means = ", ".join(f"{gap.mean:+.1f}" for gap in found)
        tested = fact[1] and all(gap.seeds > 1 for gap in found)
        words = fact[0] if tested or not fact[1] else "a single seed gives no interval"
        return Claim.of_share(
            claim, "Table 3.1", "in all eight", clear, len(found), self.setting,
            "fig-evidence-sessions", counted="sessions", shown=f"points {means}",
            mechanism=words, acted=tested,
        )  # fmt: skip

    def within(self, claim: str, points: float, fact: Fact) -> Claim:
        """That F2M is not further than so many points behind cRT."""
        rows = last_session(self.tables["methods"].query("classes == @self.main"))
        gap = difference(rows, "method", "crt", "f2m")
        shifted = PairedDifference(
            gap.mean - points, gap.low - points, gap.high - points, gap.seeds, gap.pairs
        )
        return Claim.of_difference(
            claim, "Section 3.4", f"at most {points} behind", shifted,
            f"Shown: distance to cRT minus {points}. {self.setting}", "below",
            "sec-evidence-methods", mechanism=fact[0], acted=fact[1],
        )  # fmt: skip

    def unseen_parts(self) -> Iterator[Claim]:
        """This book's own question: new classes that are new."""
        split = self.p["class_splits"][-1]
        if split != "unseen_parts":
            return
        own = partial(self.better, printed_in="this book", effect=None, classes=split)
        acted = self.f2m_acted(split)
        where = "Where new classes have unseen parts,"
        yield own(f"{where} fine-tuning beats the frozen network", one="finetune", other="ncm")
        yield own(f"{where} F2M beats the frozen network", one="f2m", other="ncm", fact=acted)
        yield own(f"{where} F2M beats fine-tuning", one="f2m", other="finetune", fact=acted)
        yield own(f"{where} F2M beats training by SAM with the same sessions", one="f2m", other="sam", fact=acted)  # fmt: skip
        claim = f"{where} LDA on frozen features beats the frozen network"
        yield own(claim, one="lda", other="ncm")
        for claim, noise in (
            (f"{where} the narrow box pays for the plain network", 0.0),
            (f"{where} the narrow box pays for the network trained under noise", self.p["noise_bound"]),
        ):  # fmt: skip
            yield self.box_gain(claim, "this book", None, split, noise, self.p["box"], "no number")
        claim = f"{where} training under noise pays inside the narrow box"
        rows = self.plane(split, self.p["session_lr"]).query("box == @self.p['box']")
        found = difference(rows, "noise", self.p["noise_bound"], 0.0)
        fact = self.noise_acted(split)
        yield Claim.of_difference(
            claim, "this book", "no number", found, self.setting, "above", "sec-evidence-plane",
            mechanism=fact[0], acted=fact[1],
        )  # fmt: skip

    def plane(self, classes: str, rate: float) -> pd.DataFrame:
        """Rows of the plane of rates and boxes at one rate."""
        table = self.tables["plane"]
        return table[(table["classes"] == classes) & (table["rate"] == rate)]

    def box_gain(
        self, claim: str, printed_in: str, effect: float | None, classes: str, noise: float,
        box: float, thesis: str, value: str = "accuracy",
    ) -> Claim:  # fmt: skip
        """A box minus no box, at the thesis's learning rate."""
        rows = self.plane(classes, self.p["session_lr"]).query("noise == @noise")
        found = difference(rows, "box", box, NO_BOX, value)
        fact = clamped(rows.loc[rows["box"] == box, "moved"])
        return Claim.of_difference(
            claim, printed_in, thesis, found, self.setting, "above", "sec-evidence-plane",
            printed_effect=effect, mechanism=fact[0], acted=fact[1],
        )  # fmt: skip

    def flatter(self, training: str, value: str, part: str, classes: str) -> PairedDifference:
        """Natural logarithm of how many times flatter than plain training, in the thesis's box."""
        table = self.tables["flatness"]
        rows = table[
            (table["classes"] == classes)
            & (table["part"] == part)
            & (table["lr"] == self.p["lr"])
            & (table["bound"] == min(self.p["flatness_bounds"]))
        ]
        logs = rows.assign(**{value: np.log(rows[value])})
        return difference(logs, "training", "ncm", training, value)

    def flatness(self) -> Iterator[Claim]:
        """Table 3.5, and what the section says of it."""
        printed = thesis_table("3_5").set_index("method")
        setting = f"Shown: logarithm of the ratio, plain over F2M. {self.setting}"
        for part, where in (("train", "training"), ("test", "test")):
            for value, words in (("indicator", "indicator"), ("variance", "variance")):
                ratio = (
                    printed.loc["Baseline", f"{value}_{part}"]
                    / printed.loc["F2M", f"{value}_{part}"]
                )
                found = self.flatter("f2m", value, part, self.main)
                yield Claim.of_difference(
                    f"F2M's minimum is flatter than that of plain training: {words} on {where} images",
                    "Table 3.5", f"{ratio:.1f} times", found, setting, "above",
                    "sec-evidence-flatness", printed_effect=float(np.log(ratio)), unit="log",
                )  # fmt: skip
        ratio = printed.loc["Baseline", "indicator_test"] / printed.loc["F2M", "indicator_test"]
        found, shift = self.flatter("f2m", "indicator", "test", self.main), float(np.log(ratio))
        beyond = PairedDifference(
            found.mean - shift, found.low - shift, found.high - shift, found.seeds, found.pairs
        )
        yield Claim.of_difference(
            "F2M's minimum is at least as many times flatter as printed", "Table 3.5",
            f"{ratio:.1f} times", beyond,
            f"Shown: logarithm of the ratio minus that of the printed one. {self.setting}",
            "above", "sec-evidence-flatness", unit="log",
        )  # fmt: skip

    def parts(self) -> Iterator[Claim]:
        """Table 3.6, at the learning rate of the thesis: once with its box, once with a narrow one."""
        table = self.tables["ablation"]
        printed = thesis_table("3_6")
        short = dict(zip(printed.columns[:4], ("fm", "pf", "pc", "pn"), strict=True))
        theirs = printed.rename(columns=short)
        ends = theirs.set_index(theirs.apply(part_names, axis=1))["session_9"]
        whole = "FM + PF + PC + PN"
        says = {
            "Clamping keeps fine-tuning of the plain network from forgetting": (
                "PC",
                "none",
                "box",
            ),
            "Clamping helps beside the other three parts": (whole, "FM + PF + PN", "box"),
            "Prototype fixing helps beside the other three parts": (whole, "FM + PC + PN", ""),
            "Normalising prototypes helps beside the other three parts": (
                whole,
                "FM + PF + PC",
                "",
            ),
            "The other three parts help beside clamping": (whole, "PC", "noise"),
        }
        for box, words in self.boxes():
            rows = table[(table["classes"] == self.main) & (table["box"] == box)]
            rows = rows.assign(parts=rows.apply(part_names, axis=1))
            last = last_session(rows)
            moved = last.groupby("parts")["moved"]
            for claim, (one, other, mechanism) in says.items():
                fact: Fact = ("", True)
                if mechanism == "box":
                    fact = clamped(moved.get_group(one))
                elif mechanism == "noise":
                    fact = self.noise_acted(self.main)
                effect = float(ends[one] - ends[other])
                yield Claim.of_difference(
                    f"{claim} ({words})", "Table 3.6", f"{effect:+.2f} points",
                    difference(last, "parts", one, other), self.setting, "above",
                    "sec-evidence-ablation", printed_effect=effect, mechanism=fact[0], acted=fact[1],
                )  # fmt: skip
            wide = rows.pivot_table(index=["parts", "seed"], columns="session", values="accuracy")
            drop = (wide.iloc[:, 0] - wide.iloc[:, -1]).rename("drop").reset_index()
            pd_of = theirs.set_index(ends.index)["pd"]
            effect = float(pd_of["PC"] - pd_of[whole])
            yield Claim.of_difference(
                f"With clamping alone accuracy still drops more than with all four parts ({words})",
                "Table 3.6", f"{effect:+.2f} points", difference(drop, "parts", "PC", whole, "drop"),
                self.setting, "above", "sec-evidence-ablation", printed_effect=effect,
            )  # fmt: skip
        fast = self.plane(self.main, self.p["session_lr"]).query("noise == 0 and box == @NO_BOX")
        frozen = self.plane(self.main, 0.0).query("noise == 0")
        both = pd.concat([fast.assign(arm="finetune"), frozen.assign(arm="ncm")])
        effect = self.at_end("Baseline") - float(ends["none"])
        yield Claim.of_difference(
            "At the thesis's learning rate the frozen network beats fine-tuning without a box",
            "Tables 3.1 and 3.6", f"{effect:+.2f} points", difference(both, "arm", "ncm", "finetune"),
            self.setting, "above", "sec-evidence-plane", printed_effect=effect,
        )  # fmt: skip
        for box, words in self.boxes():
            claim = f"Clamping keeps the base classes, at the thesis's learning rate ({words})"
            yield self.box_gain(
                claim, "Section 3.3", None, self.main, self.p["noise_bound"], box, "no number",
                "base_accuracy",
            )  # fmt: skip

    def boxes(self) -> dict[float, str].items:  # type: ignore[name-defined]
        """Half-widths of the ablation, and their names."""
        names = {self.p["noise_bound"]: f"box of {self.p['noise_bound']:g}"}
        return (names | {self.p["box"]: f"box of {self.p['box']:g}"}).items()

    def half_width(self) -> Iterator[Claim]:
        """Table 3.8: noise and box of one half-width."""
        printed = thesis_table("3_8")
        studies = self.tables["studies"].query("study == 'bound' and classes == @self.main")
        bounds = self.p["bounds_studied"]
        narrow, best, wide = min(bounds), 0.02 if 0.02 in bounds else min(bounds), max(bounds)

        def compare(claim: str, one: float, other: float, group: str, session: int) -> Claim:
            value = {"all": "accuracy", "base": "base_accuracy", "new": "new_accuracy"}[group]
            rows = studies[studies["session"] == 1] if session == 1 else last_session(studies)
            own = printed.query("class_group == @group and session == @session")
            numbers = own.set_index("flat_region_bound_b")["accuracy"]
            effect = float(numbers.get(one, np.nan) - numbers.get(other, np.nan))
            found = difference(rows, "value", str(one), str(other), value)
            return Claim.of_difference(
                claim, "Table 3.8", f"{effect:+.2f} points", found,
                f"b {one:g} minus {other:g}. {self.setting}",
                "above" if effect > 0 else "below", "sec-evidence-studies",
                printed_effect=None if np.isnan(effect) or not effect else effect,
            )  # fmt: skip

        yield compare("The best half-width beats the widest", best, wide, "all", 9)
        yield compare("The best half-width beats the narrowest", best, narrow, "all", 9)
        yield compare("A small half-width loses accuracy on new classes", narrow, best, "new", 9)
        yield compare("The widest half-width costs accuracy in session 1", wide, narrow, "base", 1)
        yield compare("The widest half-width costs accuracy on base classes in the end", wide, narrow, "base", 9)  # fmt: skip

    def shots(self) -> Iterator[Claim]:
        """The limit that the thesis names: with many images the box is in the way."""
        table, most = self.tables["shots"], max(self.p["shots_studied"])
        rate = sorted(set(table["rate"]) - {0.0})[0]
        for classes in self.p["class_splits"]:
            rows = table.query("classes == @classes and shots == @most and rate == @rate")
            fact = clamped(rows.loc[rows["method"] == "f2m", "moved"])
            where = "random classes" if classes == self.main else "unseen parts"
            yield Claim.of_difference(
                f"With many images a narrow box costs accuracy on new classes ({where})",
                "Section 3.6", "named as a limit, no number",
                difference(rows, "method", "f2m", "f2m unclamped", "new_accuracy"),
                f"{most} images a new class, rate {rate:g}. {self.setting}", "below",
                "sec-evidence-shots", mechanism=fact[0], acted=fact[1],
            )  # fmt: skip

    def norms(self) -> Iterator[Claim]:
        """Table 3.7, in percent of the mean norm of base prototypes."""
        table = self.tables["norms"].query("classes == @self.main and training == 'f2m'")
        base = table[table["group"] == "base"].set_index("seed")["mean"]
        printed = thesis_table("3_7").set_index("class_group")
        for value, column, claim, expected in (
            ("mean", "mean_prototype_norm", "Prototypes of new classes are shorter than those of base classes", "below"),
            ("std", "std_prototype_norm", "The norms of new prototypes differ more among themselves than those of base ones", "above"),
        ):  # fmt: skip
            rows = table.assign(share=100 * table[value] / table["seed"].map(base))
            theirs = 100 * printed[column] / printed.loc["base", "mean_prototype_norm"]
            effect = float(theirs["new"] - theirs["base"])
            yield Claim.of_difference(
                claim, "Table 3.7", f"{effect:+.1f} % of the mean norm",
                difference(rows, "group", "new", "base", "share"), self.setting, expected,
                "sec-evidence-norms", printed_effect=effect, unit="% of the mean norm",
            )  # fmt: skip

    def draws(self) -> Iterator[Claim]:
        """What is said of the number of noise draws."""
        table = self.tables["seconds"].query("classes == @self.main")
        most = max(self.p["draws_studied"])
        few = min(self.p["draws_studied"])
        rows = table.assign(log=np.log(table["seconds"].astype(float)))
        found = difference(rows, "draws", most, few, "log")
        yield Claim.of_difference(
            "More draws of noise cost time", "Section 3.4", "no number", found,
            f"Shown: logarithm of the ratio, {most} draws over {few}. {self.setting}", "above",
            "sec-evidence-studies", unit="log", acted=most > few,
            mechanism=f"{most} draws against {few}",
        )  # fmt: skip


def clamped(moved: pd.Series[Any]) -> Fact:
    """Which share of the tuned weights a clamp moved, mean over seeds."""
    known = moved.dropna().astype(float)
    share = float(known.mean()) if len(known) else 0.0
    return f"a clamp moved {100 * share:.1f} % of the tuned weights", share >= LEAST_CLAMPED


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
        ("The re-implementations of iCaRL and Rebalance reach the published accuracy", "Figure 3.3"),
    ):  # fmt: skip
        yield Claim(claim, place, "see there", anchor="sec-evidence-claims", **not_testable(reason))


def summary(record: RunRecord) -> str:
    """What held, what did not, and when: five sentences, each chosen by what the tables say."""
    by_claim = {claim.claim: claim for claim in claims(record)}

    def said(name: str, words: Callable[[Claim], str]) -> str:
        return words(by_claim[name])

    def numbers(claim: Claim) -> str:
        return claim.found

    where = "Where new classes have unseen parts,"
    sentences = [
        said("F2M beats the frozen network", lambda c: f"On random classes F2M against the frozen network: **{c.verdict}** ({numbers(c)})."),
        said(f"{where} F2M beats the frozen network", lambda c: f"On new classes with unseen parts: **{c.verdict}** ({numbers(c)})."),
        said(f"{where} the narrow box pays for the network trained under noise", lambda c: f"There the narrow box against no box: **{c.verdict}** ({numbers(c)}; {c.mechanism})."),
        said("F2M's minimum is flatter than that of plain training: indicator on test images", lambda c: f"That F2M's minimum is flatter: **{c.verdict}** ({numbers(c)}, natural logarithm of the ratio)."),
        said("The frozen network beats iCaRL", lambda c: f"That a frozen network beats iCaRL: **{c.verdict}** ({numbers(c)})."),
    ]  # fmt: skip
    return "\n".join(f"{number}. {text}" for number, text in enumerate(sentences, start=1))
