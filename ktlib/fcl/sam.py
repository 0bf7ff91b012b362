"""Sharpness-aware minimisation (SAM), the best known other way to a flat minimum.

Foret et al., "Sharpness-aware minimization for efficiently improving generalization", ICLR 2021.
The optimiser is that of ``pytorch_optimizer``; here is what batch norm needs around it. Each step
goes uphill by ``rho`` along the gradient, takes the gradient there, and applies it where it
started.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ktlib.checks import require_at_least

if TYPE_CHECKING:
    from pytorch_optimizer import SAM


def sam_optimizer(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    *,
    radius: float,
    adaptive: bool,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> SAM:
    """SAM around :class:`torch.optim.SGD`; a schedule belongs to its ``base_optimizer``.

    Args:
        parameters: what is trained, or groups of it as :class:`torch.optim.Optimizer` takes them.
        radius: ``rho``, the Euclidean length of the step uphill, over all parameters together.
        adaptive: scale the step by the size of each weight (ASAM).
        lr: of SGD.
        momentum: of SGD.
        weight_decay: of SGD.

    Raises:
        ValueError: if ``radius`` is negative.
    """
    require_at_least("radius", radius, 0)
    from pytorch_optimizer import SAM  # slow to import, and rarely needed

    return SAM(
        parameters,
        torch.optim.SGD,
        rho=radius,
        adaptive=adaptive,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
    )


def sam_step(optimizer: SAM, network: nn.Module, compute: Callable[[], Tensor]) -> None:
    """One update, after ``backward`` of the loss at the weights themselves.

    In the second pass batch norm normalises by the batch as usual, but its running statistics stay:
    they belong to the weights, not to the point uphill.

    Args:
        optimizer: from :func:`sam_optimizer`.
        network: holds the batch-norm layers.
        compute: the loss of the same batch once more, at the weights as they are then.
    """
    from pytorch_optimizer.optimizer.utils import disable_running_stats, enable_running_stats

    def again() -> float:
        optimizer.zero_grad()
        disable_running_stats(network)
        try:
            loss = compute()
        finally:
            enable_running_stats(network)
        torch.autograd.backward(loss)
        return loss.item()

    optimizer.step(again)
