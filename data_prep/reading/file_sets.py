"""Multi-task sets that stay in the files their authors handed out: one file per image and target.

A :class:`FileSet` says which files there are and what they must hold. ``data_prep`` decodes every
one of them once and records its SHA-256; :class:`data_prep.reading.MultiTaskFiles` compares that on
every read. Here are the two sets in NumPy files that Liu et al. prepared (MTAN, CVPR 2019,
github.com/lorenmt/mtan): ``train/image/0.npy``, ``train/depth/0.npy`` and so on, numbered from 0.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.reading.multi_task import IGNORE, Task

# What a file of a set is for -> its path below the folder of the set, or its content.
Paths = Mapping[str, str]
Contents = Mapping[str, bytes]
Decoded = tuple[NDArray[Any], dict[str, NDArray[Any]]]


class FormatError(ValueError):
    """A file does not hold what its set says; ``role`` is what the file is for."""

    def __init__(self, role: str, problem: str) -> None:
        super().__init__(problem)
        self.role = role


@dataclass(frozen=True)
class FileSet:
    """A set of images with targets, each in a file of its own.

    Attributes:
        name: Of the set and its folder.
        tasks: What the targets are.
        numbers: Images per split, "train" and "test".
        lists: From split to the file that lists its images, where there is one.
        rows: Called with a split, the content of its list (empty without one) and the set of files
            that are there; gives for each image the paths of its files by role.
        decode: From the contents of one image's files by role to the image (c, h, w), uint8 or
            float32, and its targets as :class:`Task` describes them, without the dimension n.
            Raises FormatError.
    """

    name: str
    tasks: tuple[Task, ...]
    numbers: Mapping[str, int]
    lists: Mapping[str, str]
    rows: Callable[[str, str, Container[str]], list[dict[str, str]]]
    decode: Callable[[Contents], Decoded]


def numpy_set(
    name: str,
    tasks: tuple[Task, ...],
    folders: Mapping[str, str],
    numbers: Mapping[str, int],
    size: tuple[int, int],
) -> FileSet:
    """A set in the form of MTAN: folders of numbered NumPy files.

    Args:
        name: Of the set.
        tasks: What the targets are.
        folders: From the name of each task to its folder in ``train`` and ``val``.
        numbers: Images per split; the test split lies in ``val``.
        size: Height and width of every map.
    """
    return FileSet(
        name,
        tasks,
        numbers,
        {},
        partial(_numbered_rows, dict(folders), dict(numbers)),
        partial(_decode_arrays, tasks, size),
    )


def _numbered_rows(
    folders: Mapping[str, str],
    numbers: Mapping[str, int],
    split: str,
    listed: str,  # noqa: ARG001 - there is no list: the files are numbered
    there: Container[str],  # noqa: ARG001
) -> list[dict[str, str]]:
    part = {"train": "train", "test": "val"}[split]
    roles = {"image": "image", **folders}
    return [
        {role: f"{part}/{folder}/{number}.npy" for role, folder in roles.items()}
        for number in range(numbers[split])
    ]


def _decode_arrays(tasks: tuple[Task, ...], size: tuple[int, int], contents: Contents) -> Decoded:
    image = _array("image", contents["image"], (*size, 3))
    targets: dict[str, NDArray[Any]] = {}
    for task in tasks:
        shape = {"segmentation": size, "depth": (*size, 1), "normals": (*size, 3)}[task.kind]
        values = _array(task.name, contents[task.name], shape)
        if task.kind == "segmentation":
            targets[task.name] = class_map(task, values)
        else:
            targets[task.name] = _channels_first(values)
    return _channels_first(image), targets


def _array(role: str, content: bytes, shape: tuple[int, ...]) -> NDArray[Any]:
    """The finite numbers in a NumPy file of the given shape."""
    try:
        values = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise FormatError(role, f"it is no NumPy array ({error})") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        raise FormatError(role, f"it must hold numbers. Found {getattr(values, 'dtype', 'none')}")
    if values.shape != shape:
        raise FormatError(role, f"it must have the shape {shape}. Found {values.shape}")
    if not np.isfinite(values).all():
        raise FormatError(role, "it must hold finite numbers. Found others")
    return values


def class_map(task: Task, values: NDArray[Any]) -> NDArray[np.int8]:
    """Class numbers (h, w), from -1 for none, after they have been found to be such.

    Raises:
        FormatError: a number that is no integer or no class.
    """
    classes = values.astype(np.int64)
    least, most = values.min(), values.max()
    if (classes != values).any() or least < IGNORE or most >= len(task.class_names):
        rule = f"its numbers must be integers in [{IGNORE}, {len(task.class_names)})"
        raise FormatError(task.name, f"{rule}. Found values from {least} to {most}")
    return classes.astype(np.int8)


def _channels_first(values: NDArray[Any]) -> NDArray[np.float32]:
    return np.ascontiguousarray(np.moveaxis(values, -1, 0), dtype=np.float32)


# The seven categories of CityScapes in the order of their numbers there; its "void" is -1. The
# files come without a list: that they keep this order is assumed. No loss or score depends on it.
CITYSCAPES_CLASSES = ("flat", "construction", "object", "nature", "sky", "human", "vehicle")
# The 13 classes of Handa et al. (SceneNet); what they call unknown is -1.
NYUV2_CLASSES = (
    "bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa", "table",
    "television", "wall", "window",
)  # fmt: skip

# The version of 128x256; depth is inverse depth.
CITYSCAPES = numpy_set(
    "cityscapes",
    (Task("segmentation", "segmentation", CITYSCAPES_CLASSES), Task("depth", "depth")),
    {"segmentation": "label_7", "depth": "depth"},
    {"train": 2975, "test": 500},
    (128, 256),
)
NYUV2 = numpy_set(
    "nyuv2",
    (
        Task("segmentation", "segmentation", NYUV2_CLASSES),
        Task("depth", "depth"),
        Task("normals", "normals"),
    ),
    {"segmentation": "label", "depth": "depth", "normals": "normal"},
    {"train": 795, "test": 654},
    (288, 384),
)
