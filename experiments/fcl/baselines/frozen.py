"""Other classifiers on the frozen network: ``teen``, ``lda`` and ``ridge``.

None takes a gradient step, so they tell what training in the sessions is worth. They keep
statistics of the base session, never its images.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from experiments.fcl.baselines.features import Features, embedded
from experiments.fcl.baselines.nearest_mean import NearestMean
from ktlib.checks import require_positive
from ktlib.fcl.evaluation import embed
from ktlib.fcl.prototypes import class_means
from ktlib.fcl.split import SplitNetwork


class Teen(NearestMean):
    """Prototypes of new classes, moved towards the base prototypes that they resemble: ``teen``.

    Wang et al., "Few-shot class-incremental learning via training-free prototype calibration",
    NeurIPS 2023. Images of new classes are mostly taken for base classes; a prototype that lies
    nearer to these catches more of them.

    As in the authors' code (``wangkiw/TEEN``): similarities are cosines, base prototypes have norm
    1 when they are averaged, their mean is scaled to norm 1, and the largest cosine decides. The
    code goes half of the way by default, and a tenth in its script for CIFAR-100. Simplified: there
    the base session is trained with a cosine classifier, here as for the other methods.

    Args:
        split: network trained on the base session.
        temperature: times the cosines before the softmax; the authors' code: 16.
        shift: share of the way to the mean of base prototypes; 0 is the frozen network.

    Raises:
        ValueError: if ``temperature`` is not above 0, or ``shift`` is not in ``[0, 1]``.
    """

    name: ClassVar[str] = "teen"

    def __init__(
        self, split: SplitNetwork, *, temperature: float = 16.0, shift: float = 0.5
    ) -> None:
        super().__init__(split)
        require_positive("temperature", temperature)
        require_share("shift", shift)
        self.temperature = temperature
        self.shift = shift

    @override
    def learn(self, images: Tensor, labels: Tensor) -> None:
        earlier = self.prototypes
        super().learn(images, labels)
        new = self.prototypes[len(earlier) :]
        moved = calibrated(new, self.base_prototypes, self.temperature, self.shift)
        self.prototypes = torch.cat([earlier, moved])


def calibrated(new: Tensor, base: Tensor, temperature: float, shift: float) -> Tensor:
    """Prototypes of new classes on their way to a mean of base prototypes.

    Args:
        new: ``(k, dim)``.
        base: ``(m, dim)``.
        temperature: times the cosines before the softmax that weighs the base prototypes.
        shift: share of the way.

    Returns:
        ``(k, dim)``: between two points of norm 1, so of norm 1 at most.
    """
    new, base = F.normalize(new, dim=1), F.normalize(base, dim=1)
    weights = (temperature * new @ base.T).softmax(dim=1)  # (k, m)
    return torch.lerp(new, F.normalize(weights @ base, dim=1), shift)


class Lda(NearestMean):
    """Linear discriminant analysis: the nearest mean in the metric of the base classes, ``lda``.

    The means of all classes are their own; the covariance within a class is that of the base
    images, as five shots say little about one. All classes are taken to be equally likely. Sums
    and systems of equations are in float64, on the CPU, as some devices have none.

    Args:
        split: network trained on the base session.
        shrinkage: the covariance becomes ``(1 - shrinkage) S + shrinkage trace(S) / dim I``; 1 is
            the nearest mean in Euclidean distance, without prototype normalisation.

    Raises:
        ValueError: if ``shrinkage`` is not above 0 and at most 1. Without any, units that are 0 on
            all images leave the covariance without an inverse.
    """

    name: ClassVar[str] = "lda"

    def __init__(self, split: SplitNetwork, *, shrinkage: float = 0.1) -> None:
        super().__init__(split)
        require_positive("shrinkage", shrinkage)
        require_share("shrinkage", shrinkage)
        self.shrinkage = shrinkage

    @override
    def start(self, images: Tensor, labels: Tensor) -> None:
        embeddings = embed(self.split.network, images)
        self.base_classes = self.classes = labels.unique()
        self.prototypes = self.base_prototypes = class_means(embeddings, labels)
        own = self.prototypes[torch.searchsorted(self.classes, labels)]
        within = (embeddings - own).cpu().double()
        covariance = within.T @ within / len(within)  # (dim, dim)
        self.covariance = torch.lerp(covariance, scaled_identity(covariance, 1.0), self.shrinkage)

    @override
    def classify(self, features: Features) -> Tensor:
        means = self.prototypes.cpu().double()  # (k, dim)
        weight = torch.linalg.solve(self.covariance, means.T).T
        bias = -0.5 * (weight * means).sum(dim=1)
        embeddings = embedded(self.split.tail, features)
        best = (embeddings @ weight.T.to(embeddings) + bias.to(embeddings)).argmax(dim=1)
        predicted: Tensor = self.classes[best]
        return predicted


class Ridge(NearestMean):
    """Ridge regression of one-hot labels on the embeddings: ``ridge``.

    As in RanPAC (McDonnell et al., "RanPAC: random projections and pre-trained models for continual
    learning", NeurIPS 2023) without its random projection: kept are the Gram matrix of all
    embeddings so far and their sum in each class, which give the regression on all images of all
    sessions; there is no intercept. Different from RanPAC: the penalty is an argument, where
    RanPAC chooses it anew in every session on a fifth of the images, and by default every class
    counts the same, where in RanPAC every image does and a base class outweighs a new one many
    times. Sums and systems of equations are in float64, on the CPU, as some devices have none.

    Args:
        split: network trained on the base session.
        penalty: what is added to the diagonal of the Gram matrix, in units of its mean entry there.
        balanced: divide the statistics of a class by its number of images.

    Raises:
        ValueError: if ``penalty`` is not above 0.
    """

    name: ClassVar[str] = "ridge"

    def __init__(
        self, split: SplitNetwork, *, penalty: float = 1e-3, balanced: bool = True
    ) -> None:
        super().__init__(split)
        require_positive("penalty", penalty)
        self.penalty = penalty
        self.balanced = balanced

    @override
    def start(self, images: Tensor, labels: Tensor) -> None:
        self.base_classes = self.classes = labels.unique()
        self.gram, self.sums = self.statistics(images, labels)

    @override
    def learn(self, images: Tensor, labels: Tensor) -> None:
        self.classes = torch.cat([self.classes, labels.unique()])
        gram, sums = self.statistics(images, labels)
        self.gram, self.sums = self.gram + gram, torch.cat([self.sums, sums])

    def statistics(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Gram matrix ``(dim, dim)`` of the embeddings, and their sum in each class."""
        embeddings = embed(self.split.network, images).cpu().double()
        _, rows, counts = labels.cpu().unique(return_inverse=True, return_counts=True)
        targets = F.one_hot(rows).double()  # (n, classes)
        if self.balanced:
            targets = targets / counts
        weighted = embeddings * targets.sum(dim=1, keepdim=True)
        return weighted.T @ embeddings, targets.T @ embeddings

    @override
    def classify(self, features: Features) -> Tensor:
        penalised = self.gram + scaled_identity(self.gram, self.penalty)
        weight = torch.linalg.solve(penalised, self.sums.T)  # (dim, k)
        embeddings = embedded(self.split.tail, features)
        predicted: Tensor = self.classes[(embeddings @ weight.to(embeddings)).argmax(dim=1)]
        return predicted


def scaled_identity(matrix: Tensor, factor: float) -> Tensor:
    """The identity, times ``factor`` and the mean of the diagonal of ``matrix (dim, dim)``."""
    return factor * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=matrix.dtype)


def require_share(name: str, value: float) -> None:
    """Refuse a number that is not in ``[0, 1]``."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1. Found {name}={value!r}.")
