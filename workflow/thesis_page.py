"""Where the thesis's printed tables contradict each other or its text, for a page of the book.

Everything is computed from ``results/thesis``. A printed number stands for all numbers that round
to it: only what no such numbers could give is a contradiction.
"""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from experiments.run.atomic import write_text
from workflow.markdown import table
from workflow.project import ROOT

Row = Mapping[str, str]  # a line of a table: column -> what is printed, empty for a dash

TABLES = ROOT / "results" / "thesis"
RANDOM_SPLIT, TOPIC_SPLIT = ("3_1", "3_2", "3_3"), ("3_9", "3_10", "3_11")
OWN = ("cRT", "F2M", "Baseline", "Joint-training")  # all others were published before
KNOWN = ("base_method", "variant", "search_stage", "delta_m", "params_mb")  # no metrics
LOWER_IS_BETTER = ("err", "normal_mean", "normal_median")
MEGABYTE = 2**20
VARIANTS = {"base": "as it is", "recon": "with Recon", "rsl": "RSL", "rsp": "RSP"}
VARIANTS |= {"recon_transferred": "with layers of another set"}
METRICS = {"mmlu": "MMLU", "hellaswag": "HellaSwag", "vicuna": "Vicuna", "mt_bench": "MT-Bench"}
EACH = 3  # so many rows of a column are listed one by one
PLACES = ("thesis-cells", "thesis-sentences")  # names of the two lists, for links


class Finding(NamedTuple):
    """A contradiction."""

    where: str
    printed: str
    follows: str


class Printed:
    """The printed tables.

    Args:
        folder: with a CSV file per table.
    """

    def __init__(self, folder: Path = TABLES) -> None:
        self.folder = folder

    def cells(self, number: str, **known: str) -> list[Row]:
        """The lines of a table that have these values, such as ``variant="rsl"``."""
        text = (self.folder / f"table_{number}.csv").read_text(encoding="utf-8")
        rows = csv.DictReader(text.splitlines())
        return [row for row in rows if all(row[name] == value for name, value in known.items())]

    def row(self, number: str, **known: str) -> Row:
        """The one line with these values.

        Raises:
            ValueError: there is none, or there are several.
        """
        rows = self.cells(number, **known)
        if len(rows) != 1:
            raise ValueError(f"Table {_name(number)} has {len(rows)} rows with {known}, not 1.")
        return rows[0]

    def stated(self, part: str, name: str) -> str:
        """A setting that the text of a part states, such as ``("fcl", "flat_region_bound_b")``."""
        text = (self.folder / f"settings_{part}.csv").read_text(encoding="utf-8")
        return next(
            row["value"] for row in csv.DictReader(text.splitlines()) if row["name"] == name
        )


def half(text: str) -> float:
    """Half a unit of the last printed digit: what rounding may hide."""
    return 0.5 * 10.0 ** -len(text.partition(".")[2])


def differ(printed: str, value: float, hidden: float) -> bool:
    """Whether no rounding explains a printed number.

    Args:
        printed: the number in the table.
        value: what follows from other printed numbers.
        hidden: what their rounding may hide in it.
    """
    return abs(float(printed) - value) > half(printed) + hidden + 1e-9


def _name(number: str) -> str:
    return number.replace("_", ".")


def _sessions(row: Row) -> list[str]:
    return [name for name in row if name.startswith("session_")]


def _method(row: Row) -> str:
    again = row["reimplemented"] == "true" and row["method"] not in OWN
    return row["method"] + (", run again" if again else "")


