"""CIFAR-100 in torchvision's format: ``python -m data_prep.cifar100``.

The files lie in ``<root>/cifar100/cifar-100-python``, where torchvision's own class finds them as
well. They are recognised by torchvision's MD5; the manifest then holds their SHA-256, which the
loader compares on every read.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from data_prep.archives import extract
from data_prep.chain import Source, prepare_files
from data_prep.checks import md5_check
from data_prep.command import run_command
from data_prep.download import download
from data_prep.errors import SourceError
from data_prep.reading.cifar import FOLDER
from data_prep.reading.root import data_root

NAME = "cifar100"
LARGEST = 1 << 28
# The archive (169 MB) and what comes out of it (186 MB) are there at the same time.
SPACE = 400_000_000


def prepare(root: Path | None = None) -> Path:
    """Make ``<root>/cifar100`` complete; ``root`` None stands for the data root.

    Raises:
        PrepareError: with what was tried, or why nothing can be written.
    """
    from torchvision.datasets import CIFAR100  # takes seconds to import

    listed = [*CIFAR100.train_list, *CIFAR100.test_list]
    md5 = {f"{FOLDER}/{file}": digest for file, digest in listed}
    md5[f"{FOLDER}/{CIFAR100.meta['filename']}"] = CIFAR100.meta["md5"]
    return prepare_cifar(root or data_root(), CIFAR100.url, md5, SPACE)


def prepare_cifar(root: Path, url: str, md5: Mapping[str, str], space: int) -> Path:
    """Make ``<root>/cifar100`` hold the files named in ``md5``, taken from the archive at ``url``.

    Arguments and errors as for :func:`data_prep.chain.prepare_files`.
    """
    archive = url.rpartition("/")[2]
    return prepare_files(
        NAME,
        root,
        {file: md5_check(digest) for file, digest in md5.items()},
        lambda folder: _sources(folder, url, archive),
        lambda folder: _by_hand(folder, archive, md5),
        space,
    )


def _sources(folder: Path, url: str, archive: str) -> Iterator[Source]:
    """Where the files may come from, in order."""
    yield Source(f"the archive {folder / archive}", partial(_unpack, folder / archive))
    elsewhere = folder.parent / FOLDER
    yield Source(f"unpacked files in {elsewhere}", partial(_copy, folder.parent))

    def fetch(temporary: Path, missing: Sequence[str]) -> None:
        download(url, temporary / archive)
        _unpack(temporary / archive, temporary, missing)

    yield Source(f"torchvision's address {url}", fetch)


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


def _by_hand(folder: Path, archive: str, md5: Mapping[str, str]) -> str:
    """How a person can provide the files."""
    lines = "\n".join(f"  {file}  MD5 {digest}" for file, digest in md5.items())
    return (
        f"To place the files by hand, put {archive} into {folder}, or unpack it there, and run "
        f"python -m data_prep.{NAME} again. It must contain:\n{lines}"
    )


if __name__ == "__main__":
    sys.exit(run_command(NAME, prepare))
