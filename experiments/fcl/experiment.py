"""The few-shot experiment shared by the chapters, their studies and their searches.

Everything that must be the same for all methods is here: the images of each session, the training
on session 1, and how each method is set up. ``chapters/fcl.py`` explains the functions in turn.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import data_prep as data
from data_prep.common.topic import topic_keys, topic_lists
from experiments.fcl import baselines as methods
from experiments.fcl.baselines import Learner, SessionResults, run_learner
from experiments.fcl.parameters import METHODS, SEEN_PAIRS, FewShotParameters
from experiments.fcl.topic_split import topic_sessions
from experiments.fcl.unseen_parts import unseen_parts_sessions
from experiments.models.images import NormalisedImages
from experiments.models.resnet import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    imagenet_resnet18_features,
    resnet18_features,
)
from experiments.models.weights import weights_checksum
from experiments.run.cache import kept
from ktlib.device import autocast
from ktlib.fcl.f2m import F2MVariant, f2m_loss
from ktlib.fcl.flatness import Flatness, flatness_together
from ktlib.fcl.protocol import Session, few_shot_sessions, positions_of
from ktlib.fcl.split import SplitNetwork, last_convolutions, split_network
from ktlib.fcl.training import BaseTraining, train_base
from ktlib.seeding import generator

Trained = tuple[SplitNetwork, nn.Module]
"""A network, split in front of its tuned layers, and the classifier trained with it."""

STARTS_FROM = {
    "f2m": "f2m",
    "f2m_flat": "f2m",
    "ewc_wide": "f2m",
    "sam": "sam",
    "lucir": "cosine",
}
"""Base training of each method; plain training of all others."""

FSLL_RELEASED: dict[str, Any] = {
    "settings": methods.FsllSettings.released(),
    "epochs": 15,
    "lr": 0.001,
    "normalise": False,
}
"""FSLL as the re-implementation that came with F2M has it."""

Loss = Callable[[Tensor, Tensor], Tensor]
Parameters = TypeVar("Parameters", bound=FewShotParameters)

# What the images of session 1, and so their mean and spread, depend on.
_DATA_PARAMETERS = {"seeds", "class_split", "base_classes", "base_images", "class_seed", "weights"}

# What the training on session 1 does not read, and what only F2M's does.
_AFTERWARDS = {
    *("seeds", "profile", "run_dir", "test_images", "box", "session_epochs", "session_lr"),
    *("flatness_draws", "flatness_images"),
}
_NOISE = {"noise_bound", "noise_draws", "noise_levels", "prototype_weight"}
_USES = ("fcl", "models/images", "models/resnet", "models/weights", "data_prep")


class FewShotExperiment(Generic[Parameters]):
    """Data, sessions, base training and methods, for any seed.

    Args:
        parameters: of the chapter.
        device: where to compute.
        validation_images: training images per class that are held out and stand in for the test
            images; 0 tests on the test images. For searches: these never load the test files.

    Attributes:
        train: the training images as they are.
    """

    def __init__(
        self, parameters: Parameters, device: torch.device | str, *, validation_images: int = 0
    ) -> None:
        self.parameters = parameters
        self.device = torch.device(device)
        self.validation_images = validation_images
        self.train = data.load(parameters.dataset, "train")

    def with_parameters(self, **values: Any) -> Self:
        """A copy of the experiment with other values of some parameters, on the same images.

        Raises:
            ValueError: for an unknown name, the data set, or a value that is not allowed.
        """
        known = self.parameters.model_dump()
        unknown = sorted(set(values) - (set(known) - {"dataset"}))
        if unknown:
            raise ValueError(f"values must be of {sorted(set(known) - {'dataset'})}. "
                             f"Found {unknown}.")  # fmt: skip
        other = copy.copy(self)
        other.parameters = type(self.parameters).model_validate(known | values)
        if values.keys() & _DATA_PARAMETERS:
            for name in ("normalisation", "images", "test_pool"):
                other.__dict__.pop(name, None)  # recomputed at the next access
        elif "test_images" in values:
            other.__dict__.pop("test_pool", None)
        return other

    def with_classes(self, class_split: str) -> Self:
        """A copy with another way to divide the classes, with fewer sessions if there are too few.

        Args:
            class_split: a value of this parameter.
        """
        sessions = self.parameters.sessions
        if class_split == "unseen_parts":
            sessions = min(sessions, (100 - SEEN_PAIRS) // self.parameters.ways)
        return self.with_parameters(class_split=class_split, sessions=sessions)

    # Data --------------------------------------------------------------------------------------

    def sessions(self, seed: int) -> list[Session]:
        """Session 1 with ``base_images`` a class, then ``sessions`` sessions of ``ways x shots``.

        The classes of each session are the same for every seed; the images are not.
        """
        p = self.parameters
        if p.class_split == "topic":
            return topic_sessions(
                topic_lists(p.dataset),
                self.train.labels,
                topic_keys(p.dataset),
                validation_images=self.validation_images,
                seed=seed,
            )
        draw = unseen_parts_sessions if p.class_split == "unseen_parts" else few_shot_sessions
        return draw(
            self.train.labels,
            base_classes=p.base_classes,
            sessions=p.sessions,
            ways=p.ways,
            shots=p.shots,
            class_seed=p.class_seed,
            seed=seed,
            base_images=p.base_images or None,
            validation_images=self.validation_images,
        )

    @cached_property
    def normalisation(self) -> tuple[Any, Any]:
        """Mean and spread of the base training images of the first seed; of ImageNet with weights.

        The base images are the only ones that exist when the network is trained. With another first
        seed they differ a little, and so does what a seed gives in a run of several.
        """
        if self.parameters.weights:
            return IMAGENET_MEAN, IMAGENET_STD
        base = self.sessions(self.parameters.seeds[0])[0]
        pixels = data.scaled(self.train.images[base.train])
        return float(pixels.mean()), float(pixels.std())

    @cached_property
    def images(self) -> NormalisedImages:
        """All training images, on the device."""
        return NormalisedImages(self.train.images.to(self.device), *self.normalisation)

    @cached_property
    def labels(self) -> Tensor:
        """``(n,)`` their classes."""
        return self.train.labels.to(self.device)

    @cached_property
    def test_pool(self) -> tuple[Tensor, Tensor]:
        """Normalised test images and their classes, ``test_images`` of each, for every seed."""
        test = data.load(self.parameters.dataset, "test")
        count = self.parameters.test_images or len(test)
        order = torch.randperm(
            len(test), generator=generator(self.parameters.class_seed, "test images")
        )
        each = [order[test.labels[order] == c][:count] for c in range(len(test.class_names))]
        chosen = torch.cat(each)
        images = data.normalised(test.images[chosen], *self.normalisation)
        return images.to(self.device), test.labels[chosen].to(self.device)

    def evaluation_data(self, seed: int) -> tuple[Tensor, Tensor]:
        """Images and labels to evaluate on: :attr:`test_pool`, or those held out with this seed."""
        if not self.validation_images:
            return self.test_pool
        held_out = torch.cat([session.validation for session in self.sessions(seed)])
        return self.images[held_out], self.labels[held_out]

    def base_data(self, seed: int) -> tuple[Tensor, Tensor]:
        """Images of session 1, and their labels numbered from 0 as the classifier needs them."""
        base = self.sessions(seed)[0]
        return self.images[base.train], positions_of(self.labels[base.train], base.classes)

    def base_sample(self, seed: int, part: str, count: int) -> tuple[Tensor, Tensor]:
        """At most ``count`` images of the base classes, numbered as in :meth:`base_data`.

        Args:
            seed: which repetition.
            part: ``"train"`` or ``"test"``.
            count: number of images.
        """
        pool, targets = self.base_data(seed)
        if part == "test":
            pool, labels = self.evaluation_data(seed)
            targets = positions_of(labels, self.sessions(seed)[0].classes)
        known = (targets >= 0).nonzero().squeeze(1).cpu()
        chosen = torch.randperm(len(known), generator=generator(seed, "flatness images"))
        chosen = known[chosen[:count]]
        return pool[chosen], targets[chosen]

    # Base training -----------------------------------------------------------------------------

    def new_network(self, seed: int, *, cosine: bool = False) -> Trained:
        """An untrained network, split in front of its last convolutions, and a classifier.

        Equal seeds give equal initial weights.

        Args:
            seed: of the initial weights.
            cosine: use a cosine classifier, which LUCIR needs.
        """
        p = self.parameters
        torch.manual_seed(seed)
        network: Any
        if p.weights:
            network = imagenet_resnet18_features(p.weights)
        else:
            network = resnet18_features(self.train.images.shape[1], p.width, p.stem_stride)
        network = network.to(self.device, memory_format=_memory_format(p.width))
        size: int = network.feature_dim
        classifier: nn.Module = nn.Linear(size, p.base_classes)
        if cosine:
            rows = generator(seed, "cosine classifier")
            classifier = methods.CosineClassifier(size, p.base_classes, generator=rows)
        layers = last_convolutions(network, p.tuned_convolutions)
        few = self.images[self.sessions(seed)[0].train[:4]]
        split = split_network(network, layers, example=few)
        return split, classifier.to(self.device)

    def train_with(
        self,
        seed: int,
        make_loss: Callable[[SplitNetwork, nn.Module], Loss],
        *,
        cosine: bool = False,
        sam_radius: float = 0.0,
    ) -> Trained:
        """Train on session 1. Methods of one seed differ in their loss alone.

        They start from the same weights and see the same batches and crops.

        Args:
            seed: of weights, batches and crops.
            make_loss: network and classifier -> loss of a batch of images and labels.
            cosine: see :meth:`new_network`.
            sam_radius: see :class:`ktlib.fcl.BaseTraining`.
        """
        p = self.parameters
        split, classifier = self.new_network(seed, cosine=cosine)
        settings = BaseTraining(
            epochs=p.epochs,
            batch_size=p.batch_size,
            lr=p.lr,
            padding=p.crop_padding,
            flip=p.flip,
            classifier_lr=p.classifier_lr or None,
            sam_radius=sam_radius,
        )
        loss, batches = make_loss(split, classifier), generator(seed, "batches")
        pool = self.base_data(seed)
        train_base(split.network, classifier, *pool, loss, settings, generator=batches)
        return split, classifier

    def _kept(self, without: set[str], make: Callable[[], Trained], **settings: Any) -> Trained:
        """A base training, from the cache where it was done before."""
        names = FewShotParameters.model_fields.keys() - _AFTERWARDS - without
        settings |= {name: getattr(self.parameters, name) for name in names}
        settings |= {"validation_images": self.validation_images, "pixels": self.normalisation}
        settings["data"] = data.checksums(self.parameters.dataset)
        settings["weights"] = weights_checksum(self.parameters.weights)
        return kept("base training", _USES, settings, make, device=self.device)

    def train_plain(self, seed: int, *, cosine: bool = False, sam_radius: float = 0.0) -> Trained:
        """Cross-entropy alone; with a radius, by sharpness-aware minimisation (SAM)."""

        def make_loss(split: SplitNetwork, classifier: nn.Module) -> Loss:
            def loss(images: Tensor, targets: Tensor) -> Tensor:
                with autocast(self.device, self.parameters.precision):
                    return F.cross_entropy(classifier(split.network(images)), targets)

            return loss

        options: dict[str, Any] = {"cosine": cosine, "sam_radius": sam_radius}
        make = partial(self.train_with, seed, make_loss, **options)
        return self._kept(_NOISE, make, seed=seed, loss="plain", **options)

    def train_f2m(self, seed: int, **released: Any) -> Trained:
        """F2M: cross-entropy under weight noise, and the shift of the prototypes.

        Args:
            seed: of weights, batches, crops and noise.
            released: fields of :class:`ktlib.fcl.F2MVariant` other than ``noise_levels``.
        """
        p = self.parameters
        variant = F2MVariant(noise_levels=p.noise_levels, **released)

        def make_loss(split: SplitNetwork, classifier: nn.Module) -> Loss:
            noise = generator(seed, "noise")

            def loss(images: Tensor, targets: Tensor) -> Tensor:
                with autocast(self.device, p.precision):
                    return f2m_loss(
                        split,
                        classifier,
                        images,
                        targets,
                        bound=p.noise_bound,
                        draws=p.noise_draws,
                        prototype_weight=p.prototype_weight,
                        generator=noise,
                        variant=variant,
                    ).total

            return loss

        make = partial(self.train_with, seed, make_loss)
        return self._kept(set(), make, seed=seed, loss="f2m", **released)

    # Few-shot sessions -------------------------------------------------------------------------

    def learner(self, method: str, trained: Trained, seed: int, **setting: Any) -> Learner:
        """A method on a copy of a trained network.

        Args:
            method: id, one of :data:`experiments.fcl.parameters.METHODS`.
            trained: what :meth:`train_plain` or :meth:`train_f2m` gave.
            seed: of what the method draws at random.
            setting: arguments that replace those of F2M: ``epochs``, ``lr``, ...

        Raises:
            ValueError: for an unknown method.
        """
        if method not in METHODS:
            raise ValueError(f"method must be one of {METHODS}. Found {method!r}.")
        p = self.parameters
        split: SplitNetwork
        head: Any  # a linear or a cosine classifier, as the method needs
        split, head = copy.deepcopy(trained)
        classes = self.sessions(seed)[0].classes
        steps: dict[str, Any] = {"epochs": p.session_epochs, "lr": p.session_lr, **setting}
        rng = generator(seed, method)
        batches = steps | {"batch_size": p.batch_size, "generator": rng}
        boxed = {"bound": p.box} | steps
        held: dict[str, Any] = {"penalty": 1e4} | boxed
        make: dict[str, Callable[[], Learner]] = {
            "ncm": partial(methods.NearestMean, split, **setting),
            "ncm_raw": partial(methods.NearestMean, split, **{"normalise": False} | setting),
            "teen": partial(methods.Teen, split, **setting),
            "lda": partial(methods.Lda, split, **setting),
            "ridge": partial(methods.Ridge, split, **setting),
            "finetune": partial(methods.Finetune, split, **steps),
            "f2m": partial(methods.F2M, split, **boxed),
            "f2m_flat": partial(methods.F2M, split, **boxed),
            "sam": partial(methods.F2M, split, **boxed),
            "ewc_wide": partial(methods.EWCInBox, split, generator=rng, **held),
            "fsll": partial(_fsll, split, **steps),
            "fsll_released": partial(methods.FSLL, split, **FSLL_RELEASED | setting),
            "idlvq": partial(methods.IDLVQC, split, **steps),
            "icarl": partial(methods.ICaRL, split, head, classes, **batches),
            "lucir": partial(methods.LUCIR, split, head, classes, **batches),
            "topic": partial(methods.TOPIC, split, head, classes, generator=rng, **steps),
            "joint": partial(methods.Joint, split, head, classes, **batches),
            "crt": partial(methods.ClassifierRetraining, split, head, classes, **batches),
        }
        return make[method]()

    def train_for(self, method: str, seed: int, setting: Mapping[str, float]) -> Trained:
        """Train on session 1 as a method wants it, see :data:`STARTS_FROM`.

        Args:
            method: id.
            seed: of the training.
            setting: of the method; of it, only ``noise_bound`` and ``radius`` count here.
        """
        start = STARTS_FROM.get(method, "plain")
        if start == "f2m":
            bound = setting.get("noise_bound", self.parameters.noise_bound)
            return self.with_parameters(noise_bound=bound).train_f2m(seed)
        radius = setting.get("radius", 0.0) if start == "sam" else 0.0
        return self.train_plain(seed, cosine=start == "cosine", sam_radius=radius)

    def run_method(
        self, method: str, trained: Trained, seed: int, setting: Mapping[str, Any], **options: Any
    ) -> tuple[Learner | None, SessionResults, str]:
        """Run a method with a setting; one that diverges keeps the sessions that it finished.

        Args:
            method: id.
            trained: network, from :meth:`train_for`.
            seed: which repetition.
            setting: values of its knobs, :data:`experiments.fcl.parameters.KNOBS`.
            options: of :func:`experiments.fcl.baselines.run_learner`.

        Returns:
            The learner at the end, its results, and why it stopped: empty if it did not.
        """
        own = {k: v for k, v in setting.items() if k not in ("noise_bound", "radius")}
        if "epochs" in own:
            own["epochs"] = int(own["epochs"])
        results, learner = SessionResults(), None
        try:
            learner = self.learner(method, trained, seed, **own)
            self.run_sessions(learner, seed, results, **options)
        except FloatingPointError as error:
            return learner, results, str(error)
        return learner, results, ""

    def run_sessions(
        self, learner: Learner, seed: int, results: SessionResults | None = None, **options: Any
    ) -> SessionResults:
        """Run a method through all sessions of a seed, testing after each.

        Options are those of :func:`experiments.fcl.baselines.run_learner`.
        """
        pools = self.images, self.labels, *self.evaluation_data(seed)
        return run_learner(learner, self.sessions(seed), *pools, results=results, **options)

    # Flatness ----------------------------------------------------------------------------------

    def flatness(
        self, trained: Trained, seed: int, part: str, *, bound: float, draws: int, images: int
    ) -> Flatness:
        """Flatness on images of the base classes; equal seeds draw equal noise for all networks.

        Args:
            trained: network and classifier.
            seed: of images and noise.
            part: ``"train"`` or ``"test"``.
            bound: half-width of the box, in units of the weights.
            draws: random points of the box.
            images: how many images of the base classes.
        """
        together = self.flatness_together(
            {"": trained}, seed, [part], bound=bound, draws=draws, images=images
        )
        return together["", part]

    def flatness_together(
        self,
        trained: Mapping[str, Trained],
        seed: int,
        parts: Sequence[str],
        *,
        bound: float,
        draws: int,
        images: int,
    ) -> dict[tuple[str, str], Flatness]:
        """What :meth:`flatness` gives for each network and part; the noise is drawn only once."""
        samples = [(part, self.base_sample(seed, part, images)) for part in parts]
        cases = {(k, part): (*pair, *pool) for k, pair in trained.items() for part, pool in samples}
        noise = generator(seed, "flatness noise")
        return flatness_together(cases, bound=bound, draws=draws, generator=noise)


def _fsll(split: SplitNetwork, *, penalty: float | None = None, **steps: Any) -> Learner:
    """FSLL with this weight of its penalty."""
    settings = None if penalty is None else methods.FsllSettings(penalty_weight=penalty)
    return methods.FSLL(split, settings=settings, **steps)


def _memory_format(width: int) -> torch.memory_format:
    """``channels_last`` makes convolutions faster; not for narrow networks.

    On a CPU, PyTorch 2.15 writes beyond its memory in convolutions of 4 channels in this format,
    and of 8 with images of 84x84: results differ from run to run, and sooner or later the process
    is aborted.
    """
    return torch.channels_last if width % 16 == 0 else torch.contiguous_format
