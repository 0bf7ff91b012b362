"""IDLVQ-C: learned reference vectors in the embedding space, one per class.

Chen, Lee: "Incremental few-shot learning via vector quantization in deep embedded space", ICLR
2021. A class is a reference vector; an image belongs to the class of the nearest one. In a session,
the references of the new classes start at the class means, and all references are trained together
with the tuned weights, on four terms: cross-entropy of the soft assignment of a Gaussian mixture
with one width, a margin, the spread within a class, and the shift of old references. Afterwards
the old references follow the drift of the embedding (calibration).

What could be checked, and where: the parts named above, in the paper's abstract and in a summary
of it (``karthikraja95/academic-kickstart``, post FSIL), which also names the Gaussian mixture with
a simplified covariance. There is no public code. The formulas and constants of the paper could not
be read; the forms below are ours wherever there was a choice:

- the margin is one on the log-odds of the own class against the nearest other, under the mixture;
- spread and shift are squared distances over the width, so that all weights are free of units;
- the width, if not given, is the maximum-likelihood one of the base embeddings around their means;
- calibration adds the mean drift of the shots, weighted by a softmax of their nearness to the
  reference: the semantic drift compensation of Yu et al., CVPR 2020;
- all weights of the terms default to 1: they have to be tuned.

Further simplification: in the base session, which is shared by all methods, references are not
trained; they are the class means, where the spread is smallest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from experiments.fcl.baselines.features import Features, embedded, prefix_features
from experiments.fcl.baselines.learner import Learner
from experiments.fcl.baselines.memory import Exemplars
from ktlib.checks import require_at_least, require_finite, require_positive
from ktlib.fcl.evaluation import embed
from ktlib.fcl.protocol import positions_of
from ktlib.fcl.prototypes import class_means, nearest_class_mean
from ktlib.fcl.split import SplitNetwork


@dataclass(frozen=True)
class IdlvqSettings:
    """Training of the references, and weights of IDLVQ-C's losses.

    Attributes:
        reference_lr: learning rate of the references, in units of ``gamma``: so that a step is a
            share of the way to go, whatever the scale of the embedding.
        gamma: width of the soft assignment, a squared distance; ``None`` measures it on the base
            embeddings.
        margin: least log-odds of the own class against the nearest other.
        margin_weight: weight of the margin term.
        spread_weight: weight of the variation within a class.
        forgetting_weight: weight of the shift of old references.
        calibrate: let old references follow the drift of the embedding after a session.

    Raises:
        ValueError: if ``reference_lr`` or ``gamma`` is not above 0, or the margin or a weight is
            negative.
    """

    reference_lr: float = 0.1
    gamma: float | None = None
    margin: float = 1.0
    margin_weight: float = 1.0
    spread_weight: float = 1.0
    forgetting_weight: float = 1.0
    calibrate: bool = True

    def __post_init__(self) -> None:
        for name in ("margin", "margin_weight", "spread_weight", "forgetting_weight"):
            require_at_least(name, getattr(self, name), 0)
        require_positive("reference_lr", self.reference_lr)
        if self.gamma is not None:
            require_positive("gamma", self.gamma)


class IDLVQC(Learner):
    """Reference vectors, trained with the tuned weights in each session.

    Args:
        split: network trained on the base session.
        epochs: full-batch steps per session.
        lr: learning rate of plain SGD for the tuned weights.
        settings: by default all weights are 1.
        new_exemplars: images kept per new class; base images are not kept.

    Attributes:
        classes: ``(k,)`` classes seen so far.
        references: ``(k, dim)`` one per class.

    Raises:
        ValueError: if ``epochs`` is below 1, or ``lr`` is not above 0.
    """

    name: ClassVar[str] = "idlvq"

    def __init__(
        self,
        split: SplitNetwork,
        *,
        epochs: int,
        lr: float,
        settings: IdlvqSettings | None = None,
        new_exemplars: int = 5,
    ) -> None:
        require_at_least("epochs", epochs, 1)
        require_positive("lr", lr)
        self.split = split
        self.epochs = epochs
        self.lr = lr
        self.settings = settings or IdlvqSettings()
        self.kept = Exemplars(per_base_class=0, per_new_class=new_exemplars)

    @override
    def start(self, images: Tensor, labels: Tensor) -> None:
        embeddings = embed(self.split.network, images)
        self.classes: Tensor = labels.unique()
        self.references: Tensor = class_means(embeddings, labels)
        self.width = self.settings.gamma or mixture_width(
            embeddings, torch.searchsorted(self.classes, labels), self.references
        )

    @override
    def learn(self, images: Tensor, labels: Tensor) -> None:
        new_classes = labels.unique()
        shots, shot_labels = self.kept.joined_with(images, labels)
        classes = torch.cat([self.classes, new_classes])
        targets = positions_of(shot_labels, classes)
        before = embed(self.split.network, shots)  # (n, dim)
        old = self.references  # (k, dim)
        new = class_means(before, shot_labels, new_classes)  # (new classes, dim)
        references = self._train(shots, targets, torch.cat([old, new]), count=len(old))
        if self.settings.calibrate:
            after = embed(self.split.network, shots)
            references[: len(old)] += calibration_shift(before, after, old, self.width)
        self.classes, self.references = classes, references
        self.kept.add_chosen(images, labels, base=False)

    def _train(self, shots: Tensor, targets: Tensor, references: Tensor, count: int) -> Tensor:
        """Full-batch steps on tuned weights and references, the first ``count`` of them old."""
        s, width, old = self.settings, self.width, references[:count].clone()
        references = references.clone().requires_grad_()
        weights = list(self.split.tuned.values())
        self.split.network.eval()
        with torch.no_grad():
            features = self.split.prefix(shots)
        for step in range(1, self.epochs + 1):
            embeddings = self.split.tail_forward(features)  # (n, dim)
            loss = (
                assignment_loss(embeddings, targets, references, width)
                + s.margin_weight * margin_loss(embeddings, targets, references, width, s.margin)
                + s.spread_weight * spread_loss(embeddings, targets, references, width)
                + s.forgetting_weight * forgetting_loss(references[:count], old, width)
            )
            *gradients, pull = torch.autograd.grad(
                require_finite(loss, step), [*weights, references]
            )
            with torch.no_grad():
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight.add_(gradient, alpha=-self.lr)
                references.add_(pull, alpha=-s.reference_lr * width)
        return references.detach()

    @override
    def features(self, images: Tensor) -> Features:
        return prefix_features(self.split.prefix, images)

    @override
    def classify(self, features: Features) -> Tensor:
        nearest = nearest_class_mean(embedded(self.split.tail, features), self.references)
        return self.classes.index_select(0, nearest)


def mixture_width(embeddings: Tensor, targets: Tensor, references: Tensor) -> float:
    """Width ``gamma = 2 s^2`` that makes the embeddings most likely.

    The mixture has one spherical Gaussian of variance ``s^2`` per entry around each reference.

    Args:
        embeddings: ``(n, dim)``.
        targets: ``(n,)`` row of each embedding's class in ``references``.
        references: ``(k, dim)``.

    Raises:
        ValueError: if all embeddings lie on their references, as no width can be measured then.
    """
    variance = float((embeddings - references[targets]).square().mean())
    if not variance > 0:
        raise ValueError(f"embeddings must vary within a class to measure gamma. Found {variance}.")
    return 2 * variance


def assignment_loss(
    embeddings: Tensor, targets: Tensor, references: Tensor, gamma: float
) -> Tensor:
    """Cross-entropy of the softmax over ``-||f - m||^2 / gamma``, the mean over ``(n, dim)``."""
    return F.cross_entropy(-torch.cdist(embeddings, references).square() / gamma, targets)


def margin_loss(
    embeddings: Tensor, targets: Tensor, references: Tensor, gamma: float, margin: float
) -> Tensor:
    """Mean of ``max(0, margin - (d_other^2 - d_own^2) / gamma)``, the other being the nearest.

    The fraction is the log-odds of the own class against the other under the mixture.

    Args:
        embeddings: ``(n, dim)``.
        targets: ``(n,)`` rows of ``references``.
        references: ``(k, dim)``, at least two.
        gamma: width.
        margin: wanted log-odds.
    """
    squared = torch.cdist(embeddings, references).square() / gamma  # (n, k)
    own = F.one_hot(targets, len(references)).bool()
    nearest_other = squared.masked_fill(own, float("inf")).amin(dim=1)
    return (margin - nearest_other + squared[own]).relu().mean()


def spread_loss(embeddings: Tensor, targets: Tensor, references: Tensor, gamma: float) -> Tensor:
    """Variation within the classes: mean of ``||f - m_own||^2 / gamma``."""
    return (embeddings - references[targets]).square().sum(dim=1).mean() / gamma


def forgetting_loss(references: Tensor, before: Tensor, gamma: float) -> Tensor:
    """Mean of ``||m - m_before||^2 / gamma`` over old references ``(k, dim)``."""
    return (references - before).square().sum(dim=1).mean() / gamma


def calibration_shift(before: Tensor, after: Tensor, references: Tensor, gamma: float) -> Tensor:
    """How far the embedding has carried each reference, estimated from the shots near it.

    Args:
        before: ``(n, dim)`` embeddings of the shots before the session.
        after: ``(n, dim)`` embeddings of the same images after it.
        references: ``(k, dim)`` before the session.
        gamma: width of the weights.

    Returns:
        ``(k, dim)``, the drift of the shots averaged with weights that sum to 1 per reference.
    """
    nearness = (-torch.cdist(references, before).square() / gamma).softmax(dim=1)  # (k, n)
    return nearness @ (after - before)
