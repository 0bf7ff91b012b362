"""The loss around the present weights of the tuned layers, along a line and on a plane.

A point of the line is ``phi* + t * direction``; a point of the plane is
``phi* + s * first + t * second``. The weights themselves are never written to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import ConvexHull
from torch import Tensor

from ktlib.checks import require_at_least, require_bound
from ktlib.fcl.flatness import losses_around
from ktlib.fcl.noise import draw_noise
from ktlib.fcl.split import SplitNetwork


def random_direction(
    split: SplitNetwork, generator: torch.Generator, scale: Literal["box", "filter"] = "box"
) -> dict[str, Tensor]:
    """Draw a direction in the space of the tuned weights.

    With ``scale="box"`` every entry is uniform in [-1, 1]: ``b`` times the direction is a random
    point of the box of half-width ``b``, as :func:`ktlib.fcl.draw_noise` gives it.

    With ``scale="filter"`` the entries are Gaussian, and each filter is then stretched to the norm
    of the same filter of the weights (Li et al., 2018, section 4). Networks with ReLU or batch norm
    can compute the same with weights of another size; this takes the size out of a comparison. A
    filter is a slice of the first dimension of the weight: an output channel of a convolution, a
    row of a linear layer. A filter of zeros gets zeros.

    Args:
        split: the network, from :func:`ktlib.fcl.split_network`.
        generator: of the draw. The same seed gives the same draw for two networks of one
            shape; with ``"filter"`` each then has filter norms of its own.
        scale: ``"box"`` or ``"filter"``.

    Returns:
        name -> tensor of the tuned parameter's shape.

    Raises:
        ValueError: for another ``scale``.
    """
    if scale == "box":
        return draw_noise(split.tuned, 1.0, generator)
    if scale == "filter":
        return {name: _like_filters(w.detach(), generator) for name, w in split.tuned.items()}
    raise ValueError(f"scale must be 'box' or 'filter'. Found scale={scale!r}.")


def loss_along(
    split: SplitNetwork,
    classifier: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    direction: Mapping[str, Tensor],
    distances: Iterable[float],
    *,
    batch_size: int = 512,
) -> Tensor:
    """Mean cross-entropy at ``phi* + t * direction`` for every ``t`` in ``distances``.

    The features in front of the first tuned layer are computed once. The network is run in
    ``eval`` mode, and each layer is left in the mode it had.

    Args:
        split: the network; ``phi*`` is the present value of its tuned weights.
        classifier: embeddings ``(batch, dim)`` -> scores ``(batch, classes)``; never moved.
        images: ``(n, ...)``.
        labels: ``(n,)`` integers.
        direction: name -> tensor of the tuned parameter's shape, for example from
            :func:`random_direction`.
        distances: multiples ``t`` of the direction, of either sign.
        batch_size: images per pass; changes memory, not the result beyond rounding.

    Returns:
        ``(len(distances),)`` losses, in float64 on the CPU.

    Raises:
        ValueError: for a direction whose names or shapes are not those of the tuned weights,
            distances that are missing or not finite, or no images.
    """
    _require_direction("direction", split, direction)
    steps = _finite("distances", distances)
    shifts = ({name: t * value for name, value in direction.items()} for t in steps)
    return losses_around(split, classifier, images, labels, shifts, batch_size=batch_size)


def loss_plane(
    split: SplitNetwork,
    classifier: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    distances: Iterable[float],
    *,
    batch_size: int = 512,
) -> Tensor:
    """Mean cross-entropy at ``phi* + s * first + t * second``, as :func:`loss_along` computes it.

    Args:
        split: the network; ``phi*`` is the present value of its tuned weights.
        classifier: embeddings ``(batch, dim)`` -> scores ``(batch, classes)``; never moved.
        images: ``(n, ...)``.
        labels: ``(n,)`` integers.
        first: name -> tensor of the tuned parameter's shape.
        second: the same for the other axis.
        distances: multiples ``s`` of ``first`` and ``t`` of ``second``.
        batch_size: images per pass; changes memory, not the result beyond rounding.

    Returns:
        ``(len(distances), len(distances))`` losses, in float64 on the CPU: row ``i`` holds those at
        ``s = distances[i]``.

    Raises:
        ValueError: as :func:`loss_along`.
    """
    _require_direction("first", split, first)
    _require_direction("second", split, second)
    steps = _finite("distances", distances)
    shifts = (
        {name: s * first[name] + t * second[name] for name in first} for s in steps for t in steps
    )
    losses = losses_around(split, classifier, images, labels, shifts, batch_size=batch_size)
    return losses.reshape(len(steps), len(steps))


def box_reach(direction: Mapping[str, Tensor], bound: float) -> float:
    """How far one can go along a direction, both ways, before leaving the box.

    Args:
        direction: name -> tensor.
        bound: half-width ``b`` of the box, in units of the weights.

    Returns:
        The largest ``t`` with ``|t * entry| <= b`` for every entry: ``b / max |entry|``, or
        infinity for a direction of zeros.

    Raises:
        ValueError: for a bound that is negative or not finite, or a direction without tensors.
    """
    require_bound("bound", bound)
    require_at_least("number of tensors in direction", len(direction), 1)
    largest = max(float(value.detach().double().abs().max()) for value in direction.values())
    if largest == 0:
        return math.inf
    reach = bound / largest
    # Rounding may have put the product just outside the box: one unit in the last place back.
    return reach if reach * largest <= bound else math.nextafter(reach, 0)


def box_polygon(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], bound: float
) -> NDArray[np.float64]:
    """The part of a plane that lies in the box, as a polygon to draw.

    A point ``(s, t)`` of the plane is in the box when ``|s * u_i + t * v_i| <= b`` for every entry
    ``u_i`` of ``first`` and ``v_i`` of ``second``. There are as many such strips as weights, and
    their common part is a polygon that is symmetric about the origin: in general not a square.

    The polygon is computed by polar duality. A strip only matters if ``(u_i, v_i)`` is a corner of
    the convex hull of all these points and their negatives; and the hull's side on the line
    ``n . x = h`` gives the corner ``b * n / h`` of the polygon.

    Args:
        first: name -> tensor.
        second: name -> tensor, with the names and shapes of ``first``.
        bound: half-width ``b`` of the box, in units of the weights.

    Returns:
        ``(k, 2)`` corners ``(s, t)``, in counter-clockwise order, up to rounding in float64.

    Raises:
        ValueError: for a bound that is negative or not finite, directions of other names or shapes,
            or parallel directions, for which the strips leave an endless band.
    """
    require_bound("bound", bound)
    _require_same("second", {name: value.shape for name, value in first.items()}, second)
    points = np.stack([_flat(first), _flat({name: second[name] for name in first})], axis=1)
    size = np.abs(points).max(axis=0, initial=0.0)
    if size.min() == 0 or _parallel(points / size):
        raise ValueError(
            "first and second must be two directions that are not parallel and not zero: "
            "otherwise the part of the plane in the box has no end."
        )
    points /= size  # both axes of one size: the hull's tolerance is the same along each
    sides = ConvexHull(np.concatenate([points, -points])).equations  # n . x + offset = 0
    corners = -sides[:, :2] / sides[:, 2:]
    around = np.argsort(np.arctan2(corners[:, 1], corners[:, 0]))
    polygon: NDArray[np.float64] = bound * corners[around] / size
    return polygon


def _like_filters(weight: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(weight.shape, generator=generator, device=generator.device).to(weight)
    wanted, found = (x.reshape(len(x), -1).double().norm(dim=1) for x in (weight, drawn))
    factor = (wanted / found).to(weight)
    direction: Tensor = drawn * factor.reshape(-1, *[1] * (weight.dim() - 1))
    return direction


def _finite(name: str, values: Iterable[float]) -> list[float]:
    numbers = [float(value) for value in values]
    if not numbers or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"{name} must be finite numbers, at least one. Found {name}={numbers!r}.")
    return numbers


def _require_direction(name: str, split: SplitNetwork, direction: Mapping[str, Tensor]) -> None:
    _require_same(name, {key: weight.shape for key, weight in split.tuned.items()}, direction)


def _require_same(
    name: str, shapes: Mapping[str, torch.Size], direction: Mapping[str, Tensor]
) -> None:
    if direction.keys() != shapes.keys():
        raise ValueError(f"{name} must name {sorted(shapes)}. Found {sorted(direction)}.")
    for key, shape in shapes.items():
        if direction[key].shape != shape:
            raise ValueError(
                f"{name} must have the shape {tuple(shape)} at {key!r}. "
                f"Found {tuple(direction[key].shape)}."
            )


def _flat(direction: Mapping[str, Tensor]) -> NDArray[np.float64]:
    """All entries in one row; an empty mapping gives an empty row."""
    parts = [value.detach().double().cpu().numpy().ravel() for value in direction.values()]
    return np.concatenate([np.empty(0), *parts])


def _parallel(points: NDArray[np.float64]) -> bool:
    """Whether the two columns differ from parallel by no more than the rounding of float32."""
    first, second = (column / np.linalg.norm(column) for column in points.T)
    return bool(1 - abs(first @ second) < 1e-12)  # the square of an angle of about 1e-6
