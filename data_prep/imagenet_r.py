"""ImageNet-R, 30,000 renditions of 200 classes of ImageNet: ``python -m data_prep.imagenet_r``.

The archive is recognised by its MD5. Its authors print none: the one here is what public loaders of
the set agree on. An unpacked folder is recognised by its 200 class folders, the number of images,
and every one of them being whole. The arrays made of them (4.5 GB) are recorded in the manifest
with their SHA-256, which the loader compares. How images are chosen for training and testing is
described in ``data_prep.reading.imagenet_r``.
"""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from data_prep.archives import DAMAGED
from data_prep.chain import Check, Source, prepare_files
from data_prep.checks import md5_check
from data_prep.command import run_command
from data_prep.download import download
from data_prep.errors import SourceError
from data_prep.photographs import PhotographSet, checks, folder_source, unpack_and_convert
from data_prep.reading import imagenet_r as form
from data_prep.reading.photographs import Listing, ListingError
from data_prep.reading.root import data_root

NAME = "imagenet_r"
URL = "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar"
MD5 = "a61312130a589d0ca1a8fca1f2bd3337"
# The arrays (4.5 GB); the archive and what it unpacks to (2.2 GB each) are there for a while.
SPACE = 9_100_000_000

IMAGENET_R = PhotographSet(
    folder=form.FOLDER,
    texts=(),
    images=".",
    # There are no lists: once the files of a source are known, their paths take this place.
    parse=lambda _: form.split_photographs(()),
    numbers=form.NUMBER,
    classes=len(form.WNIDS),
    per_class=None,
    side=form.SIDE,
    resize=form.RESIZE,
)


def prepare(root: Path | None = None) -> Path:
    """Make ``<root>/imagenet_r`` complete; ``root`` None stands for the data root.

    Raises:
        PrepareError: with what was tried, or why nothing can be written.
    """
    return prepare_imagenet_r(root or data_root(), IMAGENET_R, form.WNIDS, URL, MD5, SPACE)


def prepare_imagenet_r(
    root: Path, data: PhotographSet, wnids: Sequence[str], url: str, md5: str, space: int
) -> Path:
    """Make ``<root>/imagenet_r`` hold the arrays of ``data``, from the archive at ``url``.

    Errors as for :func:`data_prep.chain.prepare_files`.
    """
    return prepare_files(
        NAME,
        root,
        checks(data, root / NAME),
        lambda folder: _sources(folder, data, wnids, url, md5_check(md5)),
        lambda folder: _by_hand(folder, data, url, md5),
        space,
    )


def _sources(
    folder: Path, data: PhotographSet, wnids: Sequence[str], url: str, check: Check
) -> Iterator[Source]:
    """Where the files may come from, in order."""
    name = url.rpartition("/")[2]
    for place in (folder, folder.parent):
        yield _archive_source(data, wnids, place / name, check)
    for place in (folder, folder.parent):
        yield _folder_source(data, wnids, place / data.folder)

    def fetch(temporary: Path, missing: Sequence[str]) -> None:
        download(url, temporary / name)
        _convert(data, wnids, temporary / name, check, temporary, missing)

    yield Source(f"the publisher's address {url}", fetch)


def _archive_source(
    data: PhotographSet, wnids: Sequence[str], archive: Path, check: Check
) -> Source:
    def fetch(temporary: Path, missing: Sequence[str]) -> None:
        _convert(data, wnids, archive, check, temporary, missing)

    return Source(f"the archive {archive}", fetch)


def _folder_source(data: PhotographSet, wnids: Sequence[str], folder: Path) -> Source:
    def fetch(temporary: Path, missing: Sequence[str]) -> None:
        files = (path for path in folder.glob("*/*") if path.is_file())
        listed = _with_files(data, wnids, (path.relative_to(folder).as_posix() for path in files))
        folder_source(listed, folder).fetch(temporary, missing)

    return Source(f"the unpacked folder {folder}", fetch)


def _convert(
    data: PhotographSet,
    wnids: Sequence[str],
    archive: Path,
    check: Check,
    temporary: Path,
    missing: Sequence[str],
) -> None:
    """Write the missing files into ``temporary`` from an archive; errors as for its parts."""
    problem = check(archive) if archive.is_file() else None
    if problem:
        raise SourceError(f"it {problem}")
    files = _files_in(archive, data.folder) if archive.is_file() else []
    unpack_and_convert(_with_files(data, wnids, files), archive, None, temporary, missing)


def _files_in(archive: Path, folder: str) -> list[str]:
    """Paths, below ``folder``, of the files in an archive; nothing is unpacked."""
    try:
        with tarfile.open(archive) as tar:
            members = [PurePosixPath(member.name) for member in tar if member.isreg()]
    except DAMAGED as error:
        raise SourceError(f"the archive is damaged: {error}") from error
    inside = [path.relative_to(folder) for path in members if path.is_relative_to(folder)]
    return [path.as_posix() for path in inside if len(path.parts) == 2]


def _with_files(data: PhotographSet, wnids: Sequence[str], files: Iterable[str]) -> PhotographSet:
    """The set with the listings that follow from its files; hidden files are none of its own."""
    paths = [path for path in files if not path.rpartition("/")[2].startswith(".")]

    def parse(_: Mapping[str, str]) -> dict[str, Listing]:
        try:
            listings = form.split_photographs(paths, wnids)
        except ListingError as error:
            raise SourceError(str(error)) from error
        if len(paths) != sum(data.numbers.values()):
            raise SourceError(f"it has {len(paths)} images instead of {sum(data.numbers.values())}")
        return listings

    return replace(data, parse=parse)


def _by_hand(folder: Path, data: PhotographSet, url: str, md5: str) -> str:
    """How a person can provide the files."""
    archive = url.rpartition("/")[2]
    return (
        f"To place the files by hand, get {archive} (MD5 {md5}) from {url} and put it into "
        f"{folder}, or unpack it there to {folder / data.folder}, and run python -m "
        f"data_prep.{NAME} again. It must contain {sum(data.numbers.values())} images in "
        f"{data.classes} folders named by WordNet numbers, such as {data.folder}/n01443537."
    )


if __name__ == "__main__":
    sys.exit(run_command(NAME, prepare))
