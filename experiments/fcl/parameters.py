"""Parameters of the chapters on few-shot continual learning, and what each may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar

from pydantic import AfterValidator, Field, field_validator, model_validator

from data_prep.common.topic import PROTOCOLS
from experiments.run.parameters import (
    LARGEST_SEED,
    SMALLEST_RATE,
    ChapterParameters,
    LearningRate,
    Seed,
    is_file,
)

METHODS = (
    "ncm", "ncm_raw", "teen", "lda", "ridge", "finetune", "icarl", "lucir", "topic", "fsll",
    "fsll_released", "idlvq", "f2m", "f2m_flat", "sam", "ewc_wide", "joint", "crt",
)  # fmt: skip
"""Ids of all methods, in the order of the tables."""


class Sizes(NamedTuple):
    """Classes of a data set, and images per class."""

    classes: int
    train: int  # of the smallest class
    test: int  # of the largest class


SIZES = {
    "pairs": Sizes(100, 500, 100),
    "cifar100": Sizes(100, 500, 100),
    "digits": Sizes(10, 134, 40),
    "mini_imagenet": Sizes(100, 500, 100),
    "cub200": Sizes(200, 29, 30),
}
GREY = ("pairs", "digits")
SEEN_PAIRS = 64  # of eight garments and eight digits, see experiments.fcl.unseen_parts
TORCHVISION_WEIGHTS = ("DEFAULT", "IMAGENET1K_V1")
LARGEST_SETTING = {"epochs": 10_000, "lr": 10, "bound": 10, "noise_bound": 10, "radius": 100}

ClassSplit = Literal["random", "unseen_parts", "topic"]
Item = TypeVar("Item")


def _distinct(values: list[Item]) -> list[Item]:
    if len(set(values)) != len(values):
        raise ValueError("values must differ from each other")
    return values


def _not_one(value: int) -> int:
    if value == 1:
        raise ValueError("must be 0 or at least 2")
    return value


MethodSettings = dict[str, dict[str, float]]
Positive = Annotated[float, Field(ge=1e-9, le=10)]
Count = Annotated[int, Field(ge=1, le=1000)]
Convolutions = Annotated[int, Field(ge=1, le=17)]
ClassSeed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Studied = Annotated[list[Item], Field(min_length=1), AfterValidator(_distinct)]


class NetworkParameters(ChapterParameters):
    """Network, base training and noise: shared by the experiments and the proof."""

    width: int = Field(ge=1, le=1024, description="channels of the first ResNet stage")
    stem_stride: int = Field(ge=1, le=4, description="stride of the first convolution")
    tuned_convolutions: Convolutions = Field(description="last convolutions that get noise")
    epochs: int = Field(ge=1, le=10_000, description="epochs of the base session")
    batch_size: int = Field(ge=2, le=10_000, description="images per step of the base session")
    lr: LearningRate = Field(description="first learning rate of the base session")
    noise_bound: float = Field(
        ge=1e-9, le=10, description="half-width b of the noise, in units of the weights"
    )
    prototype_weight: float = Field(ge=0, le=1e6, description="weight lambda of prototype fixing")


class FewShotParameters(NetworkParameters):
    """Parameters that all few-shot experiments share: data, protocol, sessions, measurement."""

    dataset: Literal["pairs", "cifar100", "digits", "mini_imagenet", "cub200"] = Field(
        description="images to learn from"
    )
    class_split: ClassSplit = Field(
        description="classes drawn at random, new ones with unseen parts, or the lists of TOPIC"
    )
    base_classes: int = Field(ge=2, description="classes of session 1")
    sessions: int = Field(ge=1, description="few-shot sessions after session 1")
    ways: int = Field(ge=1, description="new classes per few-shot session")
    shots: int = Field(ge=1, description="training images per new class")
    class_seed: ClassSeed = Field(description="seed of the class order")
    base_images: Annotated[int, Field(ge=0), AfterValidator(_not_one)] = Field(
        description="training images per base class; 0: all"
    )
    test_images: int = Field(ge=0, description="test images per class; 0: all")
    weights: str = Field(
        description="empty: the narrow network; else ResNet18 of torchvision with these weights"
    )
    classifier_lr: float = Field(ge=0, le=10, description="that of the classifier; 0: the same")
    crop_padding: int = Field(
        ge=0, le=128, description="largest shift of the random crop, in pixels"
    )
    flip: bool = Field(description="whether images are mirrored at random")
    noise_bound: float = Field(
        ge=0, le=10, description="half-width b of the noise, in units of the weights"
    )
    noise_draws: int = Field(ge=1, le=1000, description="noise draws M per step")
    noise_levels: Annotated[int, Field(ge=0, le=1_000_000), AfterValidator(_not_one)] = Field(
        description="0: uniform noise; k >= 2: k levels of the box"
    )
    box: float = Field(ge=0, le=10, description="half-width of the box in the sessions; 0: frozen")
    session_epochs: int = Field(
        ge=1, le=10_000, description="full-batch steps per few-shot session"
    )
    session_lr: LearningRate = Field(description="learning rate of the few-shot sessions")
    flatness_draws: int = Field(
        ge=2, le=1_000_000, description="random points of the box per measurement"
    )
    flatness_images: int = Field(ge=1, description="images per split of each measurement")

    @model_validator(mode="after")
    def _fits_the_data(self) -> Self:
        sizes = SIZES[self.dataset]
        wanted = self.base_classes + self.sessions * self.ways
        if wanted > sizes.classes:
            raise ValueError(
                f"base_classes + sessions x ways = {self.base_classes} + {self.sessions} x "
                f"{self.ways} = {wanted}, but {self.dataset!r} has {sizes.classes} classes"
            )
        self._require_at_most("base_images", sizes.train)
        self._require_at_most("shots", sizes.train)
        self._require_at_most("test_images", sizes.test)
        smaller = min(self.base_images or sizes.train, self.test_images or sizes.test)
        self._require_at_most("flatness_images", self.base_classes * smaller)
        if self.weights:
            self._require_weights_that_fit()
        if self.class_split == "unseen_parts":
            self._require_pairs("class_split")
            if self.sessions * self.ways > 100 - SEEN_PAIRS:
                raise ValueError(
                    f"sessions x ways must be at most {100 - SEEN_PAIRS} with class_split "
                    f"'unseen_parts'. Found {self.sessions} x {self.ways}"
                )
        if self.class_split == "topic":
            self._require_topic_sizes()
        return self

    def _require_at_most(self, name: str, most: int) -> None:
        found = getattr(self, name)
        if found > most:
            raise ValueError(
                f"{name} must be at most {most}, the number available. Found {name}={found}"
            )

    def _require_weights_that_fit(self) -> None:
        if self.dataset in GREY:
            raise ValueError(
                f"weights must be empty for the grey images of {self.dataset!r}. "
                f"Found weights={self.weights!r}"
            )
        if self.weights not in TORCHVISION_WEIGHTS and not is_file(self.weights):
            raise ValueError(
                f"weights must be empty, one of {TORCHVISION_WEIGHTS} or a file. "
                f"Found weights={self.weights!r}"
            )

    def _require_pairs(self, name: str) -> None:
        if self.dataset != "pairs":
            raise ValueError(
                f"{name} 'unseen_parts' exists for pairs. Found dataset={self.dataset!r}"
            )
        new = 100 - SEEN_PAIRS
        if self.base_classes > SEEN_PAIRS or self.ways > new:
            raise ValueError(
                f"base_classes must be at most {SEEN_PAIRS} and ways at most {new} with {name} "
                f"'unseen_parts'. Found {self.base_classes} and {self.ways}"
            )

    def _require_topic_sizes(self) -> None:
        if self.dataset not in PROTOCOLS:
            raise ValueError(
                f"class_split 'topic' exists for {', '.join(PROTOCOLS)}. "
                f"Found dataset={self.dataset!r}"
            )
        protocol = PROTOCOLS[self.dataset]
        for name in ("base_classes", "sessions", "ways", "shots"):
            fixed, found = getattr(protocol, name), getattr(self, name)
            if found != fixed:
                raise ValueError(
                    f"{name} must be {fixed} with class_split 'topic' of {self.dataset!r}. "
                    f"Found {found}"
                )
        if self.base_images:
            raise ValueError(
                f"base_images must be 0 (all) with class_split 'topic'. Found {self.base_images}"
            )


REFERENCE: dict[str, Any] = {
    "precision": "auto",
    "base_classes": 60,
    "sessions": 7,
    "ways": 5,
    "class_seed": 1997,
    "weights": "",
    "width": 16,
    "stem_stride": 3,
    "tuned_convolutions": 4,
    "batch_size": 64,
    "lr": 0.1,
    "classifier_lr": 0.0,
    "crop_padding": 2,
    "flip": False,
    "noise_levels": 0,
    "session_epochs": 6,
    "flatness_images": 500,
}
"""What the lesson does not speak of: values of ``chapters/params/fcl_evidence.full.yaml``."""


class FclParameters(FewShotParameters):
    """Parameters of ``chapters/fcl.py``."""

    reference: ClassVar[Mapping[str, Any]] = REFERENCE


KNOBS: dict[str, tuple[str, ...]] = {
    "teen": ("shift", "temperature"),
    "lda": ("shrinkage",),
    "ridge": ("penalty",),
    "finetune": ("epochs", "lr"),
    "icarl": ("epochs", "lr"),
    "lucir": ("epochs", "lr"),
    "topic": ("epochs", "lr"),
    "fsll": ("epochs", "lr", "penalty"),
    "idlvq": ("epochs", "lr"),
    "f2m": ("epochs", "lr", "bound", "noise_bound"),
    "f2m_flat": ("epochs", "lr", "bound", "noise_bound"),
    "sam": ("epochs", "lr", "bound", "radius"),
    "ewc_wide": ("epochs", "lr", "bound", "penalty"),
    "joint": ("epochs", "lr"),
    "crt": ("epochs", "lr"),
}
"""What the search chooses for each method, and ``method_settings`` may replace."""


class EvidenceParameters(FewShotParameters):
    """Parameters of ``chapters/fcl_evidence.py``."""

    # Each part of a run sets it, see FewShotExperiment.with_classes.
    reference: ClassVar[Mapping[str, Any]] = {"class_split": "random"}
    shown: Literal["long", "live"] = Field(
        description="what tables and figures show: the kept record, or this run"
    )
    class_splits: Studied[ClassSplit] = Field(
        description="ways to divide the classes; everything central is run with each"
    )
    methods: Studied[str] = Field(description="methods to compare")
    method_settings: MethodSettings = Field(
        description="settings of a method that replace those of the search"
    )
    plane_noises: Studied[Annotated[float, Field(ge=0, le=10)]] = Field(
        description="noise of the base training behind the plane; 0: plain training"
    )
    plane_rates: Studied[Positive] = Field(description="learning rates of the sessions")
    plane_boxes: Studied[Positive] = Field(description="half-widths of the box, beside no box")
    shots_studied: Studied[Count] = Field(description="training images per new class")
    base_rates: Studied[Positive] = Field(description="learning rates of the base session")
    flatness_bounds: Studied[Positive] = Field(description="half-widths to measure flatness at")
    sam_radius: float = Field(gt=0, le=100, description="step uphill of SAM, over all weights")
    study_seeds: list[Seed] = Field(
        description="seeds, among `seeds`, that the studies are run with"
    )
    bounds_studied: Studied[Positive] = Field(description="half-widths b of noise and box")
    draws_studied: Studied[Count] = Field(description="numbers M of draws to train with")
    weights_studied: Studied[Annotated[float, Field(ge=0, le=1e6)]] = Field(
        description="values of lambda"
    )
    layers_studied: Studied[Convolutions] = Field(description="numbers of tuned convolutions")

    @model_validator(mode="before")
    @classmethod
    def _one_split_at_a_time(cls, values: dict[str, Any]) -> dict[str, Any]:
        only_topic = values.get("class_splits") == ["topic"]
        return {"class_split": "topic"} | values if only_topic else values

    @model_validator(mode="after")
    def _fits_the_splits(self) -> Self:
        if max(self.shots_studied) > SIZES[self.dataset].train:
            most = SIZES[self.dataset].train
            raise ValueError(f"shots_studied must be at most {most}. Found {self.shots_studied}")
        if "unseen_parts" in self.class_splits:
            self._require_pairs("class_splits")
        if "topic" in self.class_splits and self.class_splits != ["topic"]:
            raise ValueError(
                f"class_splits must be ['topic'] alone, if it is among them: its sizes are fixed. "
                f"Found {self.class_splits}"
            )
        if self.class_splits == ["topic"] and self.shots_studied != [self.shots]:
            raise ValueError(
                f"shots_studied must be [{self.shots}] with class_splits ['topic']. "
                f"Found {self.shots_studied}"
            )
        return self

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, methods: list[str]) -> list[str]:
        unknown = [name for name in methods if name not in METHODS]
        if unknown:
            raise ValueError(f"methods must be of {list(METHODS)}. Found {unknown}")
        return methods

    @field_validator("method_settings")
    @classmethod
    def _fits_the_methods(cls, settings: MethodSettings) -> MethodSettings:
        for method, setting in settings.items():
            if method not in KNOBS:
                raise ValueError(f"method must be one of {[*KNOBS]}. Found {method!r}")
            for name, value in setting.items():
                _check_knob(method, name, value)
        return settings


def _check_knob(method: str, name: str, value: float) -> None:
    if name not in KNOBS[method] or value < 0:
        raise ValueError(
            f"{method} may have {KNOBS[method]}, not negative. Found {name} = {value!r}"
        )
    if name == "lr" and value < SMALLEST_RATE:
        raise ValueError(f"lr of {method} must be at least {SMALLEST_RATE:g}. Found {value!r}")
    if name == "epochs" and (value != int(value) or value < 1):
        raise ValueError(f"epochs of {method} must be a whole number from 1. Found {value!r}")
    if value > LARGEST_SETTING.get(name, 1e9):
        most = LARGEST_SETTING[name]
        raise ValueError(f"{name} of {method} must be at most {most:g}. Found {value!r}")
