"""The experiments behind ``chapters/recon_evidence.py``: each gives rows of the record's tables.

:func:`evidence_of` runs all of them for one seed, which is a part of the long record. Protocol and
rules stand in the chapter; settings come from :mod:`experiments.searches.recon_evidence` and are
never chosen here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import pandas as pd
import torch
from torch import nn

from experiments.mtl.attributes import attribute_tasks
from experiments.mtl.comparison import train_architecture
from experiments.mtl.controls import control_layers, parameter_count
from experiments.mtl.experiment import MultiTaskExperiment, TrainedRun, conflict_ranking
from experiments.mtl.parameters import ARCHITECTURES, EvidenceParameters
from experiments.mtl.variants import block_losing_skips, lose_skips
from ktlib.mtl.conflict import ConflictMeter
from ktlib.mtl.cost import forward_flops, forward_milliseconds, parameter_megabytes
from ktlib.mtl.layers import layers_of
from ktlib.seeding import generator

Row = dict[str, Any]
Tables = dict[str, list[Row]]
Setting = Mapping[str, float]
Settings = Mapping[tuple[str, str, str], Setting]
"""Size, method and choice of layers -> values of the method's knobs."""

Experiment = MultiTaskExperiment[EvidenceParameters]

SHARED, RECON = "shared", "recon"
BEHIND_STEM = "behind_stem"
LONG, MATRIX = "long", "matrix"
PRINTED = -0.01  # severity of table 4.11
RUN = ("size", "study", "value", "method", "layers")
KNOWN: dict[str, tuple[str, ...]] = {
    "results": RUN,
    "histograms": RUN,
    "scores": ("size", "study", "method", "layers"),
    "costs": ("size", "method", "layers"),
    "branches": (),
}
"""Tables that each run adds to, and what of the run stands in their rows."""
TABLES = (*KNOWN, "choices", "layers", "pairs", "seconds")


def chosen_settings(trials: pd.DataFrame) -> dict[tuple[str, str, str], dict[str, float]]:
    """The best trial of each method on held-out images, by mean gain over tasks and seeds.

    Args:
        trials: the table ``trials`` of the search: ``size``, ``method``, ``layers``, ``setting``
            (JSON), ``seed`` and ``mean_accuracy``.
    """
    keys = ["size", "method", "layers", "setting"]
    table = trials.groupby(keys, sort=False)["mean_accuracy"].mean().reset_index()
    best = table.loc[table.groupby(keys[:3], sort=False)["mean_accuracy"].idxmax()]
    rows = best[keys].astype(str).to_numpy().tolist()
    return {(size, method, layers): json.loads(text) for size, method, layers, text in rows}


def evidence_of(experiment: Experiment, seed: int, settings: Settings) -> Tables:
    """All tables of one seed.

    Args:
        experiment: with the parameters of the run.
        seed: one of ``seeds``; those in ``study_seeds`` run more than the long comparison.
        settings: of each method, from the search.
    """
    case = Case(experiment, seed, settings)
    case.long_comparison()
    if seed in experiment.parameters.study_seeds:
        case.methods()
        case.other_choices()
        case.curves()
        case.other_searches()
        case.lost_skips()
        case.search_cost()
    return {name: [{"seed": seed, **row} for row in rows] for name, rows in case.tables.items()}


