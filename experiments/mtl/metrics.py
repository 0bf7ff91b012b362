"""Metrics of tasks over all images of a split; :mod:`.dense` has the losses.

Pixels without a value are ignored, and ``compute`` of a metric that has seen no pixel with a value
raises a ``ValueError``. Shares run from 0 to 1 here; :func:`experiments.mtl.tasks.task_metric`
gives percent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from data_prep.common.multi_task import IGNORE
from experiments.mtl.dense import cosine, has_normal, require_shape

ANGLES = (11.25, 22.5, 30.0)
SALIENCY_THRESHOLDS = tuple(0.2 + 0.05 * step for step in range(15))
EDGE_THRESHOLDS = tuple(step / 100 for step in range(1, 100))


class ClassMetric:
    """Classification accuracy and error."""

    def __init__(self) -> None:
        self.n_correct, self.n_valid = 0, 0

    @torch.no_grad()
    def update(self, scores: Tensor, target: Tensor) -> None:
        """Count a batch: scores (n, classes), class numbers (n,)."""
        require_shape("scores", scores, (len(target), None))
        require_shape("target", target, (None,))
        self.n_correct += int((scores.argmax(dim=1) == target).sum())
        self.n_valid += len(target)

    def compute(self) -> dict[str, float]:
        """``accuracy`` and ``error``, which add up to 1."""
        _require_values(self.n_valid)
        return {
            "accuracy": self.n_correct / self.n_valid,
            "error": (self.n_valid - self.n_correct) / self.n_valid,
        }


class SegmentationMetric:
    """Mean intersection over union and pixel accuracy over all images seen.

    Counted over the whole set, as in PASCAL VOC and the released code of Recon. That of MTAN takes
    both image by image and averages them, which weighs rare classes differently: its numbers are
    not comparable to these.

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
            ValueError: the shapes do not fit, or the target has a class number out of range.
        """
        require_shape("scores", scores, (len(target), self.classes, *target.shape[1:]))
        valid = target != self.ignore
        labels, predicted = target[valid].long(), scores.argmax(dim=1)[valid]  # both (pixels,)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            rule = f"target must hold {self.ignore} or lie in [0, {self.classes})"
            raise ValueError(
                f"{rule}. Found values from {int(labels.min())} to {int(labels.max())}."
            )
        pairs = torch.bincount(self.classes * labels + predicted, minlength=self.classes**2)
        self.confusion += pairs.reshape(self.classes, self.classes).cpu()

    def compute(self) -> dict[str, float]:
        """``miou`` and ``pixel_accuracy``, from 0 to 1; a class that never occurs is left out."""
        counts = self.confusion.double()
        _require_values(int(self.confusion.sum()))
        hits = counts.diag()
        union = counts.sum(0) + counts.sum(1) - hits
        ratios = hits[union > 0] / union[union > 0]
        return {"miou": float(ratios.mean()), "pixel_accuracy": float(hits.sum() / counts.sum())}


class Metric(Protocol):
    """What is counted over the batches of a split."""

    def update(self, output: Tensor, target: Tensor, /) -> None:
        """Count a batch."""

    def compute(self) -> dict[str, float]:
        """Name -> value."""


class ImageMeans:
    """Any metric, taken image by image and averaged over those that have a value.

    So the released code of Recon does for depth and normals. Where images have unlike numbers of
    pixels with a value, the numbers differ from those over all pixels.

    Args:
        make: an empty metric.
    """

    def __init__(self, make: Callable[[], Metric]) -> None:
        self.make = make
        self.found: list[dict[str, float]] = []

    def update(self, output: Tensor, target: Tensor) -> None:
        """Count a batch, as the metric does."""
        for start in range(len(target)):
            one = self.make()
            one.update(output[start : start + 1], target[start : start + 1])
            with suppress(ValueError):  # no pixel with a value
                self.found.append(one.compute())

    def compute(self) -> dict[str, float]:
        """The means of the metric's values."""
        _require_values(len(self.found))
        return {
            name: sum(values[name] for values in self.found) / len(self.found)
            for name in self.found[0]
        }


class DepthMetric:
    """Mean absolute and mean relative error over all pixels with a measured depth."""

    def __init__(self) -> None:
        self.absolute, self.relative, self.n_valid = 0.0, 0.0, 0

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count a batch: both (n, 1, h, w), the target 0 where nothing was measured."""
        require_shape("prediction", prediction, target.shape)
        valid = target != 0
        depth = target[valid].double()
        error = (prediction[valid].double() - depth).abs()
        self.absolute += float(error.sum())
        self.relative += float((error / depth.abs()).sum())
        self.n_valid += len(depth)

    def compute(self) -> dict[str, float]:
        """``absolute_error`` in the unit of the depth and ``relative_error``, both 0 at best."""
        _require_values(self.n_valid)
        return {
            "absolute_error": self.absolute / self.n_valid,
            "relative_error": self.relative / self.n_valid,
        }


class NormalsMetric:
    """Angles between predicted and true normals, in degrees, over all pixels that have one.

    Every angle is kept (4 bytes each, 290 MB for the test split of NYUv2), as the median needs.
    """

    def __init__(self) -> None:
        self.angles: list[Tensor] = []

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count a batch: both (n, 3, h, w), the target the zero vector where there is no normal."""
        valid = has_normal(target).expand_as(target[:, :1])
        cosines = cosine(prediction.double(), target.double())[valid]
        self.angles.append(torch.rad2deg(cosines.clamp(-1, 1).acos()).float().cpu())

    def compute(self) -> dict[str, float]:
        """``mean``, ``median`` in degrees, and the shares ``within_11.25`` and so on, 0 to 1."""
        angles = torch.cat(self.angles) if self.angles else torch.empty(0)
        _require_values(len(angles))
        ordered = angles.sort().values
        # The middle one, or the mean of the two in the middle; torch.median takes the lower one.
        middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
        within = {f"within_{a:g}": float((angles < a).double().mean()) for a in ANGLES}
        return {"mean": float(angles.double().mean()), "median": float(middle), **within}


