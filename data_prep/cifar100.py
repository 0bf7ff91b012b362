"""CIFAR-100 in torchvision's format: ``python -m data_prep.cifar100``.

Colour photographs, 32x32, 50,000 train and 10,000 test images, 100 classes. The files lie in
``<root>/cifar100/cifar-100-python``, where torchvision's own class finds them as well. They are
recognised by torchvision's MD5; the manifest then holds their SHA-256, which is compared on every
read.

A pickle can name any function and have it called, so these are read with an unpickler that knows
only what the files need: dictionaries, lists, text, numbers and arrays of unsigned bytes.
"""

from __future__ import annotations

import importlib
import io
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.common.archives import extract
from data_prep.common.chain import DataSet, Source
from data_prep.common.checks import Check, md5_check
from data_prep.common.command import main
from data_prep.common.download import download
from data_prep.common.errors import SourceError
from data_prep.common.files import check_split, data_error, manifest_facts, read_verified
from data_prep.common.labelled import LabelledImages, labelled_images
from data_prep.common.root import data_root

FOLDER = "cifar-100-python"
FILES = tuple(f"{FOLDER}/{name}" for name in ("train", "test", "meta"))
SHAPE = (3, 32, 32)
LARGEST = 1 << 28


@dataclass(frozen=True, kw_only=True)
class Cifar100(DataSet):
    """Three pickles that come in one archive.

    Attributes:
        url: Of the archive; None stands for torchvision's.
        md5: Of each file; None stands for torchvision's.
    """

    url: str | None = None
    md5: Mapping[str, str] | None = None

    def address(self) -> str:
        """Where the archive is offered."""
        return self.url or str(_torchvision().url)

    def known_md5(self) -> Mapping[str, str]:
        """The MD5 by file."""
        if self.md5 is not None:
            return self.md5
        offered = _torchvision()
        listed = [*offered.train_list, *offered.test_list]
        listed.append((offered.meta["filename"], offered.meta["md5"]))
        return {f"{FOLDER}/{file}": digest for file, digest in listed}

    def checks(self, folder: Path) -> dict[str, Check]:  # noqa: ARG002
        """By MD5."""
        return {file: md5_check(digest) for file, digest in self.known_md5().items()}

    def checksums(self, root: Path | None = None) -> dict[str, str]:
        """The SHA-256 that the manifest records."""
        known = manifest_facts(self.name, FILES, root)
        return {file: facts.sha256 for file, facts in known.items()}

    def load(self, split: str, root: Path | None = None) -> LabelledImages:
        """One split; arguments and errors as for :func:`data_prep.load`."""
        check_split(split)
        expected = manifest_facts(self.name, FILES, root)
        folder = (root or data_root()) / self.name
        content = {
            file: read_verified(folder / file, expected[file], self.name).tobytes()
            for file in (f"{FOLDER}/{split}", f"{FOLDER}/meta")
        }
        try:
            images, labels = cifar_split(content[f"{FOLDER}/{split}"])
            return labelled_images(images, labels, cifar_class_names(content[f"{FOLDER}/meta"]))
        except ValueError as error:
            problem = f"The CIFAR-100 files in {folder / FOLDER} are not as expected: {error}."
            raise data_error(self.name, problem) from error

    def sources(self, folder: Path) -> Iterator[Source]:
        """A placed archive, files where torchvision unpacks them, torchvision's address."""
        archive = self.address().rpartition("/")[2]
        yield Source(f"the archive {folder / archive}", partial(_unpack, folder / archive))
        elsewhere = folder.parent / FOLDER
        yield Source(f"unpacked files in {elsewhere}", partial(_copy, folder.parent))

        def fetch(temporary: Path, missing: Sequence[str]) -> None:
            download(self.address(), temporary / archive)
            _unpack(temporary / archive, temporary, missing)

        yield Source(f"torchvision's address {self.address()}", fetch)

    def by_hand(self, folder: Path) -> str:
        """The archive and what it must contain."""
        archive = self.address().rpartition("/")[2]
        lines = "\n".join(f"  {file}  MD5 {digest}" for file, digest in self.known_md5().items())
        return (
            f"To place the files by hand, put {archive} into {folder}, or unpack it there, and run "
            f"python -m data_prep.{self.name} again. It must contain:\n{lines}"
        )


