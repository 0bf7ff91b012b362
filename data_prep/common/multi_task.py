"""Images with several targets each, as multi-task learning has them.

A target is a class, or a map over the pixels: classes, depth, normals, saliency or edges. Sets of
one file per image and target are also read image by image, through :class:`MultiTaskFiles`.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from data_prep.common.files import check_split, data_error, manifest_facts, read_verified
from data_prep.common.root import data_root

if TYPE_CHECKING:
    # Only for the types: reading manifests and checksums must not cost the import of torch.
    from torch import Tensor

    from data_prep.common.file_sets import FileSet

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

    def with_tasks(self, names: Collection[str]) -> MultiTaskImages:
        """The same images with some of the tasks, in the order of the set."""
        tasks = tuple(task for task in self.tasks if task.name in names)
        return replace(self, targets={t.name: self.targets[t.name] for t in tasks}, tasks=tasks)


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


class MultiTaskFiles:
    """One split of a set that stays in its files: a map-style data set for a ``DataLoader``.

    A file is compared with the SHA-256 that ``data_prep`` recorded each time it is read.

    Args:
        data: The set.
        split: "train" or "test".
        root: The data root; None stands for :func:`data_prep.data_root`.

    Raises:
        ValueError: an unknown split.
        DataError: the set is not prepared.
    """

    def __init__(self, data: FileSet, split: str, root: Path | None = None) -> None:
        check_split(split)
        self.data, self.tasks = data, data.tasks
        self.folder = (root or data_root()) / data.name
        self._known = manifest_facts(data.name, None, root)
        listed = data.lists.get(split)
        text = self._read(listed).decode("utf-8") if listed else ""
        self._rows = data.rows(split, text, self._known)

    def __len__(self) -> int:
        """The number of images, n."""
        return len(self._rows)

    def __getitem__(self, row: int) -> tuple[Tensor, dict[str, Tensor]]:
        """One image and its targets, without the dimension n.

        Raises:
            DataError: a file is missing or altered; the message names it and the command.
        """
        import torch

        paths = self._rows[row]
        try:
            decoded = self.data.decode({role: self._read(path) for role, path in paths.items()})
        except ValueError as error:
            path = self.folder / paths[getattr(error, "role", "image")]
            problem = f"Data file {path} is not as expected: {error}."
            raise data_error(self.data.name, problem) from error
        image, targets = decoded
        return torch.from_numpy(image), {
            task.name: torch.from_numpy(targets[task.name]) for task in self.tasks
        }

    def subset(self, indices: Tensor) -> MultiTaskFiles:
        """The images at ``indices``, in that order; they stay in their files."""
        other = copy.copy(self)
        other._rows = [self._rows[row] for row in indices.tolist()]  # noqa: SLF001 - its own copy
        return other

    def with_tasks(self, names: Collection[str]) -> MultiTaskFiles:
        """The same images with some of the tasks, in the order of the set."""
        other = copy.copy(self)
        other.tasks = tuple(task for task in self.tasks if task.name in names)
        return other

    def in_memory(
        self, rows: Sequence[int] | None = None, size: tuple[int, int] | None = None
    ) -> MultiTaskImages:
        """The images at ``rows``, by default all, read at once.

        Args:
            rows: Their numbers.
            size: Height and width to which smaller images are filled up, to the right and below:
                the image with 0, the targets with what stands for no value. Needed where images
                differ in size.

        Raises:
            ValueError: images differ in size, or one is larger than ``size``.
            DataError: as for reading one image.
        """
        import torch

        images: list[Tensor] = []
        columns: dict[str, list[Tensor]] = {task.name: [] for task in self.tasks}
        for row in range(len(self)) if rows is None else rows:
            image, targets = self[row]
            wanted = size or tuple((images[0] if images else image).shape[1:])
            missing = [w - found for w, found in zip(wanted, image.shape[1:], strict=True)]
            if min(missing) < 0 or (size is None and max(missing) > 0):
                rule = f"images must have the size {wanted}" + (" or less" if size else "")
                raise ValueError(f"{rule}. Found {tuple(image.shape[1:])} in row {row}.")
            images.append(_filled(image, missing, 0))
            for task in self.tasks:
                empty = 0 if task.kind in ("depth", "normals") else IGNORE
                columns[task.name].append(_filled(targets[task.name], missing, empty))
        stacked = {name: torch.stack(values) for name, values in columns.items()}
        return MultiTaskImages(torch.stack(images), stacked, self.tasks)

    def _read(self, file: str) -> bytes:
        if file not in self._known:
            problem = f"The manifest in {self.folder} does not list {file}."
            raise data_error(self.data.name, problem)
        return read_verified(self.folder / file, self._known[file], self.data.name).tobytes()


def _filled(values: Tensor, missing: Sequence[int], empty: int) -> Tensor:
    """``values`` (..., h, w) with ``missing`` rows below and columns to the right."""
    from torch.nn.functional import pad

    return pad(values, (0, missing[1], 0, missing[0]), value=empty) if any(missing) else values


def class_images(
    images: NDArray[np.uint8], labels: NDArray[np.uint8], tasks: tuple[Task, ...]
) -> MultiTaskImages:
    """Images and class numbers (n, tasks) as tensors; the images share the array's memory."""
    import torch

    columns = torch.from_numpy(labels.T.astype(np.int64))
    targets = {task.name: column for task, column in zip(tasks, columns, strict=True)}
    return MultiTaskImages(torch.from_numpy(images), targets, tasks)
