"""Training of the base session, shared by all methods (thesis, section 3.4)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ktlib.checks import require_at_least, require_positive
from ktlib.fcl.sam import sam_step

if TYPE_CHECKING:
    from pytorch_optimizer import SAM


def random_crop(
    images: Tensor, padding: int, generator: torch.Generator, flip: bool = False
) -> Tensor:
    """Random crop after zero padding and, with ``flip``, mirroring; each image on its own.

    Args:
        images: ``(batch, channels, height, width)``.
        padding: largest shift in pixels, in each direction; 0 shifts nothing.
        generator: draws the shifts and flips.
        flip: mirror each image with probability 1/2. Not for digits and letters.

    Returns:
        ``(batch, channels, height, width)``.

    Example:
        >>> random_crop(torch.zeros(2, 1, 8, 8), padding=2, generator=torch.Generator()).shape
        torch.Size([2, 1, 8, 8])
    """
    batch = len(images)
    drawn: dict[str, Any] = {"generator": generator, "device": generator.device}
    if flip:
        mirrored = torch.rand(batch, 1, 1, 1, **drawn).to(images.device) < 0.5
        images = torch.where(mirrored, images.flip(-1), images)
    if padding == 0:
        return images
    padded = nn.functional.pad(images, [padding] * 4)
    shift = torch.randint(2 * padding + 1, (2, batch), **drawn).to(images.device)
    steps = [torch.arange(size, device=images.device) for size in images.shape]
    rows = (shift[0][:, None] + steps[2])[:, None, :, None]
    columns = (shift[1][:, None] + steps[3])[:, None, None, :]
    return padded[steps[0][:, None, None, None], steps[1][None, :, None, None], rows, columns]


@dataclass(frozen=True)
class BaseTraining:
    """Settings of :func:`train_base`; the thesis and its released code leave most of them open.

    Attributes:
        epochs: passes over the images.
        batch_size: images per step; a last batch of one image is left out, as batch norm cannot
            use it, unless all are of one.
        lr: first learning rate of the cosine schedule.
        momentum: of :class:`torch.optim.SGD`.
        weight_decay: of :class:`torch.optim.SGD`.
        padding: see :func:`random_crop`.
        flip: see :func:`random_crop`.
        classifier_lr: first learning rate of the classifier, if not that of the network: a
            classifier is new even where the network starts from ImageNet weights.
        sam_radius: ``rho``, the Euclidean length of SAM's step uphill, over all weights together;
            0 for plain SGD. Usual: 0.05.
        sam_adaptive: scale the step by the size of each weight (ASAM), which needs a radius about
            ten times as large.

    Raises:
        ValueError: for ``epochs`` or ``batch_size`` below 1, a learning rate not above 0, or a
            negative radius.

    Example:
        >>> BaseTraining(epochs=2, batch_size=64, lr=0.1).sam_radius
        0.0
    """

    epochs: int
    batch_size: int
    lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    padding: int = 4
    flip: bool = False
    classifier_lr: float | None = None
    sam_radius: float = 0.0
    sam_adaptive: bool = False

    def __post_init__(self) -> None:
        require_at_least("epochs", self.epochs, 1)
        require_at_least("batch_size", self.batch_size, 1)
        require_positive("lr", self.lr)
        require_at_least("sam_radius", self.sam_radius, 0)
        if self.classifier_lr is not None:
            require_positive("classifier_lr", self.classifier_lr)


def train_base(
    network: nn.Module,
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    settings: BaseTraining,
    *,
    generator: torch.Generator,
) -> list[float]:
    """Minimise ``loss(images, labels)`` by SGD with a cosine schedule down to 0.

    With ``settings.sam_radius``, by sharpness-aware minimisation instead: Foret et al., ICLR 2021,
    as implemented by ``pytorch_optimizer``. Each step then computes the loss twice, and batch norm
    keeps the statistics of the first time, which belong to the weights themselves.

    Batches are drawn from ``generator`` alone, so two losses trained with equal generators see the
    same images in the same order with the same shifts.

    Args:
        network: embedding network; left in ``eval`` mode.
        classifier: linear layer on its embeddings.
        images: ``(n, channels, height, width)``.
        labels: ``(n, ...)`` whatever the loss needs of each image; it gets integers as int64.
        loss: batch of images and labels -> scalar to minimise over both modules' parameters.
        settings: schedule, augmentation and optimiser.
        generator: draws the batches, shifts and flips, on its device.

    Returns:
        Mean loss of each epoch; with SAM the loss before the step uphill.

    Raises:
        ValueError: there are no images, or not one label for each.
        FloatingPointError: as soon as the loss is no longer finite, naming epoch and value.

    Example:
        >>> network, classifier = nn.Flatten(), nn.Linear(4, 2)
        >>> images, labels = torch.randn(6, 1, 2, 2), torch.arange(6) % 2
        >>> loss = lambda x, y: nn.functional.cross_entropy(classifier(network(x)), y)
        >>> settings, rng = BaseTraining(epochs=2, batch_size=3, lr=0.1), torch.Generator()
        >>> len(train_base(network, classifier, images, labels, loss, settings, generator=rng))
        2
    """
    images, labels = torch.as_tensor(images), torch.as_tensor(labels)
    labels = labels if labels.is_floating_point() else labels.long()
    require_at_least("number of images", len(images), 1)
    if len(labels) != len(images):
        raise ValueError(f"labels must be {len(images)}, one for each image. Found {len(labels)}.")
    alone = 1 in (len(images), settings.batch_size)  # batches of one image are not left out
    optimizer, sam = _optimizers(network, classifier, settings)
    steps = settings.epochs * -(-len(images) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history = []
    network.train()
    for epoch in range(settings.epochs):
        losses = []
        order = torch.randperm(len(images), generator=generator, device=generator.device)
        for index in order.to(images.device).split(settings.batch_size):
            if len(index) > 1 or alone:
                batch = random_crop(images[index], settings.padding, generator, settings.flip)
                targets = labels[index.to(labels.device)]
                value = loss(batch, targets)
                optimizer.zero_grad()
                value.backward()
                if sam is None:
                    optimizer.step()
                else:
                    sam_step(sam, network, partial(loss, batch, targets))
                losses.append(value.detach())
            schedule.step()
        history.append(float(torch.stack(losses).mean()))
        if not math.isfinite(history[-1]):
            finite = bool(torch.isfinite(images).all())
            cause = f"lower lr={settings.lr!r}" if finite else "not all images are finite numbers"
            raise FloatingPointError(
                f"the loss is {history[-1]} in epoch {epoch + 1} of {settings.epochs}: {cause}."
            )
    network.eval()
    return history


def _optimizers(
    network: nn.Module, classifier: nn.Module, settings: BaseTraining
) -> tuple[torch.optim.Optimizer, SAM | None]:
    """SGD over both modules, and SAM around it if a radius is given."""
    head = {"params": list(classifier.parameters()), "lr": settings.classifier_lr or settings.lr}
    groups: list[dict[str, Any]] = [{"params": list(network.parameters())}, head]
    sgd: dict[str, Any] = {"lr": settings.lr, "momentum": settings.momentum}
    sgd["weight_decay"] = settings.weight_decay
    if not settings.sam_radius:
        return torch.optim.SGD(groups, **sgd), None
    from pytorch_optimizer import SAM  # slow to import, and rarely needed

    sam = SAM(
        groups, torch.optim.SGD, rho=settings.sam_radius, adaptive=settings.sam_adaptive, **sgd
    )
    return sam.base_optimizer, sam
