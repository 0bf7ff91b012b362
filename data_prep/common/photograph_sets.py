"""Sets of JPEG photographs in folders and archives, kept as one array of bytes per split.

What the array files are is described in :mod:`data_prep.common.photographs`. An archive is unpacked
beside them for as long as it takes; a folder that is there already is only read.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_prep.common.archives import DAMAGED, extract
from data_prep.common.chain import DataSet, Source
from data_prep.common.checks import Check, manifest_check, md5_check, recorded_facts
from data_prep.common.download import download
from data_prep.common.errors import SourceError
from data_prep.common.files import check_split, data_error, manifest_facts
from data_prep.common.labelled import LabelledImages, labelled_images
from data_prep.common.photographs import (
    ALL_FILES,
    FILES,
    Listing,
    ListingError,
    decode_listing,
    decode_photograph,
    encode_listing,
    images_shape,
    map_images,
    read_listing,
    write_images,
)
from data_prep.common.root import data_root

LARGEST = 1 << 26
UNPACKED = "unpacked"


@dataclass(frozen=True, kw_only=True)
class PhotographSet(DataSet):
    """What is known about a set of photographs before any of it is read.

    Attributes:
        folder: The folder that its archive unpacks to.
        parse: From the contents of its texts, and the paths of its files where it has no texts, to
            the listing of each split.
        numbers: Photographs per split.
        classes: Number of classes.
        side: Height and width of an image in the array.
        resize: As for :func:`data_prep.common.photographs.decode_photograph`.
        way: For the person who provides the files: what to get, and what must be in ``folder``;
            ``{data}`` stands for the set and ``{place}`` for its folder in the data root.
        texts: Files in ``folder`` that say which photograph is what.
        images: The folder of photographs in ``folder``.
        per_class: Photographs per class and split, where all classes have equally many.
        archives: Names of archives that a person may place.
        url: Where the archive is offered.
        md5: Of the archive.
        flat: Whether the unpacked files may also lie in the set's own folder.
    """

    folder: str
    parse: Callable[[Mapping[str, str], Sequence[str]], dict[str, Listing]]
    numbers: Mapping[str, int]
    classes: int
    side: int
    resize: int | tuple[int, int]
    way: str
    texts: tuple[str, ...] = ()
    images: str = "."
    per_class: Mapping[str, int] | None = None
    archives: tuple[str, ...] = ()
    url: str | None = None
    md5: str | None = None
    flat: bool = False

    def checks(self, folder: Path) -> dict[str, Check]:
        """By the manifest, and by its form without one."""
        return {
            file: manifest_check(folder, file, partial(self._problem, folder, split, file))
            for split, files in FILES.items()
            for file in files
        }

    def checksums(self, root: Path | None = None) -> dict[str, str]:
        """The SHA-256 that the manifest records."""
        known = manifest_facts(self.name, ALL_FILES, root)
        return {file: facts.sha256 for file, facts in known.items()}

    def load(self, split: str, root: Path | None = None) -> LabelledImages:
        """One split; arguments and errors as for :func:`data_prep.load`.

        The images stay on the disk until they are used, and so memory holds only what is used;
        changes to them never reach the file. All of it is read once to compare the SHA-256.
        """
        listing = self.listing(split, root)
        file = FILES[split][0]
        path = (root or data_root()) / self.name / file
        images = map_images(path, manifest_facts(self.name, (file,), root)[file], self.name)
        if len(images) != len(listing.names):
            problem = f"{path} holds {len(images)} images for {len(listing.names)} names."
            raise data_error(self.name, problem)
        labels = np.array(listing.labels, dtype=np.int64)
        return labelled_images(images, labels, listing.class_names)

    def listing(self, split: str, root: Path | None = None) -> Listing:
        """Names and classes of the photographs of one split.

        Raises:
            ValueError: an unknown split.
            DataError: the set has not been prepared, or its list is damaged.
        """
        check_split(split)
        file = FILES[split][1]
        known = manifest_facts(self.name, (file,), root)[file]
        return read_listing((root or data_root()) / self.name / file, known, self.name)

    def sources(self, folder: Path) -> Iterator[Source]:
        """Placed archives and folders, the publisher's address."""
        for place in (folder, folder.parent):
            for archive in self.archives:
                yield Source(
                    f"the archive {place / archive}", partial(self._from_archive, place / archive)
                )
        places = [folder, folder.parent]
        for unpacked in ([folder] if self.flat else []) + [place / self.folder for place in places]:
            yield Source(f"the unpacked folder {unpacked}", partial(self._from_folder, unpacked))
        if self.url:
            yield Source(f"the publisher's address {self.url}", self._from_address)

    def by_hand(self, folder: Path) -> str:
        """What to get, and where to put it."""
        way = self.way.format(data=self, place=folder)
        if self.archives:
            way += f", put it into {folder}, or unpack it there to {folder / self.folder}"
        numbers = " and ".join(f"{number} for {split}" for split, number in self.numbers.items())
        return (
            f"To place the files by hand, {way}, and run python -m data_prep.{self.name} again. "
            f"There must be {numbers} of {self.classes} classes."
        )

    def _from_folder(self, unpacked: Path, temporary: Path, missing: Sequence[str]) -> None:
        if not unpacked.is_dir():
            raise SourceError("there is no such folder")
        self._convert(unpacked, self._listings(unpacked), temporary, missing)

    def _from_address(self, temporary: Path, missing: Sequence[str]) -> None:
        archive = temporary / str(self.url).rpartition("/")[2]
        download(str(self.url), archive)
        self._from_archive(archive, temporary, missing)

    def _from_archive(self, archive: Path, temporary: Path, missing: Sequence[str]) -> None:
        """Write the missing files into ``temporary`` from an archive.

        Raises:
            SourceError: there is no archive, it fails its check, or it is not what it should be.
            OSError: the disk is full or cannot be written.
        """
        if not archive.is_file():
            raise SourceError("there is none")
        problem = md5_check(self.md5)(archive) if self.md5 else None
        if problem:
            raise SourceError(f"it {problem}")
        unpacked = temporary / UNPACKED
        inside = unpacked / self.folder
        try:
            # Twice through the archive: first to see which of its photographs are wanted.
            _extract(archive, [f"{self.folder}/{text}" for text in self.texts], unpacked)
            paths = [] if self.texts else _paths_in(archive, self.folder)
            listings = self._listings(inside, paths)
            names = [name for listing in listings.values() for name in listing.names]
            _extract(archive, [f"{self.folder}/{self.images}/{name}" for name in names], unpacked)
            self._convert(inside, listings, temporary, missing)
        except SourceError as error:
            # tarfile takes the end of a file that was cut off for the end of the archive.
            if "missing" in str(error):
                raise SourceError(f"{error} (was the archive cut short?)") from error
            raise

    def _listings(self, unpacked: Path, paths: Sequence[str] | None = None) -> dict[str, Listing]:
        """The photographs of both splits, after they have been found to be what they should be."""
        contents = {text: _read_text(unpacked, text) for text in self.texts}
        if paths is None and not self.texts:
            found = (path for path in unpacked.glob("*/*") if path.is_file())
            paths = [path.relative_to(unpacked).as_posix() for path in found]
        try:
            listings = self.parse(contents, paths or ())
        except ListingError as error:
            rule = "its lists are not as expected: " if self.texts else ""
            raise SourceError(f"{rule}{error}") from error
        for split, listing in listings.items():
            problem = self._wrong_listing(split, listing)
            if problem:
                raise SourceError(f"its {split} split {problem}")
        train, test = (set(listings[split].names) for split in ("train", "test"))
        if train & test:
            raise SourceError(f"the photograph {min(train & test)} is in both splits")
        if listings["train"].class_names != listings["test"].class_names:
            raise SourceError("its two splits do not name the same classes in the same order")
        return listings

    def _wrong_listing(self, split: str, listing: Listing) -> str | None:
        """What is wrong with the listing of a split, or None."""
        if len(listing.names) != self.numbers[split]:
            return f"lists {len(listing.names)} photographs instead of {self.numbers[split]}"
        found = np.bincount(listing.labels, minlength=self.classes)
        if (
            len(found) != self.classes
            or found.min() == 0
            or len(listing.class_names) != self.classes
        ):
            return f"has photographs of {np.count_nonzero(found)} classes instead of {self.classes}"
        if self.per_class and set(found) != {self.per_class[split]}:
            odd = int(np.flatnonzero(found != self.per_class[split])[0])
            name = listing.class_names[odd]
            return f"has {found[odd]} photographs of {name} instead of {self.per_class[split]}"
        return None

    def _convert(
        self,
        source: Path,
        listings: Mapping[str, Listing],
        temporary: Path,
        missing: Sequence[str],
    ) -> None:
        """Write the missing files into ``temporary`` from unpacked photographs."""
        for split, (images, listing_file) in FILES.items():
            listing = listings[split]
            wanted = {images, listing_file} & set(missing)
            if not wanted:
                continue
            text = encode_listing(listing)
            if len(wanted) == 1:
                _require_same_rows(temporary.parent, listing_file, text)
            if images in wanted:
                paths = [source / self.images / name for name in listing.names]
                absent = [path for path in paths if not path.is_file()]
                if absent:
                    first = absent[0].relative_to(source)
                    found = f"{len(absent)} of {len(paths)} {split} photographs are missing"
                    raise SourceError(f"{found}, the first one is {first}")
                decoded = self._decoded(source, paths, split)
                write_images(temporary / images, decoded, len(paths), self.side)
            if listing_file in wanted:
                (temporary / listing_file).write_text(text, encoding="utf-8", newline="\n")

    def _decoded(
        self, source: Path, paths: Sequence[Path], split: str
    ) -> Iterator[NDArray[np.uint8]]:
        for path in tqdm(paths, desc=f"decoding {split}", total=len(paths), leave=False):
            try:
                yield decode_photograph(path, self.side, self.resize)
            except ValueError as error:
                raise SourceError(f"its {path.relative_to(source)} is damaged: {error}") from error

    def _problem(self, folder: Path, split: str, file: str, path: Path) -> str | None:
        """What is wrong with the form of one of the four files, or None."""
        images, listing = FILES[split]
        partner = listing if file == images else images
        if not path.with_name(partner).is_file() and path.parent == folder:
            return f"stands alone, without {partner}"
        if file != images:
            return self._wrong_listing(split, decode_listing(path.read_text(encoding="utf-8")))
        expected = (self.numbers[split], 3, self.side, self.side)
        shape = images_shape(path)
        return None if shape == expected else f"has the shape {shape} instead of {expected}"


