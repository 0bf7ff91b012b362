"""The experiments behind ``chapters/fcl_evidence.py``: each gives the rows of one table.

:func:`evidence_of` runs all of them for one split of the classes and one seed; a part of the long
record is all splits of a seed. Protocol and rules stand in the chapter; settings come from the
search, :mod:`experiments.searches.fcl_evidence`, and are never chosen here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from experiments.fcl.baselines import F2M, Finetune, Learner, NearestMean, SessionResults
from experiments.fcl.baselines.features import Features
from experiments.fcl.experiment import STARTS_FROM, FewShotExperiment, Trained
from experiments.fcl.parameters import EvidenceParameters
from experiments.fcl.search_results import Settings
from ktlib.fcl.f2m import RELEASED, RELEASED_SESSION, SessionVariant, f2m_loss
from ktlib.fcl.noise import RELEASED_SHAPES
from ktlib.fcl.region import FlatRegion
from ktlib.fcl.training import random_crop
from ktlib.seeding import generator

Row = dict[str, Any]
Values = dict[str, Any]
Tables = dict[str, list[Row]]
Experiment = FewShotExperiment[EvidenceParameters]

NO_BOX = -1.0
"""Stands for no box at all in the column ``box``; 0 is the frozen network."""

MOST_FEATURES = 4  # networks whose features of the test images are kept
TIMED = 5

PARTS = (
    (False, False, False, False),
    (False, False, True, False),
    (True, True, False, True),
    (True, False, True, True),
    (True, True, True, False),
    (True, True, True, True),
)
"""Rows of table 3.6: noise (FM), prototype fixing (PF), clamping (PC), normalisation (PN)."""


def evidence_of(experiment: Experiment, classes: str, seed: int, settings: Settings) -> Tables:
    """All tables of one split of the classes and one seed.

    Args:
        experiment: with the parameters of the run.
        classes: one of ``class_splits``.
        seed: one of ``seeds``; those in ``study_seeds`` run more than what is central.
        settings: of each method, from the search.
    """
    part, p = Part(experiment, classes, seed, settings), experiment.parameters
    first, studied = classes == p.class_splits[0], seed in p.study_seeds
    wanted: dict[str, tuple[Callable[[], Iterable[Row]], bool]] = {
        "methods": (part.methods, True),
        "plane": (part.plane, True),
        "norms": (part.norms, True),
        "flatness": (partial(part.flatness, first, studied), True),
        "shots": (part.shots, studied),
        "ablation": (part.ablation, studied),
        "distances": (part.distances, studied),
        "studies": (part.studies, studied and first),
        "seconds": (part.seconds, studied and first),
    }
    tables: Tables = {
        name: [*finished(make())] if asked else [] for name, (make, asked) in wanted.items()
    }
    return {
        name: [{"classes": classes, "seed": seed, **row} for row in rows]
        for name, rows in (tables | part.noted).items()
    }


def finished(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows up to a base training that diverges, which must not cost the other tables."""
    with suppress(FloatingPointError):
        yield from rows


