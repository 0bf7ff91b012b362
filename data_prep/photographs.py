"""Turning folders and archives of JPEG photographs into one array of bytes per split.

What the array files are is described in ``data_prep.reading.photographs``. An archive is unpacked
beside them for as long as it takes; a folder that is there already is only read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_prep.archives import extract
from data_prep.chain import Check, Source
from data_prep.checks import manifest_check, recorded_facts
from data_prep.errors import SourceError
from data_prep.reading.facts import PHOTOGRAPH_FILES, PHOTOGRAPH_SPLITS
from data_prep.reading.photographs import (
    Listing,
    ListingError,
    decode_listing,
    decode_photograph,
    encode_listing,
    images_shape,
    write_images,
)

LARGEST = 1 << 26
UNPACKED = "unpacked"


@dataclass(frozen=True)
class PhotographSet:
    """What is known about a set of photographs before any of it is read.

    Attributes:
        folder: The folder that its archive unpacks to.
        texts: Files in that folder that say which photograph is what.
        images: The folder of photographs in that folder.
        parse: From the contents of the texts to the listing of each split.
        numbers: Photographs per split.
        classes: Number of classes.
        per_class: Photographs per class and split, where all classes have equally many.
        side: Height and width of an image in the array.
        resize: As for :func:`data_prep.reading.photographs.decode_photograph`.
    """

    folder: str
    texts: tuple[str, ...]
    images: str
    parse: Callable[[Mapping[str, str]], dict[str, Listing]]
    numbers: Mapping[str, int]
    classes: int
    per_class: Mapping[str, int] | None
    side: int
    resize: int | tuple[int, int]


def checks(data: PhotographSet, folder: Path) -> dict[str, Check]:
    """How each of the four files is recognised: by the manifest, and by its form without one."""
    return {
        file: manifest_check(folder, file, partial(_problem, data, folder, split, file))
        for split, files in PHOTOGRAPH_SPLITS.items()
        for file in files
    }


def folder_source(data: PhotographSet, folder: Path) -> Source:
    """Unpacked photographs that lie in ``folder`` already."""

    def fetch(temporary: Path, missing: Sequence[str]) -> None:
        if not folder.is_dir():
            raise SourceError("there is no such folder")
        _convert(data, folder, temporary, missing)

    return Source(f"the unpacked folder {folder}", fetch)


def archive_source(data: PhotographSet, archive: Path, check: Check | None = None) -> Source:
    """An archive that a person has placed; ``check`` says what is wrong with it, or None."""

    def fetch(temporary: Path, missing: Sequence[str]) -> None:
        unpack_and_convert(data, archive, check, temporary, missing)

    return Source(f"the archive {archive}", fetch)


def unpack_and_convert(
    data: PhotographSet,
    archive: Path,
    check: Check | None,
    temporary: Path,
    missing: Sequence[str],
) -> None:
    """Write the missing files into ``temporary`` from an archive.

    Raises:
        SourceError: there is no archive, it fails its check, or it is not what it should be.
        OSError: the disk is full or cannot be written.
    """
    if not archive.is_file():
        raise SourceError("there is none")
    problem = check(archive) if check else None
    if problem:
        raise SourceError(f"it {problem}")
    unpacked = temporary / UNPACKED
    try:
        # Twice through the archive: its texts say which of its photographs are wanted.
        _extract(archive, [f"{data.folder}/{text}" for text in data.texts], unpacked)
        listings = _listings(data, unpacked / data.folder)
        names = [name for listing in listings.values() for name in listing.names]
        _extract(archive, [f"{data.folder}/{data.images}/{name}" for name in names], unpacked)
        _convert(data, unpacked / data.folder, temporary, missing)
    except SourceError as error:
        # tarfile takes the end of a file that was cut off for the end of the archive.
        if "missing" in str(error):
            raise SourceError(f"{error} (was the archive cut short?)") from error
        raise


def _extract(archive: Path, members: Sequence[str], target: Path) -> None:
    # As paths: photographs may lie in the folder ".", which an archive does not name.
    wanted = {str(PurePosixPath(member)): target / member for member in members}
    for parent in {path.parent for path in wanted.values()}:
        parent.mkdir(parents=True, exist_ok=True)
    with archive.open("rb") as file:
        extract(file, wanted, LARGEST)


def _listings(data: PhotographSet, folder: Path) -> dict[str, Listing]:
    """The photographs of both splits, after they have been found to be what they should be."""
    contents = {}
    for text in data.texts:
        try:
            contents[text] = (folder / text).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise SourceError(f"its {text} is missing") from None
        except UnicodeDecodeError as error:
            raise SourceError(f"its {text} is no text: {error}") from error
    try:
        listings = data.parse(contents)
    except ListingError as error:
        raise SourceError(f"its lists are not as expected: {error}") from error
    for split, listing in listings.items():
        problem = _wrong_listing(data, split, listing)
        if problem:
            raise SourceError(f"its {split} split {problem}")
    train, test = (set(listings[split].names) for split in ("train", "test"))
    if train & test:
        raise SourceError(f"the photograph {min(train & test)} is in both splits")
    if listings["train"].class_names != listings["test"].class_names:
        raise SourceError("its two splits do not name the same classes in the same order")
    return listings


def _wrong_listing(data: PhotographSet, split: str, listing: Listing) -> str | None:
    """What is wrong with the listing of a split, or None."""
    if len(listing.names) != data.numbers[split]:
        return f"lists {len(listing.names)} photographs instead of {data.numbers[split]}"
    found = np.bincount(listing.labels, minlength=data.classes)
    if len(found) != data.classes or found.min() == 0 or len(listing.class_names) != data.classes:
        return f"has photographs of {np.count_nonzero(found)} classes instead of {data.classes}"
    if data.per_class and set(found) != {data.per_class[split]}:
        odd = int(np.flatnonzero(found != data.per_class[split])[0])
        name = listing.class_names[odd]
        return f"has {found[odd]} photographs of {name} instead of {data.per_class[split]}"
    return None


def _convert(data: PhotographSet, source: Path, temporary: Path, missing: Sequence[str]) -> None:
    """Write the missing files into ``temporary`` from unpacked photographs."""
    listings = _listings(data, source)
    for split, (images, listing_file) in PHOTOGRAPH_SPLITS.items():
        listing = listings[split]
        wanted = {images, listing_file} & set(missing)
        if not wanted:
            continue
        text = encode_listing(listing)
        if len(wanted) == 1:
            _require_same_rows(temporary.parent, listing_file, text)
        if images in wanted:
            paths = [source / data.images / name for name in listing.names]
            absent = [path for path in paths if not path.is_file()]
            if absent:
                first = absent[0].relative_to(source)
                found = f"{len(absent)} of {len(paths)} {split} photographs are missing"
                raise SourceError(f"{found}, the first one is {first}")
            decoded = _decoded(data, source, paths, split)
            write_images(temporary / images, decoded, len(paths), data.side)
        if listing_file in wanted:
            (temporary / listing_file).write_text(text, encoding="utf-8", newline="\n")


def _require_same_rows(folder: Path, listing_file: str, text: str) -> None:
    """Refuse to replace one file of a split by one that would not fit the kept one."""
    entry = recorded_facts(folder, listing_file)
    if entry is not None and hashlib.sha256(text.encode()).hexdigest() != entry.sha256:
        raise SourceError(
            f"it lists other photographs than {folder / listing_file} did; to begin anew, remove "
            f"the files {', '.join(PHOTOGRAPH_FILES)}"
        )


def _decoded(
    data: PhotographSet, source: Path, paths: Sequence[Path], split: str
) -> Iterator[NDArray[np.uint8]]:
    for path in tqdm(paths, desc=f"decoding {split}", total=len(paths), leave=False):
        try:
            yield decode_photograph(path, data.side, data.resize)
        except ValueError as error:
            raise SourceError(f"its {path.relative_to(source)} is damaged: {error}") from error


def _problem(data: PhotographSet, folder: Path, split: str, file: str, path: Path) -> str | None:
    """What is wrong with the form of one of the four files, or None."""
    images, listing = PHOTOGRAPH_SPLITS[split]
    partner = listing if file == images else images
    if not path.with_name(partner).is_file() and path.parent == folder:
        return f"stands alone, without {partner}"
    return _wrong_images(data, split, path) if file == images else _wrong_csv(data, split, path)


def _wrong_images(data: PhotographSet, split: str, path: Path) -> str | None:
    expected = (data.numbers[split], 3, data.side, data.side)
    shape = images_shape(path)
    return None if shape == expected else f"has the shape {shape} instead of {expected}"


def _wrong_csv(data: PhotographSet, split: str, path: Path) -> str | None:
    return _wrong_listing(data, split, decode_listing(path.read_text(encoding="utf-8")))
