"""Parameters of the chapters on multi-task learning, and what each may be."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from data_prep import task_names
from experiments.run.parameters import (
    SMALLEST_RATE,
    ChapterParameters,
    LearningRate,
    is_file,
)

GRADIENT_METHODS = ("joint", "mgda", "pcgrad", "graddrop", "cagrad", "upgrad", "nashmtl")
"""Methods that make one update of the task gradients, by the ids of the tables."""

ARCHITECTURES = ("rotograd", "mmoe", "cross_stitch", "bmtas")
"""Methods that change the network."""

METHODS = ("single", *GRADIENT_METHODS, *ARCHITECTURES)
"""Ids of all methods, in the order of the tables."""

ARCHITECTURE_BACKBONES = {
    "rotograd": ("resnet18",),
    "mmoe": ("resnet18",),
    "cross_stitch": ("resnet18", "segnet"),
    "bmtas": ("resnet18",),
}
"""Architectures, and the networks that they can be used with."""

WITHOUT_RECON = ("single", "cross_stitch", "bmtas")
"""Methods whose networks have no layers that all tasks share, or learn which to share."""

OVERLAID = ("multi_fashion_mnist", "multi_mnist", "multi_fashion")
"""Data sets of two overlaid images, whose tasks are two classes."""

BACKBONES = dict.fromkeys(OVERLAID, ("resnet18",)) | {
    "celeba": ("resnet18",),
    "cityscapes": ("segnet", "mtan"),
    "nyuv2": ("mtan", "segnet"),
    "pascal_context": ("mobilenet_v2",),
}
"""Data set -> the networks that the thesis trains on it."""

_LAYERS = {"resnet18": 40, "segnet": 52, "mtan": 72, "mobilenet_v2": 108}
"""Layers that the tasks share; half of them are batch norms."""


TORCHVISION_WEIGHTS = ("DEFAULT", "IMAGENET1K_V1", "IMAGENET1K_V2")
"""Names of torchvision's weights of MobileNetV2."""


