"""Every data set of the thesis by one code path: loss, metric and head for each kind of task.

A step of training on any of them::

    trunk = split_trunk(
        backbone_for("nyuv2"), layers, [task.name for task in tasks], example=images
    )
    heads = task_heads(tasks, trunk.trunk_of(tasks[0].name))
    features = trunk(images)
    losses = {t.name: task_loss(t, heads[t.name](features[t.name]), targets[t.name]) for t in tasks}

Heads give scores before a softmax or sigmoid; losses and scores here take these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_prep.celeba import ATTRIBUTES
from data_prep.common.multi_task import CHANNELS, Task
from experiments.models.mobilenet import Decoder
from experiments.models.segnet import dense_head
from experiments.mtl import dense, metrics
from ktlib.mtl.metrics import relative_improvement
from ktlib.mtl.split import SplitTrunk, split

# Weight of an edge against none, fixed in the multi-task literature (Maninis et al., CVPR 2019).
EDGE_WEIGHT = 0.95

# Metrics that are not shares: errors in units of the depth, and degrees.
_NO_SHARES = {"absolute_error", "relative_error", "mean", "median"}

LOWER_IS_BETTER = frozenset({"error", *_NO_SHARES})

_SEGMENTATION = {"miou": "seg_miou", "pixel_accuracy": "seg_pix_acc"}
_DEPTH = {"absolute_error": "depth_abs_err", "relative_error": "depth_rel_err"}
_NORMALS = {
    "mean": "normal_mean",
    "median": "normal_median",
    "within_11.25": "normal_within_11_25",
    "within_22.5": "normal_within_22_5",
}

# Data set -> task -> metric -> its column in the table of the thesis that prints it: 4.1 (whose
# first task is the digit, the easier one), 4.2, 4.3, 4.5 and 4.4. Only these are part of Dm.
TABLE_COLUMNS: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "multi_fashion_mnist": {
        "digit": {"accuracy": "task_1_acc"},
        "item": {"accuracy": "task_2_acc"},
    },
    "celeba": {name: {"error": "average_error"} for name in ATTRIBUTES},
    "cityscapes": {"segmentation": _SEGMENTATION, "depth": _DEPTH},
    "nyuv2": {
        "segmentation": _SEGMENTATION,
        "depth": _DEPTH,
        "normals": {**_NORMALS, "within_30": "normal_within_30"},
    },
    "pascal_context": {
        "segmentation": {"miou": "semseg_miou", "pixel_accuracy": "semseg_pix_acc"},
        "human_parts": {"miou": "partseg_miou", "pixel_accuracy": "partseg_pix_acc"},
        "saliency": {"miou": "saliency_miou"},
        "normals": _NORMALS,
    },
}


def task_loss(task: Task, output: Tensor, target: Tensor) -> Tensor:
    """The loss of a task on a batch.

    Cross-entropy of classes and segmentation, the mean absolute error of depth, one minus the
    cosine of normals, balanced cross-entropy of saliency and of edges, whose weight is
    :data:`EDGE_WEIGHT`; see :mod:`experiments.mtl.dense`. None is weighted against those of other
    tasks.

    Args:
        task: what the target is; an attribute of CelebA is a task of two classes.
        output: what the head gives: ``(n, classes)`` scores of classes, else maps ``(n, channels,
            h, w)``.
        target: as :class:`data_prep.common.multi_task.Task` describes it, with the dimension n.

    Returns:
        A scalar; 0 with zero gradient if no pixel of the batch has a value.

    Raises:
        ValueError: the shapes do not fit.
    """
    if task.kind == "classes":
        dense.require_shape("target", target, (None,))
        dense.require_shape("output", output, (len(target), len(task.class_names)))
        return F.cross_entropy(output, target.long())
    if task.kind == "segmentation":
        return dense.segmentation_loss(output, target)
    if task.kind == "depth":
        return dense.depth_loss(output, target)
    if task.kind == "normals":
        return dense.normals_loss(output, target)
    weight = EDGE_WEIGHT if task.kind == "edges" else None
    return dense.balanced_cross_entropy(output, target, weight)


class TaskMetric:
    """The metrics of a task over all batches of a split; made by :func:`task_metric`."""

    def __init__(self, metric: metrics.Metric, probability: bool) -> None:
        self._metric, self._probability = metric, probability

    @torch.no_grad()
    def update(self, output: Tensor, target: Tensor) -> None:
        """Count a batch: what the head gives, and its targets, as :func:`task_loss` takes them.

        Raises:
            ValueError: the shapes do not fit, or the target has a class number out of range.
        """
        self._metric.update(output.sigmoid() if self._probability else output, target)

    def compute(self) -> dict[str, float]:
        """Metric -> value, in percent where it is a share.

        Raises:
            ValueError: nothing with a value was counted.
        """
        found = self._metric.compute()
        return {name: v if name in _NO_SHARES else 100 * v for name, v in found.items()}


def task_metric(task: Task, *, per_image: bool = False) -> TaskMetric:
    """An empty score of a task.

    Its metrics: ``accuracy`` and ``error`` of classes; ``miou`` and ``pixel_accuracy`` of
    segmentation; ``absolute_error`` and ``relative_error`` of depth; ``mean`` and ``median`` in
    degrees, ``within_11.25``, ``within_22.5`` and ``within_30`` of normals; ``max_f`` and ``miou``
    of saliency; ``ods_f_approximate`` of edges. Those in :data:`LOWER_IS_BETTER` are errors.

    Args:
        task: what its targets are.
        per_image: take depth and normals image by image and average, as the released code does.
    """
    maps: dict[str, Callable[[], metrics.Metric]] = {
        "depth": metrics.DepthMetric,
        "normals": metrics.NormalsMetric,
    }
    if per_image and task.kind in maps:
        return TaskMetric(metrics.ImageMeans(maps[task.kind]), probability=False)
    kinds: dict[str, metrics.Metric] = {
        "classes": metrics.ClassMetric(),
        "segmentation": metrics.SegmentationMetric(len(task.class_names)),
        "depth": metrics.DepthMetric(),
        "normals": metrics.NormalsMetric(),
        "saliency": metrics.SaliencyMetric(),
        "edges": metrics.EdgeMetric(),
    }
    return TaskMetric(kinds[task.kind], probability=task.kind in ("saliency", "edges"))


def task_head(task: Task, in_channels: int, low_channels: int = 0) -> nn.Module:
    """What is put on a trunk for one task.

    Args:
        task: a task of classes gets a linear layer, another one a map of the images' size: by
            :func:`experiments.models.segnet.dense_head`, or, with ``low_channels``, by
            :class:`experiments.models.mobilenet.Decoder`.
        in_channels: ``feature_dim`` of the trunk.
        low_channels: that of the trunk if it has one, as ``mobilenet_v2`` does.
    """
    outputs = CHANNELS[task.kind] or len(task.class_names)
    if task.kind == "classes":
        return nn.Linear(in_channels, outputs)
    if low_channels:
        return Decoder(in_channels, low_channels, outputs)
    return dense_head(in_channels, outputs)


def task_heads(tasks: Iterable[Task], trunk: nn.Module) -> nn.ModuleDict:
    """A head for every task, by its name, on a trunk of ``experiments.models.backbones``."""
    size: Any = trunk.feature_dim
    low: Any = getattr(trunk, "low_channels", 0)
    return nn.ModuleDict({task.name: task_head(task, size, low) for task in tasks})


def split_trunk(
    trunk: nn.Module,
    layers: Iterable[str],
    tasks: Sequence[str],
    *,
    share_prefix: bool = True,
    own_statistics: bool = False,
    example: Tensor | None = None,
) -> SplitTrunk:
    """:func:`ktlib.mtl.split.split`, which gives each task its own attention if the trunk has one.

    The layers in ``trunk.attention_layers`` of :class:`experiments.models.mtan.MTAN` are a task's
    own in any case. All tasks but the first draw them anew, from PyTorch's global generator.
    """
    attention: list[str] = list(getattr(trunk, "attention_layers", ()))
    result = split(
        trunk, {*attention, *layers}, tasks,
        share_prefix=share_prefix, own_statistics=own_statistics, example=example,
    )  # fmt: skip
    if attention:
        for task in result.tasks[1:]:
            redraw: Any = result.trunk_of(task).redraw_attention
            redraw()
    return result


def table_improvement(
    data: str,
    results: Mapping[str, Mapping[str, float]],
    single_task: Mapping[str, Mapping[str, float]],
) -> float:
    """``Dm`` in percent over the metrics that the thesis prints for a data set.

    Other metrics, such as the share of normals within 30 degrees on PASCAL-Context, and tasks that
    are not in the table (its edges) are left out, as :data:`TABLE_COLUMNS` says.

    Args:
        data: a data set in :data:`TABLE_COLUMNS`.
        results: task -> what :class:`TaskMetric` gives.
        single_task: the same of training each task on its own.

    Raises:
        ValueError: an unknown data set; a task or a metric of the table is missing; or as
            :func:`ktlib.mtl.metrics.relative_improvement`.
    """
    if data not in TABLE_COLUMNS:
        raise ValueError(f"data must be one of {', '.join(TABLE_COLUMNS)}. Found data={data!r}.")
    metrics = TABLE_COLUMNS[data]
    sides = []
    for name, side in (("results", results), ("single_task", single_task)):
        for task, wanted in metrics.items():
            missing = [metric for metric in wanted if metric not in side.get(task, {})]
            if missing:
                rule = f"{name} must have the metrics {', '.join(wanted)} of {task}"
                raise ValueError(f"{rule}. Found none of {', '.join(missing)}.")
        sides.append({task: {m: side[task][m] for m in wanted} for task, wanted in metrics.items()})
    present = {metric for wanted in metrics.values() for metric in wanted}
    return relative_improvement(sides[0], sides[1], LOWER_IS_BETTER & present)
