"""A small pre-trained model, made in minutes: supervised training on base classes.

Chapters on continual learning start from a model that knows other classes of the same kind. This
makes one where none can be fetched. With a ``sam_radius`` it is *flat* in the sense of the chapter
on F2M: its loss rises less when the weights are moved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ktlib.checks import require_at_least, require_positive
from ktlib.device import autocast
from ktlib.fcl.sam import sam_step
from ktlib.seeding import generator

WARM_UP = 0.1  # share of the steps in which the rate rises: transformers need it
WEIGHT_DECAY = 0.05


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """Settings of :func:`pretrain`.

    Attributes:
        epochs: passes over the images.
        batch_size: images per step.
        lr: highest learning rate.
        seed: of the batches.
        sam_radius: Euclidean length of the step uphill of sharpness-aware minimisation (Foret et
            al., ICLR 2021), over all weights together; every step then costs two. 0: plain AdamW.
        precision: of the products, see :func:`ktlib.device.autocast`.

    Raises:
        ValueError: a value outside its range.
    """

    epochs: int
    batch_size: int
    lr: float
    seed: int
    sam_radius: float = 0.0
    precision: str = "auto"

    def __post_init__(self) -> None:
        require_at_least("epochs", self.epochs, 1)
        require_at_least("batch_size", self.batch_size, 1)
        require_positive("lr", self.lr)
        require_at_least("sam_radius", self.sam_radius, 0)


def pretrain(
    network: nn.Module, head: nn.Module, images: Any, targets: Tensor, settings: Pretraining
) -> list[float]:
    """Minimise the cross-entropy of a classifier with AdamW; the rate rises, then falls to 0.

    Runs with one seed see the same batches, whatever the radius.

    Args:
        network: images -> features ``(batch, dim)``; left in ``eval`` mode.
        head: features -> one score per class.
        images: ``images[rows]`` is ``(len(rows), channels, height, width)``.
        targets: ``(n,)`` columns of the head.
        settings: of the optimiser.

    Returns:
        Mean loss of each epoch.

    Raises:
        ValueError: there are no images.
        FloatingPointError: the loss is no longer finite.
    """
    require_at_least("images", len(targets), 1)
    optimizer, scheduled = _optimizers([*network.parameters(), *head.parameters()], settings)
    batches = -(-len(targets) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        scheduled,
        max_lr=settings.lr,
        total_steps=settings.epochs * batches,
        pct_start=WARM_UP,
        cycle_momentum=False,
    )
    rng = generator(settings.seed, "pre-training")
    both = nn.ModuleList([network, head]).train()
    losses = []
    for epoch in range(1, settings.epochs + 1):
        total = 0.0
        for rows in torch.randperm(len(targets), generator=rng).split(settings.batch_size):
            loss = _step(optimizer, both, images[rows], targets[rows], settings)
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss of the pre-training is {loss} in epoch {epoch}; "
                    f"lr={settings.lr} is too large"
                )
            schedule.step()
            total += loss * len(rows)
        losses.append(total / len(targets))
    both.eval()
    return losses


def _optimizers(
    parameters: list[nn.Parameter], settings: Pretraining
) -> tuple[Any, torch.optim.Optimizer]:
    """The optimizer that takes the steps, and the one whose rate is scheduled."""
    adamw: dict[str, Any] = {"lr": settings.lr, "weight_decay": WEIGHT_DECAY}
    if not settings.sam_radius:
        plain = torch.optim.AdamW(parameters, **adamw)
        return plain, plain
    from pytorch_optimizer import SAM  # slow to import, and rarely needed

    sam: Any = SAM(parameters, torch.optim.AdamW, rho=settings.sam_radius, **adamw)
    return sam, sam.base_optimizer


def _step(
    optimizer: Any, both: nn.ModuleList, images: Tensor, targets: Tensor, settings: Pretraining
) -> float:
    network, head = both

    def compute() -> Tensor:
        with autocast(images.device, settings.precision):
            return F.cross_entropy(head(network(images)), targets)

    optimizer.zero_grad()
    loss = compute()
    torch.autograd.backward(loss)
    if settings.sam_radius:
        sam_step(optimizer, both, compute)
    else:
        optimizer.step()
    return loss.item()