def gaps(printed: Printed) -> Iterator[Finding]:
    """The last column of the main tables: last session less that of cRT."""
    numbers = (*RANDOM_SPLIT, *TOPIC_SPLIT)
    crt = {n: printed.row(n, method="cRT") for n in numbers}
    last = {n: row[_sessions(row)[-1]] for n, row in crt.items()}
    for number in numbers:
        for row in printed.cells(number):
            gap, own = row["gap_to_crt"], row[_sessions(row)[-1]]
            hidden = half(own) + half(last[number])
            if not gap or not differ(gap, float(own) - float(last[number]), hidden):
                continue
            fits = [n for n in numbers if not differ(gap, float(own) - float(last[n]), 0)]
            note = f"; it fits the cRT of table {_name(fits[0])}" if fits else ""
            yield Finding(
                f"Table {_name(number)}, {_method(row)}, gap to cRT",
                gap,
                f"{own} - {last[number]} = {float(own) - float(last[number]):.2f}{note}",
            )


def relative_gains(printed: Printed) -> Iterator[Finding]:
    """Delta m: the mean over tasks of the mean gain in their metrics, in percent of single-task."""
    for number in ("4_1", "4_3", "4_4", "4_5", "4_7", "4_9", "4_10"):
        cells = printed.cells(number)
        metrics = [name for name in cells[0] if name not in KNOWN]
        per_task = Counter(map(_task, metrics))
        single, *others = cells
        found = []
        for row in others:
            gain = hidden = 0.0
            for metric in metrics:
                one, two = float(single[metric]), float(row[metric])
                sign = -1 if any(word in metric for word in LOWER_IS_BETTER) else 1
                weight = 100 / len(per_task) / per_task[_task(metric)]
                gain += sign * weight * (two - one) / one
                hidden += weight * (half(row[metric]) + half(single[metric]) * two / one) / one
            if differ(row["delta_m"], gain, hidden):
                variant = {"base": "", "recon": " with Recon"}.get(
                    row["variant"], " with layers of another set"
                )
                found.append((row["base_method"] + variant, row["delta_m"], gain))
        what = f"Table {_name(number)}, {{}}, mean gain over single-task training"
        if len(found) > EACH:  # most of a column
            names, texts, gains = zip(*found, strict=True)
            off = [gain - float(text) for text, gain in zip(texts, gains, strict=True)]
            yield Finding(
                what.format(f"{len(found)} of {len(others)} rows, among them {names[0]}"),
                texts[0],
                f"{gains[0]:.2f} from the printed metrics; all these rows are {min(off):.2f} to "
                f"{max(off):.2f} off",
            )
            continue
        for name, text, gain in found:
            yield Finding(what.format(name), text, f"{gain:.2f} from the printed metrics")


def _task(metric: str) -> str:
    """The task of a metric: ``seg`` of ``seg_miou``, ``task_1`` of ``task_1_acc``."""
    return metric.rpartition("_")[0] if metric.startswith("task_") else metric.partition("_")[0]


def shares(printed: Printed) -> Iterator[Finding]:
    """Tables of cosines: a row holds all pairs, and the reduction follows from the last cells."""
    for number, severe in (("4_11", 3), ("4_12", 4), ("4_13", 3), ("4_14", 4)):
        cells = printed.cells(number)
        columns = [name for name in cells[0] if name.startswith("cos_")]
        tail, joint = columns[-severe:], cells[0]
        before = sum(float(joint[name]) for name in tail)
        for row in cells:
            who = _network(row)
            total = sum(float(row[name]) for name in columns)
            hidden = sum(half(row[name]) for name in columns)
            if differ("100.00", total, hidden):
                where = f"Table {_name(number)}, {who}, all cosines"
                yield Finding(where, "100 percent of the pairs", f"{total:.2f} percent")
            if not row["reduction"]:
                continue
            after = sum(float(row[name]) for name in tail)
            hidden = 100 * sum(half(row[name]) + half(joint[name]) for name in tail) / before
            if differ(row["reduction"], 100 * (1 - after / before), 2 * hidden):
                yield Finding(
                    f"Table {_name(number)}, {who}, fewer conflicts",
                    f"{row['reduction']} percent",
                    f"{100 * (1 - after / before):.2f} percent from its last {severe} cells",
                )


