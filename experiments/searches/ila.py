"""Learning rates of the ILA chapters: ``python -m experiments.searches.ila``.

At the size of the live run of ``chapters/ila.py``, with two seeds that no chapter uses, on
validation conversations; those of the test split are never loaded. Three rates are searched:

- ``lr`` of LoRA on all layers and ``full_lr`` of full fine-tuning: by the loss on what was trained
  on, mean over data sets and seeds;
- ``score_lr`` of stage 2: by the loss with the learned gates in place, which is what stage 2
  minimises. How well the rankings of both seeds agree is recorded and decides nothing. It is
  searched last: stage 1 takes ``lr`` from the chapter.

The record is ``results/ila.search.json``; rows that it holds already are not computed again.
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

from data_prep import checksums
from experiments.ila.evaluation import held_out_loss
from experiments.ila.experiment import LayerExperiment, TunedRun
from experiments.ila.parameters import IlaParameters
from experiments.ila.report import agreement_rows
from experiments.models.language import language_model_checksums
from experiments.run.parallel import parallel_map
from experiments.run.parameters import check_parameter_file
from experiments.run.results import RunRecord, load_record
from ktlib.ila import gated_updates

CHAPTER = Path(__file__).parents[2] / "chapters" / "ila.py"
OUT = Path("results/ila.search.json")
SEEDS = [100, 101]
RATES = {
    "lr": (0.0003, 0.001, 0.003, 0.01),
    "full_lr": (0.00001, 0.00003, 0.0001, 0.0003),
    "score_lr": (0.1, 0.3, 1.0, 3.0),
}
Case = tuple[str, tuple[float, ...], str, int]


def parameters_of(seeds: list[int]) -> IlaParameters:
    """The parameters of the live run, with other seeds."""
    given = check_parameter_file(CHAPTER, CHAPTER.parent / "params/ila.cpu.yaml", IlaParameters)
    values = {"seeds": seeds, "profile": "search", "run_dir": ""}
    return IlaParameters.model_validate(given.model_dump() | values)


def validation_loss(
    experiment: LayerExperiment[IlaParameters], name: str, rate: float, dataset: str, seed: int
) -> float:
    """Loss on the validation conversations of the set that was trained on."""
    tuning = {"lr": "lora", "full_lr": "full"}[name]
    model = experiment.prepared(tuning, "all", seed)
    experiment.train(model, tuning, dataset, seed, lr=rate)
    return held_out_loss(
        model, experiment.held_out(dataset), precision=experiment.parameters.precision
    )


def gated_loss(
    experiment: LayerExperiment[IlaParameters], run: TunedRun, rate: float
) -> tuple[float, dict[str, float]]:
    """Validation loss with the learned gates in place, and the scores."""
    ranking = experiment.rank(run, lr=rate)
    model = experiment.adapted(run)
    with gated_updates(model) as gates:
        for name, gate in gates.items():
            with torch.no_grad():
                gate.score.fill_(ranking.scores[name])
        batches = experiment.held_out(run.dataset)
        loss = held_out_loss(model, batches, precision=experiment.parameters.precision)
    return loss, ranking.scores


def measure(experiment: LayerExperiment[IlaParameters], case: Case) -> list[dict[str, Any]]:
    """Rows of the search, one for each rate; the scores of stage 2 among them.

    A loss that is not finite counts as 1e9, as JSON has no number for it.
    """
    name, rates, dataset, seed = case
    run = experiment.tune(dataset, seed) if name == "score_lr" else None
    rows = []
    for rate in rates:
        row: dict[str, Any] = {"name": name, "rate": rate, "dataset": dataset, "seed": seed}
        started = time.monotonic()
        try:
            if run is None:
                row["loss"] = validation_loss(experiment, name, rate, dataset, seed)
            else:
                row["loss"], row["scores"] = gated_loss(experiment, run, rate)
        except FloatingPointError:
            row["loss"] = 1e9
        rows.append(row | {"seconds": time.monotonic() - started})
    return rows


def choose(table: pd.DataFrame) -> dict[str, float]:
    """The rate of each name with the lowest mean loss over data sets and seeds."""
    mean = table.groupby(["name", "rate"])["loss"].mean().reset_index()
    best = mean.loc[mean.groupby("name")["loss"].idxmin()]
    return dict(zip(best["name"], best["rate"], strict=True))


def agreement(rows: list[dict[str, Any]], top_fraction: float) -> list[dict[str, Any]]:
    """How well rankings of different seeds agree at each rate of stage 2."""
    by_case: dict[tuple[float, str], list[dict[str, float]]] = {}
    for row in rows:
        if "scores" in row:
            by_case.setdefault((row["rate"], row["dataset"]), []).append(row["scores"])
    return [
        found
        for (rate, dataset), scores in by_case.items()
        if len(scores) == 2
        for found in agreement_rows(
            scores[0], scores[1], (top_fraction,), dataset, "another seed", score_lr=rate
        )
    ]


def main() -> None:
    """Search, then write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", nargs="+", choices=list(RATES), default=list(RATES))
    parser.add_argument("--rates", type=float, nargs="+", help="in place of the grid")
    given = parser.parse_args()
    parameters = parameters_of(SEEDS)
    sums = dict(language_model_checksums(parameters.model))
    for name in parameters.datasets:
        sums |= {f"{name}/{file}": value for file, value in checksums(name).items()}
    record = RunRecord.start("ila", parameters, data=sums)
    known = load_record(OUT).tables if OUT.exists() else {"search": [], "agreement": []}
    done = {(r["name"], r["rate"], r["dataset"], r["seed"]) for r in known["search"]}
    cases = []
    for name in given.names:
        for dataset, seed in itertools.product(parameters.datasets, SEEDS):
            rates = given.rates or RATES[name]
            left = tuple(rate for rate in rates if (name, rate, dataset, seed) not in done)
            if name == "score_lr":  # one stage 1 serves all rates of stage 2
                cases += [(name, left, dataset, seed)] if left else []
            else:
                cases += [(name, (rate,), dataset, seed) for rate in left]
    experiment = LayerExperiment(parameters, "cpu", validation=True)
    found = parallel_map(partial(measure, experiment), cases, "search")
    new = [row for rows in found.values() for row in rows]
    agreed = known["agreement"] + agreement(new, parameters.top)
    rows = [{k: v for k, v in row.items() if k != "scores"} for row in new]
    rows = sorted(known["search"] + rows, key=lambda r: (list(RATES).index(r["name"]), r["rate"]))
    record.table("search", rows)
    record.table("agreement", agreed)
    with tempfile.TemporaryDirectory(dir=OUT.parent) as folder:
        record.save(folder)
        Path(folder, "result.json").replace(OUT)
    print(f"chosen: {choose(record.frame('search'))}; written: {OUT}")


if __name__ == "__main__":
    main()
