"""Other choices of layers, against which those of Recon are measured (thesis, 4.15 and 4.16)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

CONTROLS = ("random_layers", "random_parameters", "first", "last")
"""RSL, RSP, first-K and last-K of the thesis."""


def control_layers(
    control: str,
    layers: Mapping[str, Sequence[nn.Parameter]],
    chosen: Sequence[str],
    generator: torch.Generator,
) -> list[str]:
    """Layers that are chosen without looking at conflicts.

    Args:
        control: ``random_layers``, ``first`` or ``last``: as many layers as are chosen;
            ``random_parameters``: layers in random order, each taken if it does not bring the
            number of parameters above that of the chosen ones.
        layers: all layers of the trunk, name -> parameters, in the order of the network.
        chosen: the layers that Recon found.
        generator: of the random choices.

    Returns:
        Names in the order of the network.

    Raises:
        ValueError: for an unknown control or layer.
    """
    if control not in CONTROLS:
        raise ValueError(f"control must be one of {CONTROLS}. Found {control!r}.")
    unknown = [name for name in chosen if name not in layers]
    if unknown:
        raise ValueError(f"chosen must be layers of {list(layers)}. Found {unknown}.")
    names, count = list(layers), len(chosen)
    if control == "first":
        return names[:count]
    if control == "last":
        return names[len(names) - count :]
    order = torch.randperm(len(names), generator=generator).tolist()
    if control == "random_layers":
        return [names[i] for i in sorted(order[:count])]
    left = sum(parameter_count(layers[name]) for name in chosen)
    taken = []
    for i in order:
        size = parameter_count(layers[names[i]])
        if size <= left:
            taken.append(i)
            left -= size
    return [names[i] for i in sorted(taken)]


def parameter_count(layer: Sequence[nn.Parameter]) -> int:
    """Number of weights of a layer."""
    return sum(parameter.numel() for parameter in layer)
