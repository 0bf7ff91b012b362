"""Numbers behind the theorem on the stability of ILA: ``chapters/proofs/ila.py`` explains them.

Fine-tuning has changed ``N`` layers by an update each. Gates in [0, 1] say how much of each update
is used, and are learned by gradient descent. The theorem (thesis, 5.1) says that one more iteration
of fine-tuning, which changes the update a little, changes the learned gates only a little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self, TypeAlias

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from experiments.ila.parameters import Count, ModelName, Rate, Score, Size, context_of
from experiments.run.parameters import ChapterParameters

Weights: TypeAlias = Mapping[str, Tensor]
"""Layer -> its weights, or the update of its weights."""
SIGMOID_SLOPE = 1 / 4
"""Largest slope of the sigmoid."""
SIGMOID_CURVATURE = 1 / (6 * math.sqrt(3))
"""Largest size of its second derivative."""


class IlaProofParameters(ChapterParameters):
    """Parameters of ``chapters/proofs/ila.py``."""

    layers: int = Field(ge=2, le=100, description="layers N of the logistic regression")
    layer_size: int = Field(ge=1, le=100, description="weights of each of its layers")
    examples: int = Field(ge=10, le=1_000_000, description="examples of the logistic regression")
    iterations: int = Field(ge=2, le=100_000, description="iterations t of its fine-tuning")
    gate_steps: int = Field(
        ge=2, le=100_000, description="steps n of gradient descent on its gates"
    )
    trials: int = Field(
        ge=100, le=10_000_000, description="random cases that try to break the one-step bound"
    )
    model: ModelName = Field(description="language model: tiny, a name or a folder")
    pretraining_steps: Count = Field(description="steps of the tiny model on its first rule")
    lora_rank: Size = Field(description="rank of the update of each layer of the model")
    tuning_steps: int = Field(
        ge=2, le=1_000_000, description="iterations of fine-tuning of the model"
    )
    measured_at: list[int] = Field(
        min_length=1, description="iterations t after which two updates are compared"
    )
    tuning_lr: Rate = Field(description="learning rate of the fine-tuning")
    batch_size: Size = Field(description="sequences per batch")
    sequence_length: int = Field(ge=4, le=100_000, description="tokens per sequence")
    initial_score: Score = Field(description="score that every layer starts with")
    score_steps: Count = Field(description="steps of gradient descent on the model's scores")
    score_move: float = Field(
        gt=0, le=32, description="largest move of a score in the first of them"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        late = [step for step in self.measured_at if not 0 < step < self.tuning_steps]
        if late:
            raise ValueError(
                f"measured_at must lie between 0 and tuning_steps = {self.tuning_steps}, both "
                f"excluded. Found {late}"
            )
        if self.measured_at != sorted(set(self.measured_at)):
            raise ValueError(f"measured_at must rise, each once. Found {self.measured_at}")
        context = context_of(self.model) or math.inf
        if self.sequence_length > context:
            raise ValueError(
                f"sequence_length must be at most {context}, the context of {self.model}. "
                f"Found {self.sequence_length}"
            )
        return self


@dataclass(frozen=True, eq=False)
class GatedLoss:
    """A loss of the weights of some layers, each of which is a base plus a gated update.

    The weights of layer ``i`` are ``base[i] + gates[i] * update[i]``; gates and all that has one
    entry per layer are in the order of ``base``.

    Attributes:
        loss: weights of all layers -> scalar.
        base: the weights before fine-tuning.
    """

    loss: Callable[[Weights], Tensor]
    base: Weights

    def weights(self, gates: Tensor, update: Weights) -> dict[str, Tensor]:
        """The weights with a gate ``(layers,)`` on each part of the update.

        Raises:
            ValueError: the gates or the update do not belong to the layers of the base.
        """
        if list(update) != list(self.base) or gates.shape != (len(self.base),):
            raise ValueError(
                f"gates and update must be of the {len(self.base)} layers of the base, in their "
                f"order. Found gates of shape {tuple(gates.shape)} and an update of {list(update)}."
            )
        return {
            name: base + gate * update[name]
            for gate, (name, base) in zip(gates, self.base.items(), strict=True)
        }

    def value(self, gates: Tensor, update: Weights) -> float:
        """The loss."""
        with torch.no_grad():
            return float(self.loss(self.weights(gates, update)))

    def layer_gradients(self, gates: Tensor, update: Weights) -> dict[str, Tensor]:
        """Gradient of the loss with respect to the weights of each layer."""
        weights = self.weights(gates.detach(), update)
        values = {name: value.detach().requires_grad_() for name, value in weights.items()}
        with torch.enable_grad():  # a caller may have it off
            loss = self.loss(values)
        found = torch.autograd.grad(
            loss, list(values.values()), allow_unused=True, materialize_grads=True
        )
        return dict(zip(values, found, strict=True))

    def gate_gradient(self, gates: Tensor, update: Weights) -> Tensor:
        """Gradient with respect to the gates, ``(layers,)``: ``<update_i, grad_i loss>``."""
        return inner_products(update, self.layer_gradients(gates, update))

    def score_gradient(self, scores: Tensor, update: Weights) -> Tensor:
        """Gradient with respect to scores, ``(layers,)``, where gates are their sigmoids."""
        gates = scores.sigmoid()
        return gates * (1 - gates) * self.gate_gradient(gates, update)

    def descend_gates(
        self, update: Weights, start: Tensor, rate: float, steps: int, *, project: bool = True
    ) -> Tensor:
        """Gates along gradient descent, ``(steps + 1, layers)``.

        Args:
            update: what the gates multiply.
            start: first gates, ``(layers,)``.
            rate: the step size ``beta``.
            steps: how many.
            project: put each gate back into [0, 1] after each step.
        """
        path = [start]
        for _ in range(steps):
            moved = path[-1] - rate * self.gate_gradient(path[-1], update)
            path.append(moved.clamp(0, 1) if project else moved)
        return torch.stack(path)

    def descend_scores(self, update: Weights, start: Tensor, rate: float, steps: int) -> Tensor:
        """Scores along gradient descent, ``(steps + 1, layers)``; as :meth:`descend_gates`."""
        path = [start]
        for _ in range(steps):
            path.append(path[-1] - rate * self.score_gradient(path[-1], update))
        return torch.stack(path)


@dataclass(frozen=True)
class Constants:
    """What the theorem's bounds are made of.

    Attributes:
        lipschitz: ``L1``, largest length of the gradient of the loss.
        smoothness: ``L2``, Lipschitz constant of that gradient.
        size: ``Q``, largest length of a layer's update, of one of the two updates compared.
    """

    lipschitz: float
    smoothness: float
    size: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0 or math.isinf(value):
                raise ValueError(f"{name} must be finite and not negative. Found {name}={value}.")

    @property
    def gate_curvature(self) -> float:
        """``Q^2 L2``: Lipschitz constant of the gradient with respect to the gates."""
        return self.size**2 * self.smoothness

    @property
    def score_curvature(self) -> float:
        """``Q^2 L2 / 16 + Q L1 / (6 sqrt 3)``: the same for scores."""
        slope = SIGMOID_SLOPE**2 * self.gate_curvature
        return slope + SIGMOID_CURVATURE * self.size * self.lipschitz

    @property
    def sensitivity(self) -> float:
        """``Q L2 + L1``: change of the gates' gradient per unit of change of the update."""
        return self.size * self.smoothness + self.lipschitz

    def gate_bound(self, distance: float, rate: float, steps: int = 1) -> float:
        """Largest distance of the gates after some steps from one start.

        ``((1 + beta Q^2 L2)^n - 1) / (Q^2 L2) * (Q L2 + L1) * distance``.

        Args:
            distance: of the two updates, ``R epsilon`` in the thesis.
            rate: the step size ``beta``.
            steps: the number ``n``.
        """
        return _grown(self.gate_curvature, rate, steps) * self.sensitivity * distance

    def score_bound(self, distance: float, rate: float, steps: int = 1) -> float:
        """As :meth:`gate_bound`, for scores."""
        grown = _grown(self.score_curvature, rate, steps)
        return SIGMOID_SLOPE * grown * self.sensitivity * distance

    def convex_bound(self, distance: float, rate: float, steps: int = 1) -> float:
        """As :meth:`gate_bound`, for a convex loss: linear in the steps.

        Raises:
            ValueError: the rate is above ``2 / (Q^2 L2)``, beyond which this does not hold.
        """
        if rate * self.gate_curvature > 2:
            raise ValueError(
                f"rate must be at most 2 / (Q^2 L2) = {2 / self.gate_curvature:.4g}. "
                f"Found rate={rate}."
            )
        return steps * rate * self.sensitivity * distance


