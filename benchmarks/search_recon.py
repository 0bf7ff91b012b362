"""Learning rate of every multi-task method: ``python -m benchmarks.search_recon --profile cpu``.

Every method gets the same grid, at the size of the live run of ``chapters/recon.py`` (``cpu``) or
of its long run (``full``), with two seeds that the chapter does not use. Chosen is the best mean
accuracy over tasks and seeds on validation images that are held out of the training images. A rate
at which a loss stops being finite counts as accuracy 0. The test images play no part. The split
network of a method is trained with the rate of the method itself: Recon gets no search of its own.

The records are ``results/recon.search_cpu.json`` and ``results/recon.search_full.json``; what a
record already holds is not computed again.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ktlib import data
from ktlib.mtl.comparison import train_architecture
from ktlib.mtl.experiment import MultiTaskExperiment, Scores
from ktlib.mtl.parameters import ARCHITECTURES, GRADIENT_METHODS, ReconParameters
from ktlib.parameters import check_parameter_file
from ktlib.results import RunRecord, load_record

CHAPTER = Path(__file__).parents[1] / "chapters" / "recon.py"
RATES = (0.02, 0.05, 0.1, 0.2)
VALIDATION_IMAGES = 2000
SEEDS = [100, 101]


def parameters_of(profile: str, seeds: list[int]) -> ReconParameters:
    """The parameters of the chapter at this size, with other seeds."""
    file = CHAPTER.parent / f"params/recon.{profile}.yaml"
    given = check_parameter_file(CHAPTER, file, ReconParameters)
    values = given.model_dump() | {"seeds": seeds, "profile": f"search_{profile}", "run_dir": ""}
    return ReconParameters.model_validate(values)


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
    parameters: ReconParameters, seed: int, known: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Validation accuracies of every method at every rate that is not among the known rows."""
    torch.set_num_threads(1)
    done = {(row["method"], row["lr"]) for row in known if row["seed"] == seed}
    experiment = MultiTaskExperiment(parameters, "cpu", validation_images=VALIDATION_IMAGES)
    rows = []
    for method in parameters.methods:
        for lr in RATES:
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
    parser.add_argument("--profile", choices=("cpu", "full"), default="cpu")
    arguments = parser.parse_args()
    parameters = parameters_of(arguments.profile, arguments.seeds)
    record = RunRecord.start("recon", parameters, data=data.checksums(parameters.dataset))
    out = Path(f"results/recon.{parameters.profile}.json")
    rows = load_record(out).tables["search"] if out.exists() else []
    with ProcessPoolExecutor(len(arguments.seeds)) as pool:  # one process and thread per seed
        searches = pool.map(partial(search, parameters, known=rows), arguments.seeds)
        rows = rows + [row for found in searches for row in found]
    order = [*("single",), *GRADIENT_METHODS, *ARCHITECTURES]
    rows.sort(key=lambda row: (order.index(str(row["method"])), row["lr"], row["seed"]))
    record.table("search", rows)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        record.save(folder)
        Path(folder, "result.json").replace(out)
    print(f"chosen: {choose(record.frame('search'))}; written: {out}")


if __name__ == "__main__":
    main()
