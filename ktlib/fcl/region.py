"""The box around the base minimum that later sessions may not leave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from ktlib.checks import require_bound, require_positive


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

    Attributes:
        center: name -> copy of the parameter at ``phi*``.
        bound: half-width ``b``.

    Raises:
        ValueError: for no parameters, a bound that is negative or not finite, or a centre whose
            names or shapes are not those of the parameters.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        bound: float,
        center: Mapping[str, Tensor] | None = None,
    ) -> None:
        require_bound("bound", bound)
        if not parameters:
            raise ValueError("parameters must name at least one tensor. Found an empty mapping.")
        if center is not None:
            _require_same_shapes(parameters, center)
        self.bound = bound
        self._parameters = dict(parameters)
        self.center = {
            name: (p if center is None else center[name]).detach().clone().to(p)
            for name, p in parameters.items()
        }
        self._lower = {name: _edge(center, -bound) for name, center in self.center.items()}
        self._upper = {name: _edge(center, bound) for name, center in self.center.items()}

    @torch.no_grad()
    def clamp_(self) -> None:
        """Move every parameter to the nearest point of the box, in place."""
        for name, parameter in self._parameters.items():
            parameter.clamp_(self._lower[name], self._upper[name])

    @torch.no_grad()
    def round_(self, step: float) -> None:
        """Round every distance to the centre to a multiple of ``step``, in place.

        Raises:
            ValueError: if ``step`` is not above 0.
        """
        require_positive("step", step)
        for name, parameter in self._parameters.items():
            center = self.center[name]
            parameter.copy_(center + step * ((parameter - center) / step).round())

    def contains(self) -> bool:
        """Whether every parameter lies in the box now, exactly (no tolerance)."""
        return self.largest_shift() <= self.bound

    def largest_shift(self) -> float:
        """``max |phi - phi*|`` over all entries, computed in float64."""
        return max(
            float((parameter.detach().double() - self.center[name].double()).abs().max())
            for name, parameter in self._parameters.items()
        )

    @contextmanager
    def at_center(self) -> Iterator[None]:
        """Put ``phi*`` back for the length of a ``with`` block, then restore, bit for bit."""
        saved = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._write(self.center)
        try:
            yield
        finally:
            self._write(saved)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])


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
