"""CelebA, 202,599 faces with 40 attributes (Liu et al., 2015): ``python -m data_prep.celeba``.

``list_attr_celeba.txt``: the number of images, the names of the 40 attributes, then one line for
each image with its file and 40 times 1 or -1. ``list_eval_partition.txt``: for each image its file
and 0 (train), 1 (valid) or 2 (test). ``img_align_celeba/*.jpg``: faces of 178x218 pixels, with the
eyes at the same place. They are kept as 64x64, the middle of the face: the shorter side is resized
to 64 pixels, then the middle is cut out. Sener and Koltun (NeurIPS 2018), whose size this is,
squeeze the whole picture instead.

The set is handed out for research only, through a drive that counts downloads, so nothing is
downloaded here: a person places the two lists, which are recognised by torchvision's MD5, and the
photographs, as the archive (torchvision's MD5 as well) or unpacked (each must be there and whole).
The faces are decoded once into one array per split (2.5 GB in all), recorded in the manifest with
its SHA-256.
"""

from __future__ import annotations

import contextlib
import importlib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_prep.common.chain import DataSet, Source
from data_prep.common.checks import Check, manifest_check, md5_check
from data_prep.common.command import main
from data_prep.common.errors import SourceError
from data_prep.common.files import (
    check_split,
    data_error,
    digest_of_all,
    manifest_facts,
    read_verified,
)
from data_prep.common.idx import decode_idx, encode_idx
from data_prep.common.multi_task import MultiTaskImages, Task, class_images
from data_prep.common.photographs import decode_photograph, images_shape, map_images, write_images
from data_prep.common.root import data_root

ATTRIBUTES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs",
    "Big_Lips", "Big_Nose", "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows",
    "Chubby", "Double_Chin", "Eyeglasses", "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones",
    "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin",
    "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns", "Smiling", "Straight_Hair",
    "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace",
    "Wearing_Necktie", "Young",
)  # fmt: skip
SIDE = 64
SPLITS = ("train", "valid", "test")
ATTRIBUTE_LIST = "list_attr_celeba.txt"
PARTITION_LIST = "list_eval_partition.txt"
IMAGES = "img_align_celeba"
FILES = {split: (f"{split}-images.npy", f"{split}-attributes-idx2-ubyte") for split in SPLITS}
ARCHIVE = f"{IMAGES}.zip"
TASKS = tuple(Task(name, "classes", ("no", "yes")) for name in ATTRIBUTES)

Opener = Callable[[str], contextlib.AbstractContextManager[IO[bytes]]]


def parse_lists(attributes: str, partition: str) -> dict[str, tuple[list[str], NDArray[np.uint8]]]:
    """From split to the names of its photographs and their attributes (n, 40), 1 or 0.

    Args:
        attributes: The content of ``list_attr_celeba.txt``.
        partition: The content of ``list_eval_partition.txt``.

    Raises:
        ValueError: a line is not as expected, or the two do not list the same photographs.
    """
    head, *lines = attributes.splitlines() or [""]
    if not lines or tuple(lines[0].split()) != ATTRIBUTES or not head.strip().isdigit():
        rule = f"{ATTRIBUTE_LIST} must begin with a number and the names of {len(ATTRIBUTES)}"
        raise ValueError(f"{rule} attributes. Found {head[:40]!r}")
    values = {}
    for number, line in enumerate(lines[1:], start=3):
        name, *row = line.split() or [""]
        if len(row) != len(ATTRIBUTES) or not set(row) <= {"1", "-1"} or "/" in name:
            rule = f"must hold a file and {len(ATTRIBUTES)} times 1 or -1"
            raise ValueError(f"line {number} of {ATTRIBUTE_LIST} {rule}. Found {line[:60]!r}")
        values[name] = [value == "1" for value in row]
    if len(values) != int(head) or len(values) != len(lines) - 1:
        found = f"{len(values)} different ones in {len(lines) - 1} lines"
        raise ValueError(f"{ATTRIBUTE_LIST} must list {int(head)} photographs. Found {found}")
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    for number, line in enumerate(partition.splitlines(), start=1):
        name, _, part = line.strip().partition(" ")
        if name not in values or part not in ("0", "1", "2"):
            rule = f"must hold a photograph of {ATTRIBUTE_LIST} and 0, 1 or 2"
            raise ValueError(f"line {number} of {PARTITION_LIST} {rule}. Found {line[:60]!r}")
        names[SPLITS[int(part)]].append(name)
    listed = [name for split in SPLITS for name in names[split]]
    if sorted(listed) != sorted(values):
        rule = f"must list each photograph of {ATTRIBUTE_LIST} once"
        raise ValueError(f"{PARTITION_LIST} {rule}. Found {len(listed)} for {len(values)}")
    return {
        split: (
            own,
            np.array([values[name] for name in own], dtype=np.uint8).reshape(-1, len(ATTRIBUTES)),
        )
        for split, own in names.items()
    }


