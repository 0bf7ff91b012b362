"""CelebA, 202,599 faces with 40 attributes: ``python -m data_prep.celeba``.

It is handed out for research only, through a drive that counts downloads, so nothing is downloaded
here: a person places the two lists, which are recognised by torchvision's MD5, and the photographs,
as the archive (torchvision's MD5 as well) or unpacked (each must be there and whole). The faces are
decoded once into one array per split (2.5 GB in all), recorded in the manifest with its SHA-256.
"""

from __future__ import annotations

import contextlib
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_prep.chain import Check, Source, prepare_files
from data_prep.checks import manifest_check, md5_check
from data_prep.command import run_command
from data_prep.errors import SourceError
from data_prep.reading import celeba as form
from data_prep.reading.idx import decode_idx, encode_idx
from data_prep.reading.photographs import decode_photograph, images_shape, write_images
from data_prep.reading.root import data_root

NAME = "celeba"
ARCHIVE = f"{form.IMAGES}.zip"
SPACE = 2_600_000_000

Opener = Callable[[str], contextlib.AbstractContextManager[IO[bytes]]]


@dataclass(frozen=True)
class CelebaFacts:
    """What is known before anything is read.

    Attributes:
        numbers: Photographs per split.
        md5: Of the two lists and the archive; a file that is not named is not compared.
    """

    numbers: Mapping[str, int] = field(default_factory=lambda: form.NUMBER)
    md5: Mapping[str, str] = field(default_factory=dict)


def prepare(root: Path | None = None) -> Path:
    """Make ``<root>/celeba`` complete; ``root`` None stands for the data root.

    Raises:
        PrepareError: with what was tried, or why nothing can be written.
    """
    from torchvision.datasets import CelebA  # takes seconds to import

    md5 = {file: digest for _, digest, file in CelebA.file_list}
    return prepare_celeba(root or data_root(), CelebaFacts(md5=md5), SPACE)


def prepare_celeba(root: Path, known: CelebaFacts, space: int) -> Path:
    """Make ``<root>/celeba`` hold the arrays of ``known``.

    Errors as for :func:`data_prep.chain.prepare_files`.
    """
    checks: dict[str, Check] = {}
    for split, (images, attributes) in form.FILES.items():
        for file, wrong in ((images, _wrong_images), (attributes, _wrong_attributes)):
            form_check = partial(wrong, known.numbers[split])
            checks[file] = manifest_check(root / NAME, file, form_check)
    return prepare_files(NAME, root, checks, partial(_sources, known), _by_hand, space)


def _sources(known: CelebaFacts, folder: Path) -> Iterator[Source]:
    """Where the files may come from, in order."""

    def from_folder(temporary: Path, missing: Sequence[str]) -> None:
        if not (folder / form.IMAGES).is_dir():
            raise SourceError("there is no such folder")
        _convert(known, folder, lambda name: (folder / form.IMAGES / name).open("rb"), temporary,
                 missing)  # fmt: skip

    def from_archive(temporary: Path, missing: Sequence[str]) -> None:
        path = folder / ARCHIVE
        if not path.is_file():
            raise SourceError("there is none")
        _require_md5(known, path)
        try:
            with zipfile.ZipFile(path) as archive:
                _convert(known, folder, lambda name: archive.open(f"{form.IMAGES}/{name}"),
                         temporary, missing)  # fmt: skip
        except zipfile.BadZipFile as error:
            raise SourceError(f"the archive is damaged: {error}") from error

    yield Source(f"the unpacked folder {folder / form.IMAGES}", from_folder)
    yield Source(f"the archive {folder / ARCHIVE}", from_archive)


def _convert(
    known: CelebaFacts, folder: Path, opened: Opener, temporary: Path, missing: Sequence[str]
) -> None:
    """Write the missing files into ``temporary`` from the lists and the photographs."""
    texts = []
    for file in (form.ATTRIBUTE_LIST, form.PARTITION_LIST):
        _require_md5(known, folder / file)
        texts.append((folder / file).read_text(encoding="utf-8"))
    try:
        splits = form.parse_lists(*texts)
    except ValueError as error:
        raise SourceError(f"its lists are not as expected: {error}") from error
    for split, number in known.numbers.items():
        found = len(splits[split][0])
        if found != number:
            raise SourceError(f"its {split} split lists {found} faces instead of {number}")
    for split, (names, attributes) in splits.items():
        images_file, attributes_file = form.FILES[split]
        if images_file in missing:
            faces = _decoded(names, opened, split)
            write_images(temporary / images_file, faces, len(names), form.SIDE)
        if attributes_file in missing:
            (temporary / attributes_file).write_bytes(encode_idx(attributes))


def _decoded(names: Sequence[str], opened: Opener, split: str) -> Iterator[NDArray[np.uint8]]:
    for name in tqdm(names, desc=f"decoding {split}", total=len(names), leave=False):
        try:
            with opened(name) as file:
                yield decode_photograph(file, form.SIDE, form.SIDE)
        except (FileNotFoundError, KeyError):
            raise SourceError(f"its {form.IMAGES}/{name} is missing") from None
        except ValueError as error:
            raise SourceError(f"its {form.IMAGES}/{name} is damaged: {error}") from error


def _require_md5(known: CelebaFacts, path: Path) -> None:
    if not path.is_file():
        raise SourceError(f"{path} is missing")
    problem = md5_check(known.md5[path.name])(path) if path.name in known.md5 else None
    if problem:
        raise SourceError(f"{path} {problem}")


def _wrong_images(number: int, path: Path) -> str | None:
    expected = (number, 3, form.SIDE, form.SIDE)
    shape = images_shape(path)
    return None if shape == expected else f"has the shape {shape} instead of {expected}"


def _wrong_attributes(number: int, path: Path) -> str | None:
    values = decode_idx(np.fromfile(path, dtype=np.uint8))
    expected = (number, len(form.ATTRIBUTES))
    return None if values.shape == expected else f"has the shape {values.shape}, not {expected}"


def _by_hand(folder: Path) -> str:
    """How a person can provide the files."""
    return (
        f"This set is not downloaded. To place it by hand, get {form.ATTRIBUTE_LIST}, "
        f"{form.PARTITION_LIST} and {ARCHIVE} (Align&Cropped Images) through "
        f"mmlab.ie.cuhk.edu.hk/projects/CelebA.html, put them into {folder}, and run "
        f"python -m data_prep.{NAME} again."
    )


if __name__ == "__main__":
    sys.exit(run_command(NAME, prepare))
