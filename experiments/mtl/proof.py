"""Numbers behind the theorem on one step of Recon: ``chapters/proofs/recon.py`` explains them.

Two networks start at one point. In the *shared* one every layer of the trunk moves along the
weighted sum of the task gradients; in the *split* one each task has copies of some layers, which
move along the gradient of that task alone. The theorem compares the summed losses after one step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.func import functional_call

from experiments.run.parameters import ChapterParameters, LearningRate
from ktlib.mtl.layers import layers_of

TaskLoss = Callable[[Mapping[str, Tensor]], Tensor]


class ReconProofParameters(ChapterParameters):
    """Parameters of ``chapters/proofs/recon.py``."""

    images: int = Field(ge=2, le=50_000, description="training images of the network")
    width: int = Field(ge=1, le=1024, description="channels of the first ResNet stage")
    stem_stride: int = Field(ge=1, le=4, description="stride of the first convolution")
    epochs: int = Field(
        ge=1, le=10_000, description="epochs of joint training before the measurement"
    )
    batch_size: int = Field(ge=2, le=10_000, description="images per batch of the training")
    lr: LearningRate = Field(description="first learning rate of the training")
    measured_images: int = Field(
        ge=2, le=10_000, description="images behind every measured loss and gradient"
    )
    layers_per_set: int = Field(ge=1, le=40, description="layers K that become task-specific")
    step_sizes: list[Annotated[float, Field(le=10)]] = Field(
        min_length=2, description="rates alpha of the measured step"
    )
    trials: int = Field(ge=100, le=10_000_000, description="random sets of gradients")
    repetitions: int = Field(
        ge=2, le=100_000, description="simulated pairs of linear tasks per seed"
    )
    steps: int = Field(
        ge=10, le=1_000_000, description="steps of gradient descent on the linear tasks"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.batch_size > self.images:
            raise ValueError(
                f"batch_size must be at most images = {self.images}. Found {self.batch_size}"
            )
        if not all(step > 0 for step in self.step_sizes):
            raise ValueError(f"step_sizes must be above 0. Found {self.step_sizes}")
        if self.step_sizes != sorted(set(self.step_sizes), reverse=True):
            raise ValueError(f"step_sizes must fall, each once. Found {self.step_sizes}")
        return self


@dataclass(frozen=True, eq=False)
class SharedPoint:
    """Tasks with common parameters, at the point where a step starts.

    Attributes:
        losses: one per task, at least two: parameters by name -> scalar.
        parameters: the point, by name; in float64 for a slope test.
        layers: layer -> names of its parameters. These are the layers that may be shared or split.
        task_specific: names of the parameters that always belong to one task, such as those of a
            head; each of them may be used by one loss only.
    """

    losses: Sequence[TaskLoss]
    parameters: Mapping[str, Tensor]
    layers: Mapping[str, Sequence[str]]
    task_specific: Collection[str] = ()

    def __post_init__(self) -> None:
        if len(self.losses) < 2:
            raise ValueError(f"losses must be at least two. Found {len(self.losses)}.")
        placed = [name for names in self.layers.values() for name in names]
        placed += list(self.task_specific)
        if sorted(placed) != sorted(self.parameters):
            raise ValueError(
                "every parameter must belong to one layer, or be task-specific. "
                f"Found {sorted(placed)} for the parameters {sorted(self.parameters)}."
            )

    @cached_property
    def gradients(self) -> list[dict[str, Tensor]]:
        """One per task: gradient by parameter name, zero where the loss uses no such parameter.

        Raises:
            ValueError: a task-specific parameter has a gradient from more than one loss.
        """
        values = {name: v.detach().requires_grad_() for name, v in self.parameters.items()}
        found = []
        for loss in self.losses:
            with torch.enable_grad():  # a caller may have it off
                value = loss(values)
            parts = torch.autograd.grad(
                value, list(values.values()), allow_unused=True, materialize_grads=True
            )
            found.append(dict(zip(values, parts, strict=True)))
        for name in self.task_specific:
            users = [task for task, gradient in enumerate(found) if gradient[name].any()]
            if len(users) > 1:
                raise ValueError(
                    f"a task-specific parameter must be used by one loss. Found {name!r} in the "
                    f"losses {users}."
                )
        return found

    def gramians(self) -> dict[str, Tensor]:
        """Layer -> ``(tasks, tasks)``, the inner products ``<g_i, g_j>`` in that layer."""
        return {layer: _gramian(self.gradients, names) for layer, names in self.layers.items()}

    def losses_after(
        self,
        step: float,
        weights: Tensor,
        split: Collection[str] = (),
        losses: Sequence[TaskLoss] | None = None,
    ) -> Tensor:
        """Every task's loss after one step of gradient descent.

        Shared layers move by ``-step * sum_j weights[j] g_j``. Copies of the split layers start
        at the shared layer and move by ``-step * g_i``, and so do the task-specific parameters.

        Args:
            step: the rate ``alpha``.
            weights: ``(tasks,)``.
            split: layers with a copy for every task; none: the shared network.
            losses: what is measured, where it is not the losses that gave the gradients.

        Returns:
            ``(tasks,)``.

        Raises:
            ValueError: ``split`` names an unknown layer, or the number of weights or
                losses is wrong.
        """
        unknown = sorted(set(split) - set(self.layers))
        if unknown:
            raise ValueError(f"split must name layers of {sorted(self.layers)}. Found {unknown}.")
        measured = self.losses if losses is None else losses
        tasks = len(self.losses)
        if weights.shape != (tasks,) or len(measured) != tasks:
            raise ValueError(
                f"weights and losses must be one for each of the {tasks} tasks. "
                f"Found {tuple(weights.shape)} and {len(measured)}."
            )
        own = {name for layer in split for name in self.layers[layer]} | set(self.task_specific)
        after = []
        with torch.no_grad():
            common = {
                name: sum(w * g[name] for w, g in zip(weights, self.gradients, strict=True))
                for name in self.parameters
                if name not in own
            }
            for loss, gradient in zip(measured, self.gradients, strict=True):
                moves = {name: gradient[name] for name in own} | common
                moved = {name: v - step * moves[name] for name, v in self.parameters.items()}
                after.append(loss(moved))
        return torch.stack(after)

    def measured_slopes(
        self,
        step: float,
        weights: Tensor,
        splits: Mapping[str, Collection[str]],
        losses: Sequence[TaskLoss] | None = None,
    ) -> dict[str, float]:
        """Summed loss of a split network minus that of the shared one after a step, over ``step``.

        Args:
            step: the rate ``alpha``.
            weights: ``(tasks,)``.
            splits: name -> layers to split.
            losses: as in :meth:`losses_after`.

        Returns:
            One number per name.
        """
        shared = self.losses_after(step, weights, (), losses).sum()
        return {
            name: float((self.losses_after(step, weights, layers, losses).sum() - shared) / step)
            for name, layers in splits.items()
        }

    def predicted_slope(self, weights: Tensor, split: Collection[str]) -> float:
        """What :meth:`measured_slopes` tend to for small steps: the sum of :func:`slope`."""
        gramians = self.gramians()
        return sum(float(slope(gramians[layer], weights)) for layer in split)


def task_slopes(gramian: Tensor, weights: Tensor) -> Tensor:
    """What splitting a layer adds to the loss of each task after a step, per unit of the rate.

    To first order, ``<g_i, sum_j w_j g_j> - ||g_i||^2``. Below 0 the task has the lower loss in the
    split network.

    Args:
        gramian: ``(..., tasks, tasks)``, inner products of the task gradients in the layer.
        weights: ``(..., tasks)``, the ``w_j``; any numbers.

    Returns:
        ``(..., tasks)``.
    """
    common = (gramian * weights.unsqueeze(-2)).sum(dim=-1)
    return common - gramian.diagonal(dim1=-2, dim2=-1)


def slope(gramian: Tensor, weights: Tensor) -> Tensor:
    """What splitting a layer adds to the summed loss after a step: the sum of :func:`task_slopes`.

    Args:
        gramian: ``(..., tasks, tasks)``.
        weights: ``(..., tasks)``.

    Returns:
        ``(...)``.
    """
    return task_slopes(gramian, weights).sum(dim=-1)


def condition_holds(gramian: Tensor) -> Tensor:
    """Whether a layer satisfies (4.6), ``cos_ij ||g_i|| < ||g_j||``, for all ordered pairs.

    Taken as ``<g_i, g_j> < ||g_j||^2``, which is the same where no gradient is zero, and false
    where one is.

    Args:
        gramian: ``(..., tasks, tasks)``.

    Returns:
        ``(...)`` booleans.
    """
    holds = gramian < gramian.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
    same = torch.eye(gramian.shape[-1], dtype=torch.bool, device=gramian.device)
    return (holds | same).all(dim=-1).all(dim=-1)


def cosines(gramian: Tensor) -> Tensor:
    """Cosines of the angles between task gradients, ``(..., tasks, tasks)``; NaN for a zero one."""
    norms = gramian.diagonal(dim1=-2, dim2=-1).sqrt()
    return gramian / (norms.unsqueeze(-1) * norms.unsqueeze(-2))


def point_with_gradients(gradients: Mapping[str, Tensor], curvature: float = 1.0) -> SharedPoint:
    """Tasks whose gradients at the starting point are given.

    ``L_i(v) = <g_i, v> + curvature/2 ||v||^2`` over all layers, at the point ``v = 0``. With equal
    weights of sum one, splitting a layer changes the summed loss after a step ``a`` by exactly
    ``-a D (1 - curvature a / 2)``, where ``D = sum_i ||g_i - mean||^2``.

    Args:
        gradients: layer -> ``(tasks, size)``; each layer has one parameter, named as the layer.
        curvature: second derivative in every direction.
    """

    def loss(values: Mapping[str, Tensor], task: int) -> Tensor:
        parts = [
            (values[name] * g[task]).sum() + curvature / 2 * values[name].square().sum()
            for name, g in gradients.items()
        ]
        return torch.stack(parts).sum()

    tasks = len(next(iter(gradients.values())))
    return SharedPoint(
        losses=[partial(loss, task=task) for task in range(tasks)],
        parameters={name: torch.zeros_like(g[0]) for name, g in gradients.items()},
        layers={name: [name] for name in gradients},
    )


def network_point(
    trunk: nn.Module, heads: Sequence[nn.Module], images: Tensor, labels: Tensor
) -> SharedPoint:
    """The cross-entropies of classification tasks with one trunk and a head each.

    Works on copies in float64 and in ``eval`` mode: batch norm then uses its running statistics,
    which are no parameters and stay as they are. Layers are those of :func:`ktlib.mtl.layers_of`;
    parameters that are frozen in the network move here as all others do.

    Args:
        trunk: images -> features.
        heads: features -> scores, one per task.
        images: ``(batch, ...)``.
        labels: ``(tasks, batch)``.

    Raises:
        ValueError: the number of heads is not that of the rows of ``labels``.
    """
    if len(heads) != len(labels):
        raise ValueError(
            f"heads must be one for each of the {len(labels)} rows of labels. Found {len(heads)}."
        )
    body = copy.deepcopy(trunk).double().eval().requires_grad_()
    tops = [copy.deepcopy(head).double().eval() for head in heads]
    inputs = images.double()
    names = {p: f"trunk.{name}" for name, p in body.named_parameters()}
    layers = {layer: [names[p] for p in members] for layer, members in layers_of(body).items()}
    parameters = {name: p.detach() for p, name in names.items()}
    own = {
        f"head{i}.{n}": p.detach() for i, top in enumerate(tops) for n, p in top.named_parameters()
    }

    def loss(values: Mapping[str, Tensor], task: int) -> Tensor:
        features = functional_call(body, _under("trunk.", values), inputs)
        scores = functional_call(tops[task], _under(f"head{task}.", values), features)
        return nn.functional.cross_entropy(scores, labels[task])

    return SharedPoint(
        losses=[partial(loss, task=task) for task in range(len(tops))],
        parameters=parameters | own,
        layers=layers,
        task_specific=list(own),
    )


def _under(prefix: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values whose names start with the prefix, without it."""
    return {n.removeprefix(prefix): v for n, v in values.items() if n.startswith(prefix)}


def _gramian(gradients: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> Tensor:
    """``(tasks, tasks)`` from the gradients of some parameters."""
    rows = torch.stack([torch.cat([g[name].flatten() for name in names]) for g in gradients])
    return rows @ rows.T
