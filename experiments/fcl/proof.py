"""Numbers behind the convergence proof of F2M: ``chapters/proofs/fcl.py`` explains each of them.

A gradient with noise has two random sources: the batch ``z`` and the weight noise ``eps``. The
variance of a random vector is meant as one number, ``V[X] = E||X - E X||^2``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from experiments.fcl.parameters import SIZES, Count, NetworkParameters, Studied
from ktlib.checks import require_at_least, require_bound
from ktlib.fcl.f2m import f2m_loss
from ktlib.fcl.noise import noise_variance
from ktlib.fcl.split import SplitNetwork

Batch = TypeVar("Batch")


class FclProofParameters(NetworkParameters):
    """Parameters of ``chapters/proofs/fcl.py``."""

    dataset: Literal["pairs", "digits"] = Field(description="images of the network")
    classes: int = Field(ge=2, description="classes that the network learns")
    images: int = Field(ge=2, description="training images per class")
    variance_batches: int = Field(
        ge=2, le=10_000, description="batches z that a variance is measured over"
    )
    variance_draws: int = Field(
        ge=2, le=10_000, description="noise draws per batch of the nested sampling"
    )
    averaged_draws: Annotated[Studied[Count], Field(min_length=2)] = Field(
        description="numbers M of averaged draws"
    )
    dimension: int = Field(ge=2, le=50, description="parameters of the noisy quadratic")
    steps: int = Field(ge=100, le=10_000_000, description="SGD steps on the noisy quadratic")
    repetitions: int = Field(ge=2, le=100_000, description="simulated paths per seed")

    @model_validator(mode="after")
    def _fits_the_data(self) -> Self:
        sizes = SIZES[self.dataset]
        for name, most in (
            ("classes", sizes.classes),
            ("images", sizes.train),
            ("batch_size", self.classes * self.images),
        ):
            found = getattr(self, name)
            if found > most:
                raise ValueError(
                    f"{name} must be at most {most}, the number available. Found {name}={found}"
                )
        return self


@dataclass(frozen=True)
class GradientVariance:
    """Variance of a gradient, split by its sources with the law of total variance.

    Attributes:
        batch: ``V_z(E_eps[g|z])``. As an estimate it can fall below 0 by chance.
        noise: ``E_z[V_eps(g|z)]``.
        squared_gradient: ``||E g||^2``; as an estimate it can fall below 0 by chance.
    """

    batch: float
    noise: float
    squared_gradient: float = math.nan

    def repaired(self, draws: int) -> float:
        """Variance of the mean of M draws on one batch: ``V_z + V_eps / M`` (erratum E1)."""
        return self.batch + self.noise / draws

    def printed(self, draws: int) -> float:
        """What (3.19) of the thesis prints: ``(V_z + V_eps) / M``."""
        return (self.batch + self.noise) / draws


def gradient_variance(
    gradient: Callable[[Batch], Tensor], batches: Sequence[Batch], draws: int
) -> GradientVariance:
    """Both parts of the variance of a gradient, by nested sampling.

    For each batch, ``draws`` gradients are taken. Their spread within a batch estimates the noise
    part; the spread of the means over batches, less what the noise leaves in them, the batch part
    (analysis of variance with random effects). Both estimates are unbiased for independent batches.

    Args:
        gradient: batch -> ``(parameters,)`` one gradient, with a fresh noise draw at each call.
        batches: at least two, drawn independently.
        draws: gradients per batch, at least 2.

    Raises:
        ValueError: for fewer than two batches or draws.
    """
    require_at_least("len(batches)", len(batches), 2)
    require_at_least("draws", draws, 2)
    means, within = [], []
    for batch in batches:
        sample = torch.stack([gradient(batch).double() for _ in range(draws)])
        means.append(sample.mean(dim=0))
        within.append(_total_variance(sample))
    noise = sum(within) / len(within)
    between = _total_variance(torch.stack(means))
    squared = float(torch.stack(means).mean(dim=0).square().sum())
    return GradientVariance(between - noise / draws, noise, squared - between / len(batches))


def measured_variance(gradient: Callable[[Batch], Tensor], batches: Sequence[Batch]) -> float:
    """Variance of a gradient over independent batches, one gradient each: no split, no formula.

    Raises:
        ValueError: for fewer than two batches.
    """
    require_at_least("len(batches)", len(batches), 2)
    return _total_variance(torch.stack([gradient(batch).double() for batch in batches]))


def network_gradient(
    split: SplitNetwork,
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    **settings: Any,
) -> Tensor:
    """Gradient of :func:`ktlib.fcl.f2m_loss` with respect to all parameters, as one vector.

    Batch norm works as in the mode that the network is in; in training mode each call moves its
    running statistics, which no gradient in that mode depends on.

    Args:
        split: the network.
        classifier: the linear layer on its embeddings.
        images: ``(batch, ...)``.
        labels: ``(batch,)``.
        **settings: of ``f2m_loss``: ``bound``, ``draws``, ``prototype_weight``, ``generator``.

    Returns:
        ``(parameters,)``, those of the network, then those of the classifier.
    """
    loss = f2m_loss(split, classifier, images, labels, **settings).total
    parameters = [*split.network.parameters(), *classifier.parameters()]
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)])


@dataclass(frozen=True)
class NoisyQuadratic:
    """A risk whose constants are all known, with batch noise and weight noise as in F2M.

    ``L(z; theta) = (1 + u)/2 sum_i h_i (theta_i - t_i)^2 + xi . (theta - t)`` with the batch
    ``z = (u, xi)``: ``u = +-tau`` with equal chance, ``xi`` normal with variance ``sigma^2`` in
    each coordinate. Uniform noise from ``[-b, b]`` is added to the first coordinates, which stand
    for ``phi``; the others stand for ``psi``. One gradient is then
    ``g = (1 + u) h * (theta + eps - t) + xi``, with mean ``grad R = h * (theta - t)`` and variance

    - batch part ``d sigma^2 + tau^2 ||grad R||^2``,
    - noise part ``(1 + tau^2) b^2/3 sum_phi h_i^2``,

    both with equality: no smaller m1 and m2 are possible.

    Attributes:
        curvatures: ``(d,)`` the ``h_i``, above 0.
        optimum: ``(d,)`` the minimiser ``t``.
        perturbed: number of coordinates, the first ones, that get noise.
        bound: half-width ``b``.
        batch_std: ``sigma``.
        batch_scale: ``tau``.
    """

    curvatures: Tensor
    optimum: Tensor
    perturbed: int
    bound: float
    batch_std: float
    batch_scale: float

    def __post_init__(self) -> None:
        if self.curvatures.shape != self.optimum.shape or self.curvatures.ndim != 1:
            raise ValueError(
                "curvatures and optimum must be vectors of one length. "
                f"Found {tuple(self.curvatures.shape)} and {tuple(self.optimum.shape)}."
            )
        if not bool((self.curvatures > 0).all()):
            raise ValueError(f"curvatures must be above 0. Found {float(self.curvatures.min())}.")
        if not 0 <= self.perturbed <= len(self.curvatures):
            raise ValueError(
                f"perturbed must be between 0 and {len(self.curvatures)}. Found {self.perturbed!r}."
            )
        for name in ("bound", "batch_std", "batch_scale"):
            require_bound(name, getattr(self, name))

    @property
    def smoothness(self) -> float:
        """``L``: the largest curvature."""
        return float(self.curvatures.max())

    @property
    def gradient_smoothness(self) -> float:
        """``L_2``, the smoothness of ``F = ||grad R||^2``, whose Hessian is ``2 h_i^2``."""
        return 2 * self.smoothness**2

    @property
    def lowest_risk(self) -> float:
        """``R_inf``: the noise costs ``b^2/6`` times the curvature also at the minimum."""
        return float(self.curvatures[: self.perturbed].sum()) * noise_variance(self.bound) / 2

    def constants(self, draws: int) -> tuple[float, float]:
        """The smallest ``m1, m2`` with ``V[g_bar] <= m1 + m2 ||grad R||^2`` for M draws a batch."""
        require_at_least("draws", draws, 1)
        return float(self._spread(draws).sum()), self.batch_scale**2

    def printed_constants(self, draws: int) -> tuple[float, float]:
        """``m1/M, m2/M``: what (3.19) of the thesis prints, with ``m1, m2`` of a single draw."""
        m1, m2 = self.constants(1)
        return m1 / draws, m2 / draws

    def risk(self, theta: Tensor) -> Tensor:
        """``R(theta)``, the loss averaged over batches and noise; ``theta`` is ``(..., d)``."""
        away = (theta - self.optimum).square() @ self.curvatures
        return away / 2 + self.lowest_risk

    def gradient(self, theta: Tensor) -> Tensor:
        """``grad R(theta)``, shape ``(..., d)``."""
        return self.curvatures * (theta - self.optimum)

    def draw_batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``count`` batches: ``u`` of shape ``(count, 1)`` and ``xi`` of shape ``(count, d)``."""
        sign = torch.randint(2, (count, 1), generator=generator) * 2 - 1
        shape = (count, len(self.curvatures))
        xi = torch.randn(shape, generator=generator, dtype=self.curvatures.dtype)
        return self.batch_scale * sign.to(xi), self.batch_std * xi

    def batch_gradient(
        self, theta: Tensor, batch: tuple[Tensor, Tensor], draws: int, generator: torch.Generator
    ) -> Tensor:
        """``g_bar``: the mean over ``draws`` noise draws that share a batch, shape ``(n, d)``."""
        scale, xi = batch
        noise = torch.zeros_like(xi)
        values = torch.rand(
            (draws, len(xi), self.perturbed), generator=generator, dtype=xi.dtype
        ).mean(dim=0)
        noise[:, : self.perturbed] = self.bound * (2 * values - 1)
        return (1 + scale) * self.curvatures * (theta + noise - self.optimum) + xi

    def simulate(
        self,
        start: Tensor,
        steps: Sequence[float],
        draws: int,
        repetitions: int,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Independent runs of SGD (3.8) from one start.

        Returns:
            ``(len(steps) + 1, repetitions)``: ``F_k = ||grad R(theta_k)||^2`` for k = 0, 1, ...
            ``(len(steps), repetitions)``: ``E_k F_{k+1}``, the exact mean of the next value over
            batch and noise of step k, with ``theta_k`` given.
        """
        require_at_least("repetitions", repetitions, 1)
        theta, spread = start.repeat(repetitions, 1), self._spread(draws)
        norms, ahead = [self.gradient(theta).square().sum(dim=1)], []
        for step in steps:
            moments = self._next_moments((theta - self.optimum).square(), step, spread)
            ahead.append(moments @ self.curvatures.square())
            batch = self.draw_batch(repetitions, generator)
            theta = theta - step * self.batch_gradient(theta, batch, draws, generator)
            norms.append(self.gradient(theta).square().sum(dim=1))
        return torch.stack(norms), torch.stack(ahead)

    def expected(self, start: Tensor, steps: Sequence[float], draws: int) -> tuple[Tensor, Tensor]:
        """Exact ``E R(theta_k)`` and ``E ||grad R(theta_k)||^2`` of SGD, without sampling.

        Returns:
            Two tensors ``(len(steps) + 1,)``.
        """
        h, spread = self.curvatures, self._spread(draws)
        moments = [(start - self.optimum).square()]
        for step in steps:
            moments.append(self._next_moments(moments[-1], step, spread))
        second = torch.stack(moments)
        return second @ h / 2 + self.lowest_risk, second @ h.square()

    def floor(self, step: float, draws: int) -> float:
        """Limit of ``E ||grad R||^2`` under one constant step: the recursion's fixed point.

        Raises:
            ValueError: the step is too large for the recursion to converge.
        """
        h = self.curvatures
        stable = 2 - step * h * (1 + self.batch_scale**2)
        if not (step > 0 and bool((stable > 0).all())):
            largest = 2 / (self.smoothness * (1 + self.batch_scale**2))
            raise ValueError(f"step must be above 0 and below {largest:g}. Found step={step!r}.")
        return float((step * self._spread(draws) * h / stable).sum())

    def _next_moments(self, moments: Tensor, step: float, spread: Tensor) -> Tensor:
        """``E (theta_i - t_i)^2`` of each coordinate after a step, from those before it.

        ``s_i <- ((1 - a h_i)^2 + a^2 h_i^2 tau^2) s_i + a^2 v_i`` for a step ``a``, where ``v_i``
        is the variance of coordinate i of ``g_bar`` at the optimum.
        """
        h = self.curvatures
        factor = (1 - step * h).square() + (step * h * self.batch_scale).square()
        return factor * moments + step**2 * spread

    def _spread(self, draws: int) -> Tensor:
        """``(d,)`` variance of each coordinate of ``g_bar`` at the optimum."""
        spread = torch.full_like(self.curvatures, self.batch_std**2)
        noisy = self.curvatures[: self.perturbed].square() * noise_variance(self.bound) / draws
        spread[: self.perturbed] += (1 + self.batch_scale**2) * noisy
        return spread


def rises_and_falls(increments: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the rises, ``A+``, and of the falls, ``A-``, up to each step.

    Args:
        increments: ``(steps, ...)``.

    Returns:
        Two tensors of the same shape that never decrease; ``A+ - A-`` is the sum of increments.
    """
    return increments.clamp(min=0).cumsum(dim=0), (-increments).clamp(min=0).cumsum(dim=0)


def halvings(curve: Tensor) -> tuple[int, int]:
    """How often a curve at least halves when the number of steps grows fourfold.

    A sequence that keeps doing so goes to zero; one that ends at a floor stops doing so. Looked at
    are the last index ``K`` and ``K/4``, ``K/16``, ... as long as they are at least 20.

    Args:
        curve: ``(K + 1,)`` values at the steps 0, 1, ..., K.

    Returns:
        The number of fourfold stretches over which it halves, and the number of stretches.

    Raises:
        ValueError: the curve has fewer than 80 steps, so not one stretch.
    """
    ends = [len(curve) - 1]
    require_at_least("len(curve) - 1", ends[0], 80)
    while ends[-1] // 4 >= 20:
        ends.append(ends[-1] // 4)
    values = curve[ends]
    return int((values[:-1] <= values[1:] / 2).sum()), len(ends) - 1


def train_under_noise(
    loss: Callable[[Tensor], Tensor],
    start: float,
    bound: float,
    steps: Sequence[float],
    runs: int,
    generator: torch.Generator,
) -> Tensor:
    """SGD on a loss of one weight with fresh uniform noise from ``[-b, b]`` in each step.

    The slope taken at ``w + eps`` is applied at ``w``, as in (3.8) with one draw.

    Args:
        loss: weights ``(runs,)`` -> their losses, by operations that autograd knows.
        start: first weight of every run.
        bound: half-width ``b``.
        steps: step sizes.
        runs: independent runs.
        generator: of the noise.

    Returns:
        ``(runs,)`` the last weights.
    """
    w = torch.full((runs,), start, dtype=torch.float64)
    for step in steps:
        noise = bound * (2 * torch.rand(runs, generator=generator, dtype=w.dtype) - 1)
        w = w - step * _slope(loss, w + noise)
    return w


def smoothed_slope(loss: Callable[[Tensor], Tensor], w: Tensor, bound: float) -> Tensor:
    """``R'(w) = (L(w + b) - L(w - b)) / 2b``, the slope of the loss averaged over the box."""
    return (loss(w + bound) - loss(w - bound)) / (2 * bound)


@dataclass(frozen=True)
class Surroundings:
    """A loss of one weight within the box around 0 and beyond it, looked at on a fine grid.

    The first two fields are what condition 1 of Definition 3.1 bounds; the others are four ways to
    understand that the loss rises beyond the box.

    Attributes:
        variation: largest difference to ``L(0)`` within the box.
        slope: largest absolute slope within the box.
        everywhere: higher than ``L(0)`` at every point beyond the box.
        next_to: higher than ``L(0)`` in a strip next to each edge, a tenth of ``b`` wide.
        from_edge: rising outwards from each edge, all through that strip.
        at_last: higher than ``L(0)`` at both ends of the grid.
    """

    variation: float
    slope: float
    everywhere: bool
    next_to: bool
    from_edge: bool
    at_last: bool


def surroundings(
    loss: Callable[[Tensor], Tensor], bound: float, reach: float = 20.0
) -> Surroundings:
    """Look at a loss of one weight around 0.

    Args:
        loss: weights ``(n,)`` -> their losses, by operations that autograd knows.
        bound: half-width ``b`` of the box.
        reach: how far to look, in half-widths, at least 2.
    """
    require_at_least("reach", reach, 2)
    middle = loss(torch.zeros(1, dtype=torch.float64))
    box = torch.linspace(-bound, bound, 2001, dtype=torch.float64)
    strip = bound * torch.linspace(1, 1.1, 201, dtype=torch.float64)
    outside = bound * torch.linspace(1, reach, 20_001, dtype=torch.float64)[1:]
    sides = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    higher, near = loss(sides * outside) > middle, loss(sides * strip)
    return Surroundings(
        variation=float((loss(box) - middle).abs().max()),
        slope=float(_slope(loss, box).abs().max()),
        everywhere=bool(higher.all()),
        next_to=bool((near[:, 1:] > middle).all()),
        from_edge=bool((near.diff(dim=1) > 0).all()),
        at_last=bool(higher[:, -1].all()),
    )


def _slope(loss: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
    """Slope of a loss at each of several weights."""
    at = w.detach().requires_grad_()
    (slope,) = torch.autograd.grad(loss(at).sum(), at)
    return slope


def _total_variance(sample: Tensor) -> float:
    """Unbiased ``E||X - E X||^2`` from the rows of ``(n, d)``."""
    return float((sample - sample.mean(dim=0)).square().sum() / (len(sample) - 1))
