"""The claims of the thesis's chapter 4, as functions of the tables of a record.

:func:`claims` gives all rows of the ledger. No number of a record follows from this module, so
that a record that has been kept is judged by the rules of today.

Networks are compared by their gain over single-task training, Dm. Split ones are judged with
running statistics of their own for each task; what one set gives, as published, stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from experiments.mtl.derived import NOTHING, Arm, Measures, farthest, numbers, released_layers
from experiments.mtl.figures import LABELS, NEAR_TIE, PRINTED, layers_in_common, only
from experiments.run.claims import OWN_QUESTION, Claim, not_testable
from experiments.run.facts import (
    NO_FACT,
    Fact,
    beyond,
    cell,
    chosen_words,
    difference_claim,
    names_by_verdict,
)
from experiments.run.paired import PairedDifference
from experiments.run.records import RunRecord
from experiments.run.results import thesis_settings, thesis_table
from ktlib.mtl.metrics import ranking_correlation, top_overlap

LONG, MATRIX = "long", "matrix"
OWN, PUBLISHED = "own", "shared"  # running statistics
NAMES = {method: name for name, method in PRINTED.items()}  # in the printed tables
SURGERY = ("mgda", "graddrop", "pcgrad", "cagrad")
RANDOM = {"random_layers": "rsl", "random_parameters": "rsp"}  # table 4.15
ENDS = {"first": "fsk", "last": "lsk"}  # table 4.16, whose text exchanges the two names
CHOICES = {
    "random_layers": "as many random layers",
    "random_parameters": "as many random parameters",
    "first": "the first K layers",
    "last": "the last K layers",
    "behind_stem": "random layers behind the stem",
}
SOURCES = {"multi_mnist": "images of two digits", "multi_fashion": "images of two garments"}
CUTS = (
    ("all", "quantile", ""),
    ("last", "quantile", ", in the last quarter"),
    ("all", "printed", ", at the printed threshold"),
)
"""Quarters of the training, where severe begins, and what a claim says of the two."""

QUARTERS = (1, 2, 3, 4)
LEAST_STEPS = 300  # that a search has to count
RELEASED_DATA, RELEASED_TOP, LEAST_COMMON, LEAST_RANK = "multi_fashion_mnist", 25, 23, 0.95
MILD, STRICT = 0.0, -0.15  # the ends of figure 4.6

CENTRAL = "Recon improves joint training"
ON_RANDOM = "With joint training, Recon's layers are better than as many random layers"
AS_PUBLISHED = ", with one set of statistics for all tasks"
LEAVE_MORE = "Random layers leave more severe conflicts than Recon's"
WHICH = ("The search", "The whole training")
COMMON = f"has at least {LEAST_COMMON} of the first {RELEASED_TOP} released layers, in every seed"


def on_long(layers: str) -> Arm:
    """Joint training in the long comparison."""
    return Arm(LONG, LONG, "joint", layers)


def in_matrix(method: str, layers: str) -> Arm:
    """A method in the comparison of all of them."""
    return Arm(MATRIX, "methods", method, layers)


def studied(study: str, value: str, method: str = "joint") -> Arm:
    """Another set of layers of Recon."""
    return Arm(MATRIX, study, method, "recon", value)


def claims(record: RunRecord) -> list[Claim]:
    """Every claim of chapter 4, with the verdict that its tables give."""
    evidence = Evidence(record)
    return [
        *evidence.long_comparison(),
        *evidence.methods(),
        *evidence.sizes(),
        *(claim for meaning in CUTS for claim in evidence.severe_conflicts(*meaning)),
        *evidence.other_choices(),
        *evidence.statistics(),
        *evidence.released_ranking(),
        *evidence.stability(),
        evidence.between_seeds(),
        evidence.concentrated(),
        *evidence.severities(),
        *evidence.counts(),
        *evidence.other_quarters(),
        *evidence.transfer(),
        *evidence.lost_skips(),
        *evidence.seconds(),
        *elsewhere(),
    ]


class Evidence(Measures):
    """The claims that one record allows.

    Args:
        record: of ``chapters/recon_evidence.py``, live or kept.
    """

    def __init__(self, record: RunRecord) -> None:
        super().__init__(record)
        self.searched = self.counted(self.quarters)
        thesis = "(thesis: Multi-Fashion+MNIST, width 64, 120,000 images, 3 runs)"
        text = "{dataset}, width {width}, {} images, {} epochs " + thesis
        named = {LONG: ("long_images", "long_epochs"), MATRIX: ("train_images", "epochs")}
        self.setting = {
            size: text.format(*(self.p[name] or "all" for name in names), **self.p)
            for size, names in named.items()
        }

    # Mechanisms --------------------------------------------------------------------------------

    def counted(
        self, quarters: Sequence[int], severity: float | None = None,
        *, each: Sequence[str] = ("seed",), **known: Any,
    ) -> Fact:  # fmt: skip
        """The fewest steps and conflicts behind a ranking, and whether they are enough.

        Args:
            quarters: of the training.
            severity: that of the search without.
            each: columns that tell one ranking from another.
            **known: what tells these searches from others; those of the long size without.
        """
        known = {"size": LONG, "method": "joint", "quarter": (*quarters,)} | known
        known["severity"] = self.p["severity"] if severity is None else severity
        rows = only(self.rankings.scores, **known)
        if rows.empty:
            return Fact("no search has counted conflicts", False)
        rows = rows.assign(conflicts=[np.nansum(numbers(text)) for text in rows["scores"]])
        steps, found = rows.groupby([*each])[["steps", "conflicts"]].sum().min()
        words = f"the search counted {steps:.0f} steps and {found:.0f} conflicts below "
        words += f"{known['severity']:g} (the fewest)"
        return Fact(words, bool(steps >= LEAST_STEPS and found > 0))

    def branched(self) -> Fact:
        """The search of BMTAS: distance between the two largest probabilities of a block."""
        margin = float(self.tables["branches"]["margin"].astype(float).median())
        if math.isnan(margin):
            return Fact("the margin of BMTAS was not measured", False)
        words = f"BMTAS decides with a margin of {margin:.2f} (median over blocks and seeds)"
        decided = margin >= NEAR_TIE
        return Fact(words + ("" if decided else ", a near tie"), decided)

    # Measures ----------------------------------------------------------------------------------

    def claim(
        self, claim: str, printed_in: str, thesis: str, found: pd.Series[float] | PairedDifference,
        anchor: str, *, size: str = MATRIX, effect: float = math.nan, **options: Any,
    ) -> Claim:  # fmt: skip
        """A claim about a difference in this record, by seed."""
        gap = PairedDifference.of(found) if isinstance(found, pd.Series) else found
        options["effect"] = effect if abs(effect) > 0 else None
        setting = self.setting[size]
        return difference_claim(claim, printed_in, thesis, gap, setting, anchor, **options)

    def better(
        self, claim: str, printed_in: str, effect: float, one: Arm, other: Arm, anchor: str,
        *, statistics: str = OWN, thesis: str = "", fact: Fact = NO_FACT,
    ) -> Claim:  # fmt: skip
        """One network against another, in points of the gain over single-task training."""
        found, published = (
            self.gain(one, each) - self.gain(other, each) for each in (statistics, PUBLISHED)
        )
        shown = ""
        if statistics == OWN and published.notna().any():
            shown = f"With one set of statistics for all tasks: {published.mean():+.2f} points."
        return self.claim(
            claim, printed_in, thesis or said(effect), found, anchor, size=one.size,
            effect=effect, shown=shown, fact=fact,
        )  # fmt: skip

    def share(
        self, claim: str, printed_in: str, thesis: str, right: Sequence[bool] | pd.Series[bool],
        anchor: str, counted: str, shown: str, *, size: str = MATRIX, fact: Fact = NO_FACT,
    ) -> Claim:  # fmt: skip
        """A claim about several cases in this record."""
        return Claim.of_share(
            claim, printed_in, thesis, sum(map(bool, right)), max(len(right), 1),
            self.setting[size], anchor, counted=counted, shown=shown, mechanism=fact.words,
            acted=fact.acted,
        )  # fmt: skip

    def all_above(
        self, claim: str, printed_in: str, thesis: str, gaps: Sequence[PairedDifference],
        anchor: str, counted: str, unit: str = "points",
    ) -> Claim:  # fmt: skip
        """That several differences, which Recon makes, have intervals above 0."""
        shown = f"{unit} {', '.join(f'{gap.mean:+.1f}' for gap in gaps if gap.seeds) or '-'}"
        right, fact = [gap.low > 0 for gap in gaps], self.searched.seen_in(gaps)
        return self.share(claim, printed_in, thesis, right, anchor, counted, shown, fact=fact)

    # Table 4.1 ---------------------------------------------------------------------------------

    def long_comparison(self) -> Iterator[Claim]:
        """Joint training, trained longest and with all seeds."""
        arms, anchor = (on_long("recon"), on_long("shared")), "sec-recon-long"
        for claim, statistics in ((CENTRAL, OWN), (CENTRAL + AS_PUBLISHED, PUBLISHED)):
            options: dict[str, Any] = {"statistics": statistics, "fact": self.searched}
            yield self.better(claim, "Table 4.1", recon_effect("joint"), *arms, anchor, **options)
        yield self.below_single("joint", arms[1], anchor)

    def below_single(self, method: str, arm: Arm, anchor: str, fact: Fact = NO_FACT) -> Claim:
        """That tasks harm each other."""
        effect = printed("4_1", "delta_m", method)
        return self.claim(
            f"With {LABELS[method]} a network ends below single-task training", "Table 4.1",
            said(effect), self.gain(arm), anchor, size=arm.size, expected="below", effect=effect,
            fact=fact,
        )  # fmt: skip

    def methods(self) -> Iterator[Claim]:
        """All methods, with and without Recon."""
        anchor, gaps, tree = "sec-recon-methods", [], self.branched()
        for method in self.p["recon_methods"]:
            one, other = in_matrix(method, "recon"), in_matrix(method, "shared")
            effect = recon_effect(method)
            where = OWN_QUESTION if math.isnan(effect) else "Table 4.1"
            claim = f"Recon improves {LABELS[method]}"
            claim += ", in the comparison of all methods" if method == "joint" else ""
            yield self.better(claim, where, effect, one, other, anchor, fact=self.searched)
            if where != OWN_QUESTION:
                gaps.append(PairedDifference.of(self.gain(one) - self.gain(other)))
        yield self.all_above(
            "Recon improves every method that the thesis trains with it", "Table 4.1",
            "all of them", gaps, anchor, "methods",
        )  # fmt: skip
        for method in self.p["methods"]:
            if method != "joint" and not math.isnan(printed("4_1", "delta_m", method)):
                fact = tree if method == "bmtas" else NO_FACT
                yield self.below_single(method, in_matrix(method, "shared"), anchor, fact)
        for method in ("pcgrad", "cagrad"):
            ours, theirs = in_matrix(method, "recon"), in_matrix("bmtas", "shared")
            effect = printed("4_1", "delta_m", method, "recon") - printed("4_1", "delta_m", "bmtas")
            claim = f"Recon with {LABELS[method]} does at least as well as BMTAS"
            fact = self.searched & tree
            yield self.better(claim, "Table 4.1", effect, ours, theirs, anchor, fact=fact)

    def sizes(self) -> Iterator[Claim]:
        """How large the networks are, and how much of them is split."""
        recon, split = self.megabytes(LONG, "joint", "recon"), self.split_share()
        options: dict[str, Any] = {"expected": "below", "unit": "%"}
        for words, method, size, fact in (
            ("single-task networks", "single", LONG, self.searched),
            ("that of BMTAS", "bmtas", MATRIX, self.searched & self.branched()),
        ):
            known = (("joint", "recon"), (method, "base"))
            ours, theirs = (printed("4_1", "params_mb", *row) for row in known)
            effect = 100 * (ours / theirs - 1)
            yield self.claim(
                f"A network split by Recon is smaller than {words}", "Table 4.1",
                f"{effect:+.1f} % of its size", 100 * (recon / self.megabytes(size, method) - 1),
                "sec-recon-cost", fact=fact, effect=effect, **options,
            )  # fmt: skip
        stated = thesis_settings("recon").set_index("name")
        growth = 100 * (recon / self.megabytes(LONG, "joint") - 1)
        part = "Recon splits no larger share of the parameters than"
        for claim, name, found, anchor in (
            ("Recon makes a network no larger than the largest growth in print",
             "model_size_increase_max", growth, "sec-recon-cost"),
            (f"{part} on any data set in print", "share_task_specific_cityscapes", split,
             "sec-recon-layers"),
            (f"{part} in print for these data", "share_task_specific_multi_fashion_mnist", split,
             "sec-recon-layers"),
        ):  # fmt: skip
            most = cell(stated, f"{name}_percent", "value")
            yield self.claim(
                claim, "Section 4.5.2", f"{most:g} %", found - most, anchor, size=LONG,
                fact=self.searched, shown=f"Shown: ours minus {most:g} %.", **options,
            )  # fmt: skip

    # Table 4.11 --------------------------------------------------------------------------------

    def severe_conflicts(self, quarters: str, cut: str, suffix: str) -> Iterator[Claim]:
        """What is left of severe conflicts, with one meaning of severe."""
        where, anchor, key = "Table 4.11", "sec-recon-conflicts", ("4_11", "reduction")
        arms = {LONG: on_long("shared"), MATRIX: in_matrix("joint", "shared")}
        begins, meaning = {}, (quarters, cut)
        for size, arm in arms.items():
            cosine, left = (self.severe(arm, *meaning, name).mean() for name in ("cosine", "share"))
            begins[size] = "" if math.isnan(left) else (
                f"Severe: below {cosine:.3f}, {left:.1f} % of the steps of joint training."
            )  # fmt: skip
        most = max(printed(*key, method) for method in SURGERY)
        for method in [name for name in SURGERY if name in self.p["methods"]]:
            found = PairedDifference.of(self.severe(in_matrix(method, "shared"), *meaning))
            yield self.claim(
                f"{LABELS[method]} removes no more severe conflicts than surgery in print{suffix}",
                where, f"{printed(*key, method):+.2f} %, at most {most:g} %", beyond(found, most),
                anchor, expected="below", unit="%",
                shown=f"Shown: reduction minus {most:g} %. {begins[MATRIX]}".strip(),
            )  # fmt: skip
        gaps = []
        for method in [name for name in ("joint", *SURGERY) if name in self.p["recon_methods"]]:
            arm = on_long("recon") if method == "joint" else in_matrix(method, "recon")
            effect = printed(*key, method, "recon")
            found = PairedDifference.of(self.severe(arm, *meaning))
            yield self.claim(
                f"Recon removes severe conflicts, with {LABELS[method]}{suffix}", where,
                said(effect, "%"), found, anchor, size=arm.size, effect=effect, unit="%",
                fact=self.searched, shown=begins[arm.size],
            )  # fmt: skip
            gaps.append(beyond(found, 50))
        yield self.all_above(
            f"Recon removes more than half of the severe conflicts, whatever the method{suffix}",
            where, "67 to 80 %", gaps, anchor, "methods", "reduction minus 50 %:",
        )  # fmt: skip
        known = ("recon", *RANDOM)
        recon, layers, single = (self.severe(on_long(name), *meaning) for name in known)
        one, rsl, rsp = (printed(*key, "joint", name) for name in ("recon", *RANDOM.values()))
        for claim, series, effect, fact in (
            (LEAVE_MORE, recon - layers, one - rsl, self.searched),
            ("Random layers make severe conflicts more frequent", layers, rsl, NO_FACT),
            ("Random parameters remove severe conflicts", single, rsp, NO_FACT),
            ("Random parameters remove fewer severe conflicts than Recon's layers",
             recon - single, one - rsp, self.searched),
        ):  # fmt: skip
            yield self.claim(
                claim + suffix, where, said(effect, "%"), series, anchor, size=LONG, effect=effect,
                expected="above" if effect > 0 else "below", unit="%", fact=fact,
                shown=begins[LONG],
            )  # fmt: skip

    # Tables 4.15 and 4.16 ----------------------------------------------------------------------

    def other_choices(self) -> Iterator[Claim]:
        """Layers that are chosen without looking at conflicts."""
        asked, controls = self.p["control_methods"], self.p["controls"]
        for method in dict.fromkeys(("joint", *asked)):
            for choice in (*RANDOM, *ENDS):
                if method == "joint" and choice in RANDOM:
                    yield from self.other_choice(method, choice, on_long("recon"), on_long(choice))
                elif method in asked and choice in controls:
                    arms = in_matrix(method, "recon"), Arm(MATRIX, "control", method, choice)
                    yield from self.other_choice(method, choice, *arms)

    def other_choice(self, method: str, choice: str, one: Arm, other: Arm) -> Iterator[Claim]:
        """Recon's layers against others."""
        claim = f"With {LABELS[method]}, Recon's layers are better than {CHOICES[choice]}"
        effect = drop(choice, method)
        known, random = not math.isnan(effect), choice in RANDOM
        where = ("Table 4.15" if random else "Table 4.16") if known else OWN_QUESTION
        swapped = f" (row {ENDS.get(choice, '').upper()}; the text exchanges the two names)"
        thesis = said(effect) + ("" if random or not known else swapped)
        options: dict[str, Any] = {"thesis": thesis, "fact": self.searched}
        anchor = "sec-recon-long" if one.size == LONG else "sec-recon-controls"
        yield self.better(claim, where, effect, one, other, anchor, **options)
        if one.size == LONG:
            options["statistics"], anchor = PUBLISHED, "sec-recon-statistics"
            claim += AS_PUBLISHED
            yield self.better(claim, where, effect, one, other, anchor, **options)
        elif random and known:
            gaps = (self.gain(one) - self.gain(other)).dropna()
            yield self.share(
                f"{claim}, in every seed", where, "in all three", gaps > 0, anchor, "seeds",
                extent(gaps, "points"), fact=self.searched.seen_in([PairedDifference.of(gaps)]),
            )  # fmt: skip

    def statistics(self) -> Iterator[Claim]:
        """Running statistics of shared batch norms: a set for each task, or one for all."""
        gained = [
            self.gain(on_long(name)) - self.gain(on_long(name), PUBLISHED)
            for name in ("random_layers", "recon")
        ]
        for claim, found in (
            ("Statistics of its own for each task improve a network with random layers", gained[0]),
            ("One set of statistics costs random layers more than Recon's", gained[0] - gained[1]),
        ):
            where = "sec-recon-statistics"
            yield self.claim(claim, OWN_QUESTION, "no number", found, where, size=LONG)

    # Rankings ----------------------------------------------------------------------------------

    def released_ranking(self) -> Iterator[Claim]:
        """The search, and a count over the whole training, against what the authors released."""
        theirs, top, severity = released_layers(), RELEASED_TOP, self.p["severity"]
        for quarters, words in zip((self.quarters, QUARTERS), WHICH, strict=True):
            found = [self.rankings.of(seed, severity, *quarters) for seed in self.p["seeds"]]
            same, fact = [own for own in found if {*own} == {*theirs}], self.counted(quarters)
            if self.p["dataset"] != RELEASED_DATA or len(same) < 2:
                reason = "fewer than two seeds ranked the released layers"
                fact = fact.with_words(reason)._replace(acted=False)
            common = [round(top * top_overlap(own, theirs, top)) for own in same]
            rank = [ranking_correlation(own, theirs) for own in same]
            alike = f"ranks layers as released: Spearman {LEAST_RANK} or more, in every seed"
            for claim, values, least, unit in (
                (COMMON, common, LEAST_COMMON, "layers"),
                (alike, rank, LEAST_RANK, "rank correlation"),
            ):
                right = pd.Series(values, dtype=float) >= least
                yield self.share(
                    f"{words} {claim}", OWN_QUESTION, "beside the authors' code", right,
                    "sec-recon-layers", "seeds", extent(values, unit), size=LONG, fact=fact,
                )  # fmt: skip

    def stability(self) -> Iterator[Claim]:
        """How far rankings move during training, between methods and between seeds."""
        methods = [name for name in ("joint", *SURGERY) if name in self.p["methods"]]
        parts = [*((quarter,) for quarter in QUARTERS), QUARTERS]
        of, severity = self.rankings.of, self.p["severity"]
        moved = pd.DataFrame({
            seed: {
                "training": farthest(of(seed, severity, *part) for part in parts),
                "angles": farthest(self.rankings.by_angle(seed, *part) for part in parts),
                "methods": farthest(of(seed, severity, size=MATRIX, method=m) for m in methods),
            }
            for seed in self.p["seeds"]
        }).T  # fmt: skip
        every = self.counted(QUARTERS, each=("seed", "quarter"))
        each = ("seed", "method")
        whole = self.counted(QUARTERS, each=each, size=MATRIX, method=(*methods,))
        number = max(len(self.rankings.ranked), 1)
        options: dict[str, Any] = {"anchor": "sec-recon-layers", "unit": "places"}
        for words, table, found, fact, size in (
            ("during training", "4_6", moved["training"], every, LONG),
            ("between methods", "4_8", moved["methods"], whole, MATRIX),
        ):
            most = float(thesis_table(table)["value"].max())
            chance = (number - 1 / number) / 3
            for bound, than in ((chance, "less than by chance"), (most, "no more than in print")):
                yield self.claim(
                    f"The ranking of layers moves {than} {words}", f"Table {table[0]}.{table[2]}",
                    f"at most {most:.2f} places", found=found - bound, expected="below", fact=fact,
                    size=size, shown=f"Shown: largest distance minus {bound:.2f}.", **options,
                )  # fmt: skip
        yield self.claim(
            "Sums of angles rank layers less stably than counts of conflicts", "Section 4.4.1",
            "no number", found=moved["angles"] - moved["training"], fact=every, size=LONG,
            shown="Shown: largest distance between quarters, angles minus counts.", **options,
        )  # fmt: skip

    def between_seeds(self) -> Claim:
        """How many pairs of seeds are as near as the quarters of the thesis's one training."""
        most = float(thesis_table("4_6")["value"].max())
        found = [
            self.rankings.of(seed, self.p["severity"], *self.quarters) for seed in self.p["seeds"]
        ]
        apart = pd.Series([farthest(pair) for pair in combinations(found, 2)], dtype=float).dropna()
        fact = self.searched
        if apart.empty:
            fact = fact.with_words("there are no two seeds")._replace(acted=False)
        return self.share(
            "Searches with two seeds differ no more than two quarters of a training in print",
            OWN_QUESTION, f"at most {most:.2f} places", apart <= most, "sec-recon-layers",
            "pairs of seeds", extent(apart, "places"), size=LONG, fact=fact,
        )  # fmt: skip

    def concentrated(self) -> Claim:
        """Whether the layers of the search have more than their share of later conflicts."""
        return self.claim(
            "Conflicts are concentrated: the layers found have more than their share of later ones",
            "Section 4.4, figure 4.5", "no number", self.excess(),
            "fig-recon-heat", size=LONG, fact=self.searched,
            shown="Shown: their share of later conflicts minus their share of layers.",
        )  # fmt: skip

    # Figure 4.6 --------------------------------------------------------------------------------

    def severities(self) -> Iterator[Claim]:
        """Which conflicts count: those of middle severity against either end."""
        inside = [value for value in self.p["severities_studied"] if STRICT < value < MILD]
        words = ", ".join(f"{value:g}" for value in inside) or "none"
        for end, statistics in ((MILD, OWN), (MILD, PUBLISHED), (STRICT, OWN)):
            at, *among = (
                self.gain(studied("severity", f"{value:g}"), statistics) for value in (end, *inside)
            )
            middle = pd.concat(among, axis=1).mean(axis=1, skipna=False) if among else NOTHING
            beside = AS_PUBLISHED if statistics == PUBLISHED else ""
            yield self.claim(
                f"Severities between 0 and -0.15 are better than {end:g}{beside}", "Figure 4.6",
                "no number", middle - at, "sec-recon-curves",
                fact=self.searched & self.counted(self.quarters, end),
                shown=f"Shown: mean over S = {words}.",
            )  # fmt: skip

    def counts(self) -> Iterator[Claim]:
        """How many layers are split."""
        counts, here = [count for count in self.p["counts_studied"] if count], self.p["top_k"]
        few, many = min(counts, default=0), max(counts, default=0)
        arms = [studied("count", str(count)) for count in (few, here, many)]
        gains = [self.gain(arm) for arm in arms]
        left = [self.severe(arm, "all", "quantile") for arm in arms]
        small, large = gains[1] - gains[0], gains[2] - gains[1]
        low, high = 0 < few < here, here < many
        for claim, found, right, unit in (
            ("Few split layers are worse", small, low, "points"),
            ("With few split layers severe conflicts stay", left[1] - left[0], low, "%"),
            ("The first layers bring more than the last", small - large, low and high, "points"),
            ("Many split layers bring no more", large, high, "points"),
        ):
            yield self.claim(
                claim, "Figure 4.6", "no number", found, "sec-recon-curves", unit=unit,
                expected="below" if found is large else "above",
                fact=self.searched & Fact(f"K = {few}, {here} and {many}", right),
            )  # fmt: skip

    # Tables 4.7, 4.9 and 4.10 ------------------------------------------------------------------

    def other_quarters(self) -> Iterator[Claim]:
        """Table 4.7: layers that were found later in the training."""
        theirs = thesis_table("4_7").set_index("search_stage")["delta_m"]
        stages = dict(zip("1234", theirs.index[1:5], strict=True)) | {"all": "all"}
        recon, shared = (in_matrix("joint", name) for name in ("recon", "shared"))
        anchor, gaps = "sec-recon-transfer", []
        for quarter in self.p["quarters_studied"]:
            one, every = studied("quarter", quarter), quarter == "all"
            gain = theirs[stages[quarter]] - theirs[stages["1"]]
            place = "all quarters" if every else f"quarter {quarter}"
            yield self.better(
                f"Layers of {place} do at least as well as those of the search", "Table 4.7",
                math.nan, one, recon, anchor, thesis=f"{gain:+.2f} points on CityScapes",
                fact=self.searched & self.counted(QUARTERS if every else (int(quarter),)),
            )  # fmt: skip
            gaps.append(PairedDifference.of(self.gain(one) - self.gain(shared)))
        yield self.all_above(
            "Layers found later in the training improve joint training, too", "Table 4.7",
            "all of them", gaps, anchor, "parts of the training",
        )  # fmt: skip

    def transfer(self) -> Iterator[Claim]:
        """Tables 4.9 and 4.10: layers that were found on other data."""
        where, anchor, gaps = "Tables 4.9 and 4.10", "sec-recon-transfer", []
        common = layers_in_common(self.tables["choices"], "transfer")
        for source in self.p["transfer_from"]:
            several, data = only(common, value=source)["common"], SOURCES.get(source, source)
            fact = Fact("the other search was not run", False) if several.empty else Fact(
                f"{several.mean():.1f} of {self.p['top_k']} layers in common"
            )  # fmt: skip
            for method in self.p["control_methods"]:
                foreign, name = studied("transfer", source, method), LABELS[method]
                own, shared = (in_matrix(method, layers) for layers in ("recon", "shared"))
                for words, arms, variants in (
                    (f"improve {name}", (foreign, shared), ("recon_transferred", "base")),
                    (f"do worse than those found here, with {name}", (own, foreign),
                     ("recon", "recon_transferred")),
                ):  # fmt: skip
                    yield self.better(
                        f"Layers found on {data} {words}", where, math.nan, *arms, anchor,
                        fact=self.searched & fact, thesis=on_other_data(method, *variants),
                    )  # fmt: skip
                gaps.append(PairedDifference.of(self.gain(foreign) - self.gain(shared)))
        yield self.all_above(
            "Layers found on other data improve every method", where, "all of them", gaps, anchor,
            "pairs of data and method",
        )  # fmt: skip

    # Further questions -------------------------------------------------------------------------

    def lost_skips(self) -> Iterator[Claim]:
        """A fault of the released code."""
        fault, anchor = "Lost skip connections of the released code cost accuracy", "sec-recon-skip"
        for choice in self.p["skips_studied"]:
            one, other = (
                Arm(MATRIX, "skip", "joint", choice, f"{kept} task") for kept in ("every", "one")
            )
            claim = f"{fault}, with {CHOICES[choice]}"
            yield self.better(claim, OWN_QUESTION, math.nan, one, other, anchor)

    def seconds(self) -> Iterator[Claim]:
        """Figure 4.11: a step of the search beside steps of methods."""
        search, plain, surgery = "joint, counted", "joint, not counted", ("cagrad", "graddrop")
        rows = self.tables["seconds"].astype({"ms": float})
        times = rows.pivot_table(index="tasks", columns="method", values="ms")
        times = times.reindex(columns=[search, *surgery, plain])
        most = times[times.index == max(self.p["task_counts"], default=0)].mean()
        slower = (most[[search, *surgery]] / most[plain]).dropna()
        ratios = {name: (times[search] / times[name]).dropna() for name in surgery}
        cases = [
            (f"A step of the search takes no longer than a step of {LABELS[name]}", "as fast",
             ratio <= 1, ratio, "numbers of tasks", 2) for name, ratio in ratios.items()
        ] + [
            ("With many tasks the search, CAGrad and GradDrop are all slower than joint training",
             "much slower", slower > 1, slower, "methods", 3)
        ]  # fmt: skip
        for claim, thesis, right, ratio, counted, least in cases:
            fact = NO_FACT if len(ratio) >= least else Fact("not all of it was timed", False)
            yield self.share(
                claim, "Figure 4.11", f"{thesis}, no number", right, "sec-recon-cost", counted,
                extent(ratio, "times as long"), fact=fact,
            )  # fmt: skip


