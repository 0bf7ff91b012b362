"""Parameters of the chapter on continual learning with PEFT, and what each may be."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from experiments.run.parameters import ChapterParameters, LearningRate

CLASSES = {"pairs": 100, "cifar100": 100, "digits": 10, "imagenet_r": 200, "domainnet": 345}
IMAGE_SIZES = {"pairs": 36, "cifar100": 32, "digits": 8, "imagenet_r": 224, "domainnet": 224}
"""Side of the images in pixels."""
CLASS_IMAGES = {"pairs": 500, "cifar100": 500, "digits": 134}
"""Training images of the smallest class, where it is known."""

METHODS = ("sequential", "inflora", "l2c", "oracle", "ncm", "joint")
"""Ids of all methods, in the order of the tables."""

VIT_B16_WIDTH = 768
"""Features of a token of ViT-B/16."""

PROJECTIONS = {
    "key_value": ("key", "value"),
    "qkv": ("query", "key", "value"),
    "feed_forward": ("fc1", "fc2"),
}
"""Layers of every block of a vision transformer that can be adapted, as
:class:`ktlib.cpeft.LoraBackbone` names them. InfLoRA adapts keys and values, L2C all three."""

LEARNING_RATES = {
    "sequential": "sequential_lr",
    "inflora": "inflora_lr",
    "l2c": "expert_lr",
    "oracle": "expert_lr",
    "joint": "joint_lr",
}
"""The parameter that holds a method's learning rate; ``ncm`` trains nothing."""


Rank = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Temperature = Annotated[float, Field(ge=1e-6, le=1e6)]


