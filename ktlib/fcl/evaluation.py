"""Embeddings of many images, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into ``eval`` mode for a ``with`` block, then each layer back into its own."""
    modes = {layer: layer.training for layer in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for layer, training in modes.items():
            layer.training = training


@torch.no_grad()
def embed(module: nn.Module, images: Tensor, batch_size: int = 500) -> Tensor:
    """Embeddings ``(n, dim)`` of images ``(n, ...)``, in ``eval`` mode and without gradients.

    Afterwards each layer is in its mode of before: halves of a split share layers with a network.

    Args:
        module: network, or the prefix or tail of a :class:`~ktlib.fcl.SplitNetwork`.
        images: ``(n, ...)``, at least one.
        batch_size: images per pass.

    Example:
        >>> embed(nn.Flatten(), torch.zeros(5, 1, 2, 2), batch_size=2).shape
        torch.Size([5, 4])
    """
    with evaluating(module):
        return torch.cat([module(batch) for batch in images.split(batch_size)])