def _torchvision() -> Any:
    """Torchvision's class, which takes seconds to import."""
    return importlib.import_module("torchvision.datasets").CIFAR100


def _unpack(archive: Path, temporary: Path, missing: Sequence[str]) -> None:
    """Take the missing files out of an archive on this disk."""
    if not archive.is_file():
        raise SourceError("there is none")
    (temporary / FOLDER).mkdir()
    with archive.open("rb") as content:
        extract(content, {file: temporary / file for file in missing}, LARGEST)


def _copy(folder: Path, temporary: Path, missing: Sequence[str]) -> None:
    """Copy the missing files from where torchvision puts them with the data root as its root."""
    (temporary / FOLDER).mkdir()
    for file in missing:
        if (folder / file).is_file():
            shutil.copyfile(folder / file, temporary / file)


class CifarFormatError(ValueError):
    """A CIFAR-100 file does not hold what the format says."""


class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler for dictionaries, lists, text, numbers and arrays of unsigned bytes."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name found in the file; every other name is refused."""
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _empty_array
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return _byte_type
        raise CifarFormatError(f"the pickle asks for {module}.{name}, which is not allowed")


def _empty_array(kind: object, *_: object) -> NDArray[np.uint8]:
    """What numpy makes before it fills in shape and values, which come in a second step."""
    if kind is not np.ndarray:
        raise CifarFormatError(f"an array of type {kind!r} is not allowed")
    return np.empty(0, dtype=np.uint8)


def _byte_type(code: object, *_: object) -> np.dtype[np.uint8]:
    """The one allowed element type. A fresh object, since unpickling then sets its state."""
    if code not in ("u1", "|u1"):
        raise CifarFormatError(f"an array of element type {code!r} is not allowed")
    return np.dtype(np.uint8, copy=True)


def unpickle(content: bytes) -> dict[str, Any]:
    """The dictionary in a pickle written by Python 2, as the CIFAR files are.

    Raises:
        CifarFormatError: it holds anything but plain values and byte arrays, or is cut short.
    """
    try:
        value = RestrictedUnpickler(io.BytesIO(content), encoding="latin1").load()
    except CifarFormatError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise CifarFormatError(f"it cannot be unpickled: {error}") from error
    if not isinstance(value, dict):
        raise CifarFormatError(f"it must hold a dictionary. Found {type(value).__name__}")
    return value


def cifar_split(content: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (n, 3, 32, 32) and fine labels (n,) in the content of ``train`` or ``test``.

    Raises:
        CifarFormatError: the pickle does not hold images with one label each.
    """
    entries = unpickle(content)
    images = entries.get("data")
    width = int(np.prod(SHAPE))
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 2:
        raise CifarFormatError("'data' must be an array of bytes with one row per image")
    if images.shape[1] != width:
        raise CifarFormatError(f"'data' must have {width} columns. Found {images.shape[1]}")
    labels = entries.get("fine_labels")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise CifarFormatError("'fine_labels' must be a list of integers")
    if len(labels) != len(images):
        raise CifarFormatError(f"found {len(labels)} labels for {len(images)} images")
    return images.reshape(-1, *SHAPE), np.array(labels, dtype=np.int64)


def cifar_class_names(content: bytes) -> tuple[str, ...]:
    """The names of the 100 fine classes in the content of ``meta``.

    Raises:
        CifarFormatError: the pickle does not hold them.
    """
    names = unpickle(content).get("fine_label_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CifarFormatError("'fine_label_names' must be a list of names")
    return tuple(names)


# The archive (169 MB) and what comes out of it (186 MB) are there at the same time.
DATA = Cifar100(name="cifar100", space=400_000_000)
prepare, load = DATA.prepare, DATA.load


if __name__ == "__main__":
    main(DATA)
