"""Parameters of the chapter on few-shot continual learning, and what each may be."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ktlib.parameters import ChapterParameters

CLASSES = {"pairs": 100, "cifar100": 100, "digits": 10}


class FclParameters(ChapterParameters):
    """What ``chapters/fcl.py`` can be told."""

    dataset: Literal["pairs", "cifar100", "digits"] = Field(description="images to learn from")
    base_classes: int = Field(ge=2, description="classes of session 1")
    sessions: int = Field(ge=1, description="few-shot sessions after session 1")
    ways: int = Field(ge=1, description="new classes per few-shot session")
    shots: int = Field(ge=1, description="training images per new class")
    class_seed: int = Field(ge=0, lt=2**32, description="seed of the class order")
    base_images: int = Field(ge=2, description="training images per base class")
    test_images: int = Field(ge=1, description="test images per class")
    width: int = Field(ge=1, description="channels of the first ResNet stage")
    stem_stride: int = Field(ge=1, le=4, description="stride of the first convolution")
    tuned_convolutions: int = Field(ge=1, le=17, description="last convolutions that get noise")
    epochs: int = Field(ge=1, description="epochs of the base session")
    batch_size: int = Field(ge=2, description="images per step of the base session")
    lr: float = Field(gt=0, description="first learning rate of the base session")
    crop_padding: int = Field(ge=0, description="largest shift of the random crop, in pixels")
    flip: bool = Field(description="whether images are mirrored at random")
    noise_bound: float = Field(ge=0, description="half-width b of the box, in units of the weights")
    noise_draws: int = Field(ge=1, description="noise draws M per step")
    noise_levels: int = Field(ge=0, description="0: uniform noise; k >= 2: k levels of the box")
    prototype_weight: float = Field(ge=0, description="weight lambda of prototype fixing")
    session_epochs: int = Field(ge=1, description="full-batch steps per few-shot session")
    session_lr: float = Field(gt=0, description="learning rate of the few-shot sessions")
    flatness_draws: int = Field(ge=2, description="random points of the box per measurement")
    flatness_images: int = Field(ge=1, description="images per split of each measurement")
    flatness_bounds: list[float] = Field(min_length=1, description="half-widths to measure at")

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
        if min(self.flatness_bounds) <= 0:
            raise ValueError(f"flatness_bounds must be above 0. Found {self.flatness_bounds}")
        return self