def drops(printed: Printed) -> Iterator[Finding]:
    """Tables 4.15 and 4.16: how far a control is behind Recon's layers."""
    for number in ("4_15", "4_16"):
        recon = printed.cells(number, layer_selection="recon")
        controls = [row for row in printed.cells(number) if row["layer_selection"] != "recon"]
        for row in controls:
            for task in ("task_1", "task_2"):
                own, drop = row[f"{task}_acc"], row[f"{task}_pd"]
                known = {row["base_method"]: row[f"{task}_acc"] for row in recon}
                expected = float(known[row["base_method"]]) - float(own)
                hidden = half(own) + half(known[row["base_method"]])
                if differ(drop, expected, hidden):
                    fits = [
                        m for m in known if not differ(drop, float(known[m]) - float(own), hidden)
                    ]
                    note = f"; it fits {fits[0]} with Recon" if fits else ""
                    who = f"{row['layer_selection'].upper()} with {row['base_method']}"
                    yield Finding(
                        f"Table {_name(number)}, {who}, {task.replace('_', ' ')}, drop",
                        drop,
                        f"{known[row['base_method']]} - {own} = {expected:.2f}{note}",
                    )


def one_run_twice(printed: Printed) -> Iterator[Finding]:
    """The same run in two tables."""
    all_parts = dict.fromkeys(
        ("flat_minima", "prototype_fixing", "parameter_clamping", "prototype_normalization"), "true"
    )
    llama = {"model": "Llama 2-7B", "method": "LoRA"}
    mistral = {"model": "Mistral-7B-v0.1", "method": "LoRA", "ila": "true"}
    own = {"ila": "true", "layers_tuned_percent": "75", "ranking_source_model": mistral["model"]}
    robots = {"importance_dataset": "No Robots"}
    pairs: list[tuple[str, tuple[str, dict[str, str]], tuple[str, dict[str, str]]]] = [
        ("F2M", ("3_6", all_parts), ("3_1", {"method": "F2M"})),
        ("LoRA", ("5_12", {"layer_selection": "none_frozen"}), ("5_5", llama | {"ila": "false"})),
        ("LoRA with ILA", ("5_12", {"layer_selection": "ila"}), ("5_5", llama | {"ila": "true"})),
        ("ranking from No Robots", ("5_14", robots), ("5_7", mistral)),
        ("LoRA with ILA (75 percent)", ("5_16", own), ("5_5", mistral)),
    ]
    for who, one, two in pairs:
        first, second = printed.row(one[0], **one[1]), printed.row(two[0], **two[1])
        for column in (name for name in first if name in second):
            a, b = first[column], second[column]
            if column in {*one[1], *two[1], "method", "ila"} or a == b:
                continue
            if differ(a, float(b), half(b)):
                words = METRICS.get(column, column.replace("_", " "))
                yield Finding(
                    f"Table {_name(one[0])}, {who}, {words}", a, f"{b} in table {_name(two[0])}"
                )


def single_task_rows(printed: Printed) -> Iterator[Finding]:
    """Networks of one size without anything shared: the same runs, if the thesis ran them once."""

    def differences(one: str, two: str) -> list[tuple[str, str, str]]:
        first, second = (printed.row(n, base_method="Single-task") for n in (one, two))
        return [
            (name, first[name], second[name])
            for name in first
            if first[name] != second.get(name, first[name])
            and differ(first[name], float(second[name]), half(second[name]))
        ]

    found = differences("4_10", "4_3")
    if (
        found
        and "params_mb" not in [name for name, _, _ in found]
        and not differences("4_5", "4_9")
    ):
        yield Finding(
            "Table 4.10, single-task row",
            ", ".join(f"{name.replace('_', ' ')} {one}" for name, one, _ in found),
            f"{', '.join(two for _, _, two in found)} in table 4.3, for networks of the same size; "
            "tables 4.5 and 4.9 share one row",
        )


