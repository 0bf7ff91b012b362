"""FSLL: train a few unimportant weights each session and leave the others alone.

Mazumder, Singh, Rai: "Few-Shot Lifelong Learning", AAAI 2021. In every session the weights of
smallest magnitude in each layer are chosen anew and are the only ones that move, under a triplet
loss, a loss that turns new prototypes away from old ones, and a penalty on the shift of the chosen
weights. Classification is by the nearest prototype.

What could be checked, and where: that individual weights of small magnitude are chosen, that they
are chosen again after each session, and the cosine similarity of prototypes, in the paper's
abstract and figure 1; that the chosen share is 10 %, and that there is no cross-entropy, in notes
by readers of the paper; the L1 norm of the penalty, in the re-implementation that came with F2M
(``losses.py``), where it carries no gradient (here it does). The authors' repository,
``pratikm141/FSLL``, holds the base session only. Not confirmed: margin 0 and penalty weight 5
(settings of F2M's re-implementation), and the paper's learning rate and number of epochs.

Simplifications: only the tuned layers take part, as for the other methods here; all triplets of the
shots are used, averaged, instead of sampled ones; cosine similarities are averaged, not summed, so
that the weight of that term does not depend on the number of classes; no self-supervision in the
base session ("FSLL + SS"), which is shared by all methods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Unpack

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from experiments.fcl.baselines.nearest_mean import NearestMeanOptions, TunedNearestMean
from ktlib.checks import require_at_least, require_finite, require_positive
from ktlib.fcl.prototypes import class_means
from ktlib.fcl.split import SplitNetwork


@dataclass(frozen=True)
class FsllSettings:
    """Share of trainable weights, and weights of FSLL's losses.

    Attributes:
        fraction: share of the weights of each tuned layer that one session may change; 0 is the
            frozen network.
        margin: of the triplet loss, in units of the embedding.
        separation_weight: weight of the cosine similarity between new and old prototypes.
        penalty_weight: weight of the shift penalty. With plain SGD the gradient of an L1 norm has
            this size however small the shift: keep ``lr * penalty_weight`` small.

    Raises:
        ValueError: if ``fraction`` is not in ``[0, 1]``, or a weight or the margin is negative.
    """

    fraction: float = 0.1
    margin: float = 0.0
    separation_weight: float = 1.0
    penalty_weight: float = 5.0

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"fraction must be between 0 and 1. Found fraction={self.fraction!r}.")
        for name in ("margin", "separation_weight", "penalty_weight"):
            require_at_least(name, getattr(self, name), 0)


class FSLL(TunedNearestMean):
    """Few trainable weights of low magnitude, re-selected each session.

    Args:
        split: network trained on the base session.
        epochs: full-batch steps per session.
        lr: learning rate of plain SGD (momentum would move a weight after its session).
        settings: by default those of the paper, as far as they are known.
        options: see :class:`~experiments.fcl.baselines.nearest_mean.TunedNearestMean`.

    Attributes:
        selected: name -> mask of the weights that the last session could change.

    Raises:
        ValueError: if ``epochs`` is below 1, or ``lr`` is not above 0.
    """

    name: ClassVar[str] = "fsll"

    def __init__(
        self,
        split: SplitNetwork,
        *,
        epochs: int,
        lr: float,
        settings: FsllSettings | None = None,
        **options: Unpack[NearestMeanOptions],
    ) -> None:
        super().__init__(split, **options)
        require_at_least("epochs", epochs, 1)
        require_positive("lr", lr)
        self.epochs = epochs
        self.lr = lr
        self.settings = settings or FsllSettings()
        self.selected: dict[str, Tensor] = {}

    @override
    def tune(self, shots: Tensor, labels: Tensor) -> None:
        tuned, settings = self.split.tuned, self.settings
        self.selected = smallest_weights(tuned, settings.fraction)
        before = {name: parameter.detach().clone() for name, parameter in tuned.items()}
        # At this point the classes and prototypes are still those before the session.
        new_classes = labels.unique()[~torch.isin(labels.unique(), self.classes)]
        self.split.network.eval()
        with torch.no_grad():
            features = self.split.prefix(shots)
        for step in range(1, self.epochs + 1):
            embeddings = self.split.tail_forward(features)
            new_prototypes = class_means(embeddings, labels, new_classes)
            loss = (
                triplet_loss(embeddings, labels, settings.margin)
                + settings.separation_weight * separation_loss(new_prototypes, self.prototypes)
                + settings.penalty_weight * shift_penalty(tuned, before, self.selected)
            )
            gradients = torch.autograd.grad(require_finite(loss, step), list(tuned.values()))
            with torch.no_grad():
                for (name, parameter), gradient in zip(tuned.items(), gradients, strict=True):
                    parameter.add_(gradient.where(self.selected[name], 0.0), alpha=-self.lr)


def smallest_weights(weights: Mapping[str, Tensor], fraction: float) -> dict[str, Tensor]:
    """Mask of the given share of each tensor with the smallest absolute values.

    Args:
        weights: name -> tensor; each is ranked on its own.
        fraction: in ``[0, 1]``; the number of entries is rounded down.

    Returns:
        Name -> boolean tensor; of equal values the first is taken.
    """
    masks = {}
    for name, weight in weights.items():
        order = weight.detach().abs().flatten().argsort(stable=True)
        mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
        mask[order[: math.floor(fraction * weight.numel())]] = True
        masks[name] = mask.view_as(weight)
    return masks


def triplet_loss(embeddings: Tensor, labels: Tensor, margin: float = 0.0) -> Tensor:
    """Mean over all triplets of ``max(0, d(anchor, same) - d(anchor, other) + margin)``.

    Args:
        embeddings: ``(n, dim)``.
        labels: ``(n,)`` class numbers.
        margin: in units of the embedding; distances are Euclidean, not squared.

    Returns:
        A scalar; 0 where there is no triplet, as with one shot per class.
    """
    distances = torch.cdist(embeddings, embeddings)  # (n, n)
    same = labels[:, None] == labels[None, :]
    anchor, positive = (
        same & ~torch.eye(len(labels), dtype=torch.bool, device=same.device)
    ).nonzero(as_tuple=True)
    gaps = distances[anchor, positive][:, None] - distances[anchor] + margin  # (pairs, n)
    usable = ~same[anchor]
    return (gaps.relu() * usable).sum() / usable.sum().clamp(min=1)


def separation_loss(new: Tensor, old: Tensor) -> Tensor:
    """Mean cosine similarity between new prototypes ``(k, dim)`` and old ones ``(m, dim)``."""
    return (F.normalize(new, dim=1) @ F.normalize(old, dim=1).T).mean()


def shift_penalty(
    weights: Mapping[str, Tensor], before: Mapping[str, Tensor], selected: Mapping[str, Tensor]
) -> Tensor:
    """L1 norm of the shift of the selected weights since ``before``, with gradient.

    Args:
        weights: name -> tensor.
        before: name -> its values at the start of the session.
        selected: name -> mask; shifts elsewhere do not count.
    """
    return torch.stack(
        [((w - before[name]).abs() * selected[name]).sum() for name, w in weights.items()]
    ).sum()
