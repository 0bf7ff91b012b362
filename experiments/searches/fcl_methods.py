"""Settings of methods to compare with F2M: ``python -m experiments.searches.fcl_methods``.

Every method gets the same care as F2M: the data, seeds and validation images of
:mod:`experiments.searches.fcl`, and a grid of its own over what its paper leaves to the data.
Chosen is the best mean validation accuracy over all sessions, mean over seeds. Constants that a
paper does state are left at the defaults of ``experiments.fcl.baselines``. A setting that diverges
counts as accuracy 0. The test images are not used.

How it went: a first grid of 0.005, 0.02 and 0.1 for all showed that FSLL and IDLVQ-C want much
smaller rates (FSLL fell to 3 % at 0.01, IDLVQ-C diverged at 0.02), and that the weight of
IDLVQ-C's forgetting term, 1 or 10, changes nothing. Of the second grids the best values of several
methods lay at an edge (cRT, joint and LUCIR at the largest rate, FSLL and IDLVQ-C at the smallest),
and TOPIC learned no new class at all in 6 steps: so those were widened, TOPIC by 50 steps.

There is one search for each size of training, because what a short training leaves behind bears
smaller steps: ``--profile full``, the default, with the record ``results/fcl.methods.json``, and
``--profile cpu`` with ``results/fcl.methods_cpu.json``. A record holds every setting; those that it
already holds are not computed again.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import data_prep as data
from experiments.fcl.baselines import SessionResults
from experiments.fcl.experiment import STARTS_FROM, Trained
from experiments.fcl.parameters import FclParameters
from experiments.run.results import RunRecord, load_record
from experiments.searches.fcl import Experiment, Row, accuracies, new_experiment, parameters_of

RATES = (0.0005, 0.002, 0.005, 0.02, 0.1)
Grid = dict[str, tuple[float, ...]]
GRIDS: dict[str, tuple[Grid, ...]] = {
    "ncm": ({},),
    "f2m": ({"lr": RATES},),
    "finetune": ({"lr": RATES},),
    "fsll": ({"lr": (0.00001, 0.00003, 0.0001, *RATES[:2])},),
    "idlvq": ({"lr": (0.00005, 0.0002, *RATES[:3])},),
    "ewc_wide": (
        {"lr": (0.02, 0.1), "penalty": (1.0, 100.0)},
        {"lr": (0.005,), "penalty": (100.0, 10000.0)},
        {"lr": (0.02,), "penalty": (10000.0,)},
    ),
    "icarl": ({"lr": RATES},),
    "lucir": ({"lr": (*RATES[1:], 0.2, 0.5)},),
    "topic": ({"lr": RATES[:3]}, {"epochs": (50,), "lr": RATES[2:]}),
    "joint": ({"lr": (*RATES[2:], 0.3)},),
    "crt": ({"lr": (*RATES[2:], 0.3)},),
    "sam": (
        {"radius": (0.01, 0.05, 0.2), "lr": (0.02,)},
        {"radius": (0.05,), "lr": (0.002, 0.005)},
    ),
}
UPPER_BOUND_EPOCHS = {"full": 2, "cpu": 1}
RECORDS = {"full": "methods", "cpu": "methods_cpu"}


def train(experiment: Experiment, base: str, seed: int, radius: float = 0.0) -> Trained:
    """Base training as a method wants it, see :data:`experiments.fcl.experiment.STARTS_FROM`."""
    if base == "f2m":
        return experiment.train_f2m(seed)
    return experiment.train_plain(seed, cosine=base == "cosine", sam_radius=radius)


def settings(name: str) -> Iterator[dict[str, Any]]:
    """Every combination of the values of each grid of a method."""
    for grid in GRIDS[name]:
        for values in itertools.product(*grid.values()):
            yield dict(zip(grid, values, strict=True))


def setting_text(setting: dict[str, Any]) -> str:
    """The setting as the record writes it."""
    return ", ".join(f"{key} {value:g}" for key, value in setting.items())


def search(parameters: FclParameters, seed: int, profile: str, known: list[Row]) -> list[Row]:
    """Validation accuracies of every setting of every method that is not among the known rows."""
    torch.set_num_threads(1)
    done = {(row["method"], row["setting"]) for row in known if row["seed"] == seed}
    experiment = new_experiment(parameters)
    networks: dict[tuple[str, float], Trained] = {}
    rows = []
    for name in GRIDS:
        for setting in settings(name):
            if (name, setting_text(setting)) in done:
                continue
            started = time.monotonic()
            own = dict(setting)
            start = STARTS_FROM.get(name, "plain"), own.pop("radius", 0.0)
            if start not in networks:
                networks[start] = train(experiment, start[0], seed, start[1])
            if name in ("joint", "crt"):
                own["epochs"] = UPPER_BOUND_EPOCHS[profile]
            if name == "ewc_wide":
                own["bound"] = parameters.ewc_bound
            found = SessionResults()
            try:
                learner = experiment.learner(name, networks[start], seed, **own)
                experiment.run_sessions(learner, seed, found)
                diverged = False
            except FloatingPointError:
                diverged = True
            rows.append(
                {
                    "method": name,
                    "seed": seed,
                    "setting": setting_text(setting),
                    **accuracies(found, parameters.sessions + 1),
                    "diverged": diverged,
                    "seconds": time.monotonic() - started,
                }
            )
            print(rows[-1], flush=True)
    return rows


def choose(table: pd.DataFrame) -> dict[str, str]:
    """The setting of each method with the best mean accuracy over sessions and seeds."""
    mean = table.groupby(["method", "setting"])["mean_accuracy"].mean().reset_index()
    best = mean.loc[mean.groupby("method")["mean_accuracy"].idxmax()]
    return dict(zip(best["method"], best["setting"], strict=True))


def main() -> None:
    """Search, then write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101])
    parser.add_argument("--profile", choices=RECORDS, default="full")
    arguments = parser.parse_args()
    name = RECORDS[arguments.profile]
    parameters = parameters_of(arguments.profile, seeds=arguments.seeds, profile=name)
    record = RunRecord.start("fcl", parameters, data=data.checksums(parameters.dataset))
    out = Path(f"results/fcl.{name}.json")
    rows: list[Row] = load_record(out).tables["methods"] if out.exists() else []
    with ProcessPoolExecutor(len(arguments.seeds)) as pool:  # one process and thread per seed
        searches = pool.map(
            partial(search, parameters, profile=arguments.profile, known=rows), arguments.seeds
        )
        rows = rows + [row for found in searches for row in found]
    order = list(GRIDS)
    rows.sort(key=lambda row: (order.index(row["method"]), row["setting"], row["seed"]))
    record.table("methods", rows)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        record.save(folder)
        Path(folder, "result.json").replace(out)
    print(f"chosen: {choose(record.frame('methods'))}; written: {out}")


if __name__ == "__main__":
    main()