@lru_cache
def printed(number: str, column: str, method: str, variant: str = "base") -> float:
    """A cell of a printed table; NaN where there is none."""
    rows = only(thesis_table(number), base_method=NAMES.get(method, ""), variant=variant)
    return float(rows[column].mean())


def said(effect: float, unit: str = "points") -> str:
    """A printed difference in words."""
    return "no number" if math.isnan(effect) else f"{effect:+.2f} {unit}"


def recon_effect(method: str) -> float:
    """What Recon brings a method in table 4.1."""
    return printed("4_1", "delta_m", method, "recon") - printed("4_1", "delta_m", method)


def drop(choice: str, method: str) -> float:
    """Printed accuracies with Recon's layers against others, seeds averaged, as a gain."""
    table = thesis_table("4_15" if choice in RANDOM else "4_16").set_index("base_method")
    rows, row, lost = table[table.index == NAMES[method]], (RANDOM | ENDS)[choice], 0.0
    for task in ("task_1_acc", "task_2_acc"):
        ours, theirs = (
            rows[rows["layer_selection"] == name][task].mean() for name in ("recon", row)
        )
        lost += 50 * (ours - theirs) / printed("4_1", task, "single")
    return float(lost)


def on_other_data(method: str, *variants: str) -> str:
    """What tables 4.9 and 4.10 print for a method, on data that cannot be fetched here."""
    found = []
    for number, data in (("4_9", "NYUv2"), ("4_10", "CityScapes")):
        one, other = (printed(number, "delta_m", method, variant) for variant in variants)
        found += [] if math.isnan(one) else [f"{said(one - other)} on {data}"]
    return ", ".join(found) or "no number"