class ContinualPeftParameters(ChapterParameters):
    """Parameters of ``chapters/continual_peft.py``."""

    dataset: Literal["pairs", "cifar100", "digits", "imagenet_r", "domainnet"] = Field(
        description="images to learn from"
    )
    model: Literal["small", "vit_b16"] = Field(
        description="a small transformer that is pre-trained on the base classes, or ViT-B/16"
    )
    weights: str = Field(
        description="of vit_b16: a name of torchvision, a file or a folder; empty for small"
    )
    base_classes: int = Field(ge=0, description="classes of the pre-training; 0 with weights")
    base_images: int = Field(ge=0, le=1_000_000, description="images per base class; 0: all")
    tasks: int = Field(ge=2, description="tasks into which the other classes are divided")
    task_images: int = Field(
        ge=0, le=1_000_000, description="training images per class of a task; 0: all"
    )
    test_images: int = Field(ge=0, le=1_000_000, description="test images per class; 0: all")
    class_seed: int = Field(ge=0, lt=2**32, description="seed of the choice of base classes")
    patch_size: int = Field(ge=1, description="side of a patch of the small model, in pixels")
    width: int = Field(ge=8, le=4096, description="features of a token of the small model")
    blocks: int = Field(ge=1, le=64, description="blocks of the small model")
    heads: int = Field(ge=1, description="attention heads of the small model")
    pretraining_epochs: int = Field(ge=1, le=10_000, description="passes over the base classes")
    pretraining_lr: LearningRate = Field(description="highest learning rate of the pre-training")
    sam_radius: float = Field(
        ge=0, le=100, description="step of SAM for the flat pre-training; 0: none"
    )
    layers: Literal[tuple(PROJECTIONS)] = Field(  # type: ignore[valid-type]
        description="projections of every block that are adapted"
    )
    rank: Rank = Field(description="rank of LoRA")
    epochs: int = Field(ge=1, le=10_000, description="passes over each task")
    batch_size: int = Field(
        ge=2, le=10_000, description="images per step, also of the pre-training"
    )
    methods: list[Literal[METHODS]] = Field(  # type: ignore[valid-type]
        min_length=1, description="methods that are compared"
    )
    sequential_lr: LearningRate = Field(description="highest learning rate of sequential LoRA")
    inflora_lr: LearningRate = Field(description="that of InfLoRA")
    expert_lr: LearningRate = Field(description="that of experts: those of L2C, and of the oracle")
    joint_lr: LearningRate = Field(description="that of joint training")
    selector_lr: LearningRate = Field(description="that of L2C's selector, which learns slowly")
    first_threshold: Share = Field(
        description="share of the energy that InfLoRA protects after the first task"
    )
    last_threshold: Share = Field(description="the same after the last task")
    tops: list[int] = Field(min_length=1, description="numbers K of experts that answer together")
    temperatures: list[Temperature] = Field(
        min_length=1, description="temperatures of the softmax over tasks"
    )
    consistency: float = Field(ge=0, le=1e6, description="weight of L2C's consistency term")
    ablated: bool = Field(description="whether L2C is run without each reconstruction, too")
    thresholds: list[Share] = Field(
        description="further first thresholds of InfLoRA; the last one is raised to them if lower"
    )
    noise_bound: float = Field(ge=1e-9, le=10, description="half-width of the box of weight noise")
    noise_draws: int = Field(ge=2, le=100_000, description="random points of the box")
    ranking_steps: int = Field(ge=1, le=100_000, description="steps of ILA's second stage")

    @model_validator(mode="after")
    def _fits_the_data(self) -> Self:
        classes = CLASSES[self.dataset]
        left = classes - self.base_classes
        if left < 4:
            raise ValueError(
                f"base_classes must leave at least 4 of the {classes} classes of {self.dataset}, "
                f"two for each of two tasks. Found {self.base_classes}"
            )
        # With one class a task has no loss: nothing is trained, and nothing can be ranked.
        if self.tasks > left // 2:
            raise ValueError(
                f"tasks must be at most {left // 2}: two classes each of the {left} of "
                f"{self.dataset} that are not base classes. Found {self.tasks}"
            )
        if left % self.tasks:
            raise ValueError(
                f"tasks must divide the {left} classes evenly that are not base classes. "
                f"Found {self.tasks}"
            )
        if self.task_images == 1:
            raise ValueError(
                "task_images must be 0 or at least 2: L2C estimates a covariance of each class. "
                "Found 1"
            )
        for name in ("base_images", "task_images"):
            most = CLASS_IMAGES.get(self.dataset)
            if most is not None and getattr(self, name) > most:
                raise ValueError(
                    f"{name} must be at most {most}, the training images of the smallest class of "
                    f"{self.dataset}. Found {getattr(self, name)}"
                )
        if (self.model == "small") == bool(self.weights):
            raise ValueError(
                "weights must be empty with model='small', and name weights with model='vit_b16'. "
                f"Found model={self.model!r}, weights={self.weights!r}"
            )
        if self.model == "small" and self.base_classes < 2:
            raise ValueError(
                "base_classes must be at least 2 with model='small', which is pre-trained on "
                f"them. Found {self.base_classes}"
            )
        if self.model == "vit_b16" and self.base_classes:
            raise ValueError(
                f"base_classes must be 0 with model='vit_b16'. Found {self.base_classes}"
            )
        if self.width % self.heads:
            raise ValueError(f"heads must divide width={self.width}. Found {self.heads}")
        side = IMAGE_SIZES[self.dataset]
        if self.model == "small" and side % self.patch_size:
            raise ValueError(
                f"patch_size must divide the {side} pixels of an image of {self.dataset}. "
                f"Found {self.patch_size}"
            )
        inputs = self.width if self.model == "small" else VIT_B16_WIDTH
        if self.rank > inputs:
            raise ValueError(
                f"rank must be at most the {inputs} inputs of an adapted layer. Found {self.rank}"
            )
        return self

    @model_validator(mode="after")
    def _fits_the_methods(self) -> Self:
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods may contain each method once. Found {self.methods}")
        missing = [name for name in ("sequential", "inflora", "l2c") if name not in self.methods]
        if missing:
            raise ValueError(f"methods must contain {missing} too: the chapter is about them")
        if self.last_threshold < self.first_threshold:
            raise ValueError(
                f"last_threshold must be at least first_threshold={self.first_threshold}. "
                f"Found {self.last_threshold}"
            )
        if not all(1 <= top_k <= self.tasks for top_k in self.tops) or self.tasks not in self.tops:
            raise ValueError(
                f"tops must lie in 1 to tasks={self.tasks} and contain {self.tasks}, all experts. "
                f"Found {self.tops}"
            )
        for name, needed in (("tops", {1}), ("temperatures", {1.0}), ("thresholds", set())):
            values = getattr(self, name)
            if not needed <= set(values) or len(set(values)) < len(values):
                words = f"contain {needed.pop()}, and " if needed else "contain "
                raise ValueError(f"{name} must {words}each value once. Found {values}")
        return self


