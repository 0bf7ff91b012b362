"""Parameters of the chapters on few-shot continual learning, and what each may be."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from data_prep.common.topic import PROTOCOLS
from experiments.run.parameters import ChapterParameters

CLASSES = {"pairs": 100, "cifar100": 100, "digits": 10, "mini_imagenet": 100, "cub200": 200}

METHODS = (
    "ncm",
    "finetune",
    "icarl",
    "lucir",
    "topic",
    "fsll",
    "idlvq",
    "f2m",
    "sam",
    "ewc_wide",
    "joint",
    "crt",
)
"""Ids of all methods, in the order of the tables."""

METHOD_SETTINGS = ("epochs", "lr", "penalty")


class FewShotParameters(ChapterParameters):
    """Data, protocol, network, base training and F2M: what all few-shot experiments can be told."""

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
    class_seed: int = Field(ge=0, lt=2**32, description="seed of the class order")
    base_images: int = Field(ge=0, description="training images per base class; 0: all")
    test_images: int = Field(ge=0, description="test images per class; 0: all")
    weights: str = Field(
        description="empty: the narrow network; else ResNet18 of torchvision with these weights"
    )
    width: int = Field(ge=1, description="channels of the first ResNet stage")
    stem_stride: int = Field(ge=1, le=4, description="stride of the first convolution")
    tuned_convolutions: int = Field(ge=1, le=17, description="last convolutions that get noise")
    epochs: int = Field(ge=1, description="epochs of the base session")
    batch_size: int = Field(ge=2, description="images per step of the base session")
    lr: float = Field(gt=0, description="first learning rate of the base session")
    classifier_lr: float = Field(ge=0, description="that of the classifier; 0: the same")
    crop_padding: int = Field(ge=0, description="largest shift of the random crop, in pixels")
    flip: bool = Field(description="whether images are mirrored at random")
    noise_bound: float = Field(ge=0, description="half-width b of the box, in units of the weights")
    noise_draws: int = Field(ge=1, description="noise draws M per step")
    noise_levels: int = Field(ge=0, description="0: uniform noise; k >= 2: k levels of the box")
    prototype_weight: float = Field(ge=0, description="weight lambda of prototype fixing")
    session_epochs: int = Field(ge=1, description="full-batch steps per few-shot session")
    session_lr: float = Field(gt=0, description="learning rate of the few-shot sessions")

    @model_validator(mode="after")
    def _fits_the_data(self) -> Self:
        wanted = self.base_classes + self.sessions * self.ways
        if wanted > CLASSES[self.dataset]:
            raise ValueError(
                f"base_classes + sessions x ways = {self.base_classes} + {self.sessions} x "
                f"{self.ways} = {wanted}, but {self.dataset!r} has {CLASSES[self.dataset]} classes"
            )
        if self.noise_levels == 1:
            raise ValueError("noise_levels must be 0 (uniform) or at least 2. Found 1")
        if self.base_images == 1:
            raise ValueError("base_images must be 0 (all) or at least 2. Found 1")
        if self.split == "topic":
            self._require_topic_sizes()
        return self

    def _require_topic_sizes(self) -> None:
        if self.dataset not in PROTOCOLS:
            raise ValueError(
                f"split 'topic' is there for {', '.join(PROTOCOLS)}. Found {self.dataset!r}"
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
    """What ``chapters/fcl.py`` can be told."""

    compared_seeds: int = Field(ge=1, description="seeds, at most, that every method is run with")
    method_settings: dict[str, dict[str, float]] = Field(
        description="epochs, lr or penalty of a method, where not those of F2M"
    )
    sam_radius: float = Field(gt=0, description="step uphill of SAM, over all weights together")
    ewc_bound: float = Field(ge=0, description="half-width of the wider box of ewc_wide")
    flatness_draws: int = Field(ge=2, description="random points of the box per measurement")
    flatness_images: int = Field(ge=1, description="images per split of each measurement")
    flatness_bounds: list[float] = Field(min_length=1, description="half-widths to measure at")
    landscape_directions: int = Field(ge=1, description="random lines through the minimum")
    landscape_points: int = Field(ge=3, description="points on a line, and on a side of the plane")

    @model_validator(mode="after")
    def _fits_the_methods(self) -> Self:
        if min(self.flatness_bounds) <= 0:
            raise ValueError(f"flatness_bounds must be above 0. Found {self.flatness_bounds}")
        for method, setting in self.method_settings.items():
            if method not in METHODS:
                raise ValueError(f"method_settings must be for {METHODS}. Found {method!r}")
            for name, value in setting.items():
                if name not in METHOD_SETTINGS or value < 0 or (name != "penalty" and value == 0):
                    raise ValueError(
                        f"method_settings may hold {METHOD_SETTINGS} above 0. "
                        f"Found {name} = {value!r} for {method!r}"
                    )
                if name == "epochs" and value != int(value):
                    raise ValueError(
                        f"epochs in method_settings must be whole. Found {value!r} for {method!r}"
                    )
        return self

    def setting(self, method: str) -> dict[str, float | int]:
        """What a method is told beyond, or other than, the settings of F2M."""
        setting: dict[str, float | int] = dict(self.method_settings.get(method, {}))
        if "epochs" in setting:
            setting["epochs"] = int(setting["epochs"])
        return setting | ({"bound": self.ewc_bound} if method == "ewc_wide" else {})


class FclStudyParameters(FewShotParameters):
    """What ``chapters/fcl_studies.py`` can be told."""

    bounds_studied: list[float] = Field(min_length=1, description="half-widths b to train with")
    draws_studied: list[int] = Field(min_length=1, description="numbers M of draws to train with")
    weights_studied: list[float] = Field(min_length=1, description="values of lambda")
    layers_studied: list[int] = Field(min_length=1, description="numbers of tuned convolutions")
    class_orders: list[int] = Field(min_length=1, description="seeds of the class order")
    rates_studied: list[float] = Field(min_length=1, description="learning rates of the sessions")
    shots_studied: list[int] = Field(min_length=1, description="training images per new class")
    shot_steps: int = Field(ge=1, description="full-batch steps per session with many shots")
    narrow_bound: float = Field(ge=0, description="half-width of the narrow box with many shots")
    flatness_draws: int = Field(ge=2, description="random points of the box per measurement")
    flatness_images: int = Field(ge=1, description="images per split of each measurement")

    @model_validator(mode="after")
    def _fits_the_studies(self) -> Self:
        least = {
            "bounds_studied": 0.0,
            "draws_studied": 1,
            "weights_studied": 0.0,
            "layers_studied": 1,
            "class_orders": 0,
            "shots_studied": 1,
        }
        for name, value in least.items():
            found = getattr(self, name)
            if min(found) < value:
                raise ValueError(f"{name} must be at least {value}. Found {found}")
        if min(self.rates_studied) <= 0:
            raise ValueError(f"rates_studied must be above 0. Found {self.rates_studied}")
        if max(self.layers_studied) > 17:
            raise ValueError(f"layers_studied must be at most 17. Found {self.layers_studied}")
        return self
