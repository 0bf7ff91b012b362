"""Losses of tasks that ask for a value at every pixel; their scores are in :mod:`.metrics`.

Maps have the forms of :class:`data_prep.Task`. A target says itself where it has no value:
-1 in segmentation, saliency and edges, 0 in depth, the zero vector in normals. Such pixels count
nowhere: every loss is a mean over the pixels that have a value.

A batch can have no such pixel at all (human parts, where no image shows a person). Its loss is then
0 with a gradient of zeros: the graph stays whole, so that T gradients come out of T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from data_prep.common.multi_task import IGNORE


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
    require_shape("scores", scores, (len(target), None, *target.shape[1:]))
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
    require_shape("prediction", prediction, target.shape)
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
    return _mean(1 - cosine(prediction, target), has_normal(target))


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
    require_shape("scores", scores, target.shape)
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


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    """The mean of the values where ``valid``; 0 with zero gradient where there are none."""
    # Not `values[valid]`, whose size depends on values: a batched backward pass needs fixed ones.
    return torch.where(valid, values, 0).sum() / valid.sum().clamp(min=1)


def has_normal(target: Tensor) -> Tensor:
    """Where the target (n, 3, h, w) is not the zero vector: (n, 1, h, w)."""
    return (target != 0).any(dim=1, keepdim=True)


def cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """The cosine at every pixel: (n, 1, h, w)."""
    if target.ndim != 4 or target.shape[1] != 3:
        raise ValueError(f"target must have shape (n, 3, h, w). Found {tuple(target.shape)}.")
    require_shape("prediction", prediction, target.shape)
    return (F.normalize(prediction) * F.normalize(target)).sum(dim=1, keepdim=True)


def require_shape(name: str, values: Tensor, shape: Sequence[int | None]) -> None:
    """Refuse another shape; None stands for any size."""
    fits = values.ndim == len(shape) and all(
        wanted in (None, size) for size, wanted in zip(values.shape, shape, strict=True)
    )
    if not fits:
        wanted = tuple("any" if size is None else size for size in shape)
        raise ValueError(f"{name} must have shape {wanted}. Found {tuple(values.shape)}.")