def equal_pairs(printed: Printed) -> Iterator[Finding]:
    """Two methods that agree in all metrics of a task, to the last digit."""
    for number in ("4_3", "4_4", "4_5", "4_9", "4_10"):
        cells = printed.cells(number)
        metrics: dict[str, list[str]] = {}
        for name in cells[0]:
            if name not in KNOWN:
                metrics.setdefault(_task(name), []).append(name)
        for (one, two), names in itertools.product(
            itertools.combinations(cells, 2), metrics.values()
        ):
            if len(names) > 1 and all(one[name] == two[name] for name in names):
                yield Finding(
                    f"Table {_name(number)}, {_network(two)}, "
                    f"{' and '.join(name.replace('_', ' ') for name in names)}",
                    ", ".join(two[name] for name in names),
                    f"the same as {_network(one)}, digit by digit",
                )


def _network(row: Row) -> str:
    return f"{row['base_method']}, {VARIANTS.get(row['variant'], row['variant'])}"


def averages(printed: Printed) -> Iterator[Finding]:
    """Table 3.8: accuracy on all classes, from that on base and new ones; and the stated b."""
    bounds = [row["flat_region_bound_b"] for row in printed.cells("3_8", session="1")]

    def cell(bound: str, group: str, session: str = "9") -> Row:
        return printed.row("3_8", flat_region_bound_b=bound, class_group=group, session=session)

    for bound in bounds:
        whole, parts = cell(bound, "all"), [cell(bound, group) for group in ("base", "new")]
        weights = [int(part["num_classes"]) / int(whole["num_classes"]) for part in parts]
        texts = [part["accuracy"] for part in parts]
        mean = sum(w * float(text) for w, text in zip(weights, texts, strict=True))
        hidden = sum(w * half(text) for w, text in zip(weights, texts, strict=True))
        if differ(whole["accuracy"], mean, hidden):
            where = f"Table 3.8, all classes, b = {bound}"
            yield Finding(where, whole["accuracy"], f"{mean:.2f} from its groups")
    main = printed.row("3_1", method="F2M")
    fits = [
        bound
        for bound in bounds
        if cell(bound, "base", "1")["accuracy"] == main["session_1"]
        and cell(bound, "all")["accuracy"] == main["session_9"]
    ]
    stated = printed.stated("fcl", "flat_region_bound_b")
    if stated not in fits:
        yield Finding(
            "Section 3.4, bound of the main results",
            f"b = {stated}",
            "sessions 1 and 9 of table 3.1 are in table 3.8 those of "
            f"b = {', '.join(fits) or 'none'}",
        )


def ahead_everywhere(printed: Printed) -> Iterator[Finding]:
    """Sentences on every session, and where a table has another order."""

    def exceptions(number: str, leader: str, others: set[str], since: int) -> str:
        first = printed.row(number, method=leader)
        found = [
            f"session {session.removeprefix('session_')}: {_method(row)} {row[session]}"
            f" against {first[session]}"
            for session in _sessions(first)[since:]
            for row in printed.cells(number)
            if row["method"] in others and float(row[session]) > float(first[session])
        ]
        return "; ".join(found)

    numbers = (*RANDOM_SPLIT, *TOPIC_SPLIT)
    earlier = {row["method"] for n in numbers for row in printed.cells(n)} - {*OWN}
    sentences = [
        (
            "Section 3.5.2",
            "the baseline beats every published method in every incremental session",
            [(n, "Baseline", earlier, 1) for n in RANDOM_SPLIT],
        ),
        (
            "Section 3.5.3",
            "baseline and F2M lead on TOPIC's split, too (named exception: joint training on CUB)",
            [
                (n, leader, earlier | ({"Joint-training"} if n != "3_11" else set()), 1)
                for n, leader in itertools.product(TOPIC_SPLIT, ("Baseline", "F2M"))
            ],
        ),
        (
            "Section 3.5.2",
            "cRT is an approximate upper bound",
            [(n, "cRT", {"F2M"}, 0) for n in numbers],
        ),
    ]
    for where, words, cases in sentences:
        for number, leader, others, since in cases:
            if found := exceptions(number, leader, others, since):
                yield Finding(f"{where}, {leader}", words, f"table {_name(number)}, {found}")
    ours, theirs = (printed.row("3_4", reimplemented=word) for word in ("true", "false"))
    lower = [s for s in _sessions(ours) if float(ours[s]) < float(theirs[s])]
    if lower:
        found = "; ".join(
            f"session {s.removeprefix('session_')}: {ours[s]} against {theirs[s]}" for s in lower
        )
        words = "FSLL, run again, is slightly higher than published"
        yield Finding("Section 3.5.1", words, f"table 3.4, {found}")


