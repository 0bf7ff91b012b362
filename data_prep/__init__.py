"""Data sets: fetched, verified and built by ``python -m data_prep.<name>``, loaded by name.

Each set is a module with ``prepare(root=None) -> Path``, which leaves it complete in
``<root>/<name>`` or raises :class:`data_prep.common.errors.PrepareError` (running it again costs a
check), and ``load(split, root=None)``, which compares checksums on every read and never downloads.
A module is imported when its name is asked for, so that who uses one set depends on no other.
"""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.common.files import MANIFEST, DataError, is_unchanged
from data_prep.common.labelled import LabelledImages, normalised, scaled
from data_prep.common.root import data_root

if TYPE_CHECKING:
    from data_prep.common.multi_task import MultiTaskFiles, MultiTaskImages, Task
    from data_prep.texts import load_conversations, load_text

PHOTOGRAPH_SETS = ("mini_imagenet", "cub200", "imagenet_r", "domainnet")
LABELLED_SETS = ("mnist", "fashion_mnist", "pairs", "digits", "cifar100", *PHOTOGRAPH_SETS)
# One file per image and target, which :func:`open_tasks` reads one by one.
FILE_SETS = ("cityscapes", "nyuv2", "pascal_context")
MULTI_TASK_SETS = ("multi_fashion_mnist", "multi_mnist", "multi_fashion", "celeba", *FILE_SETS)
# Instructions with answers, in one file of a common form.
INSTRUCTION_SETS = ("lima", "no_robots", "alpaca_gpt4", "limo", "s1k")
TEXT_SETS = ("chatterbot", "human_eval", "moby_dick", "smollm2", *INSTRUCTION_SETS)
DATA_SETS = (*LABELLED_SETS, *MULTI_TASK_SETS, *TEXT_SETS)
# Conversations that are generated, and those in a file of one's own: nothing is prepared.
REASONING = "reasoning"
FILE_TYPES = (".jsonl", ".json")

# What is imported from elsewhere only when it is asked for.
_LAZY = {
    "load_conversations": "texts",
    "load_text": "texts",
    "MultiTaskFiles": "common.multi_task",
    "MultiTaskImages": "common.multi_task",
    "Task": "common.multi_task",
}

__all__ = [
    "DATA_SETS",
    "MANIFEST",
    "DataError",
    "LabelledImages",
    "MultiTaskFiles",
    "MultiTaskImages",
    "Task",
    "checksums",
    "data_root",
    "image_names",
    "is_current",
    "load",
    "load_conversations",
    "load_tasks",
    "load_text",
    "normalised",
    "open_tasks",
    "scaled",
    "task_names",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"data_prep.{_LAZY[name]}"), name)


def load(name: str, split: str, root: Path | None = None) -> LabelledImages:
    """One split of a set with one label for each image.

    Args:
        name: One of :data:`LABELLED_SETS`.
        split: "train" or "test".
        root: The data root; None stands for :func:`data_root`.

    Raises:
        ValueError: an unknown name or split, or a set with several targets for each image.
        DataError: a file is missing or damaged; the message names the command that repairs it.
    """
    if name in MULTI_TASK_SETS:
        rule = f"name must be a set with one label for each image: {', '.join(LABELLED_SETS)}"
        raise ValueError(f"{rule}. Found name={name!r}, which load_tasks loads.")
    images: LabelledImages = _data_set(name, LABELLED_SETS).load(split, root)
    return images


def load_tasks(name: str, split: str, root: Path | None = None) -> MultiTaskImages:
    """One split of a data set with several targets for each image, in memory.

    Args:
        name: One of :data:`MULTI_TASK_SETS` but "pascal_context", whose images differ in size: use
            :func:`open_tasks`.
        split: "train" or "test"; "celeba" has "valid" as well.
        root: The data root; None stands for :func:`data_root`.

    Raises:
        ValueError: an unknown name or split.
        DataError: a file is missing or damaged; the message names the command that repairs it.
    """
    known = tuple(one for one in MULTI_TASK_SETS if one != "pascal_context")
    images: MultiTaskImages = _data_set(name, known).load(split, root)
    return images


def open_tasks(name: str, split: str, root: Path | None = None) -> MultiTaskFiles:
    """One split of a set that stays in its files, one of :data:`FILE_SETS`.

    CityScapes (Cordts et al., 2016): street scenes, 128x256, 2,975 train and 500 test, 7 classes
    and inverse depth. NYUv2 (Silberman et al., 2012): rooms, 288x384, 795 train and 654 test, 13
    classes, depth and normals. PASCAL-Context (Mottaghi et al., 2014): photographs of many sizes,
    4,998 train and 5,105 test, five tasks. The test split is what the literature calls ``val`` and
    reports on. Arguments and errors as in :func:`load_tasks`.
    """
    files: MultiTaskFiles = _data_set(name, FILE_SETS).open(split, root)
    return files


def task_names(name: str) -> tuple[str, ...]:
    """The tasks of a set with several targets for each image; reads no file of the set.

    Raises:
        ValueError: an unknown name.
    """
    return tuple(task.name for task in _data_set(name, MULTI_TASK_SETS).tasks)


def image_names(name: str, split: str, root: Path | None = None) -> tuple[str, ...]:
    """What the authors of a set of photographs call each image, in the order of :func:`load`.

    Raises:
        ValueError: another data set, or an unknown split.
        DataError: the set has not been prepared, or its list is damaged.
    """
    names: tuple[str, ...] = _data_set(name, PHOTOGRAPH_SETS).listing(split, root).names
    return names


def checksums(name: str, root: Path | None = None) -> dict[str, str]:
    """SHA-256 of each file of a data set, for run records; none for generated conversations.

    The loaders accept only files with these checksums, so what was loaded had them. Reads no data
    file, but for the path of a file of conversations. For "digits" it is the checksum of the arrays
    that scikit-learn brings along, and sets of thousands of files have one for all.

    Raises:
        ValueError: an unknown name.
        DataError: a set whose checksums its manifest records has not been prepared.
    """
    if name == REASONING:
        return {}
    if name.endswith(FILE_TYPES):
        path = Path(name).expanduser()
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    found: dict[str, str] = _data_set(name).checksums(root)
    return found


def is_current(name: str, root: Path | None = None) -> bool:
    """Whether a data set is prepared and untouched since, judged by sizes and times alone.

    Reads no data: for the question "is there anything to do" of a pipeline. The loaders compare
    SHA-256 on every read.

    Raises:
        ValueError: an unknown name.
    """
    _require(name)
    return is_unchanged((root or data_root()) / name)


def _data_set(name: str, known: tuple[str, ...] = DATA_SETS) -> Any:
    """The set of that name, out of its module."""
    _require(name, known)
    return importlib.import_module(f"data_prep.{name}").DATA


def _require(name: str, known: tuple[str, ...] = DATA_SETS) -> None:
    if name not in known:
        raise ValueError(f"name must be one of {', '.join(known)}. Found name={name!r}.")
