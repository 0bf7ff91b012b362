"""Losses and scores of tasks that ask for a value at every pixel.

Maps have the forms of :class:`ktlib.data.Task`. A target says itself where it has no value: -1 in
segmentation, saliency and edges, 0 in depth, the zero vector in normals. Such pixels count nowhere:
every loss is a mean over the pixels that have a value, and every score too.

A batch can have no such pixel at all (human parts, where no image shows a person). Its loss is then
0 with a gradient of zeros: the graph stays whole, so that T gradients come out of T tasks. A score
that has not seen a single one has no result and says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ktlib.data.multi_task import IGNORE

ANGLES = (11.25, 22.5, 30.0)
SALIENCY_THRESHOLDS = tuple(0.2 + 0.05 * step for step in range(15))
EDGE_THRESHOLDS = tuple(step / 100 for step in range(1, 100))


def segmentation_loss(scores: Tensor, target: Tensor, ignore: int = IGNORE) -> Tensor:
    """Cross-entropy, averaged over the pixels whose class is not ``ignore``.

    Args:
        scores: Before the softmax (n, classes, h, w).
        target: Class numbers (n, h, w) of any integer type.
        ignore: The number that stands for "no class".

    Returns:
        A scalar; 0 with zero gradient if no pixel has a class.

    Raises:
        ValueError: the shapes do not fit.
    """
    _require_shape("scores", scores, (len(target), None, *target.shape[1:]))
    classes = target.long()
    total = F.cross_entropy(scores, classes, ignore_index=ignore, reduction="sum")
    # Not the mean of cross_entropy, which is 0 / 0 where no pixel has a class.
    return total / (classes != ignore).sum().clamp(min=1)


def depth_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference where the target is not 0 (L1; Liu et al., MTAN, CVPR 2019).

    Args:
        prediction: (n, 1, h, w).
        target: The same shape; 0 where nothing was measured.

    Returns:
        A scalar; 0 with zero gradient if nothing was measured.

    Raises:
        ValueError: the shapes differ.
    """
    _require_shape("prediction", prediction, target.shape)
    return _mean((prediction - target).abs(), target != 0)


def normals_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """One minus the mean cosine between predicted and true normals (MTAN).

    Both are brought to length 1 here. MTAN leaves out every pixel whose three components sum up to
    0, which also happens to true normals such as (1, -1, 0); here only the zero vector is left out.

    Args:
        prediction: (n, 3, h, w), of any length.
        target: The same shape; the zero vector where there is no normal.

    Returns:
        A scalar from 0 to 2; 0 with zero gradient if there is no normal.

    Raises:
        ValueError: the shapes differ.
    """
    return _mean(1 - _cosine(prediction, target), _has_normal(target))


def balanced_cross_entropy(
    scores: Tensor, target: Tensor, positive_weight: float | None = None
) -> Tensor:
    """Cross-entropy of a yes-or-no map with weight ``w`` on yes and ``1 - w`` on no.

    Without ``positive_weight``, ``w`` is the share of no among the pixels with a value, so that
    both sides weigh the same (Xie and Tu, HED, ICCV 2015): with no yes in it, a batch then costs
    nothing. For edges the multi-task literature fixes ``w`` to 0.95. Differs from the code released
    with Vandenhende et al. (2020), which divides by the number of all pixels, in dividing by the
    number of those with a value.

    Args:
        scores: Before the sigmoid (n, 1, h, w).
        target: The same shape: 1, 0, or -1 for no value.
        positive_weight: ``w``, from 0 to 1; None counts it in the batch.

    Returns:
        A scalar; 0 with zero gradient if no pixel has a value.

    Raises:
        ValueError: the shapes differ, or a weight outside 0 to 1.
    """
    _require_shape("scores", scores, target.shape)
    if positive_weight is not None and not 0 <= positive_weight <= 1:
        raise ValueError(f"positive_weight must lie in [0, 1]. Found {positive_weight!r}.")
    valid = target >= 0
    positive = (target > 0.5).to(scores.dtype)
    if positive_weight is None:
        weight = 1 - (positive * valid).sum() / valid.sum().clamp(min=1)
    else:
        weight = scores.new_tensor(positive_weight)
    cost = F.binary_cross_entropy_with_logits(scores, positive, reduction="none")
    return _mean(cost * (positive * weight + (1 - positive) * (1 - weight)), valid)


