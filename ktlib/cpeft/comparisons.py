"""Learners to compare with: tuning in sequence, an oracle, frozen features, joint training.

All are :class:`~ktlib.cpeft.tasks.ContinualLearner`; those with adapters take a backbone and a
:class:`~ktlib.cpeft.training.LoraTraining`, see :class:`~ktlib.cpeft.training.LoraLearner`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ktlib.checks import ImagePool, require_at_least
from ktlib.cpeft.encoders import device_of, encode, frozen_copy
from ktlib.cpeft.heads import JoinedHead
from ktlib.cpeft.tasks import ClassTask
from ktlib.cpeft.training import LoraLearner, LoraTraining, features_of
from ktlib.fcl.prototypes import class_means


class SequentialLora(LoraLearner):
    """One adapter that goes on learning, task after task: forgetting is measured on it.

    Each task has a head of its own and changes the same ``A`` and ``B``. The loss is the
    cross-entropy over the task's classes.

    Example:
        >>> from ktlib.cpeft import LoraTraining, SequentialLora, class_tasks
        >>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 8))
        >>> encoder.dim = 8
        >>> images, labels = torch.rand(12, 1, 4, 4), torch.arange(12) % 4
        >>> training = LoraTraining(layers=["1"], rank=2, epochs=1, batch_size=4, lr=0.01, seed=0)
        >>> learner = SequentialLora(encoder, training)
        >>> learner.learn(class_tasks(labels, classes=range(4), tasks=2)[0], images, labels)
        >>> learner.scores(images).shape
        torch.Size([12, 2])
    """

    def learn(self, task: ClassTask, images: ImagePool, labels: Tensor) -> None:
        """Train the adapters and a new head on the task."""
        self._train_new_head(task, images, labels)


class LoraOracle(LoraLearner):
    """An expert for each task, adapters and a head, from the pre-trained backbone anew.

    Its task-IL accuracy is the upper bound of what separate experts can do:
    :func:`~ktlib.cpeft.tasks.predict_with_task_id` asks the right one alone. Without the task, the
    most confident expert wins, which none of them was trained for.

    Attributes:
        experts: for each task its adapters, as :meth:`LoraBackbone.adapters` gives them.

    Example:
        >>> from ktlib.cpeft import LoraOracle, LoraTraining, class_tasks
        >>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 8))
        >>> encoder.dim = 8
        >>> images, labels = torch.rand(12, 1, 4, 4), torch.arange(12) % 4
        >>> training = LoraTraining(layers=["1"], rank=2, epochs=1, batch_size=4, lr=0.01, seed=0)
        >>> oracle = LoraOracle(encoder, training)
        >>> for task in class_tasks(labels, classes=range(4), tasks=2):
        ...     oracle.learn(task, images, labels)
        >>> len(oracle.experts), oracle.scores(images).shape
        (2, torch.Size([12, 4]))
    """

    def __init__(self, backbone: nn.Module, training: LoraTraining) -> None:
        super().__init__(backbone, training)
        self.experts: list[dict[str, Tensor]] = []

    def learn(self, task: ClassTask, images: ImagePool, labels: Tensor) -> None:
        """Train an expert on the task."""
        self.backbone.start(self.training.seed)
        self._train_new_head(task, images, labels)
        self.experts.append(self.backbone.adapters())

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        """``(n, k)`` log-probabilities of each expert for its own classes, side by side."""
        parts = []
        for number, expert in enumerate(self.experts, start=1):
            self.backbone.load_adapters(expert)
            logits = self.head.of_task(number, encode(self.backbone, images))  # (n, its classes)
            parts.append(logits.log_softmax(dim=1))
        return torch.cat(parts, dim=1)


class JointLora(LoraLearner):
    """Adapters and heads trained anew on all images so far after each task: an upper bound.

    The loss is the cross-entropy over all classes so far. It keeps the positions of the images of
    earlier tasks: give it the same images and labels every time.

    Example:
        >>> from ktlib.cpeft import JointLora, LoraTraining, class_tasks
        >>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 8))
        >>> encoder.dim = 8
        >>> images, labels = torch.rand(12, 1, 4, 4), torch.arange(12) % 4
        >>> training = LoraTraining(layers=["1"], rank=2, epochs=1, batch_size=4, lr=0.01, seed=0)
        >>> learner = JointLora(encoder, training)
        >>> for task in class_tasks(labels, classes=range(4), tasks=2):
        ...     learner.learn(task, images, labels)
        >>> learner.head.task_of
        tensor([1, 1, 2, 2])
    """

    def __init__(self, backbone: nn.Module, training: LoraTraining) -> None:
        super().__init__(backbone, training)
        self._tasks: list[ClassTask] = []

    def learn(self, task: ClassTask, images: ImagePool, labels: Tensor) -> None:
        """Train on this task and all before it, from the pre-trained backbone."""
        labels = task.labels_from(labels, self.classes)
        self._tasks.append(task)
        self.backbone.start(self.training.seed)
        self.head = JoinedHead(self.backbone.dim).to(self.device)
        for seen in self._tasks:
            self.head.add(seen.classes, self.training.seed)
        rows = torch.cat([seen.train for seen in self._tasks])
        self._train(task.number, self.head, self.head.classes, rows, images, labels)


class NearestMean:
    """Frozen features, and the class whose mean feature is nearest: no training at all.

    Args:
        backbone: images -> features ``(n, dim)``; copied as in a
            :class:`~ktlib.cpeft.adapters.LoraBackbone`.
        batch_size: images at a time while the means are computed.

    Attributes:
        classes: ``(k,)`` classes learned so far, in the order of the columns of :meth:`scores`.
        means: ``(k, dim)`` mean feature of each.

    Raises:
        ValueError: ``batch_size`` below 1.

    Example:
        >>> from ktlib.cpeft import NearestMean, class_tasks, predict
        >>> images, labels = torch.eye(4).reshape(4, 1, 2, 2), torch.arange(4)
        >>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(4, 8))
        >>> learner = NearestMean(encoder)
        >>> for task in class_tasks(labels, classes=range(4), tasks=2):
        ...     learner.learn(task, images, labels)
        >>> predict(learner, images)
        tensor([0, 1, 2, 3])
    """

    def __init__(self, backbone: nn.Module, *, batch_size: int = 500) -> None:
        require_at_least("batch_size", batch_size, 1)
        self.backbone, self.batch_size = frozen_copy(backbone), batch_size
        self.device = device_of(self.backbone)
        self.classes = torch.empty(0, dtype=torch.int64, device=self.device)
        self.means = torch.empty(0, 0, device=self.device)

    def learn(self, task: ClassTask, images: ImagePool, labels: Tensor) -> None:
        """Store the mean features of the classes of the task."""
        labels = task.labels_from(labels, self.classes)
        features = features_of(self.backbone, images, task.train, self.batch_size)  # (m, dim)
        means = class_means(features, labels[task.train], task.classes)  # (classes, dim)
        self.means = torch.cat([self.means, means]) if len(self.means) else means
        self.classes = torch.cat([self.classes, task.classes.to(self.device)])

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        """``(n, k)`` negative Euclidean distances to the means."""
        return -torch.cdist(encode(self.backbone, images), self.means)
