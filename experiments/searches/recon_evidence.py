"""The settings of all multi-task methods: ``python -m experiments.searches.recon_evidence``.

Held-out training images (never the test files), seeds that no table uses, and both sizes of the
profile ``full``. Chosen is the best mean accuracy over tasks and seeds; a network that is split is
tested with running statistics of each task's own.

*matrix*: every method gets :data:`TRIALS` settings of its own knobs. A split network has the
setting of its method: Recon gets no search of its own there. *long*: the four arms of the central
comparison each search their learning rate, so that Recon and random layers are not judged at a rate
that suits the shared network. The layers are those that joint training at its best rate finds with
the same seed; random parameters take the rate of random layers.

Where the best value of a knob is the last of its grid, the grid is continued by up to
:data:`EXTENSIONS` further trials, one knob at a time. A run that diverges counts as accuracy 0.
Trials that the record already holds are not computed again.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import data_prep as data
from experiments.mtl.evidence import LONG, MATRIX, RECON, SHARED, Case, chosen_settings
from experiments.mtl.experiment import MultiTaskExperiment
from experiments.mtl.parameters import METHODS, EvidenceParameters
from experiments.run.parameters import check_parameter_file
from experiments.run.results import RunRecord, load_record
from experiments.searches.grids import (
    Grid,
    Setting,
    continued,
    save,
    setting_text,
    settings,
    tried,
)

OUT = Path("results/recon_evidence.search.json")
VALIDATION_IMAGES = 5000
TRIALS = 6
EXTENSIONS = 3
Arm = tuple[str, str, str]
"""Size, method, choice of layers."""

LONG_ARMS: tuple[Arm, ...] = (
    (LONG, "single", SHARED),
    (LONG, "joint", SHARED),
    (LONG, "joint", RECON),
    (LONG, "joint", "random_layers"),
)
RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
GRIDS: dict[Arm, Grid] = {
    **{(MATRIX, method, SHARED): {"lr": RATES} for method in METHODS},
    (MATRIX, "cagrad", SHARED): {"lr": (0.02, 0.05, 0.1), "c": (0.2, 0.4)},
    (MATRIX, "gradnorm", SHARED): {"lr": (0.02, 0.05, 0.1), "alpha": (0.5, 1.5)},
    **{arm: {"lr": (0.02, 0.05, 0.1, 0.2)} for arm in LONG_ARMS},
}
"""Knobs and values of every arm; of one size each arm has the same number of settings."""

Row = dict[str, Any]
Wanted = dict[Arm, list[Setting]]


def trials(
    parameters: EvidenceParameters, seed: int, known: list[Row], wanted: Wanted
) -> list[Row]:
    """The rows of one seed: every wanted setting that is not among the known ones."""
    torch.set_num_threads(1)
    rows = [row for row in known if row["seed"] == seed]
    done = {(row["size"], row["method"], row["layers"], row["setting"]) for row in rows}
    best = chosen_settings(pd.DataFrame(known)) if known else {}
    experiment = MultiTaskExperiment(parameters, "cpu", validation_images=VALIDATION_IMAGES)
    case = Case(experiment, seed, best)
    for arm, several in wanted.items():
        for setting in several:
            if (*arm, setting_text(setting)) not in done:
                rows.append(trial(case, arm, setting))
                print(rows[-1], flush=True)
    return rows


def trial(case: Case, arm: Arm, setting: Setting) -> Row:
    """Accuracies of one setting on the held-out images."""
    started = time.monotonic()
    size, method, layers = arm
    experiment = case.sizes[size]
    try:
        if method == "single":
            scores = experiment.single_scores(experiment.train_single(case.seed, **setting))
        else:
            run = case.train(size, method, case.choice(layers), setting)
            scores = experiment.scores(run.network)
    except FloatingPointError:
        scores = {task: {"accuracy": 0.0} for task in experiment.tasks}
    by_task = {task: values["accuracy"] for task, values in scores.items()}
    return {
        "size": size, "method": method, "layers": layers, "seed": case.seed,
        "setting": setting_text(setting),
        "mean_accuracy": sum(by_task.values()) / len(by_task), **by_task,
        "diverged": not any(by_task.values()), "seconds": time.monotonic() - started,
    }  # fmt: skip


def main() -> None:
    """Search, continue grids whose best value is the last, then write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    arguments = parser.parse_args()
    values = check_parameter_file(
        "chapters/recon_evidence.py", "chapters/params/recon_evidence.full.yaml", EvidenceParameters
    ).model_dump()
    changed = {"seeds": arguments.seeds, "study_seeds": [], "profile": "search"}
    parameters = EvidenceParameters(**values | changed)
    record = RunRecord.start("recon_evidence", parameters, data=data.checksums(parameters.dataset))
    rows: list[Row] = load_record(arguments.out).tables["trials"] if arguments.out.exists() else []
    wanted = {arm: [*settings(grid)] for arm, grid in GRIDS.items() if not needs_search(arm)}
    with ProcessPoolExecutor(arguments.workers) as pool:
        while wanted:
            futures = [
                pool.submit(trials, parameters, seed, rows, wanted) for seed in arguments.seeds
            ]
            fresh = [row for future in futures for row in future.result()]
            others = [row for row in rows if row["seed"] not in arguments.seeds]
            rows = others + fresh
            record.table("trials", rows)
            save(record, arguments.out)
            wanted = further(rows)
            print(f"chosen: {chosen_settings(pd.DataFrame(rows))}\nnext: {wanted}", flush=True)


def needs_search(arm: Arm) -> bool:
    """Whether the layers of an arm follow from the search at the best rate of joint training."""
    return arm[2] != SHARED


def further(rows: list[Row]) -> Wanted:
    """What is to be tried next: continued grids, and then what needs their end."""
    best = chosen_settings(pd.DataFrame(rows))
    found: Wanted = {}
    for arm, setting in best.items():
        known = tried(
            row["setting"] for row in rows if (row["size"], row["method"], row["layers"]) == arm
        )
        start = len([*settings(GRIDS[arm])])
        following = continued(setting, known)
        if following and len(known) < start + EXTENSIONS:
            found[arm] = [following]
    if (LONG, "joint", SHARED) not in found:
        found |= {arm: [*settings(GRIDS[arm])] for arm in LONG_ARMS if arm not in best}
    return found


if __name__ == "__main__":
    main()
