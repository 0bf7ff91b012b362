"""Shared by the methods that go on training in few-shot sessions: the loop, linear classifiers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Required, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from experiments.fcl.baselines.features import Features, embedded, prefix_features
from experiments.fcl.baselines.learner import Learner
from experiments.fcl.baselines.memory import Exemplars
from ktlib.checks import require_at_least, require_finite, require_positive
from ktlib.fcl.evaluation import embed
from ktlib.fcl.split import SplitNetwork

TrainedPart = Literal["tail", "all"]


class TrainingOptions(TypedDict, total=False):
    """Keyword arguments of :class:`SessionTrainer`, for methods that hand them on."""

    epochs: Required[int]
    lr: Required[float]
    batch_size: Required[int]
    generator: Required[torch.Generator]
    train: TrainedPart
    momentum: float
    weight_decay: float


@dataclass(kw_only=True, eq=False)
class SessionTrainer:
    """SGD on a network in few-shot sessions, batch norm with its stored statistics.

    Args:
        split: the network; its weights are changed in place.
        epochs: passes over the images of a session.
        lr: first learning rate of each session; it falls to 0 by a cosine.
        batch_size: images per step.
        generator: draws the batches.
        train: ``"tail"`` changes the tuned weights alone, and everything in front of them is
            computed once per session; ``"all"`` changes every parameter.
        momentum: of :class:`torch.optim.SGD`, set to zero velocity before each session.
        weight_decay: of :class:`torch.optim.SGD`.

    Raises:
        ValueError: for ``epochs`` or ``batch_size`` below 1, ``lr`` not above 0, or another
            ``train``.
    """

    split: SplitNetwork = field(kw_only=False)
    epochs: int
    lr: float
    batch_size: int
    generator: torch.Generator
    train: TrainedPart = "tail"
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        require_at_least("epochs", self.epochs, 1)
        require_at_least("batch_size", self.batch_size, 1)
        require_positive("lr", self.lr)
        if self.train not in ("tail", "all"):
            raise ValueError(f"train must be 'tail' or 'all'. Found train={self.train!r}.")
        split, whole = self.split, self.train == "all"
        self.trained: nn.Module = split.network if whole else split.tail
        weights = split.network.parameters() if whole else split.tuned.values()
        self.parameters: list[Tensor] = list(weights)

    @property
    def prefix(self) -> nn.Module | None:
        """What lies in front of :attr:`trained` and never changes; None without such a part."""
        return None if self.train == "all" else self.split.prefix

    def inputs(self, images: Tensor) -> Features:
        """Inputs of :attr:`trained`: the images themselves, or their fixed prefix features."""
        return images if self.prefix is None else prefix_features(self.prefix, images)

    def embed(self, inputs: Features) -> Tensor:
        """Embeddings ``(n, dim)`` of :meth:`inputs`, without gradients."""
        return embedded(self.trained, inputs)

    def minimise(
        self,
        loss: Callable[[Tensor], Tensor],
        count: int,
        parameters: Sequence[Tensor],
        *,
        epochs: int | None = None,
        lr: float | None = None,
        sampling_weights: Tensor | None = None,
    ) -> list[float]:
        """One session.

        Args:
            loss: row numbers ``(batch,)`` of a batch -> scalar.
            count: number of rows.
            parameters: what to change; each of them must reach the loss.
            epochs: in place of :attr:`epochs`.
            lr: in place of :attr:`lr`.
            sampling_weights: ``(count,)`` draw rows with replacement, in proportion to these; by
                default every row comes once an epoch.

        Returns:
            The loss before each step.

        Raises:
            FloatingPointError: as soon as the loss is no longer finite, naming the step.
        """
        epochs = self.epochs if epochs is None else epochs
        self.split.network.eval()
        optimizer = torch.optim.SGD(
            parameters,
            lr=self.lr if lr is None else lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
        steps = epochs * -(-count // self.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        losses: list[float] = []
        for _ in range(epochs):
            for rows in self._rows(count, sampling_weights).split(self.batch_size):
                value = require_finite(loss(rows), step=len(losses) + 1)
                # Only these gradients: `backward` would fill those of the frozen weights too.
                gradients = torch.autograd.grad(value, list(parameters))
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                losses.append(value.item())
        return losses

    def _rows(self, count: int, sampling_weights: Tensor | None) -> Tensor:
        device = self.generator.device
        if sampling_weights is None:
            return torch.randperm(count, generator=self.generator, device=device)
        sampling_weights = sampling_weights.to(device)
        return torch.multinomial(
            sampling_weights, count, replacement=True, generator=self.generator
        )


class SessionLearner(Learner):
    """A method with one score per class that goes on training in its sessions.

    Args:
        split: network trained on the base session.
        rows: number of scores of the base classifier.
        base_classes: ``(k,)`` class number of each score.
        training: see :class:`SessionTrainer`.
    """

    def __init__(
        self,
        split: SplitNetwork,
        rows: int,
        base_classes: Tensor,
        **training: Unpack[TrainingOptions],
    ) -> None:
        require_rows(rows, base_classes)
        self.trainer = SessionTrainer(split, **training)
        self.classes = base_classes

    @override
    def start(self, images: Tensor, labels: Tensor) -> None:
        require_base_classes(labels, self.classes)
        self.classes = self.classes.to(labels)

    @override
    def features(self, images: Tensor) -> Features:
        return self.trainer.inputs(images)


class ExemplarLearner(SessionLearner):
    """A :class:`SessionLearner` that keeps images of old classes, chosen by herding.

    Its arguments are those of :class:`SessionLearner`, and ``base_exemplars`` and
    ``new_exemplars``, the images kept per base class and per new class.
    """

    def __init__(
        self,
        split: SplitNetwork,
        rows: int,
        base_classes: Tensor,
        *,
        base_exemplars: int = 2,
        new_exemplars: int = 2,
        **training: Unpack[TrainingOptions],
    ) -> None:
        super().__init__(split, rows, base_classes, **training)
        self.kept = Exemplars(base_exemplars, new_exemplars)

    @override
    def start(self, images: Tensor, labels: Tensor) -> None:
        super().start(images, labels)
        self.remember(images, labels, base=True)

    def joined_inputs(self, images: Tensor, labels: Tensor) -> tuple[Features, Tensor]:
        """Inputs and labels of the exemplars, followed by those of the new images."""
        joined, joined_labels = self.kept.joined_with(images, labels)
        return self.trainer.inputs(joined), joined_labels

    def remember(self, images: Tensor, labels: Tensor, *, base: bool) -> None:
        """Choose exemplars of these classes by herding on embeddings of norm 1."""
        self.kept.add_chosen(images, labels, self.unit_embeddings(images), base=base)

    def unit_embeddings(self, images: Tensor) -> Tensor:
        """Embeddings ``(n, dim)`` of norm 1."""
        return F.normalize(embed(self.trainer.split.network, images))


def new_linear(like: nn.Linear, rows: int, generator: torch.Generator) -> nn.Linear:
    """A fresh linear layer on the embeddings of ``like``.

    Args:
        like: gives the inputs, the device, the type, and whether there is a bias.
        rows: outputs of the new layer.
        generator: draws weights and bias from the uniform law on ``+-1 / sqrt(inputs)``, the
            default of :class:`torch.nn.Linear`, which would use the global generator.
    """
    has_bias = like.bias is not None
    layer: nn.Linear = nn.utils.skip_init(
        nn.Linear,
        like.in_features,
        rows,
        bias=has_bias,
        device=like.weight.device,
        dtype=like.weight.dtype,
    )
    limit = 1 / math.sqrt(like.in_features)
    with torch.no_grad():
        for parameter in layer.parameters():
            drawn = torch.rand(parameter.shape, generator=generator, device=generator.device)
            parameter.copy_((2 * drawn - 1) * limit)
    return layer


def extend_linear(classifier: nn.Linear, count: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with the rows of ``classifier``, followed by ``count`` fresh ones.

    Args:
        classifier: left as it is.
        count: rows to add.
        generator: draws the new rows.
    """
    layer = new_linear(classifier, classifier.out_features + count, generator)
    with torch.no_grad():
        for new, old in zip(layer.parameters(), classifier.parameters(), strict=True):
            new[: len(old)] = old
    return layer


def class_balanced_weights(labels: Tensor) -> Tensor:
    """Sampling weights with which all classes are drawn equally often: ``1 / class size``.

    Args:
        labels: ``(n,)`` integers.

    Returns:
        ``(n,)``, with sum 1.
    """
    classes, inverse, sizes = labels.unique(return_inverse=True, return_counts=True)
    per_class: Tensor = sizes[inverse].float()
    return 1 / (len(classes) * per_class)


def require_base_classes(labels: Tensor, base_classes: Tensor) -> None:
    """Refuse labels of session 1 whose classes are not those of the classifier's rows.

    Raises:
        ValueError: naming the classes that differ.
    """
    found, expected = set(labels.tolist()), set(base_classes.tolist())
    if found != expected:
        raise ValueError(
            "base_classes must be the classes of session 1, one a row of the classifier. Found "
            f"{sorted(expected - found)} without images, {sorted(found - expected)} without a row."
        )


def require_rows(rows: int, base_classes: Tensor) -> None:
    """Refuse a base classifier that does not have one row for each base class."""
    if rows != len(base_classes):
        raise ValueError(
            f"base_classes must name one class for each of the {rows} rows of the classifier. "
            f"Found {len(base_classes)}."
        )