def _extract(archive: Path, members: Sequence[str], target: Path) -> None:
    # As paths: photographs may lie in the folder ".", which an archive does not name.
    wanted = {str(PurePosixPath(member)): target / member for member in members}
    for parent in {path.parent for path in wanted.values()}:
        parent.mkdir(parents=True, exist_ok=True)
    with archive.open("rb") as file:
        extract(file, wanted, LARGEST)


def _read_text(folder: Path, text: str) -> str:
    try:
        return (folder / text).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SourceError(f"its {text} is missing") from None
    except UnicodeDecodeError as error:
        raise SourceError(f"its {text} is no text: {error}") from error


def _paths_in(archive: Path, folder: str) -> list[str]:
    """Paths, below ``folder``, of the files in its folders in an archive; nothing is unpacked."""
    try:
        with tarfile.open(archive) as tar:
            members = [PurePosixPath(member.name) for member in tar if member.isreg()]
    except DAMAGED as error:
        raise SourceError(f"the archive is damaged: {error}") from error
    inside = [path.relative_to(folder) for path in members if path.is_relative_to(folder)]
    return [path.as_posix() for path in inside if len(path.parts) == 2]


def _require_same_rows(folder: Path, listing_file: str, text: str) -> None:
    """Refuse to replace one file of a split by one that would not fit the kept one."""
    entry = recorded_facts(folder, listing_file)
    if entry is not None and hashlib.sha256(text.encode()).hexdigest() != entry.sha256:
        raise SourceError(
            f"it lists other photographs than {folder / listing_file} did; to begin anew, remove "
            f"the files {', '.join(ALL_FILES)}"
        )
