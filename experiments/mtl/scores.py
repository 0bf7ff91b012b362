"""Scores of tasks over all images of a split; :mod:`.dense` has the losses.

Pixels without a value count nowhere, and a score that has not seen a single one with a value has no
result and says so. Shares run from 0 to 1 here; :func:`experiments.mtl.tasks.task_score` gives
percent.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from data_prep.common.multi_task import IGNORE
from experiments.mtl.dense import cosine, has_normal, require_shape

ANGLES = (11.25, 22.5, 30.0)
SALIENCY_THRESHOLDS = tuple(0.2 + 0.05 * step for step in range(15))
EDGE_THRESHOLDS = tuple(step / 100 for step in range(1, 100))


class ClassScore:
    """Share of the images whose class is found."""

    def __init__(self) -> None:
        self.right, self.number = 0, 0

    @torch.no_grad()
    def update(self, scores: Tensor, target: Tensor) -> None:
        """Count a batch: scores (n, classes), class numbers (n,)."""
        require_shape("scores", scores, (len(target), None))
        require_shape("target", target, (None,))
        self.right += int((scores.argmax(dim=1) == target).sum())
        self.number += len(target)

    def result(self) -> dict[str, float]:
        """``accuracy`` and ``error``, which add up to 1."""
        _require_seen(self.number)
        return {
            "accuracy": self.right / self.number,
            "error": (self.number - self.right) / self.number,
        }


class SegmentationScore:
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
            ValueError: the shapes do not fit, or the target has a class that there is not.
        """
        require_shape("scores", scores, (len(target), self.classes, *target.shape[1:]))
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
    """Mean absolute and mean relative error over all pixels with a measured depth.

    The released code of Recon averages image by image: where images have unlike numbers of pixels
    with a depth, its numbers differ from these. So they do for normals.
    """

    def __init__(self) -> None:
        self.absolute, self.relative, self.number = 0.0, 0.0, 0

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count a batch: both (n, 1, h, w), the target 0 where nothing was measured."""
        require_shape("prediction", prediction, target.shape)
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
        valid = has_normal(target).expand_as(target[:, :1])
        cosines = cosine(prediction.double(), target.double())[valid]
        self.angles.append(torch.rad2deg(cosines.clamp(-1, 1).acos()).float().cpu())

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
    """The largest F, and the largest mean intersection over union, over thresholds.

    At each of 15 thresholds from 0.2 to 0.9, precision, recall and the intersection over union of
    what is salient are taken image by image and averaged; F is that of the averages, and the best
    threshold counts, for each of the two on its own (the protocol of Maninis et al., CVPR 2019; the
    thesis prints the second). An image with nothing found has precision 0, one with nothing to find
    recall 0, and one with neither an intersection over union of 1.
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
        for found, true in zip(probability, target, strict=True):
            valid, positive = true >= 0, true > 0.5
            if not bool(valid.any()):
                continue
            hits, marked = _above(found[positive], self.thresholds), int(positive.sum())
            number = _above(found[valid], self.thresholds)
            self.precision += hits / number.clamp(min=1)
            self.recall += hits / max(marked, 1)
            union = number + marked - hits
            self.overlap += torch.where(union > 0, hits / union.clamp(min=1), 1.0)
            self.images += 1

    def result(self) -> dict[str, float]:
        """``max_f`` and ``miou``, from 0 to 1."""
        _require_seen(self.images)
        best = _f(self.precision / self.images, self.recall / self.images).max()
        return {"max_f": float(best), "miou": float((self.overlap / self.images).max())}


class EdgeScore:
    """An approximation of odsF: the largest F over thresholds, all images taken together.

    The published measure (Martin et al., 2004; the package seism) first thins what was found and
    then assigns found and true edge pixels one to one. Here what was found is not thinned, and a
    pixel counts as right if there is one of the other kind in a square around it. For the same maps
    this is never below the published measure, and it favours thick edges: use it to compare runs
    with each other, not with published numbers.

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
        require_shape("probability", probability, target.shape)
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


def _require_seen(number: int) -> None:
    if not number:
        raise ValueError("a score needs a target with a value. Found none so far.")