class ContinualPeftProofParameters(ChapterParameters):
    """Parameters of ``chapters/proofs/continual_peft.py``."""

    tasks: int = Field(ge=2, le=20, description="tasks in a row, of a linear model and a network")
    size: int = Field(ge=4, le=200, description="inputs d of a layer")
    subspace: int = Field(ge=1, le=30, description="dimensions of the inputs of one linear task")
    rank: Rank = Field(description="rank r of the updates")
    old_size: int = Field(ge=1, description="dimensions of old inputs where thresholds are tried")
    images: int = Field(ge=2, description="images of each task of the network")
    thresholds: list[Share] = Field(
        min_length=2, description="shares of the energy of old inputs that are kept"
    )
    experts: int = Field(ge=3, le=50, description="experts T of the toy model")
    # The page tries accuracies 0.001 around a limit that lies between 1/2 and this one.
    own: float = Field(ge=0.52, le=0.9999, description="accuracy p of the right expert")
    other: float = Field(ge=0.5, lt=1, description="accuracy q of each other one")
    confidences: list[float] = Field(
        min_length=1, description="how often the selector finds the right expert"
    )
    temperatures: list[Temperature] = Field(
        min_length=1, description="temperatures that are simulated as well"
    )
    draws: int = Field(ge=100, le=1_000_000, description="images of each simulation")

    @model_validator(mode="after")
    def _fits_the_layers(self) -> Self:
        needed = {
            "tasks x subspace": self.tasks * self.subspace,
            "(tasks - 1) x images + rank": (self.tasks - 1) * self.images + self.rank,
            # An exercise halves the free dimensions.
            "old_size + the larger of rank and 2": self.old_size + max(self.rank, 2),
        }
        for words, number in needed.items():
            if self.size < number:
                raise ValueError(f"size must be at least {words} = {number}. Found {self.size}")
        for name in ("subspace", "images"):
            if self.rank > getattr(self, name):
                raise ValueError(
                    f"rank must be at most {name} = {getattr(self, name)}, the dimensions of the "
                    f"inputs. Found {self.rank}"
                )
        _require_rising("thresholds", self.thresholds)
        if self.thresholds[-1] != 1:
            raise ValueError(f"thresholds must end with 1.0. Found {self.thresholds}")
        return self

    @model_validator(mode="after")
    def _fits_the_toy_model(self) -> Self:
        if self.other >= self.own:
            raise ValueError(f"other must be below own={self.own}. Found {self.other}")
        _require_rising("confidences", self.confidences)
        _require_rising("temperatures", self.temperatures)
        if not (self.confidences[0] >= 1 / self.experts and self.confidences[-1] < 1):
            raise ValueError(
                f"confidences must be at least 1/experts = {1 / self.experts:g} and below 1. "
                f"Found {self.confidences}"
            )
        return self


def _require_rising(name: str, values: list[float]) -> None:
    if values != sorted(set(values)):
        raise ValueError(f"{name} must rise, each once. Found {values}")
