"""F2M: find a flat minimum in the base session, then stay inside it (thesis, chapter 3).

Shi et al., "Overcoming catastrophic forgetting in incremental few-shot learning by finding flat
minima", NeurIPS 2021. Equations (3.5) to (3.8); ``chapters/fcl.py`` explains each part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ktlib.checks import (
    as_labels,
    images_for,
    require_at_least,
    require_bound,
    require_finite,
    require_positive,
    widened,
)
from ktlib.fcl.noise import RELEASED_SHAPES, draw_noise, warn_if_lost
from ktlib.fcl.prototypes import class_means, few_shot_loss
from ktlib.fcl.region import FlatRegion
from ktlib.fcl.split import SplitNetwork
from ktlib.fcl.training import random_crop


@dataclass(frozen=True)
class F2MLoss:
    """The base loss of one batch, equations (3.5) and (3.6).

    Attributes:
        total: scalar to call ``backward`` on: the mean over draws of equation (3.6), and the spread
            of the variant.
        cross_entropy: ``(draws,)`` classification loss of each draw.
        prototype_shift: ``(draws,)`` mean squared shift of the prototypes, before lambda; zeros
            when lambda is 0, as it is then not computed.

    Example:
        >>> F2MLoss(torch.tensor(0.5), torch.tensor([0.4, 0.6]), torch.zeros(2)).total
        tensor(0.5000)
    """

    total: Tensor
    cross_entropy: Tensor
    prototype_shift: Tensor


@dataclass(frozen=True)
class F2MVariant:
    """Departures from the printed base loss; the defaults are the printed method.

    :data:`RELEASED` has those of the authors' released code, all of them.

    Attributes:
        noise_levels: see :func:`ktlib.fcl.draw_noise`.
        noise_shapes: see :func:`ktlib.fcl.draw_noise`.
        spread_weight: times the standard deviation of the M losses (divided by ``M - 1``), which is
            added to their mean.
        spread_of_total: whether these losses are the cross-entropy and the prototype term together,
            or the cross-entropy alone. Of two draws, and of a prototype term without gradient, it
            only matters to the gradient which draw has the larger loss.
        prototype_gradient: whether the prototype term has a gradient, or is a number.
        clean_backward: see :meth:`ktlib.fcl.SplitNetwork.tail_forward`.

    Raises:
        ValueError: if ``spread_weight`` is negative.

    Example:
        >>> F2MVariant(spread_weight=2.0).prototype_gradient
        True
    """

    noise_levels: int = 0
    noise_shapes: Sequence[float] = ()
    spread_weight: float = 0.0
    spread_of_total: bool = False
    prototype_gradient: bool = True
    clean_backward: bool = False

    def __post_init__(self) -> None:
        require_at_least("spread_weight", self.spread_weight, 0)


PRINTED = F2MVariant()
"""The base loss as the thesis prints it."""

RELEASED = F2MVariant(
    noise_levels=5,
    noise_shapes=RELEASED_SHAPES,
    spread_weight=2.0,
    spread_of_total=True,
    prototype_gradient=False,
    clean_backward=True,
)
"""The base loss of the authors' released code, at 2 draws and ``prototype_weight`` 1.

