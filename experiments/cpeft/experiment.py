"""The experiment that the chapter and its search share: model, tasks, methods, measures.

Everything that must be the same wherever methods are compared is here: the pre-trained model, the
classes and images of each task, the test images, the settings of each method.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ViT_B_16_Weights

from data_prep import checksums, load, scaled
from experiments.cpeft import pretraining
from experiments.cpeft.expert_outputs import ExpertOutputs
from experiments.cpeft.joint_analyses import (
    NoiseSensitivity,
    noise_sensitivity,
    rank_for_task,
    task_heads,
)
from experiments.cpeft.parameters import (
    CLASSES,
    LEARNING_RATES,
    METHODS,
    PROJECTIONS,
    ContinualPeftParameters,
)
from experiments.cpeft.report import as_recorded
from experiments.models import vit
from experiments.models.images import NormalisedImages
from experiments.models.resnet import IMAGENET_MEAN, IMAGENET_STD
from experiments.run.cache import kept
from ktlib.cpeft.comparisons import JointLora, LoraOracle, NearestMean, SequentialLora
from ktlib.cpeft.drift import layer_state
from ktlib.cpeft.inflora import InfLora
from ktlib.cpeft.inputs import input_moments
from ktlib.cpeft.l2c import L2C, L2CSettings
from ktlib.cpeft.tasks import ClassTask, ContinualLearner, class_tasks, learn_tasks
from ktlib.cpeft.training import LoraTraining
from ktlib.fcl.protocol import positions_of
from ktlib.ila.ranking import LayerRanking
from ktlib.seeding import generator

Parameters = TypeVar("Parameters", bound=ContinualPeftParameters)
_USES = ("cpeft", "ktlib/fcl", "models/images", "models/vit", "data_prep")
VALIDATION_SHARE = 0.2  # of a class's training images, held out in searches
IMAGE_MEAN = IMAGE_STD = 0.5  # what ViT-B/16 of ImageNet-21k (timm's augreg_in21k) was trained with


@dataclass(frozen=True)
class MethodRun:
    """The run of one method through all tasks.

    Attributes:
        method: its id.
        seed: of the classes' order, images, adapters and batches.
        rows: accuracies of :func:`ktlib.cpeft.learn_tasks`, as records name them, with method and
            seed.
        learner: the method after the last task.
        noted: results of ``note`` after each task, see :meth:`ContinualExperiment.run`.
    """

    method: str
    seed: int
    rows: list[dict[str, Any]]
    learner: ContinualLearner
    noted: list[Any] = field(default_factory=list)


class ResizedImages(NormalisedImages):
    """Normalised images, enlarged to the size that a model was trained with.

    Args:
        pixels: ``(n, channels, height, width)`` uint8.
        mean: of every channel, of values from 0 to 1.
        std: of every channel.
        size: side of the resized images, in pixels.
    """

    def __init__(self, pixels: Tensor, mean: Any, std: Any, size: int) -> None:
        super().__init__(pixels, mean, std)
        self.size = size

    def __getitem__(self, rows: Tensor) -> Tensor:
        """``(len(rows), channels, size, size)``, float32."""
        images = super().__getitem__(rows)  # (n, channels, height, width)
        if images.shape[-1] == self.size:
            return images
        sides = (self.size, self.size)
        return F.interpolate(images, sides, mode="bilinear", antialias=True, align_corners=False)


class ContinualExperiment(Generic[Parameters]):
    """Data, pre-trained model, tasks and methods, for any seed.

    Args:
        parameters: of the chapter.
        device: where to compute.
        validation: hold out a fifth of every class's training images and test on them instead of
            the test split: for searches, which never load it.
    """

    def __init__(
        self, parameters: Parameters, device: torch.device | str, *, validation: bool = False
    ) -> None:
        self.parameters = parameters
        self.device = torch.device(device)
        self.validation = validation
        self.train = load(parameters.dataset, "train")

    def with_parameters(self, **values: Any) -> Self:
        """The same experiment with other values of some parameters, on the same images.

        Raises:
            ValueError: for an unknown name, the data set, or a value that is not allowed.
        """
        known = self.parameters.model_dump()
        unknown = sorted(set(values) - (set(known) - {"dataset"}))
        if unknown:
            raise ValueError(
                f"values must be of {sorted(set(known) - {'dataset'})}. Found {unknown}."
            )
        other = type(self).__new__(type(self))
        other.parameters = type(self.parameters).model_validate(known | values)
        other.device, other.validation, other.train = self.device, self.validation, self.train
        return other

    # Data --------------------------------------------------------------------------------------

    @cached_property
    def _class_order(self) -> list[int]:
        order = generator(self.parameters.class_seed, "base classes")
        return torch.randperm(CLASSES[self.parameters.dataset], generator=order).tolist()

    @property
    def base_classes(self) -> list[int]:
        """Classes of the pre-training: the same for every seed, as there is one model."""
        return self._class_order[: self.parameters.base_classes]

    def tasks(self, seed: int) -> list[ClassTask]:
        """The tasks; order of the classes and images depend on the seed."""
        p = self.parameters
        return class_tasks(
            self.train.labels,
            classes=self._class_order[p.base_classes :],
            tasks=p.tasks,
            images=p.task_images or None,
            class_seed=seed,
            seed=seed,
            validation_images=self._held_out(),
        )

    def _held_out(self) -> int:
        """Held-out images per class, which a search tests on."""
        if not self.validation:
            return 0
        smallest = int(torch.bincount(self.train.labels).min())
        wanted = self.parameters.test_images or int(VALIDATION_SHARE * smallest)
        return min(wanted, int(VALIDATION_SHARE * smallest))

    @cached_property
    def base_task(self) -> ClassTask:
        """Classes and images of the pre-training, as the one task of its sequence."""
        p = self.parameters
        return class_tasks(
            self.train.labels,
            classes=self.base_classes,
            tasks=1,
            images=p.base_images or None,
            class_seed=p.class_seed,
            seed=p.class_seed,
            validation_images=self._held_out(),
        )[0]

    @cached_property
    def normalisation(self) -> tuple[Any, Any]:
        """Mean and spread of the pixels that the model was trained with.

        Those of the base images; with a name of torchvision's weights those of ImageNet, with a
        file or folder 0.5 and 0.5, as for the weights that InfLoRA and L2C start from.
        """
        weights = self.parameters.weights
        if weights in ViT_B_16_Weights.__members__:
            return IMAGENET_MEAN, IMAGENET_STD
        if weights:
            return IMAGE_MEAN, IMAGE_STD
        pixels = scaled(self.train.images[self.base_task.train])
        return float(pixels.mean()), float(pixels.std())

    def _prepared(self, pixels: Tensor) -> ResizedImages:
        size = 224 if self.parameters.model == "vit_b16" else pixels.shape[-1]
        if self.parameters.model == "vit_b16" and pixels.shape[1] == 1:
            pixels = pixels.expand(-1, 3, -1, -1)
        return ResizedImages(pixels.to(self.device), *self.normalisation, size)

    @cached_property
    def images(self) -> ResizedImages:
        """All training images."""
        return self._prepared(self.train.images)

    @cached_property
    def labels(self) -> Tensor:
        """``(n,)`` their classes."""
        return self.train.labels.to(self.device)

    @cached_property
    def _test_pool(self) -> tuple[ResizedImages, Tensor]:
        test = load(self.parameters.dataset, "test")
        count = self.parameters.test_images or len(test)
        rng = generator(self.parameters.class_seed, "test images")
        order = torch.randperm(len(test), generator=rng)
        each = [order[test.labels[order] == c][:count] for c in range(len(test.class_names))]
        chosen = torch.cat(each)
        return self._prepared(test.images[chosen]), test.labels[chosen].to(self.device)

    def evaluation_data(self, seed: int) -> tuple[ResizedImages, Tensor]:
        """Images and labels of the test split, or those that are held out with this seed."""
        if not self.validation:
            return self._test_pool
        held_out = torch.cat([task.validation for task in (self.base_task, *self.tasks(seed))])
        return self._prepared(self.train.images[held_out]), self.labels[held_out]

    # Pre-trained model -------------------------------------------------------------------------

    def new_network(self) -> nn.Module:
        """The small transformer before any training."""
        p = self.parameters
        return vit.small_vit(
            image_size=self.train.images.shape[-1],
            patch_size=p.patch_size,
            channels=self.train.images.shape[1],
            width=p.width,
            blocks=p.blocks,
            heads=p.heads,
            seed=p.class_seed,
        ).to(self.device)

    def pretrained(self, sam_radius: float = 0.0) -> nn.Module:
        """The model that every method starts from: features ``(batch, dim)`` of images.

        The small one is trained on the base classes and kept, see :mod:`experiments.run.cache`;
        ViT-B/16 is loaded.

        Args:
            sam_radius: above 0 for a flat pre-training, see
                :class:`~experiments.cpeft.pretraining.Pretraining`.
        """
        p = self.parameters
        if p.model == "vit_b16":
            return vit.vit_b16(p.weights).to(self.device).eval()
        network = self.new_network()
        make = partial(self._pretrain, sam_radius)
        weights = kept("pre-training", _USES, self._settings(sam_radius), make, device=self.device)
        network.load_state_dict(weights)
        return network.eval()

    def _settings(self, sam_radius: float) -> dict[str, Any]:
        """All that the pre-trained weights depend on, besides the code."""
        p = self.parameters
        names = (
            *("model", "dataset", "base_classes", "base_images", "class_seed", "patch_size"),
            *("width", "blocks", "heads", "pretraining_epochs", "pretraining_lr", "batch_size"),
            "precision",
        )
        found = {name: getattr(p, name) for name in names}
        found |= {"held_out": self._held_out(), "pixels": self.normalisation}
        return found | {"sam_radius": sam_radius, "data": self.checksums()}

    def checksums(self) -> dict[str, str]:
        """SHA-256 of the files of the data set."""
        return checksums(self.parameters.dataset)

    def _pretrain(self, sam_radius: float) -> dict[str, Tensor]:
        p = self.parameters
        network = self.new_network()
        torch.manual_seed(p.class_seed)
        head = nn.Linear(network.dim, p.base_classes).to(self.device)  # type: ignore[arg-type]
        task = self.base_task
        targets = positions_of(self.train.labels[task.train], task.classes)
        pretraining.pretrain(
            network,
            head,
            ResizedImages(
                self.images.pixels[task.train], *self.normalisation, self.images.pixels.shape[-1]
            ),
            targets.to(self.device),
            pretraining.Pretraining(
                epochs=p.pretraining_epochs,
                batch_size=p.batch_size,
                lr=p.pretraining_lr,
                seed=p.class_seed,
                sam_radius=sam_radius,
                precision=p.precision,
            ),
        )
        return {name: value.detach() for name, value in network.state_dict().items()}

    # Methods -----------------------------------------------------------------------------------

    @property
    def layers(self) -> tuple[str, ...]:
        """Last words of the names of the adapted layers."""
        return PROJECTIONS[self.parameters.layers]

    def learner(
        self, method: str, seed: int, backbone: nn.Module | None = None, **changes: Any
    ) -> ContinualLearner:
        """A method on a copy of a pre-trained model.

        Args:
            method: id, one of :data:`experiments.cpeft.parameters.METHODS`.
            seed: of adapters, heads and batches.
            backbone: another model than :meth:`pretrained`.
            **changes: settings of the method that replace the chapter's.

        Raises:
            ValueError: for an unknown method.
        """
        if method not in METHODS:
            raise ValueError(f"method must be one of {METHODS}. Found {method!r}.")
        p = self.parameters
        network = self.pretrained() if backbone is None else backbone
        if method == "ncm":
            return NearestMean(network)
        training = LoraTraining(
            layers=self.layers,
            rank=p.rank,
            epochs=p.epochs,
            batch_size=p.batch_size,
            lr=getattr(p, LEARNING_RATES[method]),
            seed=seed,
        )
        if method == "l2c":
            l2c: dict[str, Any] = {"selector_lr": p.selector_lr, "consistency": p.consistency}
            return L2C(network, training, L2CSettings(**(l2c | changes)))
        if method == "inflora":
            thresholds = {"first_threshold": p.first_threshold, "last_threshold": p.last_threshold}
            given: dict[str, Any] = {"tasks": p.tasks, "on_full": "shrink", **thresholds}
            return InfLora(network, training, **(given | changes))
        others: dict[str, Callable[..., ContinualLearner]] = {
            "sequential": SequentialLora,
            "oracle": LoraOracle,
            "joint": JointLora,
        }
        return others[method](network, training, **changes)

    def run(
        self,
        method: str,
        seed: int,
        backbone: nn.Module | None = None,
        *,
        note: Callable[[int, ContinualLearner], Any] | None = None,
        adapter_seed: int | None = None,
        **changes: Any,
    ) -> MethodRun:
        """Run a method through all tasks of a seed, testing after each.

        Args:
            method: its id.
            seed: which repetition.
            backbone: another model than :meth:`pretrained`.
            note: called with the number of the task and the method after each task; its results are
                stored.
            adapter_seed: of adapters, heads and batches, instead of ``seed``, to learn the same
                tasks once more.
            **changes: settings of the method that replace the chapter's.
        """
        of_adapters = seed if adapter_seed is None else adapter_seed
        learner = self.learner(method, of_adapters, backbone, **changes)
        noted: list[Any] = []

        def observe(number: int, current: ContinualLearner) -> None:
            if note is not None:
                noted.append(note(number, current))

        rows = learn_tasks(
            learner,
            self.tasks(seed),
            self.images,
            self.labels,
            *self.evaluation_data(seed),
            observe=observe,
        )
        known = {"method": method, "seed": seed}
        return MethodRun(method, seed, [known | as_recorded(row) for row in rows], learner, noted)

    # Measures ----------------------------------------------------------------------------------

    def watch(self, seed: int) -> Callable[[int, ContinualLearner], dict[str, Any]]:
        """A ``note`` for :meth:`run`: what the drift of the first task is computed from.

        After each task the ``weights`` of the adapted layers; after the first one also their
        ``inputs`` (moments) on its training images, and the ``memories`` of InfLoRA, None for other
        methods; see :func:`ktlib.cpeft.drift.drift_rows`. For methods with a ``backbone`` of
        :class:`ktlib.cpeft.LoraBackbone`.
        """
        rows = self.tasks(seed)[0].train

        def note(number: int, learner: Any) -> dict[str, Any]:
            network = learner.backbone
            noted: dict[str, Any] = {"weights": layer_state(network, network.layers)}
            if number == 1:
                noted["inputs"] = input_moments(
                    network, network.layers, self.images, rows, self.parameters.batch_size
                )
                noted["memories"] = copy.deepcopy(getattr(learner, "memories", None))
            return noted

        return note

    def expert_outputs(self, run: MethodRun) -> ExpertOutputs:
        """Outputs of selector and experts of L2C for the test images of all tasks."""
        images, labels = self.evaluation_data(run.seed)
        known = torch.isin(labels.cpu(), run.learner.classes.cpu()).nonzero()[:, 0]
        learner: Any = run.learner
        return ExpertOutputs.of(learner, images[known], labels[known])

    def expert_ranking(self, oracle: MethodRun, number: int, *, seed: int) -> LayerRanking:
        """ILA's ranking of the layers of the expert of a task.

        Args:
            oracle: run of the method ``oracle``.
            number: of the task.
            seed: of the batches of ILA's second stage.
        """
        learner: Any = oracle.learner
        network = copy.deepcopy(learner.backbone)
        network.load_adapters(learner.experts[number - 1])
        return rank_for_task(
            network,
            learner.head.head(number),
            self.tasks(oracle.seed)[number - 1],
            self.images,
            self.labels,
            batch_size=self.parameters.batch_size,
            steps=self.parameters.ranking_steps,
            seed=seed,
        )

    def base_noise_sensitivity(self, network: nn.Module, images: int = 1000) -> NoiseSensitivity:
        """Rise of the loss on base classes when noise moves all linear layers of a model.

        The classifier is fitted to the model's features and gets no noise.

        Args:
            network: one of :meth:`pretrained`.
            images: of the pre-training, at most.
        """
        p, task = self.parameters, self.base_task
        head = task_heads(network, [task], self.images, self.labels)[task.number]
        rows = task.train[:: -(-len(task.train) // images)]
        return noise_sensitivity(
            network,
            head,
            self.images[rows],
            positions_of(self.labels[rows].cpu(), task.classes),
            noise_bound=p.noise_bound,
            draws=p.noise_draws,
            seed=p.class_seed,
        )


def all_rows(runs: Sequence[MethodRun]) -> list[dict[str, Any]]:
    """The accuracies of several runs, one after the other."""
    return [row for run in runs for row in run.rows]