class SaliencyMetric:
    """The largest F, and the largest mean intersection over union, over thresholds.

    At each of 15 thresholds from 0.2 to 0.9, precision, recall and the intersection over union of
    what is salient are taken image by image and averaged; F is that of the averages, and the best
    threshold counts, for each of the two on its own (the protocol of Maninis et al., CVPR 2019; the
    thesis prints the second). An image with no predicted pixel has precision 0, one with no
    salient pixel recall 0, and one with neither an intersection over union of 1.
    """

    def __init__(self, thresholds: Sequence[float] = SALIENCY_THRESHOLDS) -> None:
        self.thresholds = _checked(thresholds)
        self.precision, self.recall, self.overlap = (
            torch.zeros(len(thresholds), dtype=torch.float64) for _ in range(3)
        )
        self.images = 0

    @torch.no_grad()
    def update(self, probability: Tensor, target: Tensor) -> None:
        """Count a batch: probabilities and targets (n, 1, h, w), the target 1, 0, or -1.

        Images without a single pixel with a value do not count.
        """
        require_shape("probability", probability, target.shape)
        for predicted, truth in zip(probability, target, strict=True):  # both (1, h, w)
            valid, positive = truth >= 0, truth > 0.5
            if not bool(valid.any()):
                continue
            n_hit = _above(predicted[positive], self.thresholds)  # (thresholds,)
            n_predicted, n_target = _above(predicted[valid], self.thresholds), int(positive.sum())
            self.precision += n_hit / n_predicted.clamp(min=1)
            self.recall += n_hit / max(n_target, 1)
            union = n_predicted + n_target - n_hit
            self.overlap += torch.where(union > 0, n_hit / union.clamp(min=1), 1.0)
            self.images += 1

    def compute(self) -> dict[str, float]:
        """``max_f`` and ``miou``, from 0 to 1."""
        _require_values(self.images)
        best = _f(self.precision / self.images, self.recall / self.images).max()
        return {"max_f": float(best), "miou": float((self.overlap / self.images).max())}


class EdgeMetric:
    """An approximation of odsF: the largest F over thresholds, all images taken together.

    The published measure (Martin et al., 2004; the package seism) first thins the predicted edges
    and then matches predicted and true edge pixels one to one. Here predictions are not thinned,
    and a pixel counts as matched if there is one of the other kind in a square around it. For the
    same maps this is never below the published measure, and it favours thick edges: use it to
    compare runs with each other, not with published numbers.

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
        # Counts per threshold; "hit" and "matched": near an edge, near a predicted pixel.
        self.n_predicted, self.n_hit, self.n_target_matched = (
            torch.zeros(len(thresholds), dtype=torch.int64) for _ in range(3)
        )
        self.n_target, self.n_valid = 0, 0

    @torch.no_grad()
    def update(self, probability: Tensor, target: Tensor) -> None:
        """Count a batch: probabilities and targets (n, 1, h, w), the target 1, 0, or -1."""
        require_shape("probability", probability, target.shape)
        height, width = target.shape[-2:]
        radius = int(self.tolerance * (height**2 + width**2) ** 0.5)
        valid, positive = target >= 0, target > 0.5
        near_edge = _dilated(positive.to(probability.dtype), radius) > 0
        # A predicted pixel near by is above a threshold exactly if the largest value near by is.
        near_prediction = _dilated(probability.where(valid, probability.new_tensor(-1.0)), radius)
        self.n_predicted += _above(probability[valid], self.thresholds)
        self.n_hit += _above(probability[valid & near_edge], self.thresholds)
        self.n_target_matched += _above(near_prediction[positive], self.thresholds)
        self.n_target += int(positive.sum())
        self.n_valid += int(valid.sum())

    def compute(self) -> dict[str, float]:
        """``ods_f_approximate``, from 0 to 1."""
        _require_values(self.n_valid)
        precision = self.n_hit.double() / self.n_predicted.clamp(min=1)
        recall = self.n_target_matched.double() / max(self.n_target, 1)
        return {"ods_f_approximate": float(_f(precision, recall).max())}


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


def _require_values(count: int) -> None:
    if not count:
        raise ValueError("a metric needs targets with values. Found none so far.")