def _grown(curvature: float, rate: float, steps: int) -> float:
    """``((1 + rate curvature)^steps - 1) / curvature``, at 0 its limit ``rate steps``."""
    if curvature == 0:
        return rate * steps
    try:
        return math.expm1(steps * math.log1p(rate * curvature)) / curvature
    except OverflowError:
        return math.inf


def inner_products(one: Weights, other: Weights) -> Tensor:
    """Inner product per layer, ``(layers,)``."""
    return torch.stack([(value * other[name]).sum() for name, value in one.items()])


def layer_norms(update: Weights) -> Tensor:
    """Euclidean length per layer, ``(layers,)``."""
    return torch.stack([value.norm() for value in update.values()])


def difference(one: Weights, other: Weights) -> dict[str, Tensor]:
    """``one - other``, layer by layer."""
    return {name: value - other[name] for name, value in one.items()}


def distance(one: Weights, other: Weights) -> float:
    """Euclidean distance over all layers together."""
    return float(layer_norms(difference(one, other)).norm())


@dataclass(frozen=True, eq=False)
class LogisticRegression:
    """Logistic loss of linear scores whose weights are split into layers: ``L1``, ``L2`` are known.

    Attributes:
        features: ``(examples, layers * size)``.
        labels: ``(examples,)``, -1 or 1.
        layers: number of equal parts that the weights are split into.
    """

    features: Tensor
    labels: Tensor
    layers: int

    def __post_init__(self) -> None:
        if self.features.shape[1] % self.layers:
            raise ValueError(
                "layers must divide the number of features. "
                f"Found layers={self.layers} and {self.features.shape[1]} features."
            )

    def __call__(self, weights: Weights) -> Tensor:
        """Mean of ``log(1 + exp(-y <x, w>))``."""
        scores = self.features @ torch.cat(list(weights.values()))
        return nn.functional.softplus(-self.labels * scores).mean()

    def split_into_layers(self, weights: Tensor) -> dict[str, Tensor]:
        """One vector of weights, split into layers."""
        return {f"layer {i}": part for i, part in enumerate(weights.chunk(self.layers), start=1)}

    @property
    def lipschitz(self) -> float:
        """``L1``: each example's slope lies in [0, 1], so two bounds hold; the lower one."""
        count = len(self.features)
        spectral = float(torch.linalg.matrix_norm(self.features, 2)) / math.sqrt(count)
        return min(float(self.features.norm(dim=1).mean()), spectral)

    @property
    def smoothness(self) -> float:
        """``L2``: a quarter of the largest eigenvalue of the mean of ``x x^T``."""
        spectral = float(torch.linalg.matrix_norm(self.features, 2))
        return spectral**2 / (4 * len(self.features))

    def fine_tune(self, start: Weights, iterations: int) -> list[dict[str, Tensor]]:
        """Weights along gradient descent of rate ``1 / L2``, the start included."""
        plain = GatedLoss(self, {name: torch.zeros_like(part) for name, part in start.items()})
        all_of_it = torch.ones(len(start), dtype=self.features.dtype)
        path = [dict(start)]
        for _ in range(iterations):
            slopes = plain.layer_gradients(all_of_it, path[-1])
            path.append({n: w - slopes[n] / self.smoothness for n, w in path[-1].items()})
        return path