@dataclass(frozen=True, kw_only=True)
class CelebASet(DataSet):
    """Faces with 40 tasks of two classes.

    Attributes:
        numbers: Photographs per split.
        md5: Of the two lists and the archive; None stands for torchvision's. A file that is not
            named is not compared.
        tasks: One for each attribute.
    """

    numbers: Mapping[str, int]
    md5: Mapping[str, str] | None = None
    tasks: tuple[Task, ...] = TASKS

    def checks(self, folder: Path) -> dict[str, Check]:
        """By the manifest, and by the shape without one."""
        found: dict[str, Check] = {}
        for split, (images, attributes) in FILES.items():
            for file, wrong in ((images, _wrong_images), (attributes, _wrong_attributes)):
                found[file] = manifest_check(folder, file, partial(wrong, self.numbers[split]))
        return found

    def checksums(self, root: Path | None = None) -> dict[str, str]:
        """One checksum for all files."""
        return digest_of_all(self.name, root)

    def load(self, split: str, root: Path | None = None) -> MultiTaskImages:
        """One split, "train", "valid" or "test"; else as for :func:`data_prep.load_tasks`.

        The images stay on the disk until they are used; changes to them never reach the file.
        """
        check_split(split, SPLITS)
        folder = (root or data_root()) / self.name
        files = FILES[split]
        known = manifest_facts(self.name, files, root)
        images = map_images(folder / files[0], known[files[0]], self.name)
        content = read_verified(folder / files[1], known[files[1]], self.name)
        try:
            return class_images(images, decode_idx(content), self.tasks)
        except ValueError as error:
            problem = f"The files {' and '.join(files)} in {folder} do not fit together: {error}"
            raise data_error(self.name, problem) from error

    def sources(self, folder: Path) -> Iterator[Source]:
        """The unpacked folder, the archive."""
        yield Source(f"the unpacked folder {folder / IMAGES}", partial(self._from_folder, folder))
        yield Source(f"the archive {folder / ARCHIVE}", partial(self._from_archive, folder))

    def by_hand(self, folder: Path) -> str:
        """What to get, and where to put it."""
        return (
            f"This set is not downloaded. To place it by hand, get {ATTRIBUTE_LIST}, "
            f"{PARTITION_LIST} and {ARCHIVE} (Align&Cropped Images) through "
            f"mmlab.ie.cuhk.edu.hk/projects/CelebA.html, put them into {folder}, and run "
            f"python -m data_prep.{self.name} again."
        )

    def known_md5(self) -> Mapping[str, str]:
        """The MD5 by file."""
        if self.md5 is not None:
            return self.md5
        offered: Any = importlib.import_module("torchvision.datasets")  # takes seconds
        return {file: digest for _, digest, file in offered.CelebA.file_list}

    def _from_folder(self, folder: Path, temporary: Path, missing: Sequence[str]) -> None:
        if not (folder / IMAGES).is_dir():
            raise SourceError("there is no such folder")
        self._convert(folder, lambda name: (folder / IMAGES / name).open("rb"), temporary, missing)

    def _from_archive(self, folder: Path, temporary: Path, missing: Sequence[str]) -> None:
        path = folder / ARCHIVE
        if not path.is_file():
            raise SourceError("there is none")
        self._require_md5(path)
        try:
            with zipfile.ZipFile(path) as archive:
                self._convert(
                    folder, lambda name: archive.open(f"{IMAGES}/{name}"), temporary, missing
                )
        except zipfile.BadZipFile as error:
            raise SourceError(f"the archive is damaged: {error}") from error

    def _convert(
        self, folder: Path, opened: Opener, temporary: Path, missing: Sequence[str]
    ) -> None:
        """Write the missing files into ``temporary`` from the lists and the photographs."""
        texts = []
        for file in (ATTRIBUTE_LIST, PARTITION_LIST):
            self._require_md5(folder / file)
            texts.append((folder / file).read_text(encoding="utf-8"))
        try:
            splits = parse_lists(*texts)
        except ValueError as error:
            raise SourceError(f"its lists are not as expected: {error}") from error
        for split, number in self.numbers.items():
            found = len(splits[split][0])
            if found != number:
                raise SourceError(f"its {split} split lists {found} faces instead of {number}")
        for split, (names, attributes) in splits.items():
            images_file, attributes_file = FILES[split]
            if images_file in missing:
                faces = _decoded(names, opened, split)
                write_images(temporary / images_file, faces, len(names), SIDE)
            if attributes_file in missing:
                (temporary / attributes_file).write_bytes(encode_idx(attributes))

    def _require_md5(self, path: Path) -> None:
        if not path.is_file():
            raise SourceError(f"{path} is missing")
        known = self.known_md5()
        problem = md5_check(known[path.name])(path) if path.name in known else None
        if problem:
            raise SourceError(f"{path} {problem}")


def _decoded(names: Sequence[str], opened: Opener, split: str) -> Iterator[NDArray[np.uint8]]:
    for name in tqdm(names, desc=f"decoding {split}", total=len(names), leave=False):
        try:
            with opened(name) as file:
                yield decode_photograph(file, SIDE, SIDE)
        except (FileNotFoundError, KeyError):
            raise SourceError(f"its {IMAGES}/{name} is missing") from None
        except ValueError as error:
            raise SourceError(f"its {IMAGES}/{name} is damaged: {error}") from error


def _wrong_images(number: int, path: Path) -> str | None:
    expected = (number, 3, SIDE, SIDE)
    shape = images_shape(path)
    return None if shape == expected else f"has the shape {shape} instead of {expected}"


def _wrong_attributes(number: int, path: Path) -> str | None:
    values = decode_idx(np.fromfile(path, dtype=np.uint8))
    expected = (number, len(ATTRIBUTES))
    return None if values.shape == expected else f"has the shape {values.shape}, not {expected}"


DATA = CelebASet(
    name="celeba",
    numbers={"train": 162_770, "valid": 19_867, "test": 19_962},
    space=2_600_000_000,  # the arrays
)
prepare, load = DATA.prepare, DATA.load


if __name__ == "__main__":
    main(DATA)