The ``bound`` there is half of the setting ``bound_value``, 0.01. Of batch norm in front of the
noisy layers it updates the running statistics at every draw, :func:`f2m_loss` once a batch.
"""


@dataclass(frozen=True)
class SessionVariant:
    """Departures from the printed few-shot session; the defaults are the printed method.

    :data:`RELEASED_SESSION` has those of the authors' released code, all of them.

    Attributes:
        squared: see :func:`ktlib.fcl.few_shot_loss`.
        momentum: of :class:`torch.optim.SGD`, anew in every session.
        weight_decay: of :class:`torch.optim.SGD`; it pulls the tuned weights towards 0.
        augment: images ``(n, ...)`` -> images, called at every step; ``None`` leaves them as they
            are. Prototypes of the new classes are then those of the augmented images.
        round_step: the step along the gradient, its product with the learning rate, is rounded to
            multiples of this share of the half-width of the region; 0 rounds nothing. A tensor
            whose entries would all become 0 is rounded once more at twice the step. Weight decay
            and momentum come after it and are not rounded.

    Raises:
        ValueError: if a number is negative or not finite.

    Example:
        >>> SessionVariant(momentum=0.9).squared
        False
    """

    squared: bool = False
    momentum: float = 0.0
    weight_decay: float = 0.0
    augment: Callable[[Tensor], Tensor] | None = None
    round_step: float = 0.0

    def __post_init__(self) -> None:
        for name in ("momentum", "weight_decay", "round_step"):
            require_bound(name, getattr(self, name))


PRINTED_SESSION = SessionVariant()
"""The few-shot session as the thesis prints it."""


def _released_augmentation(images: Tensor) -> Tensor:
    return random_crop(images, padding=4, generator=torch.default_generator, flip=True)


RELEASED_SESSION = SessionVariant(
    squared=True,
    momentum=0.9,
    weight_decay=5e-4,
    augment=_released_augmentation,
    round_step=0.5,
)
"""The few-shot session of the authors' released code, with its settings for CIFAR-100.