class SegmentationScore:
    """Mean intersection over union and pixel accuracy over all images seen.

    Counted over the whole set, as in PASCAL VOC. MTAN's released code takes both image by image and
    averages them, which weighs rare classes differently: its numbers are not comparable to these.

    Args:
        classes: Number of classes.
        ignore: The target's number for "no class".
    """

    def __init__(self, classes: int, ignore: int = IGNORE) -> None:
        self.classes, self.ignore = classes, ignore
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)

    @torch.no_grad()
    def update(self, scores: Tensor, target: Tensor) -> None:
        """Count a batch: scores (n, classes, h, w), target (n, h, w).

        Raises:
            ValueError: the shapes do not fit, or the target has a class that there is not.
        """
        _require_shape("scores", scores, (len(target), self.classes, *target.shape[1:]))
        valid = target != self.ignore
        true, found = target[valid].long(), scores.argmax(dim=1)[valid]
        if len(true) and not 0 <= int(true.min()) <= int(true.max()) < self.classes:
            rule = f"target must hold {self.ignore} or lie in [0, {self.classes})"
            raise ValueError(f"{rule}. Found values from {int(true.min())} to {int(true.max())}.")
        pairs = torch.bincount(self.classes * true + found, minlength=self.classes**2)
        self.confusion += pairs.reshape(self.classes, self.classes).cpu()

    def result(self) -> dict[str, float]:
        """``miou`` and ``pixel_accuracy``, from 0 to 1; a class that never occurs is left out."""
        counts = self.confusion.double()
        _require_seen(int(self.confusion.sum()))
        hits = counts.diag()
        union = counts.sum(0) + counts.sum(1) - hits
        ratios = hits[union > 0] / union[union > 0]
        return {"miou": float(ratios.mean()), "pixel_accuracy": float(hits.sum() / counts.sum())}


class DepthScore:
    """Mean absolute and mean relative error over all pixels with a measured depth."""

    def __init__(self) -> None:
        self.absolute, self.relative, self.number = 0.0, 0.0, 0

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count a batch: both (n, 1, h, w), the target 0 where nothing was measured."""
        _require_shape("prediction", prediction, target.shape)
        valid = target != 0
        true = target[valid].double()
        error = (prediction[valid].double() - true).abs()
        self.absolute += float(error.sum())
        self.relative += float((error / true.abs()).sum())
        self.number += len(true)

    def result(self) -> dict[str, float]:
        """``absolute_error`` in the unit of the depth and ``relative_error``, both 0 at best."""
        _require_seen(self.number)
        return {
            "absolute_error": self.absolute / self.number,
            "relative_error": self.relative / self.number,
        }


class NormalsScore:
    """Angles between predicted and true normals, in degrees, over all pixels that have one.

    Every angle is kept (4 bytes each, 290 MB for the test split of NYUv2), as the median needs.
    """

    def __init__(self) -> None:
        self.angles: list[Tensor] = []

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count a batch: both (n, 3, h, w), the target the zero vector where there is none."""
        valid = _has_normal(target).expand_as(target[:, :1])
        cosine = _cosine(prediction.double(), target.double())[valid]
        self.angles.append(torch.rad2deg(cosine.clamp(-1, 1).acos()).float().cpu())

    def result(self) -> dict[str, float]:
        """``mean``, ``median`` in degrees, and the shares ``within_11.25`` and so on, 0 to 1."""
        angles = torch.cat(self.angles) if self.angles else torch.empty(0)
        _require_seen(len(angles))
        ordered = angles.sort().values
        # The middle one, or the mean of the two in the middle; torch.median takes the lower one.
        middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
        within = {f"within_{a:g}": float((angles < a).double().mean()) for a in ANGLES}
        return {"mean": float(angles.double().mean()), "median": float(middle), **within}


class SaliencyScore:
    """The largest F over thresholds, of precision and recall averaged over images.

    At each of 15 thresholds from 0.2 to 0.9, precision and recall are taken image by image and
    averaged; F is that of the averages, and the best threshold counts (the protocol of Maninis et
    al., CVPR 2019). An image with nothing found has precision 0, one with nothing to find recall 0.
    """

    def __init__(self, thresholds: Sequence[float] = SALIENCY_THRESHOLDS) -> None:
        self.thresholds = _checked(thresholds)
        self.precision = torch.zeros(len(thresholds), dtype=torch.float64)
        self.recall = torch.zeros(len(thresholds), dtype=torch.float64)
        self.images = 0

    @torch.no_grad()
    def update(self, probability: Tensor, target: Tensor) -> None:
        """Count a batch: probabilities and targets (n, 1, h, w), the target 1, 0, or -1.

        Images without a single pixel with a value do not count.
        """
        _require_shape("probability", probability, target.shape)
        for found, true in zip(probability, target, strict=True):
            valid, positive = true >= 0, true > 0.5
            if not bool(valid.any()):
                continue
            hits = _above(found[positive], self.thresholds)
            self.precision += hits / _above(found[valid], self.thresholds).clamp(min=1)
            self.recall += hits / max(int(positive.sum()), 1)
            self.images += 1

    def result(self) -> dict[str, float]:
        """``max_f``, from 0 to 1."""
        _require_seen(self.images)
        best = _f(self.precision / self.images, self.recall / self.images).max()
        return {"max_f": float(best)}


