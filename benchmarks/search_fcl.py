"""The search for the settings of the few-shot chapter: ``python benchmarks/search_fcl.py``.

Fixed before the search: held-out training images (never the test files), seeds that no table of the
chapter uses, the sizes of the chapter's cpu profile. First the learning rate of plain training is
chosen by the mean accuracy of the frozen baseline over all sessions, then box half-width, weight of
prototype fixing and session learning rate of F2M by the same figure of F2M. Every setting tried is
in the record ``results/fcl.search.json``, which the chapter shows.

The grid itself was narrowed by a few trial runs on one of these seeds: with ``prototype_weight`` 1
the base session lost 4 points of validation accuracy at half-width 0.01 and 8 at 0.02.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from ktlib import data
from ktlib.chapter_source import parameters_cell
from ktlib.fcl import (
    FclParameters,
    FlatRegion,
    SplitNetwork,
    f2m_loss,
    few_shot_sessions,
    flatness,
    last_convolutions,
    learn_session,
    positions_of,
    run_sessions,
    split_network,
    train_base,
)
from ktlib.models import resnet18_features
from ktlib.results import RunRecord
from ktlib.seeding import generator

VALIDATION_IMAGES = 20  # held out of every class
LEARNING_RATES = (0.05, 0.1, 0.2)
NOISE_BOUNDS = (0.0025, 0.005, 0.01, 0.02)
PROTOTYPE_WEIGHTS = (0.0, 0.1)
SESSION_LEARNING_RATES = (0.0025, 0.005, 0.01, 0.02)


class Bench:
    """Data of one seed and the two trainings."""

    def __init__(self, parameters: FclParameters, seed: int) -> None:
        self.p, self.seed = parameters, seed
        train = data.load(parameters.dataset, "train")
        self.labels = train.labels
        self.sessions = few_shot_sessions(
            train.labels,
            base_classes=parameters.base_classes,
            sessions=parameters.sessions,
            ways=parameters.ways,
            shots=parameters.shots,
            class_seed=parameters.class_seed,
            seed=seed,
            base_images=parameters.base_images,
            validation_images=VALIDATION_IMAGES,
        )
        base = self.sessions[0]
        pixels = train.images[base.train].float() / 255
        self.images = data.normalised(train.images, float(pixels.mean()), float(pixels.std()))
        self.base_data = (
            self.images[base.train],
            positions_of(self.labels[base.train], base.classes),
        )
        self.held_out = torch.cat([session.validation for session in self.sessions])

    def train(
        self, lr: float, bound: float = 0.0, weight: float = 0.0
    ) -> tuple[SplitNetwork, nn.Linear]:
        """Plain training for ``bound`` 0, F2M otherwise."""
        p = self.p
        torch.manual_seed(self.seed)
        network = resnet18_features(self.images.shape[1], p.width, p.stem_stride)
        network = network.to(memory_format=torch.channels_last)
        classifier = nn.Linear(network.feature_dim, p.base_classes)
        split = split_network(network, last_convolutions(network, p.tuned_convolutions))
        noise = generator(self.seed, "noise")

        def loss(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            if not bound:
                return F.cross_entropy(classifier(network(images)), labels)
            return f2m_loss(
                split, classifier, images, labels, bound=bound, draws=p.noise_draws,
                prototype_weight=weight, generator=noise,
            ).total  # fmt: skip

        train_base(
            network, classifier, *self.base_data, loss, epochs=p.epochs, batch_size=p.batch_size,
            lr=lr, generator=generator(self.seed, "batches"), padding=p.crop_padding, flip=p.flip,
        )  # fmt: skip
        return split, classifier

    def accuracies(
        self, split: SplitNetwork, learn: Callable[..., object] | None = None
    ) -> dict[str, float]:
        """Validation accuracies over the sessions."""
        rows = run_sessions(
            split, self.sessions, self.images, self.labels,
            self.images[self.held_out], self.labels[self.held_out], learn=learn,
        )  # fmt: skip
        values = [row["accuracy"] for row in rows]
        return {
            "mean_accuracy": sum(values) / len(values),
            "last_accuracy": values[-1],
            "last_base_accuracy": rows[-1]["base_accuracy"],
            "last_new_accuracy": rows[-1]["new_accuracy"],
        }

    def flatness(self, split: SplitNetwork, classifier: nn.Linear, bound: float) -> float:
        """Indicator on held-out images of the base classes, 100 draws."""
        base = self.sessions[0]
        held = base.validation[:: VALIDATION_IMAGES // 2]
        found = flatness(
            split, classifier, self.images[held], positions_of(self.labels[held], base.classes),
            bound=bound, draws=100, generator=generator(self.seed, "flatness"),
        )  # fmt: skip
        return found.indicator


def search_baseline(parameters: FclParameters, seed: int) -> list[dict[str, float]]:
    """Every learning rate of plain training."""
    torch.set_num_threads(1)
    bench = Bench(parameters, seed)
    rows = []
    for lr in LEARNING_RATES:
        split, classifier = bench.train(lr)
        flat = {f"flatness at {b}": bench.flatness(split, classifier, b) for b in NOISE_BOUNDS}
        rows.append({"seed": seed, "lr": lr, **bench.accuracies(split), **flat})
        print(rows[-1], flush=True)
    return rows


def search_f2m(parameters: FclParameters, seed: int, lr: float) -> list[dict[str, float]]:
    """Every setting of F2M."""
    torch.set_num_threads(1)
    bench = Bench(parameters, seed)
    steps = parameters.session_epochs
    rows = []
    for bound, weight in itertools.product(NOISE_BOUNDS, PROTOTYPE_WEIGHTS):
        split, classifier = bench.train(lr, bound, weight)
        setting = {"seed": seed, "noise_bound": bound, "prototype_weight": weight}
        flat = {f"flatness at {b}": bench.flatness(split, classifier, b) for b in NOISE_BOUNDS}
        region = FlatRegion(split.tuned, bound)
        for session_lr in SESSION_LEARNING_RATES:
            learn = partial(learn_session, split, region, epochs=steps, lr=session_lr)
            with region.at_center():
                found = bench.accuracies(split, learn)
            rows.append({**setting, "session_lr": session_lr, **found, **flat})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Search, then write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101])
    parser.add_argument("--out", type=Path, default=Path("results/fcl.search.json"))
    arguments = parser.parse_args()
    values = {line.name: line.value for line in parameters_cell("chapters/fcl.py")}
    parameters = FclParameters(**values | {"seeds": arguments.seeds, "profile": "search"})
    record = RunRecord.start("fcl", parameters, data=data.checksums(parameters.dataset))
    with ProcessPoolExecutor(len(arguments.seeds)) as pool:  # one process and thread per seed
        searches = pool.map(partial(search_baseline, parameters), arguments.seeds)
        baseline = [row for rows in searches for row in rows]
        record.table("baseline", baseline)
        best = max(
            LEARNING_RATES,
            key=lambda lr: sum(row["mean_accuracy"] for row in baseline if row["lr"] == lr),
        )
        record.metric("chosen_lr", best)
        searches = pool.map(partial(search_f2m, parameters, lr=best), arguments.seeds)
        record.table("search", [row for rows in searches for row in rows])
    with tempfile.TemporaryDirectory(dir=arguments.out.parent) as folder:
        record.save(folder)
        Path(folder, "result.json").replace(arguments.out)
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    main()
