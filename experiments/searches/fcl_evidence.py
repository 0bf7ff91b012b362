"""The settings of all few-shot methods: ``python -m experiments.searches.fcl_evidence``.

Held-out training images (never the test files), seeds that no table uses, the size of the profile
``full``, and both ways to split the classes. Every method with knobs gets the same number of
trials, :data:`TRIALS`, of its own knobs, and is chosen by the same criterion: the accuracy averaged
over all sessions and seeds. ``f2m_flat`` meets a further condition, at least three times the
flatness of plain training in its own box, and is a row of its own for that reason.

Where the best value of a knob is the last of its grid, the grid is continued by up to
:data:`EXTENSIONS` further trials, one knob at a time; the record shows how many each method had.

How it went: a first search gave F2M the noises 0.01 and 0.02 alone. ``f2m_flat``, with 0.04 and
0.08, was ahead of it on the held-out images, so 0.02 became 0.04 and everything was searched anew.
With unseen parts the best of 0.01 and 0.04 was 0.01, and the continued grid went down from there:
``f2m`` never tried the noise of 0.08 that served ``f2m_flat`` best.

A session that a setting does not finish counts as accuracy 0. Constants that a paper states keep
the defaults of ``experiments.fcl.baselines``. Trials that the record already holds are not computed
again.
"""

from __future__ import annotations

import argparse
import itertools
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import data_prep as data
from experiments.fcl.experiment import STARTS_FROM, FewShotExperiment, Trained
from experiments.fcl.parameters import EvidenceParameters
from experiments.fcl.search_results import Setting, chosen_settings, setting_text
from experiments.run.parameters import check_parameter_file
from experiments.run.results import RunRecord, load_record
from experiments.searches.grids import Grid, continued, save, settings, tried

OUT = Path("results/fcl_evidence.search.json")
VALIDATION_IMAGES = 20  # held out of every class
FLATNESS_DRAWS = 200
TRIALS = 8
EXTENSIONS = 3
AT_MOST = {"shrinkage": 1.0, "shift": 1.0}
RATES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
GRIDS: dict[str, Grid] = {
    "ncm": {},
    "ncm_raw": {},
    "teen": {"shift": (0.1, 0.25, 0.5, 0.75), "temperature": (4, 16)},
    "lda": {"shrinkage": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9)},
    "ridge": {"penalty": (0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 1, 10)},
    "finetune": {"lr": RATES},
    "icarl": {"lr": RATES},
    "lucir": {"lr": (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)},
    "topic": {"lr": (0.0005, 0.002, 0.005, 0.02), "epochs": (6, 50)},
    "fsll_released": {},
    "fsll": {"lr": (0.01, 0.05, 0.2, 1.0), "penalty": (0.01, 0.1)},
    "idlvq": {"lr": (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005)},
    "f2m": {"noise_bound": (0.01, 0.04), "bound": (0.001, 0.01), "lr": (0.02, 0.05)},
    "f2m_flat": {"noise_bound": (0.04, 0.08), "bound": (0.001, 0.01), "lr": (0.02, 0.05)},
    "sam": {"radius": (0.05, 0.2), "bound": (0.001, 0.01), "lr": (0.02, 0.05)},
    "ewc_wide": {"penalty": (1e3, 1e4, 1e5, 1e6), "lr": (0.02, 0.05), "bound": (0.16,)},
    "joint": {"lr": (0.02, 0.05, 0.1, 0.3), "epochs": (1, 2)},
    "crt": {"lr": (0.02, 0.05, 0.1, 0.3), "epochs": (1, 2)},
}
"""Knobs and values; the product of each is :data:`TRIALS` settings, or one without knobs."""

Row = dict[str, Any]
Case = tuple[str, int]  # split of the classes, seed
Experiment = FewShotExperiment[EvidenceParameters]


