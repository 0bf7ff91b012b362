"""Supervised training of the base session, shared by every method."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ktlib.checks import require_at_least, require_positive
from ktlib.fcl.sam import sam_optimizer, sam_step


def random_crop(
    images: Tensor, padding: int, generator: torch.Generator, flip: bool = False
) -> Tensor:
    """Random crop after zero padding and, if asked for, a mirror image for every second one.

    Every image of the batch gets a shift of its own.

    Args:
        images: ``(batch, channels, height, width)``.
        padding: largest shift in pixels, in each direction; 0 shifts nothing.
        generator: source of the shifts and flips.
        flip: mirror each image with probability 1/2. Not for digits and letters.
    """
    batch = len(images)
    if flip:
        mirrored = torch.rand(batch, generator=generator).to(images.device) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    if padding == 0:
        return images
    padded = nn.functional.pad(images, [padding] * 4)
    shift = torch.randint(2 * padding + 1, (2, batch), generator=generator).to(images.device)
    steps = [torch.arange(size, device=images.device) for size in images.shape]
    rows = (shift[0][:, None] + steps[2])[:, None, :, None]
    columns = (shift[1][:, None] + steps[3])[:, None, None, :]
    return padded[steps[0][:, None, None, None], steps[1][None, :, None, None], rows, columns]


def train_base(
    network: nn.Module,
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    generator: torch.Generator,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    padding: int = 4,
    flip: bool = False,
    classifier_lr: float | None = None,
    sam_radius: float = 0.0,
    sam_adaptive: bool = False,
) -> list[float]:
    """Minimise ``loss(images, labels)`` with SGD and a cosine schedule down to 0.

    With a ``sam_radius``, by sharpness-aware minimisation (SAM) instead: Foret et al., ICLR 2021,
    as implemented by ``pytorch_optimizer``. Each step then computes the loss twice, and batch norm
    keeps the statistics of the first time, which belong to the weights themselves.

    Batches are drawn from ``generator`` alone, so two losses trained with equal generators see the
    same images in the same order with the same shifts.

    Args:
        network: embedding network; left in ``eval`` mode.
        classifier: linear layer on its embeddings.
        images: ``(n, channels, height, width)``.
        labels: ``(n,)`` integers.
        loss: batch of images and labels -> scalar to minimise over both modules' parameters.
        epochs: passes over the images.
        batch_size: images per step; a last batch of one image is left out, as batch norm cannot
            use it.
        lr: first learning rate of the cosine schedule.
        generator: source of the batches, shifts and flips.
        momentum: of :class:`torch.optim.SGD`.
        weight_decay: of :class:`torch.optim.SGD`.
        padding: see :func:`random_crop`.
        flip: see :func:`random_crop`.
        classifier_lr: first learning rate of the classifier, where it is another than that of the
            network: a classifier is new also where the network starts from ImageNet weights.
        sam_radius: ``rho``, the Euclidean length of SAM's step uphill, over all weights together;
            0 for plain SGD. Usual: 0.05.
        sam_adaptive: scale the step by the size of each weight (ASAM); wants a radius about ten
            times as large.

    Returns:
        Mean loss of each epoch; with SAM the loss in front of the step uphill.

    Raises:
        ValueError: for ``epochs``, ``batch_size`` below 1, ``lr`` not above 0, or a radius
            below 0.
        FloatingPointError: as soon as the loss is no longer finite, naming epoch and value.
    """
    require_at_least("epochs", epochs, 1)
    require_at_least("batch_size", batch_size, 1)
    require_positive("lr", lr)
    require_at_least("sam_radius", sam_radius, 0)
    if classifier_lr is not None:
        require_positive("classifier_lr", classifier_lr)
    parameters: list[dict[str, Any]] = [
        {"params": list(network.parameters())},
        {
            "params": list(classifier.parameters()),
            "lr": lr if classifier_lr is None else classifier_lr,
        },
    ]
    sam = None
    if sam_radius:
        sam = sam_optimizer(
            parameters,
            radius=sam_radius,
            adaptive=sam_adaptive,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
        )
        optimizer = sam.base_optimizer
    else:
        optimizer = torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
    steps = epochs * -(-len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history = []
    network.train()
    for epoch in range(epochs):
        losses = []
        for index in torch.randperm(len(images), generator=generator).split(batch_size):
            if len(index) > 1 or len(images) == 1:
                batch = random_crop(images[index], padding, generator, flip)
                value = loss(batch, labels[index])
                optimizer.zero_grad()
                value.backward()
                if sam is None:
                    optimizer.step()
                else:
                    sam_step(sam, network, partial(loss, batch, labels[index]))
                losses.append(value.detach())
            schedule.step()
        history.append(float(torch.stack(losses).mean()))
        if not torch.isfinite(torch.tensor(history[-1])):
            raise FloatingPointError(
                f"the loss is {history[-1]} in epoch {epoch + 1} of {epochs}: lower lr={lr!r}."
            )
    network.eval()
    return history