class Case:
    """One seed: its search, the choices of layers, and the runs with them.

    Args:
        experiment, seed, settings: see :func:`evidence_of`.

    Attributes:
        tables: what was found so far, by the names in :data:`TABLES`.
    """

    def __init__(self, experiment: Experiment, seed: int, settings: Settings) -> None:
        self.p = p = experiment.parameters
        self.seed, self.settings = seed, settings if p.searched else {}
        long = experiment.with_parameters(train_images=p.long_images, epochs=p.long_epochs)
        self.sizes = {LONG: long, MATRIX: experiment}
        self.tables: Tables = {name: [] for name in TABLES}
        self.done: dict[Any, Tables] = {}
        self.trunk = experiment.new_trunk()
        # The attention of MTAN is a task's own in any case.
        fixed = set(getattr(self.trunk, "attention_layers", ()))
        self.layers = {n: own for n, own in layers_of(self.trunk).items() if n not in fixed}
        self.not_norms = layers_of(self.trunk, batch_norm=False).keys()
        self.tables["layers"] = [
            {"place": place, "layer": name, "kind": self.kind(name),
             "parameters": parameter_count(own)}
            for place, (name, own) in enumerate(self.layers.items(), start=1)
        ]  # fmt: skip
        test = experiment.test_data
        rows = torch.arange(min(p.timed_images, len(test)))
        self.images, _ = experiment.batch(test, rows)

    # Choices of layers -------------------------------------------------------------------------

    @cached_property
    def found(self) -> TrainedRun:
        """The search of Recon: the shared network of the long comparison."""
        return self.search(self.sizes[LONG])

    @cached_property
    def ranking(self) -> list[str]:
        """The layers from most conflicts in the search to fewest."""
        return self.ranked(self.found.conflicts(self.p.search_quarters), self.p.severity)

    @property
    def chosen(self) -> list[str]:
        """The layers that Recon splits."""
        return self.ranking[: self.p.top_k]

    def search(self, experiment: Experiment) -> TrainedRun:
        """Joint training of the shared network, which counts conflicts."""
        return experiment.train("joint", self.seed, (), **self.setting(LONG, "joint", SHARED))

    def kind(self, layer: str) -> str:
        """What a layer is."""
        if layer not in self.not_norms:
            return "batch norm"
        return "linear" if isinstance(self.trunk.get_submodule(layer), nn.Linear) else "convolution"

    def ranked(self, meter: ConflictMeter, severity: float) -> list[str]:
        """The layers that may be split, from most conflicts to fewest."""
        allowed = self.layers.keys() if self.p.batch_norm else self.not_norms
        return [name for name in conflict_ranking(meter, severity) if name in allowed]

    def choice(self, name: str) -> list[str]:
        """The layers of a choice; a blind one is the same for all runs of the seed."""
        if name in (SHARED, RECON):
            return self.chosen if name == RECON else []
        layers, chosen = self.layers, self.chosen
        if name == BEHIND_STEM:
            layers = {n: own for n, own in layers.items() if n not in ("conv1", "bn1")}
            chosen, name = [n for n in chosen if n in layers], "random_layers"
            rng = generator(self.seed, "control", BEHIND_STEM)
        else:
            rng = generator(self.seed, "control", name)
        return control_layers(name, layers, chosen, rng)

    def setting(self, size: str, method: str, layers: str) -> dict[str, float]:
        """The method's setting from the search: of the split network, if it was searched itself."""
        controls = ("random_parameters", "first", "last")
        searched = "random_layers" if layers in controls else layers
        known = self.settings.get((size, method, SHARED), {})
        known = self.settings.get((size, method, searched), known)
        return {**known, **self.p.method_settings.get(method, {})}

    # Runs --------------------------------------------------------------------------------------

    def run(
        self, size: str, study: str, method: str, layers: str, chosen: Sequence[str] = (),
        value: str = "",
    ) -> None:  # fmt: skip
        """Add the rows of one run: trained, tested with both sets of statistics, and counted."""
        known = dict(zip(RUN, (size, study, value, method, layers), strict=True))
        setting = self.setting(size, method, layers)
        key = size, method, tuple(chosen), tuple(setting.items())
        if chosen:
            names = {"study": study, "value": value, "layers": layers, "names": " ".join(chosen)}
            if names not in self.tables["choices"]:
                self.tables["choices"].append(names)

        if key not in self.done:
            train = partial(self.train, size, method, chosen, setting)
            self.done[key] = self.outcome(size, train, split=bool(chosen))
        for table, rows in self.done[key].items():
            if table in ("results", "histograms") or study in (LONG, "methods"):
                own = {name: known[name] for name in KNOWN[table]}
                self.tables[table] += [own | row for row in rows]

    def train(
        self, size: str, method: str, chosen: Sequence[str], setting: Mapping[str, float]
    ) -> TrainedRun:
        """A network with some layers split, trained by a method with these values of its knobs."""
        experiment = self.sizes[size]
        if method not in ARCHITECTURES:
            return experiment.train(method, self.seed, chosen, **setting)
        return train_architecture(
            experiment, method, self.seed, chosen, lr=setting.get("lr"),
            experts=self.p.experts, branch_epochs=self.p.branch_epochs,
        )  # fmt: skip

    def outcome(self, size: str, train: Callable[[], TrainedRun], *, split: bool) -> Tables:
        """Results, costs and counts of one run; scores of None if it diverged."""
        experiment, statistics = self.sizes[size], "own" if split else "one"
        try:
            run = train()
        except FloatingPointError:
            missing = {task: {"": None} for task in experiment.tasks}
            return {"results": [*result_rows(missing, statistics)]}
        results = [*result_rows(experiment.scores(run.network), statistics)]
        if split:
            with run.mixed.applied():
                results += result_rows(experiment.scores(run.network), "shared")
        meters = [*enumerate(run.meters, start=1)]
        return {
            "results": results,
            "costs": [self.cost_of([run.network])],
            "branches": run.branches,
            "histograms": [
                {"quarter": quarter, "counts": " ".join(map(str, meter.histogram()))}
                for quarter, meter in meters
            ],
            "scores": [row for one in meters for row in self.score_rows(*one, split=split)],
        }

    def score_rows(self, quarter: int, meter: ConflictMeter, *, split: bool) -> Iterator[Row]:
        """Conflicts on each layer of the trunk; none of architectures, whose layers are others."""
        if not set(meter.layers) <= self.layers.keys():
            return
        severities = [s for s in meter.severities if not split or s in (PRINTED, self.p.severity)]
        for severity in severities:
            scores = meter.scores(severity)
            angles = meter.mean_angles() if severity == 0 and not split else {}
            yield {
                "quarter": quarter, "severity": severity, "steps": meter.observations,
                "scores": " ".join(str(scores.get(name, "-")) for name in self.layers),
                "angles": " ".join(f"{angles[name]:.4f}" for name in self.layers if name in angles),
            }  # fmt: skip

    def cost_of(self, networks: Sequence[nn.Module]) -> Row:
        """Size, and operations and time of a forward pass, of networks that serve all tasks."""
        return {
            "megabytes": sum(map(parameter_megabytes, networks)),
            "gigaflops": sum(forward_flops(one, self.images) for one in networks) / 1e9,
            "forward_ms": sum(forward_milliseconds(one, self.images) for one in networks),
        }

    def single(self, size: str, study: str) -> None:
        """A network for each task alone, the reference of every gain."""
        experiment = self.sizes[size]
        runs = experiment.train_single(self.seed, **self.setting(size, "single", SHARED))
        known = dict(zip(RUN, (size, study, "", "single", SHARED), strict=True))
        cost = self.cost_of([run.network for run in runs.values()])
        self.tables["costs"].append({name: known[name] for name in KNOWN["costs"]} | cost)
        rows = result_rows(experiment.single_scores(runs), "one")
        self.tables["results"] += [known | row for row in rows]

    # Experiments -------------------------------------------------------------------------------

    def long_comparison(self) -> None:
        """Joint training with other choices of layers, trained longest; the search itself."""
        self.single(LONG, LONG)
        self.run(LONG, LONG, "joint", SHARED)
        self.run(LONG, LONG, "joint", RECON, self.chosen)
        for name in ("random_layers", "random_parameters"):
            self.run(LONG, LONG, "joint", name, self.choice(name))
        for quarter, meter in enumerate(self.found.meters, start=1):
            for row in meter.pair_rows(self.p.severity):
                if row["layer"] is None or len(self.sizes[LONG].tasks) <= MOST_TASKS:
                    del row["inner_product"]
                    self.tables["pairs"].append({"quarter": quarter, **row})

    def methods(self) -> None:
        """Every method as it is, and on the split network."""
        for method in self.p.methods:
            if method == "single":
                self.single(MATRIX, "methods")
            else:
                self.run(MATRIX, "methods", method, SHARED)
            if method in self.p.recon_methods:
                self.run(MATRIX, "methods", method, RECON, self.chosen)

    def other_choices(self) -> None:
        """Tables 4.15 and 4.16: as many layers, or as large, chosen without looking."""
        for method in self.p.control_methods:
            for name in self.p.controls:
                self.run(MATRIX, "control", method, name, self.choice(name))

    def curves(self) -> None:
        """Figure 4.6: how many layers, and which conflicts count."""
        for count in self.p.counts_studied:
            if count <= len(self.ranking):
                chosen = self.ranking[:count]
                self.run(MATRIX, "count", "joint", RECON, chosen, str(count))
        counted = self.found.conflicts(self.p.search_quarters)
        for severity in self.p.severities_studied:
            chosen = self.ranked(counted, severity)[: self.p.top_k]
            self.run(MATRIX, "severity", "joint", RECON, chosen, f"{severity:g}")

    def other_searches(self) -> None:
        """Tables 4.7, 4.9 and 4.10: layers of other quarters, and of other data."""
        for quarter in self.p.quarters_studied:
            every = quarter == "all"
            meter = self.found.conflicts() if every else self.found.meters[int(quarter) - 1]
            chosen = self.ranked(meter, self.p.severity)[: self.p.top_k]
            self.run(MATRIX, "quarter", "joint", RECON, chosen, quarter)
        for source in self.p.transfer_from:
            long = {"train_images": self.p.long_images, "epochs": self.p.long_epochs}
            other = self.p.model_copy(update={"dataset": source, **long})
            elsewhere = MultiTaskExperiment(other, self.sizes[LONG].device)
            meter = self.search(elsewhere).conflicts(self.p.search_quarters)
            chosen = self.ranked(meter, self.p.severity)[: self.p.top_k]
            for method in self.p.control_methods:
                self.run(MATRIX, "transfer", method, RECON, chosen, source)
        if self.p.transfer_from:
            for method in self.p.control_methods:
                self.run(MATRIX, "transfer", method, RECON, self.chosen, "own")

    def lost_skips(self) -> None:
        """A fault of the released code: choices whose first block loses its skip connection."""
        experiment, setting = self.sizes[MATRIX], self.setting(MATRIX, "joint", "random_layers")
        for name in self.p.skips_studied:
            chosen = self.choice(name)
            if not block_losing_skips(self.trunk, chosen):
                continue
            self.run(MATRIX, "skip", "joint", name, chosen, "every task")

            def make(chosen: Sequence[str] = chosen) -> TrainedRun:
                network = experiment.new_network(self.seed, chosen)
                changed = lose_skips(network, [*experiment.tasks][-1])
                return experiment.train_network(changed, "joint", self.seed, groups=None, **setting)

            known = dict(zip(RUN, (MATRIX, "skip", "one task", "joint", name), strict=True))
            run = experiment.kept(make, lost_skips=chosen, seed=self.seed, setting=setting)
            rows = result_rows(experiment.scores(run.network), "own")
            self.tables["results"] += [known | row for row in rows]

    def search_cost(self) -> None:
        """Figure 4.11: time of a step against the number of tasks."""
        p, experiment = self.p, self.sizes[MATRIX]
        if not p.task_counts or self.seed != p.study_seeds[0]:
            return
        images = max(4, p.timed_steps) * p.batch_size
        rows = torch.arange(min(len(experiment.train_data), images))
        some = experiment.training_images(rows)
        short = experiment.with_parameters(epochs=1, train_images=images)
        for number in p.task_counts:
            asked = short.with_data(attribute_tasks(some, number))
            plain = asked.optimise(asked.new_network(self.seed), self.seed).seconds
            seconds = {"joint, not counted": plain}
            for method in p.timed_methods:
                name = "joint, counted" if method == "joint" else method
                seconds[name] = asked.train(method, self.seed).seconds
            self.tables["seconds"] += [
                {"tasks": number, "method": name, "ms": 1000 * value}
                for name, value in seconds.items()
            ]


MOST_TASKS = 6
"""Of so many tasks pairs are kept layer by layer; of more, only over all shared layers."""


def result_rows(scores: Mapping[str, Mapping[str, float | None]], statistics: str) -> Iterator[Row]:
    """A row for each task and metric."""
    for task, metrics in scores.items():
        for metric, value in metrics.items():
            known = {"statistics": statistics, "task": task}
            yield known | {"metric": metric, "score": value}


def joined(parts: Iterable[Tables]) -> Tables:
    """The tables of several seeds, one after the other; the layers once."""
    tables: Tables = {}
    for part in parts:
        for name, rows in part.items():
            tables.setdefault(name, []).extend(rows)
    return tables
