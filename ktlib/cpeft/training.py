"""Training of adapters and a head on one task, and features of many images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ktlib.checks import ImagePool, require_at_least, require_positive

LossExtra = Callable[[Tensor, Tensor], Tensor]
"""Positions ``(b,)`` of a batch's images and their scores ``(b, k)`` -> scalar."""


def train_task(
    backbone: nn.Module,
    head_scores: Callable[[Tensor], Tensor],
    parameters: Sequence[nn.Parameter] | Sequence[dict[str, Any]],
    images: ImagePool,
    labels: Tensor,
    rows: Tensor,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    generator: torch.Generator,
    loss_extra: LossExtra | None = None,
) -> list[float]:
    """Minimise the cross-entropy with Adam and a cosine schedule down to 0.

    The network is in ``eval`` mode all the time, so that there is no dropout and batch norm keeps
    its statistics, as in the released code of InfLoRA.

    Args:
        backbone: images ``(b, channels, height, width)`` -> features ``(b, dim)``.
        head_scores: features -> scores ``(b, k)``.
        parameters: what is trained, of both; or groups of it with an ``lr`` of their own, as
            :class:`torch.optim.Optimizer` takes them.
        images: ``(n, channels, height, width)``.
        labels: ``(n,)`` the column of the scores that is right for each image; of images that are
            not trained on, anything.
        rows: ``(m,)`` positions of the images that are trained on.
        epochs: passes over them.
        batch_size: images per step.
        lr: first learning rate of the schedule.
        generator: source of the batches, on the CPU.
        loss_extra: a further term of the loss, from the positions of a batch and its scores.

    Returns:
        Mean loss over the images, for each epoch.

    Raises:
        ValueError: for ``epochs`` or ``batch_size`` below 1, ``lr`` not above 0, no rows, or a
            label below 0.
        FloatingPointError: as soon as the mean loss of an epoch is not finite.
    """
    require_at_least("epochs", epochs, 1)
    require_at_least("batch_size", batch_size, 1)
    require_positive("lr", lr)
    if not len(rows):
        raise ValueError("rows must be of images to train on. Found 0 rows.")
    least = int(labels[rows].min())
    if least < 0:
        raise ValueError(f"labels are columns of the scores. Found labels from {least} on.")
    device = next(backbone.parameters()).device
    optimizer = torch.optim.Adam(parameters, lr=lr)
    steps = epochs * -(-len(rows) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    backbone.eval()
    history = []
    for epoch in range(epochs):
        total = torch.zeros((), device=device)
        for part in torch.randperm(len(rows), generator=generator).split(batch_size):
            scores = head_scores(backbone(images[rows[part]].to(device)))
            loss = F.cross_entropy(scores, labels[rows[part]].to(device))
            if loss_extra is not None:
                loss = loss + loss_extra(rows[part], scores)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach() * len(part)
        history.append(float(total) / len(rows))
        if not torch.isfinite(total):
            raise FloatingPointError(
                f"the loss is {history[-1]} in epoch {epoch + 1} of {epochs}: lower lr={lr!r}."
            )
    return history


@torch.no_grad()
def features_of(
    backbone: nn.Module, images: ImagePool, rows: Tensor, batch_size: int = 500
) -> Tensor:
    """``(m, dim)`` features of the images at ``rows``, batch by batch and without gradients.

    Args:
        backbone: images -> features; in the mode that is wanted.
        images: ``(n, channels, height, width)``.
        rows: ``(m,)`` positions.
        batch_size: images at a time.
    """
    device = next(backbone.parameters()).device
    return torch.cat([backbone(images[part].to(device)) for part in rows.split(batch_size)])
