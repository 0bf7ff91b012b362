"""CUB-200-2011, 11,788 photographs of 200 species of birds: ``python -m data_prep.cub200``.

The archive is recognised by the MD5 that its publisher gives. An unpacked folder has no checksum:
it is recognised by its lists and by every photograph being there and whole. The arrays made of
them (1.8 GB) are recorded in the manifest with their SHA-256, which the loader compares.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.chain import Source, prepare_files
from data_prep.checks import md5_check
from data_prep.command import run_command
from data_prep.download import download
from data_prep.photographs import (
    PhotographSet,
    archive_source,
    checks,
    folder_source,
    unpack_and_convert,
)
from data_prep.reading import cub
from data_prep.reading.root import data_root

NAME = "cub200"
URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
MD5 = "97eceeb196236b17998738112f37df78"
# The arrays (1.8 GB); the archive and what it unpacks to (1.2 GB each) are there for a while.
SPACE = 4_300_000_000

CUB200 = PhotographSet(
    folder=cub.FOLDER,
    texts=cub.TEXTS,
    images=cub.IMAGES,
    parse=cub.parse_texts,
    numbers=cub.NUMBER,
    classes=cub.CLASSES,
    per_class=None,
    side=cub.SIDE,
    resize=cub.RESIZE,
)


def prepare(root: Path | None = None) -> Path:
    """Make ``<root>/cub200`` complete; ``root`` None stands for the data root.

    Raises:
        PrepareError: with what was tried, or why nothing can be written.
    """
    return prepare_cub200(root or data_root(), CUB200, URL, MD5, SPACE)


def prepare_cub200(root: Path, data: PhotographSet, url: str, md5: str, space: int) -> Path:
    """Make ``<root>/cub200`` hold the arrays of ``data``, from the archive at ``url``.

    Errors as for :func:`data_prep.chain.prepare_files`.
    """
    archive = url.rpartition("/")[2]
    return prepare_files(
        NAME,
        root,
        checks(data, root / NAME),
        lambda folder: _sources(folder, data, url, md5),
        lambda folder: _by_hand(folder, data, archive, md5),
        space,
    )


def _sources(folder: Path, data: PhotographSet, url: str, md5: str) -> Iterator[Source]:
    """Where the files may come from, in order."""
    archive, check = url.rpartition("/")[2], md5_check(md5)
    for place in (folder, folder.parent):
        yield archive_source(data, place / archive, check)
    for place in (folder, folder.parent):
        yield folder_source(data, place / data.folder)

    def fetch(temporary: Path, missing: Sequence[str]) -> None:
        download(url, temporary / archive)
        unpack_and_convert(data, temporary / archive, check, temporary, missing)

    yield Source(f"the publisher's address {url}", fetch)


def _by_hand(folder: Path, data: PhotographSet, archive: str, md5: str) -> str:
    """How a person can provide the files."""
    return (
        f"To place the files by hand, put {archive} (MD5 {md5}) into {folder}, or unpack it there "
        f"to {folder / data.folder}, and run python -m data_prep.{NAME} again. It must contain "
        f"{', '.join(data.texts)} and {sum(data.numbers.values())} photographs in {data.images}."
    )


if __name__ == "__main__":
    sys.exit(run_command(NAME, prepare))
