"""Embeddings of many images, batch by batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def embed(module: nn.Module, images: Tensor, batch_size: int = 500) -> Tensor:
    """Outputs of ``module`` in ``eval`` mode, ``(n, ...)``, batch by batch, without gradients.

    Afterwards each layer is in the mode it was in before, also where they were not all in the same:
    the halves of a :class:`~ktlib.fcl.SplitNetwork` share layers with a network that has a mode of
    its own.
    """
    modes = {layer: layer.training for layer in module.modules()}
    module.eval()
    try:
        return torch.cat([module(batch) for batch in images.split(batch_size)])
    finally:
        for layer, training in modes.items():
            layer.training = training
