"""Parameters of the chapters on few-shot continual learning, and what each may be."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self, TypeVar

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from data_prep.common.topic import PROTOCOLS
from experiments.run.parameters import (
    LARGEST_SEED,
    SMALLEST_RATE,
    ChapterParameters,
    LearningRate,
    is_file,
)

METHODS = (
    "ncm", "finetune", "icarl", "lucir", "topic", "fsll", "idlvq", "f2m", "sam", "ewc_wide",
    "joint", "crt",
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
VARIED = "varied"
"""Context in which the values of a study are checked, in place of a run's."""
TORCHVISION_WEIGHTS = ("DEFAULT", "IMAGENET1K_V1")
LARGEST_SETTING = {"epochs": 10_000, "lr": 10, "penalty": 1e9}

Item = TypeVar("Item", int, float)


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
        ge=1e-9, le=10, description="half-width b of the box, in units of the weights"
    )
    prototype_weight: float = Field(ge=0, le=1e6, description="weight lambda of prototype fixing")


class FewShotParameters(NetworkParameters):
    """Parameters that all few-shot experiments share: data, protocol, sessions, measurement."""

    dataset: Literal["pairs", "cifar100", "digits", "mini_imagenet", "cub200"] = Field(
        description="images to learn from"
    )
    split: Literal["random", "topic"] = Field(
        description="classes and shots drawn at random, or the fixed lists of TOPIC"
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
    noise_draws: int = Field(ge=1, le=1000, description="noise draws M per step")
    noise_levels: Annotated[int, Field(ge=0, le=1_000_000), AfterValidator(_not_one)] = Field(
        description="0: uniform noise; k >= 2: k levels of the box"
    )
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
        if self.split == "topic":
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

    def _require_topic_sizes(self) -> None:
        if self.dataset not in PROTOCOLS:
            raise ValueError(
                f"split 'topic' exists for {', '.join(PROTOCOLS)}. Found dataset={self.dataset!r}"
            )
        protocol = PROTOCOLS[self.dataset]
        for name in ("base_classes", "sessions", "ways", "shots"):
            fixed, found = getattr(protocol, name), getattr(self, name)
            if found != fixed:
                raise ValueError(
                    f"{name} must be {fixed} with split 'topic' of {self.dataset!r}. Found {found}"
                )
        if self.base_images:
            raise ValueError(
                f"base_images must be 0 (all) with split 'topic'. Found {self.base_images}"
            )


class FclParameters(FewShotParameters):
    """Parameters of ``chapters/fcl.py``."""

    noise_bound: float = Field(
        ge=0, le=10, description="half-width b of the box, in units of the weights"
    )
    compared_seeds: int = Field(ge=1, description="seeds, at most, that every method is run with")
    method_settings: MethodSettings = Field(
        description="epochs, lr or penalty of a method, where not those of F2M"
    )
    sam_radius: float = Field(
        gt=0, le=100, description="step uphill of SAM, over all weights together"
    )
    ewc_bound: float = Field(ge=0, le=10, description="half-width of the wider box of ewc_wide")
    flatness_bounds: Studied[Positive] = Field(description="half-widths to measure at")
    landscape_directions: int = Field(ge=1, le=1000, description="random lines through the minimum")
    landscape_points: int = Field(
        ge=3, le=1001, description="points on a line, and on a side of the plane"
    )

    @field_validator("method_settings")
    @classmethod
    def _fits_the_methods(cls, settings: MethodSettings) -> MethodSettings:
        allowed = [name for name in METHODS if name not in ("ncm", "f2m")]
        for method, setting in settings.items():
            if method not in allowed:
                raise ValueError(f"method must be one of {allowed}. Found {method!r}")
            names = ("epochs", "lr", "penalty") if method == "ewc_wide" else ("epochs", "lr")
            for name, value in setting.items():
                if name not in names or value < 0 or (name != "penalty" and value == 0):
                    raise ValueError(
                        f"{method} may have {names}, above 0. Found {name} = {value!r}"
                    )
                if name == "lr" and value < SMALLEST_RATE:
                    raise ValueError(
                        f"lr of {method} must be at least {SMALLEST_RATE:g}. Found {value!r}"
                    )
                if name == "epochs" and value != int(value):
                    raise ValueError(f"epochs of {method} must be whole. Found {value!r}")
                if value > LARGEST_SETTING[name]:
                    raise ValueError(
                        f"{name} of {method} must be at most {LARGEST_SETTING[name]:g}. "
                        f"Found {value!r}"
                    )
        if "penalty" not in settings.get("ewc_wide", {}):
            raise ValueError("ewc_wide must have a penalty. Found none")
        return settings

    def setting(self, method: str) -> dict[str, float | int]:
        """Settings of one method where they differ from F2M's."""
        setting: dict[str, float | int] = dict(self.method_settings.get(method, {}))
        if "epochs" in setting:
            setting["epochs"] = int(setting["epochs"])
        return setting | ({"bound": self.ewc_bound} if method == "ewc_wide" else {})


class FclStudyParameters(FewShotParameters):
    """Parameters of ``chapters/fcl_studies.py``."""

    bounds_studied: Studied[Positive] = Field(description="half-widths b to train with")
    draws_studied: Studied[Count] = Field(description="numbers M of draws to train with")
    weights_studied: Studied[Annotated[float, Field(ge=0, le=1e6)]] = Field(
        description="values of lambda"
    )
    layers_studied: Studied[Convolutions] = Field(description="numbers of tuned convolutions")
    class_orders: Studied[ClassSeed] = Field(description="seeds of the class order")
    rates_studied: Studied[Positive] = Field(description="learning rates of the sessions")
    shots_studied: Studied[Count] = Field(description="training images per new class")
    shot_steps: int = Field(
        ge=1, le=10_000, description="full-batch steps per session with many shots"
    )
    narrow_bound: float = Field(
        ge=1e-9, le=10, description="half-width of the narrow box with many shots"
    )

    @model_validator(mode="after")
    def _fits_the_studies(self, info: ValidationInfo) -> Self:
        most = SIZES[self.dataset].train
        if max(self.shots_studied) > most:
            raise ValueError(f"shots_studied must be at most {most}. Found {self.shots_studied}")
        # The studies themselves go to these limits, see FewShotExperiment.with_parameters.
        if info.context != VARIED and (self.noise_bound < 2e-9 or self.session_lr > 2.5):
            raise ValueError(
                "noise_bound must be at least 2e-09, as half of it is studied, and session_lr at "
                "most 2.5, as four times that is. Found "
                f"noise_bound={self.noise_bound!r}, session_lr={self.session_lr!r}"
            )
        if self.split == "topic" and self.shots_studied != [self.shots]:
            raise ValueError(
                f"shots_studied must be [{self.shots}] with split 'topic'. "
                f"Found {self.shots_studied}"
            )
        if self.sessions * self.ways < 2:
            raise ValueError(
                "sessions x ways must be at least 2, as the spread over new classes is measured. "
                f"Found {self.sessions} x {self.ways}"
            )
        return self