class EdgeScore:
    """An approximation of odsF: the largest F over thresholds, all images taken together.

    The published measure (Martin et al., 2004; the package seism) first thins what was found and
    then assigns found and true edge pixels one to one. Here nothing is thinned, and a pixel counts
    as right if there is one of the other kind in a square around it. For the same maps this is
    never below the published measure, and it favours thick edges: use it to compare runs with
    each other, not with published numbers.

    Args:
        tolerance: Half the side of the square as a part of the image's diagonal, cut down to whole
            pixels; 0.0075 is the published measure's largest distance.
        thresholds: Increasing, on the probability.
    """

    def __init__(
        self, tolerance: float = 0.0075, thresholds: Sequence[float] = EDGE_THRESHOLDS
    ) -> None:
        if not 0 <= tolerance < 1:
            raise ValueError(f"tolerance must lie in [0, 1). Found tolerance={tolerance!r}.")
        self.tolerance, self.thresholds = tolerance, _checked(thresholds)
        # Found pixels, those of them near a true one, and true pixels near a found one.
        self.found, self.right, self.met = (
            torch.zeros(len(thresholds), dtype=torch.int64) for _ in range(3)
        )
        self.true, self.seen = 0, 0

    @torch.no_grad()
    def update(self, probability: Tensor, target: Tensor) -> None:
        """Count a batch: probabilities and targets (n, 1, h, w), the target 1, 0, or -1."""
        _require_shape("probability", probability, target.shape)
        height, width = target.shape[-2:]
        radius = int(self.tolerance * (height**2 + width**2) ** 0.5)
        valid, positive = target >= 0, target > 0.5
        near_true = _dilated(positive.to(probability.dtype), radius) > 0
        # A found pixel near by is above a threshold exactly if the largest value near by is.
        near_found = _dilated(probability.where(valid, probability.new_tensor(-1.0)), radius)
        self.found += _above(probability[valid], self.thresholds)
        self.right += _above(probability[valid & near_true], self.thresholds)
        self.met += _above(near_found[positive], self.thresholds)
        self.true += int(positive.sum())
        self.seen += int(valid.sum())

    def result(self) -> dict[str, float]:
        """``ods_f_approximate``, from 0 to 1."""
        _require_seen(self.seen)
        precision = self.right.double() / self.found.clamp(min=1)
        recall = self.met.double() / max(self.true, 1)
        return {"ods_f_approximate": float(_f(precision, recall).max())}


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    """The mean of the values where ``valid``; 0 with zero gradient where there are none."""
    # Not `values[valid]`, whose size depends on values: a batched backward pass needs fixed ones.
    return torch.where(valid, values, 0).sum() / valid.sum().clamp(min=1)


def _has_normal(target: Tensor) -> Tensor:
    """Where the target (n, 3, h, w) is not the zero vector: (n, 1, h, w)."""
    return (target != 0).any(dim=1, keepdim=True)


def _cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """The cosine at every pixel: (n, 1, h, w)."""
    if target.ndim != 4 or target.shape[1] != 3:
        raise ValueError(f"target must have shape (n, 3, h, w). Found {tuple(target.shape)}.")
    _require_shape("prediction", prediction, target.shape)
    return (F.normalize(prediction) * F.normalize(target)).sum(dim=1, keepdim=True)


def _above(values: Tensor, thresholds: Tensor) -> Tensor:
    """How many values lie above each threshold: int64, one count per threshold."""
    below = torch.bucketize(values.double().cpu(), thresholds)  # thresholds below each value
    counts = torch.bincount(below, minlength=len(thresholds) + 1)
    return counts.flip(0).cumsum(0).flip(0)[1:]


def _dilated(maps: Tensor, radius: int) -> Tensor:
    """The largest value in the square of ``2 * radius + 1`` pixels around each: (n, 1, h, w)."""
    return F.max_pool2d(maps, 2 * radius + 1, stride=1, padding=radius)


def _f(precision: Tensor, recall: Tensor) -> Tensor:
    """Their harmonic mean; 0 where both are 0."""
    return 2 * precision * recall / (precision + recall).clamp(min=1e-12)


def _checked(thresholds: Sequence[float]) -> Tensor:
    values = torch.tensor(thresholds, dtype=torch.float64)
    if not len(values) or not bool((values.diff() > 0).all()):
        raise ValueError(f"thresholds must increase. Found {tuple(thresholds)}.")
    return values


def _require_shape(name: str, values: Tensor, shape: Sequence[int | None]) -> None:
    """Refuse another shape; None stands for any size."""
    fits = values.ndim == len(shape) and all(
        wanted in (None, size) for size, wanted in zip(values.shape, shape, strict=True)
    )
    if not fits:
        wanted = tuple("any" if size is None else size for size in shape)
        raise ValueError(f"{name} must have shape {wanted}. Found {tuple(values.shape)}.")


def _require_seen(number: int) -> None:
    if not number:
        raise ValueError("a score needs a target with a value at a pixel. Found none so far.")
