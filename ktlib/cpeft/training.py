"""Settings and training of adapters and heads, and features of many images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ktlib.checks import ImagePool, require_at_least, require_positive
from ktlib.cpeft.adapters import LoraBackbone
from ktlib.cpeft.encoders import device_of, encode
from ktlib.cpeft.heads import JoinedHead
from ktlib.cpeft.tasks import ClassTask
from ktlib.fcl.protocol import positions_of
from ktlib.seeding import generator

LossExtra = Callable[[Tensor, Tensor], Tensor]
"""Positions ``(b,)`` of a batch's images and their scores ``(b, k)`` -> scalar."""


@dataclass(frozen=True, kw_only=True)
class LoraTraining:
    """Settings of adapters and their training, the same for all learners.

    Attributes:
        layers: which linear layers are adapted, see :class:`~ktlib.cpeft.adapters.LoraBackbone`.
        rank: of every update ``B A``.
        epochs: passes over the images of a task.
        batch_size: images per step.
        lr: first learning rate of Adam's cosine schedule.
        seed: draws adapters, heads and batches.
        scale: factor of the updates.

    Raises:
        ValueError: ``rank``, ``epochs`` or ``batch_size`` below 1, or ``lr`` not above 0.

    Example:
        >>> training = LoraTraining(layers=["query", "value"], rank=8, epochs=5, batch_size=64,
        ...                         lr=5e-4, seed=0)
        >>> training.scale
        1.0
    """

    layers: Sequence[str]
    rank: int
    epochs: int
    batch_size: int
    lr: float
    seed: int
    scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("rank", "epochs", "batch_size"):
            require_at_least(name, getattr(self, name), 1)
        require_positive("lr", self.lr)

    def adapted(self, backbone: nn.Module) -> LoraBackbone:
        """A copy of an encoder with new adapters."""
        return LoraBackbone(
            backbone, layers=self.layers, rank=self.rank, scale=self.scale, seed=self.seed
        )


class LoraLearner:
    """Adapters, heads and training of the learners that have one adapted backbone.

    Args:
        backbone: encoder whose number of features is its attribute ``dim``; copied and frozen.
        training: of adapters and heads.

    Attributes:
        backbone: with the adapters.
        head: the heads of all tasks so far.
        losses: task -> mean loss of each epoch of the training on it.

    Raises:
        ValueError: as :class:`~ktlib.cpeft.adapters.LoraBackbone`, or a backbone without ``dim``.
    """

    def __init__(self, backbone: nn.Module, training: LoraTraining) -> None:
        self.training, self.backbone = training, training.adapted(backbone)
        self.device = device_of(self.backbone)
        self.head = JoinedHead(self.backbone.dim).to(self.device)
        self.losses: dict[int, list[float]] = {}

    @property
    def classes(self) -> Tensor:
        """``(k,)`` classes learned so far, in the order of the columns of :meth:`scores`."""
        return self.head.classes

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        """``(n, k)`` logits: the heads of all tasks side by side."""
        return self.head(encode(self.backbone, images))  # type: ignore[no-any-return]

    def _train_new_head(self, task: ClassTask, images: ImagePool, labels: Tensor) -> None:
        """Train the adapters and a new head on the classes of the task."""
        labels = task.labels_from(labels, self.classes)
        head = self.head.head(self.head.add(task.classes, self.training.seed))
        self._train(task.number, head, task.classes, task.train, images, labels)

    def _train(
        self, task: int, head: nn.Module, classes: Tensor, rows: Tensor, images: ImagePool,
        labels: Tensor,
    ) -> None:  # fmt: skip
        trained = [*self.backbone.trained(), *head.parameters()]
        self.losses[task] = train_task(
            self.backbone,
            head,
            trained,
            images,
            positions_of(labels, classes),
            rows,
            self.training,
            rng=generator(self.training.seed, "batches", task),
        )


def train_task(
    backbone: nn.Module,
    head_scores: Callable[[Tensor], Tensor],
    parameters: Sequence[nn.Parameter] | Sequence[dict[str, Any]],
    images: ImagePool,
    labels: Tensor,
    rows: Tensor,
    training: LoraTraining,
    *,
    rng: torch.Generator,
    loss_extra: LossExtra | None = None,
) -> list[float]:
    """Minimise the cross-entropy with Adam and a cosine schedule down to 0.

    The network is in ``eval`` mode all the time, so that there is no dropout and batch norm keeps
    its statistics, as in the released code of InfLoRA.

    Args:
        backbone: images ``(b, channels, height, width)`` -> features ``(b, dim)``.
        head_scores: features -> scores ``(b, k)``.
        parameters: what is trained, of both; or groups of it with an ``lr`` of their own, as
            :class:`torch.optim.Optimizer` takes them.
        images: ``(n, channels, height, width)``.
        labels: ``(n,)`` the column of the scores that is right for each image; of images that are
            not trained on, anything.
        rows: ``(m,)`` positions of the images that are trained on.
        training: its ``epochs``, ``batch_size`` and ``lr``.
        rng: draws the batches, on the CPU.
        loss_extra: a further term of the loss, from the positions of a batch and its scores.

    Returns:
        Mean loss over the images, for each epoch.

    Raises:
        ValueError: no rows, or a label below 0.
        FloatingPointError: as soon as the mean loss of an epoch is not finite.
    """
    if not len(rows):
        raise ValueError("rows must be of images to train on. Found 0 rows.")
    least = int(labels[rows].min())
    if least < 0:
        raise ValueError(f"labels must be columns of the scores, from 0. Found {least}.")
    device = device_of(backbone)
    optimizer = torch.optim.Adam(parameters, lr=training.lr)
    steps = training.epochs * -(-len(rows) // training.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    backbone.eval()
    history = []
    for epoch in range(1, training.epochs + 1):
        total = torch.zeros((), device=device)
        for part in torch.randperm(len(rows), generator=rng).split(training.batch_size):
            batch = rows[part]  # (b,)
            scores = head_scores(encode(backbone, images[batch]))  # (b, k)
            loss = F.cross_entropy(scores, labels[batch].to(device))
            if loss_extra is not None:
                loss = loss + loss_extra(batch, scores)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach() * len(part)
        history.append(float(total) / len(rows))
        if not torch.isfinite(total):
            cause = _broken_images(images, rows) or f"lower lr={training.lr!r}"
            when = f"epoch {epoch} of {training.epochs}"
            raise FloatingPointError(f"the loss is {history[-1]} in {when}: {cause}.")
    return history


def _broken_images(images: ImagePool, rows: Tensor) -> str:
    """Which of the images are not finite, in words; empty if all are."""
    pixels = ((int(row), torch.as_tensor(images[row[None]])) for row in rows)
    broken = [row for row, values in pixels if not bool(torch.isfinite(values).all())]
    return f"images {broken[:5]} are not finite numbers" if broken else ""


@torch.no_grad()
def features_of(
    backbone: nn.Module, images: ImagePool, rows: Tensor, batch_size: int = 500
) -> Tensor:
    """``(m, dim)`` features of the images at ``rows``, batch by batch and without gradients.

    Args:
        backbone: images -> features; its mode is not changed.
        images: ``(n, channels, height, width)``.
        rows: ``(m,)`` positions.
        batch_size: images at a time.

    Raises:
        FloatingPointError: features that are not finite.
    """
    found = torch.cat([encode(backbone, images[part]) for part in rows.split(batch_size)])
    if not bool(torch.isfinite(found).all()):
        cause = _broken_images(images, rows) or "the weights of the encoder must be"
        raise FloatingPointError(f"not all features are finite numbers: {cause}.")
    return found
