"""Parameters of the chapters on multi-task learning, and what each may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from data_prep import task_names
from experiments.run.parameters import (
    SMALLEST_RATE,
    ChapterParameters,
    Distinct,
    LearningRate,
    MethodSettings,
    Seed,
    Studied,
    is_file,
)

AGGREGATORS = ("joint", "mgda", "pcgrad", "graddrop", "cagrad", "upgrad", "nashmtl")
"""Methods that make one update of the task gradients, by the ids of the tables."""

BALANCERS = ("uw", "gradnorm", "famo")
"""Methods that weight the losses anew at each step."""

GRADIENT_METHODS = (*AGGREGATORS, *BALANCERS)
"""Methods that train one network by the gradients of all tasks."""

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

CONTROLS = ("random_layers", "random_parameters", "first", "last")
"""Other choices of layers: RSL, RSP, first-K and last-K of the thesis."""

KNOBS: dict[str, tuple[str, ...]] = dict.fromkeys(METHODS, ("lr",)) | {
    "cagrad": ("lr", "c"),
    "gradnorm": ("lr", "alpha"),
}
"""What the search chooses for each method, and ``method_settings`` may replace."""

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

REFERENCE: dict[str, Any] = {
    "precision": "float32",
    "backbone": "resnet18",
    "tasks": [],
    "weights": "",
    "per_image": False,
    "augment": False,
    "optimizer": "sgd",
    "lr_drops": [0.5, 0.75],
    "lr_factor": 0.1,
    "batch_norm": True,
}
"""What the lesson does not speak of: values of ``chapters/recon_evidence.py``."""


class MultiTaskParameters(ChapterParameters):
    """Data, network and training: parameters of all multi-task experiments."""

    dataset: Literal[tuple(BACKBONES)] = Field(  # type: ignore[valid-type]
        description="images with several targets"
    )
    tasks: Distinct[str] = Field(description="tasks of the data set that are trained; empty: all")
    backbone: Literal["resnet18", "segnet", "mtan", "mobilenet_v2"] = Field(
        description="the network that the tasks share"
    )
    weights: str = Field(
        description="empty: random; else torchvision's of MobileNetV2 by name, or a file of them"
    )
    train_images: int = Field(ge=0, le=10_000_000, description="training images; 0: all")
    test_images: int = Field(ge=0, le=10_000_000, description="test images; 0: all")
    per_image: bool = Field(description="whether depth and normals are averaged image by image")
    width: int = Field(ge=1, le=1024, description="channels of the first stage")
    augment: bool = Field(description="whether maps are scaled, cropped and mirrored at random")
    epochs: int = Field(ge=1, le=10_000, description="passes over the training images")
    batch_size: int = Field(ge=2, le=10_000, description="images per step")
    optimizer: Literal["sgd", "adam"] = Field(description="SGD with momentum 0.9, or Adam")
    lr: LearningRate = Field(description="first learning rate")
    lr_drops: Distinct[float] = Field(
        description="shares of the training after which the learning rate falls"
    )
    lr_factor: float = Field(gt=0, lt=1, description="what it is multiplied by each time")
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

    @model_validator(mode="after")
    def _fits_the_data(self) -> Self:
        if self.backbone not in BACKBONES[self.dataset]:
            allowed = " or ".join(repr(name) for name in BACKBONES[self.dataset])
            raise ValueError(
                f"backbone must be {allowed} for {self.dataset!r}. Found {self.backbone!r}"
            )
        known = task_names(self.dataset) if self.tasks else ()
        if self.tasks and (len(self.tasks) < 2 or not set(self.tasks) <= set(known)):
            raise ValueError(
                f"tasks must be empty (all) or at least two of {', '.join(known)}. "
                f"Found {self.tasks}"
            )
        if self.augment and BACKBONES[self.dataset] == ("resnet18",):
            raise ValueError(f"augment must be False for {self.dataset!r}, which has no maps")
        self._check_batches("train_images", self.train_images)
        if self.top_k > self.ranked_layers:
            raise ValueError(
                f"top_k must be at most {self.ranked_layers}, the layers of {self.backbone!r} with "
                f"batch_norm={self.batch_norm}. Found {self.top_k}"
            )
        if self.top_k == self.layers:
            raise ValueError(
                f"top_k must be below {self.layers}, or no layer is left in which conflicts could "
                f"be counted after the split. Found {self.top_k}"
            )
        if not all(0 < share < 1 for share in self.lr_drops):
            raise ValueError(f"lr_drops must lie between 0 and 1. Found {self.lr_drops}")
        if self.lr_drops != sorted(self.lr_drops):
            raise ValueError(f"lr_drops must rise. Found {self.lr_drops}")
        return self

    @model_validator(mode="after")
    def _fits_the_network(self) -> Self:
        if self.backbone == "mobilenet_v2" and self.width % 4:
            raise ValueError(f"width must be a multiple of 4 here. Found {self.width}")
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

    def _check_batches(self, name: str, images: int) -> None:
        if images and images < 4 * self.batch_size:
            raise ValueError(
                f"{name} must be 0 (all) or at least four batches, 4 x {self.batch_size}. "
                f"Found {images}"
            )


class ReconParameters(MultiTaskParameters):
    """Parameters of ``chapters/recon.py``."""

    reference: ClassVar[Mapping[str, Any]] = REFERENCE
    dataset: Literal[OVERLAID] = Field(  # type: ignore[valid-type]
        description="images of two things, each with a class"
    )


class EvidenceParameters(MultiTaskParameters):
    """Parameters of ``chapters/recon_evidence.py``."""

    shown: Literal["long", "live"] = Field(
        description="what tables and figures show: the kept record, or this run"
    )
    study_seeds: Distinct[Seed] = Field(
        description="seeds, among `seeds`, that the studies are run with"
    )
    searched: bool = Field(
        description="whether methods have the settings of the search; False: `lr` serves all"
    )
    long_images: int = Field(
        ge=0, le=10_000_000, description="training images of the long comparison; 0: all"
    )
    long_epochs: int = Field(ge=1, le=10_000, description="its passes over them")
    methods: Studied[Literal[METHODS]] = Field(  # type: ignore[valid-type]
        description="methods to train as they are"
    )
    recon_methods: Studied[Literal[METHODS]] = Field(  # type: ignore[valid-type]
        description="methods to train on the split network, too"
    )
    method_settings: MethodSettings = Field(
        description="settings of a method that replace those of the search"
    )
    experts: int = Field(ge=2, le=64, description="expert networks of MMoE")
    branch_epochs: int = Field(ge=1, le=10_000, description="passes of the search of BMTAS")
    timed_images: int = Field(ge=1, le=100_000, description="images of the timed forward pass")
    controls: Distinct[Literal[CONTROLS]] = Field(  # type: ignore[valid-type]
        description="other choices of layers"
    )
    control_methods: Studied[Literal[GRADIENT_METHODS]] = Field(  # type: ignore[valid-type]
        description="methods that are trained on every choice of layers"
    )
    counts_studied: Distinct[Annotated[int, Field(ge=1, le=1000)]] = Field(
        description="numbers K of layers"
    )
    severities_studied: Distinct[Annotated[float, Field(gt=-1, le=0)]] = Field(
        description="severities S"
    )
    quarters_studied: Distinct[Literal["2", "3", "4", "all"]] = Field(
        description="parts of the training in which the search counts"
    )
    transfer_from: Distinct[Literal[OVERLAID]] = Field(  # type: ignore[valid-type]
        description="data sets whose rankings are used on `dataset`"
    )
    skips_studied: Distinct[Literal["last", "behind_stem"]] = Field(
        description="choices of layers that are trained with skip connections lost, too"
    )
    task_counts: Distinct[Annotated[int, Field(ge=2, le=40)]] = Field(
        description="numbers T of tasks to time"
    )
    timed_methods: Studied[Literal[AGGREGATORS]] = Field(  # type: ignore[valid-type]
        description="methods to time"
    )
    timed_steps: int = Field(ge=4, le=100_000, description="steps behind every time")

    @property
    def severities(self) -> tuple[float, ...]:
        """Severities that are asked for: all that a search has to count."""
        return (self.severity, *self.severities_studied)

    @field_validator("method_settings")
    @classmethod
    def _known_settings(cls, settings: MethodSettings) -> MethodSettings:
        for method, setting in settings.items():
            if method not in KNOBS:
                raise ValueError(f"method must be one of {METHODS}. Found {method!r}")
            for name, value in setting.items():
                least = SMALLEST_RATE if name == "lr" else 0
                if name not in KNOBS[method] or not least <= value <= 100:
                    raise ValueError(
                        f"{method} may have {KNOBS[method]}, up to 100. Found {name} = {value!r}"
                    )
        return settings

    @model_validator(mode="after")
    def _fits_the_methods(self) -> Self:
        self._check_batches("long_images", self.long_images)
        for needed in ("single", "joint"):
            if needed not in self.methods:
                raise ValueError(f"methods must hold {needed!r}, a reference. Found {self.methods}")
        if "joint" not in self.recon_methods or "joint" not in self.timed_methods:
            raise ValueError("recon_methods and timed_methods must hold 'joint', the reference")
        refused = sorted(set(self.recon_methods) & set(WITHOUT_RECON))
        if refused:
            raise ValueError(
                f"recon_methods cannot hold {', '.join(WITHOUT_RECON)}. Found {refused}"
            )
        for name in ("recon_methods", "control_methods"):
            absent = sorted(set(getattr(self, name)) - set(self.methods))
            if absent:
                raise ValueError(f"{name} must be among methods. Found {absent} beside them")
        for name, networks in ARCHITECTURE_BACKBONES.items():
            if name in self.methods and self.backbone not in networks:
                raise ValueError(
                    f"methods can hold {name!r} with the backbone {' or '.join(networks)} only. "
                    f"Found backbone={self.backbone!r}"
                )
        count = len(self.tasks) or 40
        if self.dataset == "celeba" and "bmtas" in self.methods and count > 6:
            raise ValueError(
                f"methods can hold 'bmtas' with at most 6 tasks. 'celeba' has {count} here"
            )
        return self

    @model_validator(mode="after")
    def _fits_the_studies(self) -> Self:
        if self.dataset not in OVERLAID:
            for name in ("transfer_from", "skips_studied", "task_counts"):
                if found := getattr(self, name):
                    raise ValueError(f"{name} must be empty for {self.dataset!r}. Found {found}")
        if "last" in self.skips_studied and "last" not in self.controls:
            raise ValueError("skips_studied can hold 'last' only if controls hold it")
        if max(self.counts_studied, default=1) > self.ranked_layers:
            raise ValueError(
                f"counts_studied must be at most {self.ranked_layers}, the number of layers. "
                f"Found {self.counts_studied}"
            )
        if self.timed_steps * self.batch_size > 10_000_000:
            raise ValueError(
                "timed_steps x batch_size must be at most 10000000, the images of a training. "
                f"Found {self.timed_steps} x {self.batch_size}"
            )
        return self