def exemplars(printed: Printed) -> Iterator[Finding]:
    """Images that are kept: a few of every class, or more of the new classes only."""
    theirs = int(printed.stated("fcl", "exemplars_per_class_icarl_rebalance"))
    ours = int(printed.stated("fcl", "exemplars_per_new_class"))
    sets = {"cifar100": "CIFAR-100", "miniimagenet": "miniImageNet", "cub200": "CUB-200-2011"}
    for name, words in sets.items():
        base, way, sessions = (
            int(printed.stated("fcl", f"{name}_{what}"))
            for what in ("base_classes", "way", "sessions")
        )
        new = [way * number for number in range(1, sessions)]
        kept = [(theirs * (base + number), ours * number) for number in new]
        not_more = [number for number, (one, two) in enumerate(kept, start=1) if one <= two]
        if not_more:
            one, two = kept[-1]
            yield Finding(
                f"Section 3.5.1, {words}",
                "iCaRL and Rebalance store more exemplars than F2M in each session",
                f"not from incremental session {not_more[0]} on: {one} against {two} in the last",
            )


def other_sentences(printed: Printed) -> Iterator[Finding]:
    """Sentences of chapters 4 and 5."""
    shared, split = (
        float(printed.row("4_3", base_method="Joint-train", variant=variant)["params_mb"])
        for variant in ("base", "recon")
    )
    share = 100 * (split - shared) / shared
    stated = printed.stated("recon", "share_task_specific_cityscapes_percent")
    if differ(stated, share, 100 * 2 * half("0.00") / shared):
        yield Finding(
            "Section 4.5.2, CityScapes",
            f"{stated} percent of the shared parameters become task-specific",
            f"{share:.2f} percent from the sizes in table 4.3",
        )
    farthest = max((row["value"] for row in printed.cells("4_8")), key=float)
    if float(farthest) >= 1.9:
        words = "distances between the rankings of two methods are below 1.9"
        yield Finding("Section 4.5.2", words, f"the largest in table 4.8 is {farthest}")
    changes = {
        number: printed.row(number, base_method="Joint-train", variant="rsl")["reduction"]
        for number in ("4_11", "4_12", "4_13", "4_14")
    }
    told = {n: f"{value} percent in table {_name(n)}" for n, value in changes.items()}
    more, fewer = (
        [told[n] for n, value in changes.items() if (float(value) > 0) == shrinks]
        for shrinks in (False, True)
    )
    if fewer and more:
        yield Finding(
            "Tables 4.11 to 4.14, random layers (RSL)",
            f"conflicts grow: {', '.join(more)}",
            f"conflicts shrink: {', '.join(fewer)}",
        )
    yield from _random_parameters(printed)
    ila = printed.row("5_12", layer_selection="ila")
    for name, metric in itertools.product(("rl1", "rl2", "fl", "ll"), METRICS):
        naive = printed.row("5_12", layer_selection=name)
        if float(naive[metric]) > float(ila[metric]):
            yield Finding(
                "Section 5.5.3, table 5.12",
                "naive choices of layers are worse than ILA",
                f"{name.upper()} is ahead on {METRICS[metric]}: {naive[metric]} against "
                f"{ila[metric]}",
            )
    whole = printed.row("5_10", ila="false")
    for share_tuned, metric in itertools.product(("75", "30"), METRICS):
        tuned = printed.row("5_10", layers_tuned_percent=share_tuned)
        if float(tuned[metric]) < float(whole[metric]):
            yield Finding(
                "Section 5.5.4, table 5.10",
                "tuning 75 or 30 percent of the layers with QLoRA keeps or improves results",
                f"{share_tuned} percent, {METRICS[metric]}: {tuned[metric]} against "
                f"{whole[metric]}",
            )
    yield from _first_and_last(printed)


