"""Search of the settings of continual PEFT: ``python -m experiments.searches.continual_peft``.

At the size of the live run of ``chapters/continual_peft.py``, with two seeds that no chapter uses.
A fifth of every class's training images is held out and tested on; the test files are never loaded.
In this order, each with the values chosen before it:

- ``pretraining_lr``: by the accuracy of nearest class means on held-out images of the *base*
  classes, the only ones that exist when the model is pre-trained;
- learning rates of the methods: by what each is for. ``expert_lr`` by the accuracy of the oracle
  with a given task, the others by the final accuracy among all classes;
- ``first_threshold`` of InfLoRA, and ``consistency`` of L2C, by the final accuracy.

The record is ``results/continual_peft.search.json``; what it already holds is not computed again.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from experiments.cpeft.experiment import ContinualExperiment
from experiments.cpeft.parameters import ContinualPeftParameters
from experiments.run.parallel import parallel_map
from experiments.run.parameters import check_parameter_file
from experiments.run.results import RunRecord, load_record
from ktlib.cpeft.comparisons import NearestMean
from ktlib.cpeft.metrics import accuracy_matrix, final_accuracy
from ktlib.cpeft.tasks import learn_tasks

CHAPTER = Path(__file__).parents[2] / "chapters" / "continual_peft.py"
OUT = Path("results/continual_peft.search.json")
SEEDS = [100, 101]
GRIDS: dict[str, tuple[float, ...]] = {
    "pretraining_lr": (0.0005, 0.001, 0.002, 0.004),
    "sequential_lr": (0.0003, 0.001, 0.003, 0.01, 0.03),
    "inflora_lr": (0.001, 0.003, 0.01, 0.03),
    "expert_lr": (0.0003, 0.001, 0.003, 0.01, 0.03),
    "joint_lr": (0.001, 0.003, 0.01, 0.03),
    "selector_lr": (0.000001, 0.00001, 0.0001, 0.001, 0.003),
    "first_threshold": (0.5, 0.7, 0.9, 0.95, 0.99),
    "consistency": (0.0, 0.1, 1.0, 10.0),
}
METHODS = {
    "sequential_lr": "sequential",
    "inflora_lr": "inflora",
    "expert_lr": "oracle",
    "joint_lr": "joint",
    "selector_lr": "l2c",
    "first_threshold": "inflora",
    "consistency": "l2c",
}
ENDS_COUNT = ("first_threshold", "consistency")
"""Settings whose grid ends where their range does, so that the best one may lie at an end."""
DIVERGED = -1.0  # accuracy of a run whose loss was no longer finite: JSON has no number for it
Case = tuple[str, float, int]


def parameters_of(chosen: dict[str, float]) -> ContinualPeftParameters:
    """The parameters of the live run, with other seeds and what has been chosen so far."""
    file = CHAPTER.parent / "params/continual_peft.cpu.yaml"
    given = check_parameter_file(CHAPTER, file, ContinualPeftParameters)
    values = {"seeds": SEEDS, "profile": "search", "run_dir": "", **chosen}
    return ContinualPeftParameters.model_validate(given.model_dump() | values)


def base_accuracy(experiment: ContinualExperiment[ContinualPeftParameters]) -> float:
    """Accuracy of nearest class means on held-out images of the base classes, in percent."""
    task = experiment.base_task
    learner = NearestMean(experiment.pretrained())
    held_out = task.validation
    images = experiment.images[held_out]
    rows = learn_tasks(
        learner, [task], experiment.images, experiment.labels, images, experiment.labels[held_out]
    )
    return final_accuracy(rows)


def measure(chosen: dict[str, float], case: Case) -> dict[str, Any]:
    """One row of the search: the accuracy that a setting is chosen by, and the time it took."""
    name, value, seed = case
    parameters = parameters_of({**chosen, name: value})
    experiment = ContinualExperiment(parameters, "cpu", validation=True)
    started = time.monotonic()
    try:
        if name == "pretraining_lr":
            found = base_accuracy(experiment)
        else:
            rows = experiment.run(METHODS[name], seed).rows
            within = accuracy_matrix(rows, "accuracy_within")[-1]
            task_il = sum(within) / len(within)
            found = task_il if name == "expert_lr" else final_accuracy(rows)
    except FloatingPointError:
        found = DIVERGED
    known = {"name": name, "value": value, "seed": seed, "accuracy": found}
    return known | {"seconds": time.monotonic() - started}


def choose(table: pd.DataFrame) -> dict[str, float]:
    """The value of each setting with the highest mean accuracy over the seeds.

    Of equal ones the largest: a selector whose rate is small enough stays where it is.
    """
    mean = table.groupby(["name", "value"])["accuracy"].mean().reset_index()
    mean = mean.sort_values("value", ascending=False)
    best = mean.loc[mean.groupby("name")["accuracy"].idxmax()]
    return dict(zip(best["name"], best["value"], strict=True))


def main() -> None:
    """Search one setting after the other, then write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", nargs="+", choices=list(GRIDS), default=list(GRIDS))
    parser.add_argument("--values", type=float, nargs="+", help="in place of the grid")
    given = vars(parser.parse_args())
    names, values = given["names"], given["values"]
    rows = list(load_record(OUT).tables["search"]) if OUT.exists() else []
    for name in names:
        # Settings searched before this one have their best values, the others the chapter's.
        before = list(GRIDS)[: list(GRIDS).index(name)]
        known = choose(pd.DataFrame(rows)) if rows else {}
        chosen = {other: known[other] for other in before if other in known}
        done = {(row["name"], row["value"], row["seed"]) for row in rows}
        seeds = SEEDS[:1] if name == "pretraining_lr" else SEEDS
        cases = [
            case
            for case in itertools.product([name], values or GRIDS[name], seeds)
            if case not in done
        ]
        found = parallel_map(partial(measure, chosen), cases, name)
        rows += list(found.values())
        _write(rows)
        if rows:
            print(
                pd.DataFrame(rows).query("name == @name").pivot_table("accuracy", "value", "seed")
            )
    print(choose(pd.DataFrame(rows)))


def _write(rows: list[dict[str, Any]]) -> None:
    """Save the rows so far: a search can be stopped and resumed."""
    parameters = parameters_of(choose(pd.DataFrame(rows)) if rows else {})
    experiment = ContinualExperiment(parameters, "cpu", validation=True)
    record = RunRecord.start("continual_peft", parameters, data=experiment.checksums())
    record.table("search", rows)
    with tempfile.TemporaryDirectory(dir=OUT.parent) as folder:
        record.save(folder)
        Path(folder, "result.json").replace(OUT)


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
