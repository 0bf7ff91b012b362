"""The box around the base minimum that later sessions may not leave (thesis, chapter 3, PC)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ktlib.checks import require_bound


class ModelParameters(Mapping[str, nn.Parameter]):
    """Name -> parameter, looked up in the model (its ``get_parameter``) whenever it is asked for.

    So it is the model's own one, also after an assigning ``load_state_dict``, a copy or a pickle;
    a ValueError if the model has it no more.
    """

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        self.model, self.names = model, tuple(names)

    def __getitem__(self, name: str) -> nn.Parameter:
        if name not in self.names:
            raise KeyError(name)
        try:
            found: nn.Parameter = self.model.get_parameter(name)
        except AttributeError as error:
            raise ValueError(
                f"{name!r} is no longer a parameter of the model ({error}): split it, "
                "or make the region, anew."
            ) from None
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class FlatRegion:
    """The box ``[phi* - b, phi* + b]`` (thesis, Definition 3.1 and algorithm 1).

    ``phi*`` is the value of the parameters when the region is made: make it at the end of the base
    session and keep it. A region made anew after every session would let the network walk away.

    Args:
        parameters: :attr:`SplitNetwork.tuned`, or a module for all of its parameters: they are
            looked up in the model at each use. Or name -> tensor: these very tensors, also if the
            model that they were taken from has others by now.
        bound: half-width ``b``, in units of the weights; 0 freezes the parameters.
        center: name -> tensor of the parameter's shape to use as ``phi*`` instead of the present
            values, for example from a checkpoint of the base session, or ``region.center`` for a
            copy of the model.

    Attributes:
        center: name -> copy of the parameter at ``phi*``.
        clamped: name -> mask of the entries that :meth:`clamp_` has ever moved back into the box;
            a name is missing before its first clamp. Rounding to the grid does not count.

    Raises:
        ValueError: for no parameters, a bound that is negative or not finite, a negative grid step,
            or a centre that is not finite or whose names or shapes are not those of the parameters.
            At a use: the model no longer has a parameter, or it has another shape, or its precision
            has no number in the box.

    Example:
        >>> weight = torch.zeros(3)
        >>> region = FlatRegion({"weight": weight}, bound=0.5)
        >>> _ = weight.copy_(torch.tensor([0.2, -0.7, 3.0]))
        >>> region.clamp_()
        >>> weight
        tensor([ 0.2000, -0.5000,  0.5000])
        >>> round(region.share_clamped(), 2), round(region.share_at_wall(), 2)
        (0.67, 0.67)
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor] | nn.Module,
        bound: float,
        center: Mapping[str, Tensor] | None = None,
    ) -> None:
        if isinstance(parameters, nn.Module):
            parameters = ModelParameters(parameters, [n for n, _ in parameters.named_parameters()])
        if not parameters:
            raise ValueError("parameters must name at least one tensor. Found an empty mapping.")
        self._parameters = parameters
        state = {"bound": bound, "center": parameters if center is None else center}
        self.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """``bound``, copies of ``center`` and ``clamped``: for a checkpoint."""
        center, clamped = (
            {name: value.clone() for name, value in values.items()}
            for values in (self.center, self.clamped)
        )
        return {"bound": self.bound, "center": center, "clamped": clamped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the box of :meth:`state_dict`, checked; the parameters stay as they are.

        Without ``clamped``, as in states of earlier versions, no entry counts as clamped.
        """
        require_bound("bound", state["bound"])
        _require_fitting(self._parameters, state["center"])
        self.bound: float = state["bound"]
        center, clamped = state["center"], state.get("clamped", {})
        self.center: dict[str, Tensor] = {n: center[n].detach().clone() for n in self._parameters}
        self.clamped: dict[str, Tensor] = {n: mask.clone() for n, mask in clamped.items()}
        self._box: dict[str, tuple[Tensor, Tensor]] = {}
        self._now()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Parameter clamping (PC): move to the nearest point of the box."""
        for name, parameter in self._now().items():
            lower, upper = self._box[name]
            moved = (parameter < lower) | (parameter > upper)
            if name in self.clamped:
                moved |= self.clamped[name].to(moved.device)
            self.clamped[name] = moved
            parameter.clamp_(lower, upper)

    def share_clamped(self) -> float:
        """Share of the entries that :meth:`clamp_` has moved back into the box, at least once."""
        return self._share(self.clamped)

    def share_at_wall(self) -> float:
        """Share of the entries that are on the wall of the box now, or outside.

        The wall is the last number of the parameter's precision in the box, where :meth:`clamp_`
        puts what was outside. With ``bound`` 0 all is wall, and the share 1.
        """
        masks = {}
        for name, parameter in self._now().items():
            lower, upper = self._box[name]
            masks[name] = (parameter <= lower) | (parameter >= upper)
        return self._share(masks)

    def _share(self, masks: Mapping[str, Tensor]) -> float:
        count = sum(int(mask.sum()) for mask in masks.values())
        return count / sum(value.numel() for value in self.center.values())

    def contains(self) -> bool:
        """Whether every parameter lies in the box now, exactly (no tolerance); NaN does not."""
        return self.largest_shift() <= self.bound

    def largest_shift(self) -> float:
        """``max |phi - phi*|`` over all entries, computed in float64."""
        shifts = [
            float((parameter.detach().double() - self.center[name].double()).abs().max())
            for name, parameter in self._now().items()
        ]
        return float(torch.tensor(shifts, dtype=torch.float64).max())  # Python's max() skips NaN

    def require_inside(self, model: nn.Module) -> None:
        """Refuse, with a ValueError, a model that the region's parameters are not of."""
        own = set(map(id, model.parameters()))
        foreign = [name for name, parameter in self._now().items() if id(parameter) not in own]
        if foreign:
            raise ValueError(
                f"region must be of the network itself. {foreign[0]!r} is of another "
                "one, such as a copy: give FlatRegion `center=region.center`."
            )

    def _now(self) -> dict[str, Tensor]:
        """The parameters as they are now, for which the box is put right."""
        found = {name: self._parameters[name] for name in self.center}
        for name, parameter in found.items():
            center = self.center[name] = self.center[name].to(parameter.device)
            if parameter.shape != center.shape:
                raise ValueError(
                    f"{name!r} must keep its shape {tuple(center.shape)}. "
                    f"Found {tuple(parameter.shape)}."
                )
            dtype, bound = parameter.dtype, float(self.bound)
            box = self._box.get(name, (None, None))[0]
            if box is not None and (box.device, box.dtype) == (parameter.device, dtype):
                continue
            lower, upper = edge(center, -bound, dtype), edge(center, bound, dtype)
            if parameter.dtype != center.dtype and bool((lower > upper).any()):
                raise ValueError(
                    f"bound must leave a number of {parameter.dtype} in the box "
                    f"around {name!r}. Found {self.bound!r}."
                )
            self._box[name] = lower, upper
        return found


def _require_fitting(parameters: Mapping[str, Tensor], center: Mapping[str, Tensor]) -> None:
    if parameters.keys() != center.keys():
        names = sorted(parameters)
        raise ValueError(f"center must name the parameters {names}. Found {sorted(center)}.")
    for name, parameter in parameters.items():
        shapes = tuple(parameter.shape), tuple(center[name].shape)
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"center must have the shape of the parameters. {name!r} has "
                f"{shapes[0]}. Found {shapes[1]}: is it from another architecture?"
            )
        if not (parameter.is_floating_point() and center[name].is_floating_point()):
            raise ValueError(f"parameters must be floating-point numbers. {name!r} is not.")
        if not bool(torch.isfinite(center[name]).all()):
            raise ValueError(f"the centre of the box must be finite. {name!r} is not.")


def edge(center: Tensor, offset: float, dtype: torch.dtype) -> Tensor:
    """``center + offset`` in a precision, never further than ``|offset|`` from the centre.

    Rounding may put the sum just outside the box; it is then moved inwards by one unit in the last
    place, so that the promise of :meth:`FlatRegion.contains` is exact.
    """
    # Summed in float64: in float32 the offset itself would be rounded, perhaps outwards.
    found = (center.double() + offset).to(dtype)
    outside = (found.double() - center.double()).abs() > abs(offset)
    inwards = torch.full_like(found, -math.copysign(math.inf, offset))
    return torch.where(outside, torch.nextafter(found, inwards), found)
