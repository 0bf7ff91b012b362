"""FSLL: train a few unimportant weights each session and leave the others alone.

Mazumder, Singh, Rai: "Few-Shot Lifelong Learning", AAAI 2021. In every session the weights of
smallest magnitude in each layer are chosen anew and are the only ones that move, under a triplet
loss, a loss that turns new prototypes away from old ones, and a penalty on the shift of the chosen
weights. Classification is by the nearest prototype.

What could be checked, and where: that individual weights of small magnitude are chosen, that they
are chosen again after each session, and the cosine similarity of prototypes, in the paper's
abstract and figure 1; that the chosen share is 10 %, and that there is no cross-entropy, in notes
by readers of the paper. The authors' repository, ``pratikm141/FSLL``, holds the base session only.
Not confirmed: margin 0 (a setting of F2M's re-implementation), and the paper's weight of the
penalty, learning rate and number of epochs: the weight and the rate have to be searched.

The penalty is an L1 norm, whose gradient has one size however small the shift. Plain gradient steps
on it make each weight jump back and forth about its old value, and the method is then the frozen
network. So its step is a proximal one here: after each step on the other losses, each weight goes
back towards its value at the start of the session, and stops there.

Simplifications: only the tuned layers take part, as for the other methods here; all triplets of the
shots are used, averaged, instead of sampled ones; cosine similarities are averaged, not summed, so
that the weight of that term does not depend on the number of classes; no self-supervision in the
base session ("FSLL + SS"), which is shared by all methods.

:meth:`FsllSettings.released` is what the re-implementation that came with F2M does
(``moukamisama/F2M``: ``FSLL_model.py``, ``losses.py`` and the options for CIFAR-100), which differs
from the paper in every part. Whole layers are chosen, those whose largest absolute weight is at
most 0.4 (0.16 on miniImageNet, 0.15 on CUB). In place of the similarity of prototypes there is
the cross-entropy of a softmax over cosines with the new and the base prototypes. The penalty, 5
times the L1 norms averaged over the layers, is turned into a number: it has no gradient and holds
nothing. SGD has momentum 0.9 and weight decay 5e-4, for 15 full-batch steps at rate 0.001 (CUB: 10
at 0.0005), and prototypes are not normalised: these are arguments of :class:`FSLL`. Left out: that
it also trains layers below the tuned ones and weights of batch norm, updates the statistics of
batch norm, augments the shots, and draws four triplets for each shot.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, Unpack

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from experiments.fcl.baselines.nearest_mean import NearestMeanOptions, TunedNearestMean
from ktlib.checks import require_at_least, require_finite, require_positive
from ktlib.fcl.prototypes import class_means
from ktlib.fcl.split import SplitNetwork

PrototypeTerm = Literal["similarity", "cross-entropy"]


@dataclass(frozen=True)
class FsllSettings:
    """Choice of trainable weights, and weights of FSLL's losses.

    Attributes:
        fraction: share of the weights of each tuned layer that one session may change; 0 is the
            frozen network.
        layer_threshold: in place of the fraction: whole layers, those whose largest absolute
            weight is at most this.
        margin: of the triplet loss, in units of the embedding.
        prototype_term: :func:`separation_loss` of the new classes, or
            :func:`cosine_cross_entropy` of the shots.
        prototype_weight: weight of that term.
        penalty_weight: weight of the shift penalty, the L1 norm of the shift over the square root
            of the number of weights chosen. In units of the norm of the gradient of the other
            losses, with which it competes: the gradient of the penalty has just this norm.
        momentum: of SGD, from zero velocity in each session.
        weight_decay: of SGD, on the chosen weights.

    Raises:
        ValueError: if ``fraction`` is not in ``[0, 1]``, the term is unknown, or another value is
            negative.
    """

    fraction: float = 0.1
    layer_threshold: float | None = None
    margin: float = 0.0
    prototype_term: PrototypeTerm = "similarity"
    prototype_weight: float = 1.0
    penalty_weight: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"fraction must be between 0 and 1. Found fraction={self.fraction!r}.")
        if self.prototype_term not in ("similarity", "cross-entropy"):
            raise ValueError(
                "prototype_term must be 'similarity' or 'cross-entropy'. "
                f"Found prototype_term={self.prototype_term!r}."
            )
        require_at_least("layer_threshold", self.layer_threshold or 0, 0)
        for name in ("margin", "prototype_weight", "penalty_weight", "momentum", "weight_decay"):
            require_at_least(name, getattr(self, name), 0)

    @classmethod
    def released(cls, layer_threshold: float = 0.4) -> Self:
        """Those of the re-implementation that came with F2M, see the top of this module."""
        return cls(
            layer_threshold=layer_threshold,
            prototype_term="cross-entropy",
            penalty_weight=0.0,
            momentum=0.9,
            weight_decay=5e-4,
        )


class FSLL(TunedNearestMean):
    """Few trainable weights of low magnitude, re-selected each session.

    Args:
        split: network trained on the base session.
        epochs: full-batch steps per session.
        lr: learning rate of SGD.
        settings: by default those of the paper, as far as they are known.
        options: see :class:`~experiments.fcl.baselines.nearest_mean.TunedNearestMean`.

    Attributes:
        selected: name -> mask of the weights that the last session could change.
        gradients: norms at the first step of each session, over the chosen weights: of the gradient
            of the loss (``data``), and of what the penalty takes back, over the learning rate
            (``penalty``). Where both are equal, nothing moves.

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
        self.gradients: list[dict[str, float]] = []

    @override
    def tune(self, shots: Tensor, labels: Tensor) -> None:
        tuned, s = self.split.tuned, self.settings
        if s.layer_threshold is None:
            self.selected = smallest_weights(tuned, s.fraction)
        else:
            self.selected = small_layers(tuned, s.layer_threshold)
        count = sum(int(mask.sum()) for mask in self.selected.values())
        threshold = self.lr * s.penalty_weight / math.sqrt(max(count, 1))
        start = {name: parameter.detach().clone() for name, parameter in tuned.items()}
        velocity = {name: torch.zeros_like(parameter) for name, parameter in tuned.items()}
        self.split.network.eval()
        with torch.no_grad():
            features = self.split.prefix(shots)
        for step in range(1, self.epochs + 1):
            loss = self.loss(self.split.tail_forward(features), labels)
            gradients = torch.autograd.grad(require_finite(loss, step), list(tuned.values()))
            with torch.no_grad():
                for (name, parameter), gradient in zip(tuned.items(), gradients, strict=True):
                    slope = (gradient + s.weight_decay * parameter).where(self.selected[name], 0.0)
                    velocity[name] = s.momentum * velocity[name] + slope
                    parameter.add_(velocity[name], alpha=-self.lr)
            taken_back = move_back(tuned, start, threshold)
            if step == 1:
                norms = {"data": norm(velocity.values()), "penalty": taken_back / self.lr}
                self.gradients.append(norms)

    def loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The triplet loss and the prototype term, with gradients.

        Args:
            embeddings: ``(n, dim)`` of the exemplars and the shots.
            labels: ``(n,)`` their classes.
        """
        s, classes = self.settings, labels.unique()
        if s.prototype_term == "similarity":
            # Here the classes and prototypes are still those before the session.
            new = classes[~torch.isin(classes, self.classes)]
            term = separation_loss(class_means(embeddings, labels, new), self.prototypes)
        else:
            prototypes = torch.cat([class_means(embeddings, labels), self.base_prototypes])
            targets = torch.searchsorted(classes, labels)
            term = cosine_cross_entropy(embeddings, targets, prototypes)
        return triplet_loss(embeddings, labels, s.margin) + s.prototype_weight * term


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


def small_layers(weights: Mapping[str, Tensor], threshold: float) -> dict[str, Tensor]:
    """Mask of all entries of each tensor without an absolute value above the threshold.

    Args:
        weights: name -> tensor.
        threshold: largest absolute value allowed, in units of the weights.
    """
    return {
        name: (weight.detach().abs().max() <= threshold).expand_as(weight)
        for name, weight in weights.items()
    }


@torch.no_grad()
def move_back(
    weights: Mapping[str, Tensor], start: Mapping[str, Tensor], threshold: float
) -> float:
    """Proximal step of an L1 norm: each weight goes ``threshold`` towards its start, not beyond.

    Args:
        weights: name -> tensor, changed in place.
        start: name -> where the weights were.
        threshold: in units of the weights; 0 changes no bit.

    Returns:
        Euclidean length of the step.
    """
    if not threshold:
        return 0.0
    steps = []
    for name, weight in weights.items():
        there = start[name] + F.softshrink(weight - start[name], threshold)
        steps.append(there - weight)
        weight.copy_(there)
    return norm(steps)


def norm(tensors: Iterable[Tensor]) -> float:
    """Euclidean norm of all entries of all tensors together."""
    return float(torch.stack([tensor.square().sum() for tensor in tensors]).sum().sqrt())


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


def cosine_cross_entropy(embeddings: Tensor, targets: Tensor, prototypes: Tensor) -> Tensor:
    """Cross-entropy of a softmax over cosines.

    Args:
        embeddings: ``(n, dim)``.
        targets: ``(n,)`` rows of ``prototypes``.
        prototypes: ``(k, dim)``.

    Returns:
        Scalar mean over the embeddings.
    """
    cosines = F.normalize(embeddings, dim=1) @ F.normalize(prototypes, dim=1).T  # (n, k)
    return F.cross_entropy(cosines, targets)
