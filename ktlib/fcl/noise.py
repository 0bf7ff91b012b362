"""Noise inside the box, for training and for measuring flatness (thesis, section 3.3)."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ktlib.checks import HALF, require_at_least, require_bound
from ktlib.fcl.region import edge

RELEASED_SHAPES = (0.3, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0)
"""Shape values of the Beta law among which the authors' released code chooses, per layer."""


def draw_noise(
    tuned: Mapping[str, Tensor],
    bound: float,
    generator: torch.Generator,
    levels: int = 0,
    shapes: Sequence[float] = (),
) -> dict[str, Tensor]:
    """One draw ``eps``, each entry inside ``[-bound, bound]`` (thesis, section 3.3).

    The thesis does not name the law. The two it could be are offered, and the one of the authors'
    released code: for each layer two shape values are chosen among ``shapes``, and the entries
    follow the Beta law of these shapes, stretched to the box and rounded to the levels.

    Args:
        tuned: name -> parameter; only shape, dtype and device are used.
        bound: half-width ``b`` of the box, in units of the weights.
        generator: of the draw. Drawn on the generator's device, then moved.
        levels: 0 for the uniform law; ``k >= 2`` for ``k`` equally spaced values from ``-bound`` to
            ``bound``, equally likely unless ``shapes`` are given.
        shapes: shape values of the Beta law, such as :data:`RELEASED_SHAPES`; needs ``levels``.

    Returns:
        name -> noise of the parameter's shape.

    Raises:
        ValueError: for a negative or non-finite bound, ``levels`` equal to 1 or negative, shapes
            that are not above 0 or come without levels.

    Example:
        >>> noise = draw_noise({"w": torch.zeros(1000)}, 0.1, torch.Generator(), levels=5)
        >>> noise["w"].unique()
        tensor([-0.1000, -0.0500,  0.0000,  0.0500,  0.1000])
    """
    require_bound("bound", bound)
    if levels < 0 or levels == 1:
        raise ValueError(f"levels must be 0 (uniform) or at least 2. Found levels={levels!r}.")
    if shapes and (levels == 0 or min(shapes) <= 0):
        raise ValueError(
            "shapes must be above 0 and come with levels >= 2. Found "
            f"shapes={tuple(shapes)!r}, levels={levels!r}."
        )
    noise = {}
    for name, parameter in tuned.items():
        values = torch.empty(parameter.shape, device=generator.device)
        if shapes:
            pick = torch.randint(len(shapes), (2,), generator=generator, device=generator.device)
            a, b = (float(shapes[i]) for i in pick.tolist())
            upto = torch.tensor(level_probabilities(levels, a, b)).cumsum(0)[:-1].to(values)
            level = torch.bucketize(values.uniform_(generator=generator), upto, right=True)
            values = (2 * bound / (levels - 1)) * level - bound
        elif levels:
            values.random_(levels, generator=generator).mul_(2 * bound / (levels - 1)).sub_(bound)
        else:
            values.uniform_(-bound, bound, generator=generator)
        noise[name] = values.to(parameter)
        if parameter.dtype in HALF:  # whose rounding may lead out of the box
            limit = float(edge(torch.zeros(()), bound, parameter.dtype))
            noise[name].clamp_(-limit, limit)
    return noise


def warn_if_lost(tuned: Mapping[str, Tensor], bound: float) -> None:
    """Warn of half-precision weights between whose neighbours the noise does not reach."""
    for weight in (each.detach() for each in tuned.values() if bound and each.dtype in HALF):
        gap = torch.finfo(weight.dtype).eps * float(weight.float().abs().mean())
        if gap > bound:
            text = f"bound={bound!r} is below the rounding of {weight.dtype} weights, {gap:.2g}: "
            warnings.warn(f"{text}noise is lost. Compute in float32.", stacklevel=3)


def level_probabilities(levels: int, a: float, b: float) -> list[float]:
    """Probability of each of ``levels`` equally spaced values in [0, 1] for a rounded Beta(a, b).

    Args:
        levels: number of values, at least 2.
        a: first shape of the Beta law.
        b: second shape.
    """
    from scipy.stats import beta  # seconds to import

    edges = [(2 * k + 1) / (2 * (levels - 1)) for k in range(levels - 1)]  # half-way points
    upto = [0.0, *(float(beta.cdf(edge, a, b)) for edge in edges), 1.0]
    return [high - low for low, high in itertools.pairwise(upto)]


def noise_variance(bound: float, levels: int = 0) -> float:
    """Variance of one entry of :func:`draw_noise`: ``b^2/3`` for the uniform law.

    Args:
        bound: half-width ``b``.
        levels: as in :func:`draw_noise`; the levels are taken as equally likely.

    Raises:
        ValueError: for a negative or non-finite bound, or ``levels`` equal to 1 or negative.

    Example:
        >>> noise_variance(1.0, levels=5)
        0.5
    """
    require_bound("bound", bound)
    if levels:
        require_at_least("levels", levels, 2)
        return bound**2 * (levels + 1) / (3 * (levels - 1))
    return bound**2 / 3
