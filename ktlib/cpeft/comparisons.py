"""What a method is compared with: tuning in sequence, an oracle, frozen features, joint training.

All are :class:`~ktlib.cpeft.tasks.ContinualLearner` and take the same words:

* backbone: encoder that says its number of features as ``dim``; it is copied and stays frozen.
* layers, rank, scale: of the adapters, as for :class:`~ktlib.cpeft.adapters.LoraBackbone`.
* epochs, batch_size, lr: of every training, as for :func:`~ktlib.cpeft.training.train_task`.
* seed: draws adapters, heads and batches.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ktlib.checks import ImagePool, require_at_least, require_positive
from ktlib.cpeft.adapters import LoraBackbone
from ktlib.cpeft.heads import JoinedHead
from ktlib.cpeft.tasks import ClassTask
from ktlib.cpeft.training import features_of, train_task
from ktlib.fcl.protocol import positions_of
from ktlib.fcl.prototypes import class_means
from ktlib.seeding import generator


class _LoraLearner:
    """Adapters, heads, settings and training of the three learners below that have adapters."""

    def __init__(
        self,
        backbone: nn.Module,
        *,
        layers: Sequence[str],
        rank: int,
        epochs: int,
        batch_size: int,
        lr: float,
        seed: int,
        scale: float = 1.0,
    ) -> None:
        require_at_least("epochs", epochs, 1)
        require_at_least("batch_size", batch_size, 1)
        require_positive("lr", lr)
        self.backbone = LoraBackbone(backbone, layers=layers, rank=rank, scale=scale, seed=seed)
        self.device = next(backbone.parameters()).device
        self.head = JoinedHead(self.backbone.dim).to(self.device)
        self.epochs, self.batch_size, self.lr, self.seed = epochs, batch_size, lr, seed
        self.losses: dict[int, list[float]] = {}

    @property
    def classes(self) -> Tensor:
        """``(k,)`` classes learned so far, in the order of the columns of :meth:`scores`."""
        return self.head.classes

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        """``(n, k)`` logits: the heads of all tasks side by side."""
        return self.head(self.backbone(images.to(self.device)))  # type: ignore[no-any-return]

    def _train(
        self, task: int, head: nn.Module, classes: Tensor, rows: Tensor, images: ImagePool,
        labels: Tensor,
    ) -> None:  # fmt: skip
        self.losses[task] = train_task(
            self.backbone,
            head,
            [*self.backbone.trained(), *head.parameters()],
            images,
            positions_of(labels, classes),
            rows,
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            generator=generator(self.seed, "batches", task),
        )


class SequentialLora(_LoraLearner):
    """One adapter that goes on learning, task after task: what forgetting is measured on.

    Each task has a head of its own and changes the same ``A`` and ``B``. The loss is the
    cross-entropy over the classes of the task.

    Args:
        backbone: this and all others as the module says.

    Attributes:
        backbone: with the adapters.
        head: the heads of all tasks so far.
        losses: task -> mean loss of each epoch.
    """

    def learn(self, task: ClassTask, images: ImagePool, labels: Tensor) -> None:
        """Train the adapters and a new head on the task."""
        head = self.head.head(self.head.add(task.classes, self.seed))
        self._train(task.number, head, task.classes, task.train, images, labels)


class LoraOracle(_LoraLearner):
    """An expert for each task, adapters and a head, from the pre-trained backbone anew.

    The upper bound of what separate experts can do, if told the task:
    :func:`~ktlib.cpeft.tasks.predict_within` then asks the right one alone. Not told the task, the
    most certain expert wins, which none of them was trained for.

    Args:
        backbone: this and all others as the module says.

    Attributes:
        backbone: with the adapters of one of the experts.
        head: the heads of all tasks so far.
        experts: for each task its adapters, as :meth:`LoraBackbone.adapters` gives them.
        losses: task -> mean loss of each epoch.
    """

    def __init__(self, backbone: nn.Module, **settings: Any) -> None:
        super().__init__(backbone, **settings)
        self.experts: list[dict[str, Tensor]] = []

    def learn(self, task: ClassTask, images: ImagePool, labels: Tensor) -> None:
        """Train an expert on the task."""
        self.backbone.start(self.seed)
        head = self.head.head(self.head.add(task.classes, self.seed))
        self._train(task.number, head, task.classes, task.train, images, labels)
        self.experts.append(self.backbone.adapters())

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        """``(n, k)`` log-probabilities of each expert for its own classes, side by side."""
        images = images.to(self.device)
        parts = []
        for number, expert in enumerate(self.experts, start=1):
            self.backbone.load_adapters(expert)
            logits = self.head.of_task(number, self.backbone(images))
            parts.append(logits.log_softmax(dim=1))
        return torch.cat(parts, dim=1)


class JointLora(_LoraLearner):
    """Adapters and heads trained anew on all images so far after each task: an upper bound.

    The loss is the cross-entropy over all classes so far. It keeps the positions of the images of
    earlier tasks: give it the same images and labels every time.

    Args:
        backbone: this and all others as the module says.

    Attributes:
        backbone: with the adapters.
        head: the heads of all tasks so far.
        losses: task -> mean loss of each epoch of the training after it.
    """

    def __init__(self, backbone: nn.Module, **settings: Any) -> None:
        super().__init__(backbone, **settings)
        self._tasks: list[ClassTask] = []

    def learn(self, task: ClassTask, images: ImagePool, labels: Tensor) -> None:
        """Train on this task and all before it, from the pre-trained backbone."""
        self._tasks.append(task)
        self.backbone.start(self.seed)
        self.head = JoinedHead(self.backbone.dim).to(self.device)
        for seen in self._tasks:
            self.head.add(seen.classes, self.seed)
        rows = torch.cat([seen.train for seen in self._tasks])
        self._train(task.number, self.head, self.head.classes, rows, images, labels)


class NearestMean:
    """Frozen features, and the class whose mean feature is nearest: no training at all.

    Args:
        backbone: images -> features ``(n, dim)``; copied.
        batch_size: images at a time while the means are computed.

    Attributes:
        classes: ``(k,)`` classes learned so far, in the order of the columns of :meth:`scores`.
        means: ``(k, dim)`` mean feature of each.
    """

    def __init__(self, backbone: nn.Module, *, batch_size: int = 500) -> None:
        require_at_least("batch_size", batch_size, 1)
        self.backbone = copy.deepcopy(backbone).eval().requires_grad_(False)
        self.device = next(backbone.parameters()).device
        self.batch_size = batch_size
        self.classes = torch.empty(0, dtype=torch.int64, device=self.device)
        self.means = torch.empty(0, 0, device=self.device)

    def learn(self, task: ClassTask, images: ImagePool, labels: Tensor) -> None:
        """Note the mean features of the classes of the task."""
        features = features_of(self.backbone, images, task.train, self.batch_size)
        own = labels[task.train].to(self.device)
        classes = task.classes.to(self.device)
        means = class_means(features, own, classes)
        self.means = torch.cat([self.means, means]) if len(self.means) else means
        self.classes = torch.cat([self.classes, classes])

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        """``(n, k)`` Euclidean distances to the means, negative: the nearest scores highest."""
        return -torch.cdist(self.backbone(images.to(self.device)), self.means)
