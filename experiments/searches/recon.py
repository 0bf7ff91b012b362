"""Learning rate of every multi-task method: ``python -m experiments.searches.recon``.

Every method gets the same grid, at the size of the live run of ``chapters/recon.py``, with two
seeds that the chapter does not use. Chosen is the best mean accuracy over tasks and seeds on
validation images that are held out of the training images. A rate at which a loss stops being
finite counts as accuracy 0. The test images play no part. The split network of a method is trained
with the rate of the method itself: Recon gets no search of its own.

How it went: a first grid of 0.05, 0.1 (the rate of the authors' code, whose training is far longer)
and 0.2 was stopped when the first five methods all did best at its smallest rate, by 1 to 14
points. NashMTL and MMoE did best at the largest rate of the present grid: ``--rates 0.2 0.4`` was
added for these two.

The record is ``results/recon.search.json``; what it already holds is not computed again, so
``--rates`` widens the grid of the methods given.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import data_prep as data
from experiments.mtl.comparison import train_architecture
from experiments.mtl.experiment import MultiTaskExperiment, Scores
from experiments.mtl.parameters import ARCHITECTURES, METHODS, ReconParameters
from experiments.run.parameters import check_parameter_file
from experiments.run.results import RunRecord, load_record

CHAPTER = Path(__file__).parents[2] / "chapters" / "recon.py"
RATES = (0.01, 0.02, 0.05, 0.1)
VALIDATION_IMAGES = 2000
SEEDS = [100, 101]


def parameters_of(seeds: list[int]) -> ReconParameters:
    """The parameters of the live run, with other seeds and every method."""
    given = check_parameter_file(CHAPTER, CHAPTER.parent / "params/recon.cpu.yaml", ReconParameters)
    values = {"seeds": seeds, "profile": "search", "run_dir": "", "methods": list(METHODS)}
    return ReconParameters.model_validate(given.model_dump() | values)


def validation_scores(
    experiment: MultiTaskExperiment[ReconParameters], method: str, seed: int, lr: float
) -> Scores:
    """Train by a method, and test on the validation images."""
    if method == "single":
        return experiment.single_scores(experiment.train_single(seed, lr=lr))
    if method in ARCHITECTURES:
        run = train_architecture(
            experiment, method, seed, lr=lr, experts=experiment.parameters.experts
        )
        return experiment.scores(run.network)
    return experiment.scores(experiment.train(method, seed, lr=lr).network)


def search(
    parameters: ReconParameters,
    seed: int,
    methods: Sequence[str],
    rates: Sequence[float],
    known: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Validation accuracies of the methods at each rate that is not among the known rows."""
    torch.set_num_threads(1)
    done = {(row["method"], row["lr"]) for row in known if row["seed"] == seed}
    experiment = MultiTaskExperiment(parameters, "cpu", validation_images=VALIDATION_IMAGES)
    rows = []
    for method in methods:
        for lr in rates:
            if (method, lr) in done:
                continue
            started = time.monotonic()
            try:
                scores = validation_scores(experiment, method, seed, lr)
            except FloatingPointError:
                scores = {task: {"accuracy": 0.0} for task in experiment.tasks}
            by_task = {task: values["accuracy"] for task, values in scores.items()}
            mean = sum(by_task.values()) / len(by_task)
            row = {"method": method, "seed": seed, "lr": lr, "mean_accuracy": mean, **by_task}
            rows.append(row | {"seconds": time.monotonic() - started})
            print(rows[-1], flush=True)
    return rows


def choose(table: pd.DataFrame) -> dict[str, float]:
    """The rate of each method with the best mean accuracy over tasks and seeds."""
    mean = table.groupby(["method", "lr"])["mean_accuracy"].mean().reset_index()
    best = mean.loc[mean.groupby("method")["mean_accuracy"].idxmax()]
    return dict(zip(best["method"], best["lr"], strict=True))


def main() -> None:
    """Search, then write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    arguments = parser.parse_args()
    parameters = parameters_of(arguments.seeds)
    record = RunRecord.start("recon", parameters, data=data.checksums(parameters.dataset))
    out = Path("results/recon.search.json")
    rows = load_record(out).tables["search"] if out.exists() else []
    task = partial(search, parameters, methods=arguments.methods, rates=arguments.rates, known=rows)
    with ProcessPoolExecutor(len(arguments.seeds)) as pool:  # one process and thread per seed
        rows = rows + [row for found in pool.map(task, arguments.seeds) for row in found]
    rows.sort(key=lambda row: (METHODS.index(str(row["method"])), row["lr"], row["seed"]))
    record.table("search", rows)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        record.save(folder)
        Path(folder, "result.json").replace(out)
    print(f"chosen: {choose(record.frame('search'))}; written: {out}")


if __name__ == "__main__":
    main()
