"""Multi-task sets that stay in the files their authors handed out: one file per image and target.

A :class:`FileSet` says which files there are and what they must hold. Nothing is fetched and
nothing converted: these sets are handed out through links that come and go, without checksums. So a
person places the files, every one of them is decoded once and must hold what its set says, and its
SHA-256 is recorded, which :class:`data_prep.common.multi_task.MultiTaskFiles` compares on every
read.

:func:`numpy_set` describes sets in NumPy files as Liu et al. prepared them (MTAN, CVPR 2019,
github.com/lorenmt/mtan): ``train/image/0.npy``, ``train/depth/0.npy`` and so on, numbered from 0.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_prep.common.checks import sha256_check
from data_prep.common.errors import PrepareError
from data_prep.common.files import (
    MANIFEST,
    FileFacts,
    digest_of_all,
    is_unchanged,
    read_manifest,
)
from data_prep.common.multi_task import IGNORE, MultiTaskFiles, MultiTaskImages, Task
from data_prep.common.root import data_root
from data_prep.common.storage import exclusive, log, storage_errors, write_manifest

# How many problems a message names.
SHOWN = 5

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
        by_hand: Where a person gets the files, for the message when something is wrong;
            ``{folder}`` in it stands for the folder.
    """

    name: str
    tasks: tuple[Task, ...]
    numbers: Mapping[str, int]
    lists: Mapping[str, str]
    rows: Callable[[str, str, Container[str]], list[dict[str, str]]]
    decode: Callable[[Contents], Decoded]
    by_hand: str

    def prepare(self, root: Path | None = None) -> Path:
        """Check ``<root>/<name>`` and record it in a manifest.

        Raises:
            PrepareError: naming the first files that are missing, damaged, of another shape, or
                other than those recorded earlier; or the manifest cannot be written.
        """
        root = root or data_root()
        folder = root / self.name
        changed = list(_changed(folder))
        if not changed and is_unchanged(folder):
            log(f"{self.name}: complete in {folder}")
            return folder
        with storage_errors(root), exclusive(root, self.name):
            if changed:
                hint = f"To accept other files, remove {folder / MANIFEST} first.\n"
                raise self._error(folder, changed, hint)
            if read_manifest(folder) is None:
                files, problems = self._check_all(folder)
                if problems:
                    raise self._error(folder, problems)
            else:  # the same content with other times: only the times are recorded anew
                files = list((read_manifest(folder) or {})["files"])
            write_manifest(folder, files)
        log(f"{self.name}: ready in {folder}")
        return folder

    def checksums(self, root: Path | None = None) -> dict[str, str]:
        """One checksum for all files."""
        return digest_of_all(self.name, root)

    def open(self, split: str, root: Path | None = None) -> MultiTaskFiles:
        """One split, read image by image; see :func:`data_prep.open_tasks`."""
        return MultiTaskFiles(self, split, root)

    def load(self, split: str, root: Path | None = None) -> MultiTaskImages:
        """One split in memory; see :func:`data_prep.load_tasks`."""
        return self.open(split, root).in_memory()

    def _check_all(self, folder: Path) -> tuple[list[str], list[str]]:
        """The files of the set, and what is wrong with them."""
        files, problems = [], []
        for split, number in self.numbers.items():
            listed = self.lists.get(split)
            text = ""
            if listed:
                try:
                    text = (folder / listed).read_text(encoding="utf-8")
                except (OSError, UnicodeDecodeError) as error:
                    problems.append(f"{listed} {_reason(error)}")
                    continue
                files.append(listed)
            try:
                rows = self.rows(split, text, _ExistingFiles(folder))
            except ValueError as error:
                problems.append(f"{listed} is not as expected: {error}")
                continue
            if len(rows) != number or len({row["image"] for row in rows}) != number:
                names = len({row["image"] for row in rows})
                problems.append(f"{listed} must list {number} images. Found {names} in {len(rows)}")
                continue
            for row in tqdm(rows, desc=f"checking {split}", total=number, leave=False):
                problem = self._check_row(folder, row)
                if problem:
                    problems.append(problem)
                files.extend(row.values())
        return files, problems

    def _check_row(self, folder: Path, row: dict[str, str]) -> str | None:
        """What is wrong with the files of one image, or None."""
        contents = {}
        for role, path in row.items():
            try:
                contents[role] = (folder / path).read_bytes()
            except OSError as error:
                return f"{path} {_reason(error)}"
        try:
            self.decode(contents)
        except ValueError as error:
            return f"{row[getattr(error, 'role', 'image')]} is not as expected: {error}"
        return None

    def _error(self, folder: Path, problems: list[str], hint: str = "") -> PrepareError:
        shown = "\n".join(f"  - {problem}" for problem in problems[:SHOWN])
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        return PrepareError(
            f"The data set in {folder} is not complete:\n{shown}{more}\n"
            f"{hint}{self.by_hand.format(folder=folder)}\n"
            f"Then run python -m data_prep.{self.name} again."
        )


def numpy_set(
    name: str,
    tasks: tuple[Task, ...],
    folders: Mapping[str, str],
    numbers: Mapping[str, int],
    size: tuple[int, int],
    by_hand: str = "",
) -> FileSet:
    """A set in the form of MTAN: folders of numbered NumPy files.

    Args:
        name: Of the set.
        tasks: What the targets are.
        folders: From the name of each task to its folder in ``train`` and ``val``.
        numbers: Images per split; the test split lies in ``val``.
        size: Height and width of every map.
        by_hand: As for :class:`FileSet`.
    """
    return FileSet(
        name,
        tasks,
        numbers,
        {},
        partial(_numbered_rows, dict(folders), dict(numbers)),
        partial(_decode_arrays, tasks, size),
        by_hand,
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


class _ExistingFiles:
    """The files of a folder, as a container of their paths in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and (self.folder / path).is_file()


def _changed(folder: Path) -> Iterator[str]:
    """The files of an earlier manifest that are not as recorded, each with what is wrong."""
    entries = (read_manifest(folder) or {"files": {}})["files"]
    for file, entry in tqdm(entries.items(), desc="comparing", total=len(entries), leave=False):
        try:
            known = FileFacts(int(entry["bytes"]), str(entry["sha256"]))
        except (KeyError, TypeError, ValueError):
            yield f"{file} is not recorded properly in {MANIFEST}"
            continue
        problem = sha256_check(known)(folder / file)
        if problem is not None:
            yield f"{file} {problem}"


def _reason(error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, FileNotFoundError):
        return "is missing"
    return f"cannot be read ({getattr(error, 'strerror', None) or error})"
