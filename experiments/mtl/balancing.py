"""Methods that weight the losses anew at each step: uncertainty weighting, GradNorm and FAMO.

The first and the last are those of ``torchjd.scalarization``. All are on the scale of the sum of
losses: tasks that are equal in all respects have the weight 1, so that learning rates compare with
those of the other methods.
"""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.mtl.parameters import BALANCERS
from ktlib.mtl.gradients import TaskGradients

_LEAST = 0.01  # weight of GradNorm, which steps might carry below 0


class Balancer:
    """Gives each loss its weight in a step, and learns from what comes of it."""

    looks_back = False
    """Whether :meth:`after_step` wants the losses of the same batch after the step."""

    def weights(self, losses: Tensor) -> Tensor:
        """``(T,)`` losses of a step, without a graph -> their ``(T,)`` weights."""
        raise NotImplementedError

    def learn(self, gradients: TaskGradients) -> None:
        """Look at the gradients of the weighted losses."""

    def after_step(self, losses: Tensor) -> None:
        """Look at the ``(T,)`` losses after the step."""


class UncertaintyWeighting(Balancer):
    """Kendall, Gal and Cipolla, CVPR 2018: a log-variance for each task, trained with the network.

    Args:
        tasks: their number T.
        lr: learning rate of the log-variances, with momentum 0.9.
    """

    def __init__(self, tasks: int, lr: float, device: torch.device) -> None:
        from torchjd.scalarization import UW

        self.scalarizer = UW(tasks).to(device)
        self.optimizer = torch.optim.SGD(self.scalarizer.parameters(), lr=lr, momentum=0.9)

    def weights(self, losses: Tensor) -> Tensor:
        """Twice the derivative of its loss, which halves: ``exp(-s)``."""
        values = losses.clone().requires_grad_()
        self.optimizer.zero_grad()
        (2 * self.scalarizer(values)).backward()
        self.optimizer.step()
        return _gradient(values)


class GradNorm(Balancer):
    """Chen, Badrinarayanan, Lee and Rabinovich, ICML 2018: gradients of lengths that fit.

    A task whose loss has fallen less than the others' since the first step gets a longer gradient.
    Lengths are those on all shared parameters, where the paper takes the last shared layer.

    Args:
        tasks: their number T.
        alpha: how strongly the lengths follow the losses; 0 makes them equal.
        lr: learning rate of Adam for the weights.
    """

    def __init__(
        self, tasks: int, device: torch.device, *, alpha: float = 1.5, lr: float = 0.025
    ) -> None:
        self.factors = torch.ones(tasks, device=device)
        self.optimizer = torch.optim.Adam([self.factors], lr=lr)
        self.alpha = alpha
        self.first: Tensor | None = None
        self.now = self.factors

    def weights(self, losses: Tensor) -> Tensor:
        """Those of the last step, of sum T."""
        self.first = losses if self.first is None else self.first
        self.now = losses
        return self.factors.clone()

    def learn(self, gradients: TaskGradients) -> None:
        """One step on the distances between lengths and their targets."""
        lengths = gradients.matrix.norm(dim=1)  # (T,) of the weighted losses
        falls = self.now / (self.now if self.first is None else self.first)
        targets = lengths.mean() * (falls / falls.mean()) ** self.alpha
        self.factors.grad = (lengths - targets).sign() * lengths / self.factors
        self.optimizer.step()
        self.factors.clamp_(min=_LEAST)
        self.factors.mul_(len(self.factors) / self.factors.sum())


class Famo(Balancer):
    """Liu, Feng, Stone and Liu, NeurIPS 2023: all losses fall at one rate, from losses alone.

    Args:
        tasks: their number T.
    """

    looks_back = True

    def __init__(self, tasks: int, device: torch.device) -> None:
        from torchjd.scalarization import FAMO

        self.scalarizer = FAMO(tasks).to(device)
        self.tasks = tasks

    def weights(self, losses: Tensor) -> Tensor:
        """T times the derivative of its loss, whose weights add up to 1."""
        values = losses.clone().requires_grad_()
        (self.tasks * self.scalarizer(values)).backward()
        return _gradient(values)

    def after_step(self, losses: Tensor) -> None:
        """Move the weights towards the tasks whose losses fell least."""
        self.scalarizer.update(losses)


def balancer(
    name: str, tasks: int, *, lr: float, device: torch.device, **options: float
) -> Balancer:
    """A fresh balancer.

    Args:
        name: id, one of :data:`experiments.mtl.parameters.BALANCERS`.
        tasks: number of tasks.
        lr: learning rate of the network, which uncertainty weighting takes as well.
        device: of the losses.
        **options: ``alpha`` of GradNorm.

    Raises:
        ValueError: the name is unknown.
    """
    if name == "uw":
        return UncertaintyWeighting(tasks, lr, device)
    if name == "gradnorm":
        return GradNorm(tasks, device, **options)
    if name == "famo":
        return Famo(tasks, device)
    raise ValueError(f"name must be one of {BALANCERS}. Found {name!r}.")


def _gradient(values: Tensor) -> Tensor:
    found = values.grad
    if found is None:  # a scalarizer that does not depend on the losses
        raise RuntimeError("the losses must have a gradient. Found none.")
    return found
