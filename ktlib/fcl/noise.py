"""Noise inside the box, for training and for measuring flatness (thesis, section 3.3)."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ktlib.checks import HALF, require_bound
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
    released code. There two shape values are chosen for each layer among ``shapes``. A Beta law of
    these shapes is cut into equal bins, one for each level. The bins are numbered in place, in a
    loop: what has become 1 lies in the last bin, [0.8, 1], and is numbered again when the loop gets
    there. So the second level from below never occurs, and the highest one has its share as well.
    The mean is no longer 0: of five levels and :data:`RELEASED_SHAPES` it is 0.23 ``bound``.

    Args:
        tuned: name -> parameter; only shape, dtype and device are used.
        bound: half-width ``b`` of the box, in units of the weights.
        generator: of the draw. Drawn on the generator's device, then moved.
        levels: 0 for the uniform law; ``k >= 2`` for ``k`` equally spaced values from ``-bound`` to
            ``bound``, equally likely unless ``shapes`` are given.
        shapes: shape values of the Beta law, such as :data:`RELEASED_SHAPES`; needs ``levels``. The
            ``bound_value`` of the released code is the width of its box, twice ``bound``.

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
    _require_law(bound, levels, shapes)
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
    """Probability of each level, from the lowest, in the law of the released code.

    That of Beta(a, b) in each of as many equal bins, but the second level is given the number of
    the last one: see :func:`draw_noise`.

    Args:
        levels: number of levels, at least 2.
        a: first shape of the Beta law.
        b: second shape.
    """
    from scipy.stats import beta  # seconds to import

    upto = [float(beta.cdf(k / levels, a, b)) for k in range(levels + 1)]
    found = [high - low for low, high in itertools.pairwise(upto)]
    if levels > 2:
        found[-1], found[1] = found[-1] + found[1], 0.0
    return found


def noise_mean(bound: float, levels: int = 0, shapes: Sequence[float] = ()) -> float:
    """Mean of one entry of :func:`draw_noise`: 0, except for the law of the released code.

    Args:
        bound: half-width ``b``.
        levels: as in :func:`draw_noise`.
        shapes: as in :func:`draw_noise`; the mean is over the choice of the two as well.

    Raises:
        ValueError: as :func:`draw_noise`.

    Example:
        >>> round(noise_mean(1.0, 5, RELEASED_SHAPES), 4)
        0.2349
    """
    _require_law(bound, levels, shapes)
    return bound * _moment(1, levels, shapes) if shapes else 0.0


def noise_variance(bound: float, levels: int = 0, shapes: Sequence[float] = ()) -> float:
    """Variance of one entry of :func:`draw_noise`: ``b^2/3`` for the uniform law.

    Args:
        bound: half-width ``b``.
        levels: as in :func:`draw_noise`.
        shapes: as in :func:`draw_noise`; the variance is over the choice of the two as well.

    Raises:
        ValueError: as :func:`draw_noise`.

    Example:
        >>> noise_variance(1.0, levels=5)
        0.5
    """
    _require_law(bound, levels, shapes)
    if shapes:
        return bound**2 * (_moment(2, levels, shapes) - _moment(1, levels, shapes) ** 2)
    return bound**2 * (levels + 1) / (3 * (levels - 1)) if levels else bound**2 / 3


def _moment(power: int, levels: int, shapes: Sequence[float]) -> float:
    """Mean of a power of an entry of the released law in the box [-1, 1]."""
    pairs = [*itertools.product(shapes, repeat=2)]
    values = [(2 * k / (levels - 1) - 1) ** power for k in range(levels)]
    laws = (level_probabilities(levels, a, b) for a, b in pairs)
    return sum(p * value for law in laws for p, value in zip(law, values, strict=True)) / len(pairs)


def _require_law(bound: float, levels: int, shapes: Sequence[float]) -> None:
    require_bound("bound", bound)
    if levels < 0 or levels == 1:
        raise ValueError(f"levels must be 0 (uniform) or at least 2. Found levels={levels!r}.")
    if shapes and (levels == 0 or min(shapes) <= 0):
        raise ValueError(
            "shapes must be above 0 and come with levels >= 2. Found "
            f"shapes={tuple(shapes)!r}, levels={levels!r}."
        )
