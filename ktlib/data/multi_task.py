"""Images with several targets each, and the data sets of multi-task learning.

A target is a class, or a map over the pixels: classes, depth, normals, saliency or edges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ktlib.data import facts
from ktlib.data.files import read_verified
from ktlib.data.idx import decode_idx
from ktlib.data.root import data_root

if TYPE_CHECKING:
    # Only for the types: reading manifests and checksums must not cost the import of torch.
    from torch import Tensor

Kind = Literal["classes", "segmentation", "depth", "normals", "saliency", "edges"]
# The pixels that a loss and a metric leave out, in a segmentation, a saliency or an edge map.
# In depth they are 0, in normals the zero vector.
IGNORE = -1
# From kind to channels of a target; None stands for a target without a channel dimension.
CHANNELS: dict[str, int | None] = {
    "classes": None,
    "segmentation": None,
    "depth": 1,
    "normals": 3,
    "saliency": 1,
    "edges": 1,
}


@dataclass(frozen=True)
class Task:
    """What one target of every image is.

    Attributes:
        name: Names the target in a data set.
        kind: ``classes``: one class number (n,). ``segmentation``: a class number for each pixel
            (n, h, w). ``depth`` (n, 1, h, w), ``normals`` (n, 3, h, w), unit vectors.
            ``saliency`` and ``edges`` (n, 1, h, w), 1 or 0. For pixels without a value see
            :data:`IGNORE`.
        class_names: One name per class, for the first two kinds.
    """

    name: str
    kind: Kind
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse an unknown kind, and classes where there can be none."""
        if self.kind not in CHANNELS:
            raise ValueError(f"kind must be one of {', '.join(CHANNELS)}. Found {self.kind!r}.")
        if bool(self.class_names) != (CHANNELS[self.kind] is None):
            rule = "class_names must be given for classes and segmentation, and for nothing else"
            raise ValueError(f"{rule}. Found {len(self.class_names)} for {self.kind}.")


@dataclass(frozen=True, eq=False)
class MultiTaskImages:
    """Images and targets of one split, in memory.

    Attributes:
        images: (n, channels, height, width): uint8 with values 0 to 255, or float32.
        targets: From the name of each task to its targets, in the form that :class:`Task` names:
            signed integers for class numbers, float32 for the rest.
        tasks: The tasks, in the order in which they are reported.
    """

    images: Tensor
    targets: Mapping[str, Tensor]
    tasks: tuple[Task, ...]

    def __post_init__(self) -> None:
        """Refuse images and targets that do not belong together."""
        if str(self.images.dtype) not in ("torch.uint8", "torch.float32") or self.images.ndim != 4:
            found = f"{self.images.dtype} of shape {tuple(self.images.shape)}"
            rule = "images must be torch.uint8 or torch.float32 of shape (n, c, h, w)"
            raise ValueError(f"{rule}. Found {found}.")
        names = [task.name for task in self.tasks]
        if sorted(names) != sorted(self.targets) or len(set(names)) != len(names):
            found = f"{sorted(self.targets)} for the tasks {sorted(names)}"
            raise ValueError(f"targets must have one entry per task. Found {found}.")
        for task in self.tasks:
            problem = _wrong_target(task, self.targets[task.name], tuple(self.images.shape))
            if problem:
                raise ValueError(f"targets of task {task.name} must {problem}.")

    def __len__(self) -> int:
        """The number of images, n."""
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor, dict[str, Tensor]]:
        """One image and its targets, without the dimension n."""
        return self.images[row], {task.name: self.targets[task.name][row] for task in self.tasks}

    def subset(self, indices: Tensor | Sequence[int]) -> MultiTaskImages:
        """The images at ``indices`` (integers or a boolean mask of shape (n,)), in that order."""
        import torch  # only where it is needed: see above

        chosen = torch.tensor(indices) if isinstance(indices, Sequence) else indices
        chosen = chosen if len(chosen) else chosen.long()
        targets = {name: values[chosen] for name, values in self.targets.items()}
        return MultiTaskImages(self.images[chosen], targets, self.tasks)


def _wrong_target(task: Task, values: Tensor, images: tuple[int, ...]) -> str | None:
    """What the targets of a task must be and are not, or None."""
    channels = CHANNELS[task.kind]
    shape = images[:1] if task.kind == "classes" else (images[0], *images[2:])
    if channels is not None:
        shape = (shape[0], channels, *shape[1:])
    if tuple(values.shape) != shape:
        return f"have shape {shape}. Found {tuple(values.shape)}"
    if channels is not None:
        if str(values.dtype) != "torch.float32":
            return f"be torch.float32. Found {values.dtype}"
        return None
    if str(values.dtype) not in ("torch.int8", "torch.int16", "torch.int32", "torch.int64"):
        return f"be signed integers. Found {values.dtype}"
    if values.numel():
        lowest = IGNORE if task.kind == "segmentation" else 0
        least, most = int(values.min()), int(values.max())
        if least < lowest or most >= len(task.class_names):
            rule = f"lie in [{lowest}, {len(task.class_names)})"
            return f"{rule}. Found values from {least} to {most}"
    return None


MULTI_FASHION_MNIST_TASKS = (
    Task("item", "classes", facts.FASHION_NAMES),
    Task("digit", "classes", facts.DIGIT_NAMES),
)


def load_multi_fashion_mnist(split: str, root: Path | None = None) -> MultiTaskImages:
    """Multi-Fashion+MNIST: one article and one digit on 36x36, 120,000 train and 20,000 test.

    Two tasks of ten classes, "item" and "digit". How the images are made and in which order they
    stand is described in ``data_prep.multi_fashion_mnist``. Arguments and errors as in
    :func:`load_tasks`.
    """
    name = "multi_fashion_mnist"
    _check_split(split)
    folder = (root or data_root()) / name
    prefix = facts.IDX_PREFIX[split]
    images, labels = (
        decode_idx(read_verified(folder / file, facts.IDX_FILES[name][file], name))
        for file in (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx2-ubyte")
    )
    return _in_memory(images[:, None], labels, MULTI_FASHION_MNIST_TASKS)


def load_tasks(name: str, split: str, root: Path | None = None) -> MultiTaskImages:
    """One split of a data set with several targets for each image.

    Args:
        name: "multi_fashion_mnist".
        split: "train" or "test".
        root: The data root; None stands for :func:`ktlib.data.data_root`.

    Raises:
        ValueError: an unknown name or split.
        DataError: a file is missing or damaged; the message names the command that repairs it.
    """
    loaders: dict[str, Callable[[str, Path | None], MultiTaskImages]] = {
        "multi_fashion_mnist": load_multi_fashion_mnist,
    }
    if name not in loaders:
        raise ValueError(f"name must be one of {', '.join(loaders)}. Found name={name!r}.")
    return loaders[name](split, root)


def _in_memory(
    images: NDArray[np.uint8], labels: NDArray[np.uint8], tasks: tuple[Task, ...]
) -> MultiTaskImages:
    """Images and class numbers (n, tasks) as tensors; the images share the array's memory."""
    import torch

    columns = torch.from_numpy(labels.T.astype(np.int64))
    targets = {task.name: column for task, column in zip(tasks, columns, strict=True)}
    return MultiTaskImages(torch.from_numpy(images), targets, tasks)


def _check_split(split: str) -> None:
    if split not in facts.SPLITS:
        raise ValueError(f"split must be 'train' or 'test'. Found split={split!r}.")