def extent(values: Iterable[float], unit: str) -> str:
    """The range of several numbers."""
    known = [*values]
    return f"{min(known):.3g} to {max(known):.3g} {unit}" if known else "-"


def elsewhere() -> Iterator[Claim]:
    """Claims about data that cannot be fetched here."""
    reason = "the images cannot be fetched here; loaders, networks and profile are in the project"
    every = "Recon improves every gradient method on"
    left = "Surgery hardly removes severe conflicts and Recon removes most of them, on"
    for claim, place in (
        (f"{every} CelebA", "Table 4.2"),
        (f"{every} CityScapes", "Table 4.3"),
        (f"{every} PASCAL-Context", "Table 4.4"),
        ("Recon improves BMTAS on PASCAL-Context", "Table 4.4"),
        (f"{every} NYUv2", "Table 4.5"),
        (f"{left} CityScapes", "Table 4.12"),
        (f"{left} NYUv2", "Table 4.13"),
        (f"{left} PASCAL-Context", "Table 4.14"),
        ("CelebA and Multi-Fashion+MNIST have the same conflict layers", "Section 4.5.2"),
        ("38 of 40 layers of SegNet are the same on NYUv2 and CityScapes", "Section 4.5.2"),
        ("17 of 25 layers of MTAN are the same on CityScapes and NYUv2", "Section 4.5.2"),
    ):
        yield Claim(claim, place, "see there", anchor="sec-recon-claims", **not_testable(reason))


