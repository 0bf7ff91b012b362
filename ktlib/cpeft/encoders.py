"""An encoder that learners copy, what it is given and what it has to return."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ktlib.checks import HALF, images_for, widened


def feature_dim(backbone: nn.Module) -> int:
    """Number of features of an encoder: its attribute ``dim``.

    Raises:
        ValueError: it has no such attribute.
    """
    dim = getattr(backbone, "dim", None)
    if not isinstance(dim, int):
        raise ValueError(  # noqa: TRY004 - most often there is none at all
            "backbone must give its number of features in the attribute `dim`. "
            f"{type(backbone).__name__} has dim={dim!r}."
        )
    return dim


def frozen_copy(backbone: nn.Module) -> nn.Module:
    """A copy in evaluation mode and without gradients, as adapters and hooks need it.

    What :func:`torch.compile` made of it is left out, as it would not see them. An encoder of half
    precision is copied in float32: Adam's squares vanish in float16, and updates that are merged
    into weights in bfloat16.
    """
    network = copy.deepcopy(getattr(backbone, "_orig_mod", backbone))
    for name, module in list(network.named_modules()):
        if hasattr(module, "_orig_mod"):
            network.set_submodule(name, network.get_submodule(f"{name}._orig_mod"))
    if any(parameter.dtype in HALF for parameter in network.parameters()):
        network = network.float()
    return network.eval().requires_grad_(False)


def encode(backbone: nn.Module, images: Tensor) -> Tensor:
    """``(n, dim)`` features, of images that are moved to the encoder first.

    Raises:
        ValueError: integers that the encoder does not take, or it returns something else.
    """
    with images_for(backbone, images) as given:
        features = backbone(given)
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(given):
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(
            f"backbone must return features ({len(given)}, dim) of {len(given)} "
            f"images. Found {shape}."
        )
    return widened(features)


def device_of(backbone: nn.Module) -> torch.device:
    """Where its parameters are; the CPU without any."""
    return next((p.device for p in backbone.parameters()), torch.device("cpu"))