def _random_parameters(printed: Printed) -> Iterator[Finding]:
    """Table 4.15: what the control of random parameters adds to the shared network."""
    base = float(printed.row("4_1", base_method="Joint-train", variant="base")["params_mb"])
    recon, extra = (
        sorted(float(row["params_mb"]) - base for row in printed.cells("4_15", layer_selection=n))
        for n in ("recon", "rsp")
    )
    if extra[0] > 2 * recon[-1]:
        yield Finding(
            "Random parameters (RSP), table 4.15",
            "about as many parameters as Recon are made task-specific",
            f"they add {extra[0]:.2f} to {extra[-1]:.2f} MB to {base:.2f} MB, Recon "
            f"{recon[-1]:.2f} MB",
        )


def _first_and_last(printed: Printed) -> Iterator[Finding]:
    """Table 4.16: the sizes of networks with the first or the last 25 layers for each task."""
    base = float(printed.row("4_1", base_method="Joint-train", variant="base")["params_mb"])
    layers = resnet18_layers()
    extra = {"first": sum(layers[:25]), "last": sum(layers[-25:])}
    size = {place: base + 4 * number / MEGABYTE for place, number in extra.items()}
    said = {"lsk": "first", "fsk": "last"}  # as the thesis explains the two names
    rounding = half("0.00")
    for name, place in said.items():
        found = printed.row("4_16", layer_selection=name, base_method="CAGrad")["params_mb"]
        other = "last" if place == "first" else "first"
        wrong, right = (differ(found, size[which], rounding) for which in (place, other))
        if wrong and not right:
            yield Finding(
                f"Table 4.16, {name.upper()}",
                f"the {place} 25 layers, {found} MB",
                f"{size[place]:.2f} MB; {found} MB is a network with the {other} 25 layers",
            )


def resnet18_layers(channels: int = 1, features: int = 100) -> list[int]:
    """Numbers of parameters of ResNet18's layers with weights, from the input to the output."""
    layers, before = [channels * 64 * 49, 2 * 64], 64
    for width in (64, 128, 256, 512):
        for block in range(2):
            layers += [9 * before * width, 2 * width, 9 * width * width, 2 * width]
            if block == 0 and before != width:  # the shortcut
                layers += [before * width, 2 * width]
            before = width
    return [*layers, (before + 1) * features]


CELLS = (
    gaps,
    relative_gains,
    shares,
    drops,
    one_run_twice,
    single_task_rows,
    equal_pairs,
    averages,
)
SENTENCES = (ahead_everywhere, exemplars, other_sentences)


def thesis_part(printed: Printed) -> str:
    """Both lists in Markdown."""
    parts = []
    lists = (
        ("Cells that do not follow from other cells", ("Where", "Printed", "Follows"), CELLS),
        ("Sentences and tables", ("Where", "Said", "In the tables"), SENTENCES),
    )
    for place, (heading, columns, checks) in zip(PLACES, lists, strict=True):
        found = [finding for check in checks for finding in check(printed)]
        parts += [f"({place})=\n## {heading}", f"{len(found)} places."]
        parts += [table(columns, found)] if found else []
    return "\n\n".join(parts) + "\n"


def write_thesis(folder: Path, printed: Printed | None = None) -> None:
    """Write ``thesis.md`` into a folder."""
    write_text(folder / "thesis.md", thesis_part(printed or Printed()))