class Search:
    """The trials of one split of the classes and one seed."""

    def __init__(self, parameters: EvidenceParameters, case: Case, known: list[Row]) -> None:
        classes, self.seed = self.case = case
        experiment = FewShotExperiment(parameters, "cpu", validation_images=VALIDATION_IMAGES)
        self.experiment = experiment.with_classes(classes)
        self.networks: dict[Any, Trained] = {}
        self.gains: dict[float, float] = {}
        self.rows = [row for row in known if (row["classes"], row["seed"]) == case]

    def run(self, wanted: dict[str, list[Setting]]) -> list[Row]:
        """Every setting of every method that is not among the known rows."""
        torch.set_num_threads(1)
        done = {(row["method"], row["setting"]) for row in self.rows}
        for method, several in wanted.items():
            for setting in several:
                if (method, setting_text(setting)) not in done:
                    self.rows.append(self.trial(method, setting))
                    print(self.rows[-1], flush=True)
        return self.rows

    def trained(self, method: str, setting: Setting) -> Trained:
        """Base training, once for all trials that need the same."""
        knobs = {k: v for k, v in setting.items() if k in ("noise_bound", "radius")}
        key = STARTS_FROM.get(method, "plain"), *knobs.items()
        if key not in self.networks:
            self.networks[key] = self.experiment.train_for(method, self.seed, setting)
        return self.networks[key]

    def trial(self, method: str, setting: Setting) -> Row:
        """Accuracies on held-out images, and for a noisy training how flat it is in its own box."""
        started, p = time.monotonic(), self.experiment.parameters
        trained = self.trained(method, setting)
        _, found, stopped = self.experiment.run_method(method, trained, self.seed, setting)
        values = [row["accuracy"] for row in found.rows]
        values += [0.0] * (p.sessions + 1 - len(values))
        last = found.rows[-1] if found.rows and not stopped else {}
        return {
            "classes": self.case[0],
            "seed": self.seed,
            "method": method,
            "setting": setting_text(setting),
            "mean_accuracy": sum(values) / len(values),
            "last_accuracy": values[-1],
            "last_base_accuracy": last.get("base_accuracy", 0.0),
            "last_new_accuracy": last.get("new_accuracy", 0.0),
            "flatness_gain": self.gain(setting["noise_bound"]) if method == "f2m_flat" else None,
            "diverged": bool(stopped),
            "seconds": time.monotonic() - started,
        }

    def gain(self, bound: float) -> float:
        """How many times flatter than plain training the one with this noise is, in its own box."""
        if bound not in self.gains:
            images = self.experiment.parameters.base_classes * 10
            both = {
                "plain": self.trained("ncm", {}),
                "noisy": self.trained("f2m", {"noise_bound": bound}),
            }
            flat = self.experiment.flatness_together(
                both, self.seed, ["test"], bound=bound, draws=FLATNESS_DRAWS, images=images
            )
            self.gains[bound] = flat["plain", "test"].indicator / flat["noisy", "test"].indicator
        return self.gains[bound]


def search_case(
    parameters: EvidenceParameters, case: Case, known: list[Row], wanted: dict[str, list[Setting]]
) -> list[Row]:
    """The rows of one case, for a process of its own."""
    return Search(parameters, case, known).run(wanted)


def main() -> None:
    """Search, continue grids whose best value is the last, then write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    arguments = parser.parse_args()
    values = check_parameter_file(
        "chapters/fcl_evidence.py", "chapters/params/fcl_evidence.full.yaml", EvidenceParameters
    ).model_dump()
    changed = {"seeds": arguments.seeds, "study_seeds": [], "profile": "search"}
    parameters = EvidenceParameters(**values | changed)
    record = RunRecord.start("fcl_evidence", parameters, data=data.checksums(parameters.dataset))
    rows: list[Row] = load_record(arguments.out).tables["trials"] if arguments.out.exists() else []
    cases: list[Case] = [*itertools.product(parameters.class_splits, arguments.seeds)]
    wanted = {case: {m: [*settings(grid)] for m, grid in GRIDS.items()} for case in cases}
    with ProcessPoolExecutor(arguments.workers) as pool:
        for turn in range(EXTENSIONS + 1):
            futures = [pool.submit(search_case, parameters, c, rows, wanted[c]) for c in cases]
            rows = [row for future in futures for row in future.result()]
            record.table("trials", rows)
            save(record, arguments.out)
            best = chosen_settings(pd.DataFrame(rows))
            further = {}
            for (classes, method), found in best.items():
                own = [row for row in rows if (row["classes"], row["method"]) == (classes, method)]
                known = tried(row["setting"] for row in own)
                setting = continued(found, known, AT_MOST)
                if setting and len(known) < TRIALS + EXTENSIONS:
                    further[classes, method] = setting
            print(f"turn {turn}: {best}\ncontinued: {further}", flush=True)
            if not further:
                break
            for (classes, method), setting in further.items():
                for seed in arguments.seeds:
                    wanted[classes, seed].setdefault(method, []).append(setting)


if __name__ == "__main__":
    main()
