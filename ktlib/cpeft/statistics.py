"""Gaussian statistics of classes, kept instead of images, and heads that are aligned with them.

A head that is trained one task after the other is biased: the logits of different tasks were never
compared. SLCA (Zhang et al., ICCV 2023) and HiDe-Prompt (Wang et al., NeurIPS 2023) therefore keep
the mean and the covariance of each class in feature space and retrain the head on pseudo-features,
drawn from these Gaussians, of all classes in equal numbers. Which settings L2C uses is not public:
the shrinkage, the optimiser and the numbers here are our reconstruction.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ktlib.checks import require_at_least, require_extra, require_finite, require_positive
from ktlib.cpeft.heads import JoinedHead
from ktlib.seeding import generator as stream


class ClassStatistics:
    """Mean and covariance of the features of each class. No image and no feature is kept.

    The covariance is that of Ledoit and Wolf (2004): the empirical one, drawn towards a multiple of
    the identity by an amount that follows from the data and vanishes with many images. Few images
    of a class would else leave a singular matrix, and pseudo-features in a thin slice. (With only
    two, nothing says how far to shrink: their covariance stays on a line.)

    A class takes ``dim * (dim + 1)`` numbers, on the device of the features.

    Args:
        dim: size of a feature.

    Attributes:
        classes: ``(k,)`` class numbers in the order in which they were added, on the CPU.
        means: ``(k, dim)`` float32.
        roots: ``(k, dim, dim)`` symmetric square roots of the covariances, float32.

    Raises:
        ValueError: ``dim`` is below 1.
    """

    def __init__(self, dim: int) -> None:
        require_at_least("dim", dim, 1)
        self.dim = dim
        self.classes = torch.empty(0, dtype=torch.int64)
        self.means = torch.empty(0, dim)
        self.roots = torch.empty(0, dim, dim)

    @property
    def covariances(self) -> Tensor:
        """``(k, dim, dim)``, after the shrinkage."""
        return self.roots @ self.roots

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Estimate the Gaussians of new classes.

        Args:
            features: ``(n, dim)``.
            labels: ``(n,)`` class numbers.

        Raises:
            ValueError: features of another size or that are not finite, a class that is known
                already, or one with fewer than two images.
        """
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(
                f"features must be (n, {self.dim}). Found shape {tuple(features.shape)}."
            )
        if labels.shape != features.shape[:1]:
            raise ValueError(
                f"labels must be ({len(features)},), one for each feature. Found "
                f"{tuple(labels.shape)}."
            )
        if not bool(torch.isfinite(features).all()):
            raise ValueError("features must be finite numbers.")
        values, numbers = features.detach().cpu().double(), labels.cpu()
        classes, counts = numbers.unique(return_counts=True)
        known = classes[torch.isin(classes, self.classes)].tolist()
        if known:
            raise ValueError(f"labels must be of new classes. Found {known} again.")
        if bool((counts < 2).any()):
            raise ValueError(
                "a class must have at least two images for a covariance. Found one "
                f"of {classes[counts < 2].tolist()}."
            )
        fits = [_gaussian(values[numbers == label]) for label in classes]
        self.classes = torch.cat([self.classes, classes])
        means, roots = (torch.stack(part).float() for part in zip(*fits, strict=True))
        self.means = torch.cat([self.means.to(features.device), means.to(features.device)])
        self.roots = torch.cat([self.roots.to(features.device), roots.to(features.device)])

    def sample(self, per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pseudo-features of every class.

        Args:
            per_class: of each class.
            generator: on the CPU, so that every device gets the same draws.

        Returns:
            ``(k * per_class, dim)`` features on their device and ``(k * per_class,)`` class
            numbers on the CPU, class by class.

        Raises:
            ValueError: ``per_class`` is below 1, or there are no classes yet.
        """
        require_at_least("per_class", per_class, 1)
        if not len(self.classes):
            raise ValueError("the statistics must hold at least one class. Found none.")
        noise = torch.randn(len(self.classes), per_class, self.dim, generator=generator)
        # (k, 1, dim) + (k, per_class, dim) @ (k, dim, dim); the roots are symmetric: no transpose.
        features = self.means[:, None] + noise.to(self.roots.device) @ self.roots
        return features.flatten(0, 1), self.classes.repeat_interleave(per_class)


def align_head(
    head: JoinedHead,
    statistics: ClassStatistics,
    *,
    steps: int,
    lr: float,
    per_class: int,
    seed: int,
) -> list[float]:
    """Retrain a joined head, in place, on pseudo-features of all its classes.

    Every step draws new ones, the same number of each class, and descends on the cross-entropy over
    all columns with Adam and a cosine rate. The features do not change.

    Args:
        head: of which all columns are trained.
        statistics: of the same classes, in the feature space that the head works in.
        steps: of Adam; 0 leaves the head.
        lr: the first rate.
        per_class: pseudo-features of each class in a step.
        seed: decides the draws.

    Returns:
        The loss of each step, before it.

    Raises:
        ValueError: the classes are not the same, or a setting is out of range.
        FloatingPointError: the loss is no longer finite.
    """
    require_at_least("steps", steps, 0)
    require_positive("lr", lr)
    require_at_least("per_class", per_class, 1)
    columns = head.classes.cpu()
    if not torch.equal(columns.sort().values, statistics.classes.sort().values):
        raise ValueError(
            "head and statistics must have the same classes. Found "
            f"{columns.tolist()} and {statistics.classes.tolist()}."
        )
    if not steps:
        return []
    parameters = list(head.parameters())
    device = parameters[0].device
    order = torch.argsort(columns)
    optimizer = torch.optim.Adam(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draws = stream(seed, "align")
    losses = []
    for step in range(1, steps + 1):
        features, labels = statistics.sample(per_class, draws)
        targets = order[torch.searchsorted(columns[order], labels)]
        loss = F.cross_entropy(head(features.to(device)), targets.to(device))
        losses.append(loss.item())
        require_finite(torch.tensor(losses[-1]), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return losses


def _gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``(dim,)`` and symmetric root ``(dim, dim)`` of the covariance of ``(n, dim)``."""
    images = len(features)
    covariance = require_extra("sklearn.covariance", "lora")
    shrunk = torch.from_numpy(covariance.ledoit_wolf(features.numpy())[0])
    # The mean was estimated from the same images, which Ledoit and Wolf leave out of account.
    values, vectors = torch.linalg.eigh(shrunk * (images / (images - 1)))  # (dim,), (dim, dim)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T  # (dim, dim)
    return features.mean(dim=0), root
