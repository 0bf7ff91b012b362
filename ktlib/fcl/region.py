"""The box around the base minimum that later sessions may not leave (thesis, chapter 3, PC)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ktlib.checks import require_bound


class FlatRegion:
    """The box ``[phi* - b, phi* + b]`` (thesis, Definition 3.1 and algorithm 1).

    ``phi*`` is the value of the parameters when the region is made: make it at the end of the base
    session and keep it. A region made anew after every session would let the network walk away.

    Args:
        parameters: name -> parameter, for example :attr:`SplitNetwork.tuned`, or
            ``dict(module.named_parameters())``. They are held, not copied; their present
            values are copied as the centre.
        bound: half-width ``b``, in units of the weights; 0 freezes the parameters.
        center: name -> tensor of the parameter's shape to use as ``phi*`` instead of the present
            values, for example from a checkpoint of the base session.
        grid_step: :meth:`clamp_` first rounds the distance of every entry to ``phi*`` to a multiple
            of this, in units of the weights; 0 rounds nothing. The authors' released code: a
            quarter of its bound. Small steps are then lost altogether.

    Attributes:
        center: name -> copy of the parameter at ``phi*``.

    Raises:
        ValueError: for no parameters, a bound that is negative or not finite, a negative grid step,
            or a centre whose names or shapes are not those of the parameters.

    Example:
        >>> weight = torch.zeros(3)
        >>> region = FlatRegion({"weight": weight}, bound=0.5)
        >>> _ = weight.copy_(torch.tensor([0.2, -0.7, 3.0]))
        >>> region.clamp_()
        >>> weight
        tensor([ 0.2000, -0.5000,  0.5000])
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        bound: float,
        center: Mapping[str, Tensor] | None = None,
        *,
        grid_step: float = 0.0,
    ) -> None:
        require_bound("bound", bound)
        require_bound("grid_step", grid_step)
        if not parameters:
            raise ValueError("parameters must name at least one tensor. Found an empty mapping.")
        if center is not None:
            _require_same_shapes(parameters, center)
        self.bound = bound
        self.grid_step = grid_step
        self._parameters = dict(parameters)
        self.center = {
            name: (p if center is None else center[name]).detach().clone().to(p)
            for name, p in parameters.items()
        }
        self._lower = {name: _edge(center, -bound) for name, center in self.center.items()}
        self._upper = {name: _edge(center, bound) for name, center in self.center.items()}

    @torch.no_grad()
    def clamp_(self) -> None:
        """Parameter clamping (PC): round if asked, then move to the nearest point of the box."""
        for name, parameter in self._parameters.items():
            if self.grid_step:
                steps = ((parameter - self.center[name]) / self.grid_step).round()
                parameter.copy_(self.center[name] + self.grid_step * steps)
            parameter.clamp_(self._lower[name], self._upper[name])

    def contains(self) -> bool:
        """Whether every parameter lies in the box now, exactly (no tolerance)."""
        return self.largest_shift() <= self.bound

    def largest_shift(self) -> float:
        """``max |phi - phi*|`` over all entries, computed in float64."""
        return max(
            float((parameter.detach().double() - self.center[name].double()).abs().max())
            for name, parameter in self._parameters.items()
        )


def _require_same_shapes(parameters: Mapping[str, Tensor], center: Mapping[str, Tensor]) -> None:
    if parameters.keys() != center.keys():
        raise ValueError(
            f"center must name the parameters {sorted(parameters)}. Found {sorted(center)}."
        )
    for name, parameter in parameters.items():
        if center[name].shape != parameter.shape:
            raise ValueError(
                f"center must have the shape of the parameters. {name!r} has "
                f"{tuple(parameter.shape)}. Found {tuple(center[name].shape)}: "
                "is it from another architecture?"
            )


def _edge(center: Tensor, offset: float) -> Tensor:
    """``center + offset`` in the centre's precision, never further than ``|offset|`` from it.

    Rounding may put the sum just outside the box; it is then moved inwards by one unit in the last
    place, so that the promise of :meth:`FlatRegion.contains` is exact.
    """
    # Summed in float64: in float32 the offset itself would be rounded, perhaps outwards.
    edge = (center.double() + offset).to(center.dtype)
    outside = (edge.double() - center.double()).abs() > abs(offset)
    return torch.where(outside, torch.nextafter(edge, center), edge)