These are 6 epochs at ``lr`` 0.01. Crops of 4 pixels and mirroring draw from the global stream of
torch; put your own ``augment`` in its place for a stream of its own, or for digits and letters.
"""


def f2m_loss(
    split: SplitNetwork,
    classifier: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    bound: float,
    draws: int,
    prototype_weight: float,
    generator: torch.Generator,
    variant: F2MVariant = PRINTED,
) -> F2MLoss:
    """Loss of the base session: equations (3.5) and (3.6) on one batch.

    For each of M noise draws the tuned weights are moved to ``phi + eps_j``; the loss there is the
    cross-entropy plus ``lambda * mean_c ||p_c - p_c*||^2`` over the classes in the batch, where
    ``p_c`` and ``p_c*`` are the prototypes without and with noise. Its gradient is the one of
    update (3.8): taken at ``phi + eps_j``, applied at ``phi``. A variant may change all that.

    The part of the network in front of the first tuned layer runs once and is shared by the
    draws: the same gradient, for less work. Batch-norm layers there update their running
    statistics once per batch, those in the tail once per draw.

    Args:
        split: the network, from :func:`ktlib.fcl.split_network`.
        classifier: embeddings ``(batch, dim)`` -> scores ``(batch, classes)``; never perturbed.
        images: ``(batch, ...)``.
        labels: ``(batch,)`` integers.
        bound: half-width ``b`` of the noise, in units of the weights.
        draws: number ``M`` of noise draws.
        prototype_weight: ``lambda``; 0 leaves prototype fixing (PF) out.
        generator: draws the noise.
        variant: departures from the printed loss, such as those of the released code.

    Raises:
        ValueError: if ``draws < 1``, ``bound`` or ``prototype_weight`` is negative, the variant
            has a spread and ``draws`` is 1, or a clean backward pass under autocast.

    Example:
        >>> from ktlib.fcl import split_network
        >>> network, classifier = torch.nn.Sequential(torch.nn.Linear(4, 3)), torch.nn.Linear(3, 2)
        >>> split = split_network(network, ["0"])
        >>> images, labels = torch.randn(6, 4), torch.arange(6) % 2
        >>> loss = f2m_loss(split, classifier, images, labels, bound=0.01, draws=2,
        ...                 prototype_weight=1.0, generator=torch.Generator())
        >>> loss.cross_entropy.shape
        torch.Size([2])
    """
    require_at_least("draws", draws, 1)
    require_bound("bound", bound)
    require_at_least("prototype_weight", prototype_weight, 0)
    spread, levels, shapes = variant.spread_weight, variant.noise_levels, variant.noise_shapes
    if spread and draws < 2:
        raise ValueError(f"spread_weight={spread!r} needs draws >= 2. Found draws={draws}.")
    warn_if_lost(split.tuned, bound)
    losses, shifts = [], []
    with images_for(split.network, images) as given:
        labels = as_labels(labels, given.device)
        features = split.prefix(given)
        still = class_means(split.tail_forward(features), labels) if prototype_weight else None
        for _ in range(draws):
            noise = draw_noise(split.tuned, bound, generator, levels, shapes)
            embeddings = split.tail_forward(
                features, noise, clean_backward=variant.clean_backward
            )  # (batch, dim)
            losses.append(F.cross_entropy(widened(classifier(embeddings)), labels))
            if still is not None:
                moved = class_means(embeddings, labels)  # (classes in the batch, dim)
                shifts.append((still - moved).square().sum(dim=1).mean())
    cross_entropy = torch.stack(losses)
    shift = torch.stack(shifts) if shifts else torch.zeros_like(cross_entropy)
    penalty = prototype_weight * (shift if variant.prototype_gradient else shift.detach())
    total = cross_entropy.mean()
    if shifts:
        total = total + penalty.mean()
    if spread:
        spread_out = cross_entropy + penalty if variant.spread_of_total else cross_entropy
        total = total + spread * spread_out.std()
    return F2MLoss(total, cross_entropy, shift)


def learn_session(
    split: SplitNetwork,
    region: FlatRegion | None,
    images: Tensor,
    labels: Tensor,
    base_prototypes: Tensor,
    base_classes: Tensor,
    *,
    epochs: int,
    lr: float,
    penalty: Callable[[], Tensor] | None = None,
    proximal: Callable[[], object] | None = None,
    variant: SessionVariant = PRINTED_SESSION,
    facts: dict[str, float] | None = None,
) -> list[float]:
    """One few-shot session: equation (3.7), then clamping, for a few full-batch steps.

    Only the tuned weights move, and batch norm runs with its stored statistics. The prototypes of
    the base classes are the saved ones; those of the new classes are recomputed at every step from
    ``images``, with gradients.

    Args:
        split: the network; its mode is left at ``eval``.
        region: the box around the base minimum, in which each step ends, of parameters of this
            network; ``None`` leaves clamping (PC) out.
        images: ``(n, ...)`` shots of this session and saved exemplars of earlier new classes.
        labels: ``(n,)`` class numbers, none of them a base class.
        base_prototypes: ``(base, dim)``, saved after the base session.
        base_classes: ``(base,)`` class number of each saved prototype.
        epochs: number of full-batch steps.
        lr: learning rate of plain SGD.
        penalty: a scalar added to the loss at every step, computed anew from the tuned weights;
            ``None`` adds nothing.
        proximal: changes the tuned weights in place after each step, before clamping: the implicit
            step of a penalty that is too stiff for SGD. Called without gradients.
        variant: departures from the printed session, such as those of the released code.
        facts: filled in, if given, with norms over all tuned weights at the first step: of the
            gradient of the few-shot loss (``data``) and of the penalty (``penalty``), and of what
            the proximal step moves, divided by ``lr`` (``proximal``); 0 for what there is not.

    Returns:
        The loss before each step, penalty included.

    Raises:
        ValueError: if ``epochs < 1``, ``lr <= 0``, there are no images, a base class is among
            ``labels`` or has no prototype, a tuned weight is frozen, the region is of another
            network, or the variant rounds steps without one.
        FloatingPointError: at the first loss that is not finite, naming the step.

    Example:
        >>> from ktlib.fcl import split_network
        >>> split = split_network(torch.nn.Sequential(torch.nn.Linear(4, 3)), ["0"])
        >>> region = FlatRegion(split.tuned, bound=0.01)
        >>> shots, labels = torch.randn(4, 4), torch.tensor([7, 7, 8, 8])
        >>> losses = learn_session(split, region, shots, labels, torch.randn(2, 3),
        ...                        torch.tensor([0, 1]), epochs=3, lr=0.1)
        >>> len(losses), region.contains()
        (3, True)
    """
    require_at_least("epochs", epochs, 1)
    require_positive("lr", lr)
    require_at_least("number of images", len(images), 1)
    tuned = dict(split.tuned)
    frozen = [name for name, parameter in tuned.items() if not parameter.requires_grad]
    if frozen:
        raise ValueError(f"tuned weights must need gradients. Frozen are {frozen}.")
    if region is not None:
        region.require_inside(split.network)
    elif variant.round_step:
        raise ValueError(f"round_step={variant.round_step!r} needs a region. Found none.")
    unit = variant.round_step * region.bound if region is not None else 0.0
    split.network.eval()
    where = next(iter(tuned.values())).device
    labels = as_labels(labels, where)
    base_classes = as_labels(base_classes, where, name="base_classes")
    if len(base_classes) != len(base_prototypes):
        raise ValueError(
            f"base_classes must be {len(base_prototypes)}, one for each of the "
            f"base_prototypes. Found {len(base_classes)}."
        )
    known = labels[torch.isin(labels, base_classes)].unique().tolist()
    if known:
        raise ValueError(
            "labels must hold new classes only: base data is not kept after session "
            f"1. Found base classes {known}."
        )
    new_classes = labels.unique()
    targets = len(base_classes) + torch.searchsorted(new_classes, labels)
    weights = list(tuned.values())
    optimizer = torch.optim.SGD(
        weights, lr=lr, momentum=variant.momentum, weight_decay=variant.weight_decay
    )
    losses = []
    with images_for(split.network, images) as given:
        for step in range(1, epochs + 1):
            if step == 1 or variant.augment is not None:
                with torch.no_grad():
                    features = split.prefix(variant.augment(given) if variant.augment else given)
            embeddings = widened(split.tail_forward(features))  # (n, dim)
            new_prototypes = class_means(embeddings, labels, new_classes)
            prototypes = torch.cat([base_prototypes.to(new_prototypes), new_prototypes])
            loss = few_shot_loss(embeddings, targets, prototypes, squared=variant.squared)
            asked = facts if step == 1 else None
            extra = None if penalty is None else penalty()
            if asked is not None:
                asked |= {"data": _slope(loss, weights), "penalty": _slope(extra, weights)}
            if extra is not None:
                loss = loss + extra
            gradients = torch.autograd.grad(require_finite(loss, step), weights)
            for parameter, gradient in zip(weights, gradients, strict=True):
                parameter.grad = _rounded(gradient, lr, unit) if unit else gradient
            optimizer.step()
            optimizer.zero_grad()
            before = [] if asked is None else [weight.detach().clone() for weight in weights]
            if proximal is not None:
                with torch.no_grad():
                    proximal()
            if asked is not None:
                moved = [weight - old for weight, old in zip(weights, before, strict=True)]
                asked["proximal"] = _norm(moved) / lr
            if region is not None:
                region.clamp_()
            losses.append(loss.item())
    return losses


def _rounded(gradient: Tensor, lr: float, unit: float) -> Tensor:
    """The gradient whose product with ``lr`` is rounded; see :class:`SessionVariant`."""
    steps = gradient * (lr / unit)
    found = steps.round()
    found = torch.where(found.any(), found, (2 * steps).round())  # a GPU does not wait
    return found * (unit / lr)


def _slope(term: Tensor | None, weights: list[nn.Parameter]) -> float:
    """Norm of the gradient of a term of the loss; its graph is kept."""
    if term is None or not term.requires_grad:
        return 0.0
    return _norm(
        torch.autograd.grad(
            term, weights, retain_graph=True, allow_unused=True, materialize_grads=True
        )
    )


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.cat([tensor.detach().flatten() for tensor in tensors]).norm())
