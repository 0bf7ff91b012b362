"""Sharpness-aware minimisation (SAM), the best known other way to a flat minimum.

Foret et al., "Sharpness-aware minimization for efficiently improving generalization", ICLR 2021.
Each step goes uphill by ``rho`` along the gradient, takes the gradient there, and applies it where
it started. The optimiser is that of ``pytorch_optimizer``; here is what batch norm needs around it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pytorch_optimizer import SAM


def sam_step(optimizer: SAM, network: nn.Module, compute: Callable[[], Tensor]) -> None:
    """One update, after ``backward`` of the loss at the weights themselves.

    In the second pass batch norm normalises by the batch as usual, but its running statistics stay:
    they belong to the weights, not to the point uphill.

    Args:
        optimizer: around :class:`torch.optim.SGD`; a schedule belongs to its ``base_optimizer``.
        network: holds the batch-norm layers.
        compute: the loss of the same batch once more, at the weights as they are then.
    """
    from pytorch_optimizer.optimizer.utils import disable_running_stats, enable_running_stats

    def again() -> Tensor:
        optimizer.zero_grad()
        disable_running_stats(network)
        try:
            loss = compute()
        finally:
            enable_running_stats(network)
        torch.autograd.backward(loss)
        return loss.detach()

    optimizer.step(again)  # type: ignore[arg-type]  # a float would make a GPU wait
