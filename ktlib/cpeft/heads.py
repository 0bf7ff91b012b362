"""Classifiers of a sequence of tasks: a linear head for each, joined at test time."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ktlib.seeding import generator


class JoinedHead(nn.Module):
    """One linear head for each task; all together give the scores of all classes so far.

    Heads are made on the device of the module: move it to that of the backbone first.

    Args:
        dim: number of features.

    Attributes:
        classes: ``(k,)`` class number of each column.
        task_of: ``(k,)`` number of the task of each column, from 1.
    """

    classes: Tensor
    task_of: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.heads = nn.ModuleList()
        # They also give the device as long as there is no head.
        self.register_buffer("classes", torch.empty(0, dtype=torch.int64))
        self.register_buffer("task_of", torch.empty(0, dtype=torch.int64))

    def add(self, classes: Tensor, seed: int) -> int:
        """A head for a new task, with random weights.

        Args:
            classes: ``(k,)`` its class numbers.
            seed: draws weights and biases, uniformly in ``+-1 / sqrt(dim)``.

        Returns:
            The number of the task, from 1.

        Raises:
            ValueError: no classes, or a class that already has a column.
        """
        classes = classes.to(self.classes)
        columns = torch.cat([self.classes, classes])
        if not len(classes) or len(columns.unique()) < len(columns):
            raise ValueError(
                f"classes must be new, each once. Found {classes.tolist()}; already "
                f"known: {self.classes.tolist()}."
            )
        number = len(self.heads) + 1
        stream, bound = generator(seed, "head", number), 1 / math.sqrt(self.dim)
        head = skip_init(nn.Linear, self.dim, len(classes))
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.uniform_(-bound, bound, generator=stream)
        self.heads.append(head.to(self.classes.device))
        self.task_of = torch.cat([self.task_of, torch.full_like(classes, number)])
        self.classes = columns
        return number

    def forward(self, features: Tensor) -> Tensor:
        """``(n, k)`` scores of all classes from features ``(n, dim)``."""
        return torch.cat([head(features) for head in self.heads], dim=1)

    def of_task(self, number: int, features: Tensor) -> Tensor:
        """``(n, classes of the task)`` scores from features ``(n, dim)``.

        Raises:
            ValueError: ``number`` is not that of a task learned so far.
        """
        scores: Tensor = self.head(number)(features)
        return scores

    def head(self, number: int) -> nn.Linear:
        """The head of a task, whose rows are its classes in their order.

        Raises:
            ValueError: ``number`` is not that of a task learned so far.
        """
        if not 1 <= number <= len(self.heads):
            raise ValueError(f"number must lie in 1 to {len(self.heads)}, the tasks so far. "
                             f"Found number={number!r}.")  # fmt: skip
        return cast("nn.Linear", self.heads[number - 1])
