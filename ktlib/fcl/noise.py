"""Noise inside the box: the draws that F2M trains under and that flatness is measured with."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ktlib.fcl.checks import require_bound


def draw_noise(
    tuned: Mapping[str, Tensor], bound: float, generator: torch.Generator, levels: int = 0
) -> dict[str, Tensor]:
    """One draw ``eps``, each entry inside ``[-bound, bound]`` (thesis, section 3.3).

    The thesis does not name the law; the two it could be are offered.

    Args:
        tuned: name -> parameter; only shape, dtype and device are used.
        bound: half-width ``b`` of the box, in units of the weights.
        generator: source of the draw. Drawn on the generator's device, then moved.
        levels: 0 for the uniform law; ``k >= 2`` for ``k`` equally spaced and equally likely values
            from ``-bound`` to ``bound``.

    Returns:
        name -> noise of the parameter's shape.

    Raises:
        ValueError: for a negative or non-finite bound, or ``levels`` equal to 1 or negative.
    """
    require_bound("bound", bound)
    if levels < 0 or levels == 1:
        raise ValueError(f"levels must be 0 (uniform) or at least 2. Found levels={levels!r}.")
    noise = {}
    for name, parameter in tuned.items():
        values = torch.empty(parameter.shape, device=generator.device)
        if levels:
            values.random_(levels, generator=generator).mul_(2 * bound / (levels - 1)).sub_(bound)
        else:
            values.uniform_(-bound, bound, generator=generator)
        noise[name] = values.to(parameter)
    return noise


def noise_variance(bound: float, levels: int = 0) -> float:
    """Variance of one entry of :func:`draw_noise`: ``b^2/3`` for the uniform law."""
    require_bound("bound", bound)
    if levels:
        return bound**2 * (levels + 1) / (3 * (levels - 1))
    return bound**2 / 3 if math.isfinite(bound) else math.nan