class MultiTaskParameters(ChapterParameters):
    """Data, network and training: parameters of all multi-task experiments."""

    dataset: Literal[tuple(BACKBONES)] = Field(  # type: ignore[valid-type]
        description="images with several targets"
    )
    backbone: Literal["resnet18", "segnet", "mtan", "mobilenet_v2"] = Field(
        description="the network that the tasks share"
    )
    train_images: int = Field(ge=0, le=10_000_000, description="training images; 0: all")
    test_images: int = Field(ge=0, le=10_000_000, description="test images; 0: all")
    width: int = Field(ge=1, le=1024, description="channels of the first stage")
    augment: bool = Field(description="whether maps are scaled, cropped and mirrored at random")
    epochs: int = Field(ge=1, le=10_000, description="passes over the training images")
    batch_size: int = Field(ge=2, le=10_000, description="images per step")
    optimizer: Literal["sgd", "adam"] = Field(description="SGD with momentum 0.9, or Adam")
    lr: LearningRate = Field(description="first learning rate")
    method_lr: dict[str, float] = Field(
        description="learning rate of a method, where it is not `lr`"
    )
    lr_drops: list[float] = Field(
        description="shares of the training after which the learning rate falls"
    )
    lr_factor: float = Field(gt=0, lt=1, description="what it is multiplied by each time")
    cagrad_c: float = Field(ge=0, le=100, description="how far CAGrad may move away from the mean")
    batch_norm: bool = Field(description="whether batch norms count as layers")
    severity: float = Field(gt=-1, le=0, description="severity S: a cosine below it is counted")
    top_k: int = Field(ge=1, description="layers K that become task-specific")
    search_quarters: int = Field(ge=1, le=4, description="quarters of the training that count")

    @property
    def layers(self) -> int:
        """Number of layers of the network that the tasks share."""
        # The embedding of the overlaid images is a layer more.
        return _LAYERS[self.backbone] + (self.dataset in OVERLAID)

    @property
    def ranked_layers(self) -> int:
        """Number of layers that a ranking holds: without batch norms, where they do not count."""
        return self.layers - (0 if self.batch_norm else _LAYERS[self.backbone] // 2)

    @property
    def severities(self) -> tuple[float, ...]:
        """Severities that are asked for: all that a search has to count."""
        return (self.severity,)

    @property
    def chosen_tasks(self) -> tuple[str, ...]:
        """Tasks of the data set that are trained; all where none is named."""
        return ()

    @property
    def first_weights(self) -> str:
        """Weights that the trunk starts from; empty for random ones."""
        return ""

    @model_validator(mode="after")
    def _lists_without_repetition(self) -> Self:
        for name, found in self:
            if isinstance(found, list) and len(set(found)) < len(found):
                raise ValueError(f"{name} may hold each value once. Found {found}")
        return self

    @model_validator(mode="after")
    def _fits_the_data(self) -> Self:
        if self.backbone not in BACKBONES[self.dataset]:
            allowed = " or ".join(repr(name) for name in BACKBONES[self.dataset])
            raise ValueError(
                f"backbone must be {allowed} for {self.dataset!r}. Found {self.backbone!r}"
            )
        if self.augment and BACKBONES[self.dataset] == ("resnet18",):
            raise ValueError(f"augment must be False for {self.dataset!r}, which has no maps")
        if self.train_images and self.train_images < 4 * self.batch_size:
            raise ValueError(
                "train_images must be 0 (all) or at least four batches, "
                f"4 x {self.batch_size}. Found {self.train_images}"
            )
        if self.backbone == "mobilenet_v2" and self.width % 4:
            raise ValueError(f"width must be a multiple of 4 here. Found {self.width}")
        if self.top_k > self.ranked_layers:
            raise ValueError(
                f"top_k must be at most {self.ranked_layers}, the layers of {self.backbone!r} with "
                f"batch_norm={self.batch_norm}. Found {self.top_k}"
            )
        if not all(0 < share < 1 for share in self.lr_drops):
            raise ValueError(f"lr_drops must lie between 0 and 1. Found {self.lr_drops}")
        if self.lr_drops != sorted(self.lr_drops):
            raise ValueError(f"lr_drops must rise. Found {self.lr_drops}")
        for method, value in self.method_lr.items():
            if method not in METHODS or not SMALLEST_RATE <= value <= 10:
                raise ValueError(
                    f"method_lr must give values from {SMALLEST_RATE:g} to 10 to {METHODS}. "
                    f"Found {method!r}: {value}"
                )
        return self

    def rate(self, method: str) -> float:
        """First learning rate of a method."""
        return self.method_lr.get(method, self.lr)


class ReconParameters(MultiTaskParameters):
    """Parameters of ``chapters/recon.py``."""

    tasks: list[str] = Field(description="tasks of the data set that are trained; empty: all")
    weights: str = Field(
        description="empty: random; else torchvision's of MobileNetV2 by name, or a file of them"
    )
    methods: list[Literal[METHODS]] = Field(  # type: ignore[valid-type]
        min_length=1, description="methods to train as they are"
    )
    recon_methods: list[Literal[METHODS]] = Field(  # type: ignore[valid-type]
        min_length=1, description="methods to train on the split network, too"
    )
    compared_seeds: int = Field(ge=1, description="seeds, at most, that every method is run with")
    experts: int = Field(ge=2, le=64, description="expert networks of MMoE")
    timed_images: int = Field(ge=1, le=100_000, description="images of the timed forward pass")

    @property
    def chosen_tasks(self) -> tuple[str, ...]:
        """Tasks of the data set that are trained; all where none is named."""
        return tuple(self.tasks)

    @property
    def first_weights(self) -> str:
        """Weights that the trunk starts from; empty for random ones."""
        return self.weights

    @model_validator(mode="after")
    def _fits_the_set_and_the_network(self) -> Self:
        known = task_names(self.dataset) if self.tasks else ()
        if self.tasks and (len(self.tasks) < 2 or not set(self.tasks) <= set(known)):
            raise ValueError(
                f"tasks must be empty (all) or at least two of {', '.join(known)}. "
                f"Found {self.tasks}"
            )
        if self.weights and (self.backbone != "mobilenet_v2" or self.width != 32):
            raise ValueError(
                "weights must be empty but for the backbone 'mobilenet_v2' of width 32. Found "
                f"weights={self.weights!r} for {self.backbone!r} of width {self.width}"
            )
        if self.weights and self.weights not in TORCHVISION_WEIGHTS and not is_file(self.weights):
            raise ValueError(
                f"weights must be empty, one of {TORCHVISION_WEIGHTS} or a file. "
                f"Found weights={self.weights!r}"
            )
        return self

    @model_validator(mode="after")
    def _fits_the_methods(self) -> Self:
        if "joint" not in self.methods or "joint" not in self.recon_methods:
            raise ValueError("methods and recon_methods must hold 'joint', the reference")
        refused = sorted(set(self.recon_methods) & set(WITHOUT_RECON))
        if refused:
            raise ValueError(
                f"recon_methods cannot hold {', '.join(WITHOUT_RECON)}. Found {refused}"
            )
        absent = sorted(set(self.recon_methods) - set(self.methods))
        if absent:
            raise ValueError(f"recon_methods must be among methods. Found {absent} beside them")
        if self.dataset == "celeba" and "bmtas" in self.methods:
            count = len(self.tasks) or 40
            if count > 6:
                raise ValueError(
                    f"methods can hold 'bmtas' with at most 6 tasks. 'celeba' has {count} here"
                )
        if self.top_k == self.layers:
            raise ValueError(
                f"top_k must be below {self.layers}, or no layer is left in which conflicts could "
                f"be counted after the split. Found {self.top_k}"
            )
        for name, networks in ARCHITECTURE_BACKBONES.items():
            if name in self.methods and self.backbone not in networks:
                raise ValueError(
                    f"methods can hold {name!r} with the backbone {' or '.join(networks)} only. "
                    f"Found backbone={self.backbone!r}"
                )
        return self


class ReconStudyParameters(MultiTaskParameters):
    """Parameters of ``chapters/recon_studies.py``."""

    dataset: Literal[OVERLAID] = Field(  # type: ignore[valid-type]
        description="images with two targets, which the studies report as accuracies"
    )
    controls: list[Literal["random_layers", "random_parameters", "first", "last"]] = Field(
        description="other choices of layers"
    )
    control_methods: list[Literal[GRADIENT_METHODS]] = Field(  # type: ignore[valid-type]
        min_length=1, description="methods that are trained on every choice of layers"
    )
    counts_studied: list[Annotated[int, Field(le=1000)]] = Field(
        min_length=1, description="numbers K of layers"
    )
    severities_studied: list[float] = Field(min_length=1, description="severities S")
    ranked_methods: list[Literal[GRADIENT_METHODS]] = Field(  # type: ignore[valid-type]
        min_length=2, description="methods whose rankings are compared"
    )
    transfer_from: list[Literal[OVERLAID]] = Field(  # type: ignore[valid-type]
        description="data sets whose rankings are used on `dataset`"
    )
    skips_studied: list[Literal["last", "behind_stem"]] = Field(
        description="choices of layers that are trained with skip connections lost, too"
    )
    statistics_studied: list[
        Literal["Recon", "random_layers", "random_parameters", "first", "last"]
    ] = Field(description="choices of layers that are trained with statistics of each task's own")
    task_counts: list[int] = Field(min_length=1, description="numbers T of tasks to time")
    timed_methods: list[Literal[GRADIENT_METHODS]] = Field(  # type: ignore[valid-type]
        min_length=1, description="methods to time"
    )
    timed_steps: int = Field(ge=4, le=100_000, description="steps behind every time")

    @property
    def severities(self) -> tuple[float, ...]:
        """Severities that are asked for: all that a search has to count."""
        return (self.severity, *self.severities_studied)

    @model_validator(mode="after")
    def _fits_the_studies(self) -> Self:
        if not all(-1 < severity <= 0 for severity in self.severities_studied):
            raise ValueError(
                f"severities_studied must lie in (-1, 0]. Found {self.severities_studied}"
            )
        absent = set(self.statistics_studied) - {"Recon", *self.controls}
        if absent:
            raise ValueError(
                f"statistics_studied must be 'Recon' or among controls. Found {sorted(absent)}"
            )
        if "last" in self.skips_studied and "last" not in self.controls:
            raise ValueError("skips_studied can hold 'last' only if controls hold it")
        for name, least in (("counts_studied", 0), ("task_counts", 2)):
            found = getattr(self, name)
            if min(found) < least:
                raise ValueError(f"{name} must be at least {least}. Found {found}")
        if min(self.counts_studied) > self.ranked_layers:
            raise ValueError(
                f"counts_studied must hold a number up to {self.ranked_layers}, the number of "
                f"layers. Found {self.counts_studied}"
            )
        if "joint" not in self.timed_methods:
            raise ValueError(
                f"timed_methods must hold 'joint', the reference. Found {self.timed_methods}"
            )
        if self.timed_steps * self.batch_size > 10_000_000:
            raise ValueError(
                "timed_steps x batch_size must be at most 10000000, the images of a training. "
                f"Found {self.timed_steps} x {self.batch_size}"
            )
        if max(self.task_counts) > 40:
            raise ValueError(f"task_counts must be at most 40. Found {self.task_counts}")
        return self