class Part:
    """One split of the classes, one seed: networks that were trained, and the experiments on them.

    Args:
        experiment, classes, seed, settings: see :func:`evidence_of`.

    Attributes:
        noted: further tables, filled by the way: ``counts``, ``gradients`` and ``boxes``.
    """

    def __init__(self, experiment: Experiment, classes: str, seed: int, settings: Settings) -> None:
        self.p = p = experiment.parameters
        self.experiment = experiment.with_classes(classes)
        self.seed = seed
        # The search knows no lists of TOPIC: they divide the classes as a random draw does.
        known = {m: settings.get((classes, m), settings.get(("random", m), {})) for m in p.methods}
        self.settings = known | p.method_settings
        self.networks: dict[Any, Trained | FloatingPointError] = {}
        self.features: dict[int, Features] = {}
        self.noted: Tables = {"counts": [], "gradients": [], "boxes": []}

    # Networks ----------------------------------------------------------------------------------

    def trained(self, key: Any, make: Callable[[], Trained]) -> Trained:
        """A network, trained once, or the error that ended its training."""
        if key not in self.networks:
            try:
                self.networks[key] = make()
            except FloatingPointError as error:
                self.networks[key] = error
        found = self.networks[key]
        if isinstance(found, FloatingPointError):
            raise found
        return found

    def changed(self, values: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
        """The values that differ from the parameters, in a form that can be a key."""
        known = self.experiment.parameters
        return tuple((k, v) for k, v in sorted(values.items()) if v != getattr(known, k))

    def plain(self, sam_radius: float = 0.0, **values: Any) -> Trained:
        """Plain training, or that by SAM, with some parameters changed."""
        make = self.experiment.with_parameters(**values).train_plain
        key = "plain", sam_radius, *self.changed(values)
        return self.trained(key, lambda: make(self.seed, sam_radius=sam_radius))

    def noisy(self, released: Mapping[str, Any] | None = None, **values: Any) -> Trained:
        """F2M's training, with some parameters and switches of the released code changed."""
        switches = dict(released or {})
        make = self.experiment.with_parameters(**values).train_f2m
        key = "noise", *sorted(switches.items()), *self.changed(values)
        return self.trained(key, lambda: make(self.seed, **switches))

    def network(self, noise: float) -> Trained:
        """Trained under noise of this half-width; 0 is plain training."""
        return self.noisy(noise_bound=noise) if noise else self.plain()

    def of_method(self, method: str) -> Trained:
        """The network that a method starts from, with its own setting."""
        setting, start = self.settings[method], STARTS_FROM.get(method, "plain")
        if start == "f2m":
            return self.network(setting.get("noise_bound", self.p.noise_bound))
        if start == "sam":
            return self.plain(sam_radius=setting.get("radius", self.p.sam_radius))
        if start == "cosine":
            make = self.experiment.train_plain
            return self.trained("cosine", lambda: make(self.seed, cosine=True))
        return self.plain()

    # Experiments -------------------------------------------------------------------------------

    def run(
        self,
        method: str,
        trained: Trained,
        *,
        values: Mapping[str, Any] | None = None,
        **setting: Any,
    ) -> tuple[Learner | None, SessionResults]:
        """All sessions of a method, tested after the last one only.

        What the fixed part of a network makes of the test images is computed once for all runs.
        """
        experiment = self.experiment.with_parameters(**(values or {}))
        if id(trained) not in self.features:
            while len(self.features) > MOST_FEATURES:
                self.features.pop(next(iter(self.features)))
            pool, _ = experiment.evaluation_data(self.seed)
            self.features[id(trained)] = NearestMean(trained[0]).features(pool)
        learner, found, _ = experiment.run_method(
            method, trained, self.seed, setting,
            only_last=True, features=self.features[id(trained)],
        )  # fmt: skip
        return learner, found

    def methods(self) -> Iterator[Row]:
        """Every method with its setting, after each session."""
        for method in self.p.methods:
            setting = self.settings[method]
            try:
                trained = self.of_method(method)
            except FloatingPointError as error:
                learner, found, stopped = None, SessionResults(), str(error)
            else:
                learner, found, stopped = self.experiment.run_method(
                    method, trained, self.seed, setting
                )
            yield from ({"method": method, **row} for row in found.rows or [UNTRAINED])
            counts = {"predicted": found.predicted, "right": found.right}
            texts = {name: " ".join(map(str, numbers)) for name, numbers in counts.items()}
            self.noted["counts"].append({"method": method, **texts, "stopped": stopped})
            for number, norms in enumerate(getattr(learner, "gradients", []), start=2):
                row = {"method": method, "session": number, **norms}
                self.noted["gradients"].append(row)
            if isinstance(learner, F2M):
                self.noted["boxes"].append({"method": method, **box_facts(learner)})

    def plane(self) -> Iterator[Row]:
        """Learning rate of the sessions times half-width of the box, for several networks."""
        for noise in self.p.plane_noises:
            trained = self.network(noise)
            frozen = self.run("ncm", trained)[1]
            yield {"noise": noise, "rate": 0.0, "box": 0.0, **last(frozen), **box_facts(None)}
            for rate in self.p.plane_rates:
                for box in (*self.p.plane_boxes, NO_BOX):
                    learner, found = self.boxed(trained, box, lr=rate)
                    row = {"noise": noise, "rate": rate, "box": box}
                    yield row | last(found) | box_facts(learner, trained)

    def boxed(
        self, trained: Trained, box: float, values: Mapping[str, Any] | None = None, **setting: Any
    ) -> tuple[Learner | None, SessionResults]:
        """F2M's sessions with a box, or without one."""
        if box == NO_BOX:
            return self.run("finetune", trained, values=values, **setting)
        return self.run("f2m", trained, values=values, bound=box, **setting)

    def shots(self) -> Iterator[Row]:
        """From one image a new class to many, with and without a box, beside the frozen network."""
        for shots in self.p.shots_studied:
            values = {"shots": shots}
            frozen = self.run("ncm", self.plain(), values=values)[1]
            yield {"shots": shots, "method": "ncm", "rate": 0.0, **last(frozen), **box_facts(None)}
            for rate in self.p.plane_rates[-2:]:
                arms = {
                    "f2m": (self.network(self.p.noise_bound), self.p.box),
                    "f2m unclamped": (self.network(self.p.noise_bound), NO_BOX),
                    "finetune": (self.plain(), NO_BOX),
                    "finetune in box": (self.plain(), self.p.box),
                }
                for name, (trained, box) in arms.items():
                    learner, found = self.boxed(trained, box, values, lr=rate, new_exemplars=shots)
                    row = {"shots": shots, "method": name, "rate": rate}
                    yield row | last(found) | box_facts(learner, trained)

    def ablation(self) -> Iterator[Row]:
        """Table 3.6 at the thesis's learning rate, with the thesis's box and with a narrow one."""
        p = self.p
        for box in dict.fromkeys((p.noise_bound, p.box)):
            for fm, pf, pc, pn in PARTS:
                trained = self.plain()
                if fm:
                    weight = p.prototype_weight if pf else 0.0
                    trained = self.noisy(noise_bound=p.noise_bound, prototype_weight=weight)
                method = "f2m" if pc else "finetune"
                setting = {"lr": p.session_lr, "normalise": pn} | ({"bound": box} if pc else {})
                learner, found, _ = self.experiment.run_method(method, trained, self.seed, setting)
                parts = {"box": box, "fm": fm, "pf": pf, "pc": pc, "pn": pn}
                facts = box_facts(learner, trained)
                yield from (parts | row | facts for row in found.rows or [UNTRAINED])

    def distances(self) -> Iterator[Row]:
        """Plain distances in the loss of the sessions, and squared ones, as released."""
        for noise in (0.0, self.p.noise_bound):
            for rate in self.p.plane_rates:
                for squared in (False, True):
                    session = SessionVariant(squared=squared)
                    learner, found = self.run(
                        "finetune", self.network(noise), lr=rate, session=session
                    )
                    row = {"noise": noise, "rate": rate, "squared": squared, **last(found)}
                    yield row | {"first_gradient": first_gradient(learner)}

    def flatness(self, first: bool, studied: bool) -> Iterator[Row]:
        """Flatness of plain training, SAM and F2M with every noise of the page, on test images.

        Args:
            first: also on training images.
            studied: also in the other boxes, and after other learning rates of the base session.
        """
        p, own = self.p, min(self.p.flatness_bounds)
        yield from self.flatness_at(p.lr, own, ("train", "test") if first else ("test",))
        if first and studied:
            for bound in p.flatness_bounds:
                if bound != own:
                    yield from self.flatness_at(p.lr, bound, ("test",))
            for rate in p.base_rates:
                if rate != p.lr:
                    yield from self.flatness_at(rate, own, ("test",))

    def flatness_at(self, lr: float, bound: float, parts: tuple[str, ...]) -> Iterator[Row]:
        """Indicator and variance of the trainings in one box; none of one that diverges."""
        p, networks = self.p, {}
        radius = self.settings.get("sam", {}).get("radius", p.sam_radius)
        noises = {"f2m": p.noise_bound, "f2m_flat": max(p.plane_noises)}
        for name, noise in noises.items():
            noises[name] = self.settings.get(name, {}).get("noise_bound", noise)
        for noise in (p.noise_bound, *p.plane_noises):  # of the ablation and the plane
            if noise and noise not in noises.values():
                noises[f"f2m {noise:g}"] = noise
        makes = {name: partial(self.noisy, noise_bound=n, lr=lr) for name, n in noises.items()}
        makes |= {"ncm": partial(self.plain, lr=lr), "sam": partial(self.plain, radius, lr=lr)}
        for name, make in makes.items():
            with suppress(FloatingPointError):
                networks[name] = make()
        found = self.experiment.flatness_together(
            networks, self.seed, parts,
            bound=bound, draws=p.flatness_draws, images=p.flatness_images,
        )  # fmt: skip
        for (training, part), one in found.items():
            yield {
                "training": training, "noise": noises.get(training, 0.0),
                "lr": lr, "bound": bound, "part": part,
                "indicator": one.indicator, "variance": one.variance,
                "loss_at_minimum": one.loss_at_minimum,
                "draws": p.flatness_draws, "images": p.flatness_images,
            }  # fmt: skip

    def norms(self) -> Iterator[Row]:
        """Table 3.7: norms of the prototypes of base and of new classes."""
        for training, trained in {
            "ncm": self.plain(),
            "f2m": self.network(self.p.noise_bound),
        }.items():
            learner, _ = self.run("ncm", trained)
            if not isinstance(learner, NearestMean):
                continue
            lengths, base = learner.prototypes.norm(dim=1), len(learner.base_classes)
            for group, part in {"base": lengths[:base], "new": lengths[base:]}.items():
                row = {"training": training, "group": group, "number": len(part)}
                spread = float(part.std()) if len(part) > 1 else 0.0
                yield row | {"mean": float(part.mean()), "std": spread}

    def studies(self) -> Iterator[Row]:
        """One setting at a time, noise and box as one ``b``, at the thesis's learning rate."""
        for study, value, values, released, session in self.varied():
            box = values.get("noise_bound", self.p.noise_bound)
            setting = {"lr": self.p.session_lr, "bound": box} | session
            make = partial(self.noisy, released, **values)
            yield from self.studied(study, value, "f2m", make, values, setting)
        order: Values = {"class_seed": self.seed}
        yield from self.studied(
            "order", self.seed, "ncm", partial(self.plain, class_seed=self.seed), order, {}
        )
        setting = {"lr": self.p.session_lr, "bound": self.p.box}
        make = partial(self.noisy, class_seed=self.seed)
        yield from self.studied("order", self.seed, "f2m", make, order, setting)

    def studied(
        self, study: str, value: Any, method: str, make: Callable[[], Trained],
        values: Values, setting: Values,
    ) -> Iterator[Row]:  # fmt: skip
        """The rows of one value of a study; one without accuracies if base training diverged."""
        found, facts = SessionResults(), box_facts(None)
        with suppress(FloatingPointError):
            experiment = self.experiment.with_parameters(**values)
            learner, found, _ = experiment.run_method(method, make(), self.seed, setting)
            facts = box_facts(learner)
        known = {"study": study, "value": str(value), "method": method}
        yield from (known | row | facts for row in found.rows or [UNTRAINED])

    def seconds(self) -> Iterator[Row]:
        """Seconds of one step of the base session for each number of draws; the fastest of many.

        The numbers take turns, so that another program on the machine slows all of them.
        """
        p, rng = self.p, generator(self.seed, "timed noise")
        split, classifier = self.experiment.new_network(self.seed)
        images, labels = (pool[: p.batch_size] for pool in self.experiment.base_data(self.seed))
        best = dict.fromkeys(p.draws_studied, math.inf)
        for _ in range(TIMED):
            for draws in best:
                started = time.perf_counter()
                f2m_loss(
                    split, classifier, images, labels, bound=p.noise_bound, draws=draws,
                    prototype_weight=p.prototype_weight, generator=rng,
                ).total.backward()  # fmt: skip
                best[draws] = min(best[draws], time.perf_counter() - started)
        yield from ({"draws": draws, "seconds": seconds} for draws, seconds in best.items())

    def varied(self) -> Iterator[tuple[str, Any, Values, Values, Values]]:
        """Study, value, parameters and released switches of the training, then of the sessions."""
        p = self.p
        for bound in p.bounds_studied:
            yield "bound", bound, {"noise_bound": bound}, {}, {}
        for draws in p.draws_studied:
            yield "draws", draws, {"noise_draws": draws}, {}, {}
        for weight in p.weights_studied:
            yield "lambda", weight, {"prototype_weight": weight}, {}, {}
        for layers in p.layers_studied:
            yield "layers", layers, {"tuned_convolutions": layers}, {}, {}
        two = {"noise_draws": max(2, p.noise_draws)}  # a spread needs two draws
        five, half = {"noise_levels": 5}, {"noise_bound": p.noise_bound / 2}
        released = two | five | half | {"prototype_weight": 1.0}
        crops = partial(
            random_crop, padding=p.crop_padding, flip=p.flip,
            generator=generator(self.seed, "session crops"),
        )  # fmt: skip
        session = {"session": replace(RELEASED_SESSION, augment=crops), "lr": RELEASED_LR}
        yield "released", "as printed", two, {}, {}
        yield "released", "five levels", two | five, {}, {}
        yield "released", "Beta levels", two | five, {"noise_shapes": RELEASED_SHAPES}, {}
        yield "released", "spread", two, {"spread_weight": RELEASED.spread_weight}, {}
        yield "released", "no gradient", two, {"prototype_gradient": False}, {}
        yield "released", "clean backward", two, {"clean_backward": True}, {}
        yield "released", "half of b", two | half, {}, {}
        yield "released", "squared distances", two, {}, {"session": SessionVariant(squared=True)}
        yield "released", "base session as released", released, RELEASED_BASE, {}
        yield "released", "as released", released, RELEASED_BASE, session


RELEASED_LR = 0.01
"""Learning rate of the sessions in the released code."""

RELEASED_BASE = {
    name: getattr(RELEASED, name)
    for name in RELEASED.__dataclass_fields__
    if name != "noise_levels"  # a parameter of the chapter
}

UNTRAINED: Row = dict.fromkeys(
    ("session", "accuracy", "base_accuracy", "new_accuracy", "harmonic")
) | {"session": 1}


def last(found: SessionResults) -> Row:
    """Accuracies after the last session; None for a run that did not finish."""
    row = found.rows[-1] if found.rows else UNTRAINED
    return {name: row[name] for name in ("accuracy", "base_accuracy", "new_accuracy", "harmonic")}


def box_facts(learner: Learner | None, trained: Trained | None = None) -> Row:
    """Whether the box did anything: shares of the tuned weights, and the largest shift.

    Args:
        learner: at the end of its sessions.
        trained: its network before them, from which the shift of a learner without a box is told.
    """
    region = getattr(learner, "region", None)
    if region is None:
        shift = None
        if isinstance(learner, Finetune) and trained is not None:
            tuned = learner.split.tuned
            shift = FlatRegion(tuned, 0.0, center=trained[0].tuned).largest_shift()
            shift = shift if math.isfinite(shift) else None
        return {"at_wall": None, "moved": None, "largest_shift": shift}
    shift = region.largest_shift()
    return {
        "at_wall": region.share_at_wall(),
        "moved": region.share_clamped(),
        "largest_shift": shift if math.isfinite(shift) else None,
    }


def first_gradient(learner: Learner | None) -> float | None:
    """Norm of the loss's gradient at the first step of session 2."""
    gradients = getattr(learner, "gradients", [])
    return gradients[0]["data"] if gradients else None


def joined(parts: Iterable[Tables]) -> Tables:
    """The tables of several parts, one after the other."""
    tables: Tables = {}
    for part in parts:
        for name, rows in part.items():
            tables.setdefault(name, []).extend(rows)
    return tables