# In five sentences --------------------------------------------------------------------------------


def summary(record: RunRecord) -> str:
    """What held, what did not, and when: five sentences, each chosen by the verdicts."""
    known = {claim.claim: claim for claim in claims(record)}

    def found_of(claim: str, *words: str) -> str:
        """The words for reproduced, not reproduced and undecided or mixed, and the numbers."""
        verdicts = ("reproduced", "not reproduced", "undecided", "mixed")
        return chosen_words(known[claim], dict(zip(verdicts, (*words, words[-1]), strict=True)))

    above = ("ends above joint training", "does not end above joint training",
             "cannot be told from joint training")  # fmt: skip
    better = ("beats as many random ones", "does not beat as many random ones",
              "cannot be told from as many random ones")  # fmt: skip
    keeps = ("keeps more severe conflicts than Recon's", "keeps no more of them than Recon's",
             "cannot be told from Recon's by its severe conflicts")  # fmt: skip
    finds = ("finds the layers that the authors released", "finds other layers than they released",
             "finds the layers that the authors released with some seeds")  # fmt: skip
    own, published = (found_of(ON_RANDOM + end, *better) for end in ("", AS_PUBLISHED))
    whole, last = (found_of(LEAVE_MORE + suffix, *keeps) for _, _, suffix in CUTS[:2])
    search, training = (found_of(f"{which} {COMMON}", *finds) for which in WHICH)
    sentences = (
        f"Each at its own best rate, Recon's network {found_of(CENTRAL, *above)}",
        _methods(known),
        "With running statistics of its own for each task, Recon's choice of layers "
        f"{own}; with one set for all, as published, it {published}",
        f"Over the training a network with random layers {whole}; in its last quarter it {last}",
        f"The search {search}; a count over the whole training {training}",
    )
    return "\n".join(f"{number}. {text}." for number, text in enumerate(sentences, start=1))


def _methods(known: Mapping[str, Claim]) -> str:
    """Which methods Recon improves, beside joint training."""
    begin = "Recon improves "
    found = {
        name: claim
        for text, claim in known.items()
        if (name := text.removeprefix(begin)) in LABELS.values() and text != CENTRAL
    }
    words = {
        "reproduced": "improves",
        "not reproduced": "does not improve",
        "undecided": "makes no clear difference to",
        "not tested": "was not tested with",
    }
    return f"Recon {names_by_verdict(found, words) or 'was tried with joint training alone'}"
