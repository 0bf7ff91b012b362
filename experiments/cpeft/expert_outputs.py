"""Outputs of the selector and the experts of L2C, stored for every number K and temperature.

The answer of an ensemble of experts is ``y(x) = sum_{k in K_s} g_k(x) f_k(x)``, with ``g`` from the
selector, ``f_k`` from the experts and ``K_s`` the K most probable tasks. Neither K nor the
temperature of ``g`` enters a forward pass: one pass gives the whole curve from isolation (one
expert) to cooperation (all, weighted alike).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ktlib.checks import ImagePool, percent, require_at_least
from ktlib.cpeft.l2c import L2C
from ktlib.cpeft.mixing import log_mixture, log_task_weights


@dataclass(frozen=True, eq=False)
class ExpertOutputs:
    """Outputs of selector and experts for some images, before they are combined.

    Attributes:
        task_logits: ``(n, tasks)`` the selector's largest logit among the classes of each task.
        log_probabilities: ``(n, tasks, classes)`` of each expert; minus infinity for classes that
            it does not know.
        labels: ``(n,)`` class numbers.
        classes: ``(classes,)`` class number of each column.
        task_of: ``(classes,)`` task of each column, from 1.

    Raises:
        ValueError: shapes that do not match, no images, or a label that is not among the classes.
    """

    task_logits: Tensor
    log_probabilities: Tensor
    labels: Tensor
    classes: Tensor
    task_of: Tensor

    def __post_init__(self) -> None:
        images, tasks, columns = self.log_probabilities.shape
        found = [tuple(part.shape) for part in (self.task_logits, self.labels)]
        found += [tuple(part.shape) for part in (self.classes, self.task_of)]
        if found != [(images, tasks), (images,), (columns,), (columns,)]:
            raise ValueError(
                f"task_logits, labels, classes and task_of must match log_probabilities: {images} "
                f"images, {tasks} tasks, {columns} classes. Found shapes {found}."
            )
        require_at_least("the number of images", images, 1)
        unknown = self.labels[~torch.isin(self.labels, self.classes)].unique().tolist()
        if unknown:
            raise ValueError(f"labels must be of classes that were learned. Found {unknown}.")

    @classmethod
    def of(
        cls, learner: L2C, images: ImagePool, labels: Tensor, *, batch_size: int = 500
    ) -> ExpertOutputs:
        """Evaluate the selector and all experts of a learner once.

        Args:
            learner: has learned at least one task.
            images: ``images[rows]`` is ``(n, channels, height, width)``.
            labels: ``(n,)`` class numbers of all images, of classes that were learned.
            batch_size: images at a time.

        Raises:
            ValueError: a label of a class that was not learned, or no labels.
        """
        require_at_least("batch_size", batch_size, 1)
        require_at_least("the number of images", len(labels), 1)
        parts = [
            learner.expert_outputs(images[rows])
            for rows in torch.arange(len(labels)).split(batch_size)
        ]
        task_logits, log_probabilities = (
            torch.cat(part).cpu() for part in zip(*parts, strict=True)
        )
        return cls(task_logits, log_probabilities, labels.cpu(), learner.classes, learner.task_of)

    @property
    def tasks(self) -> Tensor:
        """``(n,)`` the task of each image, from 1."""
        columns = (self.labels[:, None] == self.classes).int().argmax(dim=1)  # (n,)
        return self.task_of[columns]

    @property
    def selected(self) -> Tensor:
        """``(n,)`` the most probable task according to the selector, from 1."""
        return self.task_logits.argmax(dim=1) + 1

    def log_aggregate(self, top_k: int | None, temperature: float) -> Tensor:
        """Logarithm of :meth:`aggregate`, exact where that rounds to 0."""
        weights = log_task_weights(self.task_logits, top_k=top_k, temperature=temperature)
        return log_mixture(weights, self.log_probabilities)

    def aggregate(self, top_k: int | None, temperature: float) -> Tensor:
        """Aggregated class probabilities, ``(n, classes)``.

        Args:
            top_k: K, from 1 to the number of tasks; ``None``: all.
            temperature: of the softmax over tasks, from 0 to infinity, both included.

        Raises:
            ValueError: one of them out of range.
        """
        return self.log_aggregate(top_k, temperature).exp()

    def accuracy(self, top_k: int | None, temperature: float) -> float:
        """Class-IL accuracy in percent; arguments of :meth:`aggregate`."""
        best = self.log_aggregate(top_k, temperature).argmax(dim=1)  # (n,)
        return percent(self.classes[best] == self.labels)

    def grid(self, top_ks: Sequence[int], temperatures: Sequence[float]) -> list[dict[str, Any]]:
        """Rows ``top``, ``temperature`` and ``accuracy`` in percent, for each pair.

        Raises:
            ValueError: one of them out of range.
        """
        return [
            {"top": top_k, "temperature": value, "accuracy": self.accuracy(top_k, value)}
            for top_k in top_ks
            for value in temperatures
        ]

    def confusion(self) -> Tensor:
        """``(tasks, tasks)`` numbers of images: of a task (row), sent to an expert (column)."""
        tasks = self.task_logits.shape[1]
        cells = (self.tasks - 1) * tasks + self.selected - 1
        return torch.bincount(cells, minlength=tasks**2).reshape(tasks, tasks)

    @property
    def routing_error(self) -> list[float]:
        """Percent of the images of each task that the selector sends elsewhere; NaN for none."""
        wrong, own = self.selected != self.tasks, self.tasks
        return [percent(wrong[own == task + 1]) for task in range(self.task_logits.shape[1])]

    @property
    def task_il_accuracy(self) -> float:
        """Accuracy in percent of the right expert among the classes of its task."""
        own = self.log_probabilities[torch.arange(len(self.labels)), self.tasks - 1]  # (n, classes)
        within = own.masked_fill(self.task_of != self.tasks[:, None], -math.inf)
        return percent(self.classes[within.argmax(dim=1)] == self.labels)
