"""Sets of photographs kept as one array of bytes per split, which is mapped and not read.

``data_prep`` decodes the photographs once and leaves two files per split: ``<split>-images.npy``,
uint8 of shape (n, 3, height, width), and ``<split>.csv``, which names each row and its class.
Arrays of gigabytes are then opened in the time of a checksum, and only what is used takes memory.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.common.files import SPLITS, FileFacts, data_error, read_verified, sha256

COLUMNS = ("name", "label", "class")
# From split to its array and the list of its rows.
FILES = {split: (f"{split}-images.npy", f"{split}.csv") for split in SPLITS}
ALL_FILES = tuple(file for files in FILES.values() for file in files)


class ListingError(ValueError):
    """A list of images does not hold what its format says."""


@dataclass(frozen=True)
class Listing:
    """The photographs of one split, in the order of the array's rows.

    Attributes:
        names: One unique name per photograph, as the data set's authors gave it.
        labels: One class number per photograph.
        class_names: One name per class.
    """

    names: tuple[str, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse a list in which a row, a name or a class is in doubt."""
        if len(self.names) != len(self.labels):
            raise ListingError(f"found {len(self.labels)} labels for {len(self.names)} images")
        if len(set(self.names)) != len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise ListingError(f"the image {twice} is listed twice")
        wrong = [label for label in self.labels if not 0 <= label < len(self.class_names)]
        if wrong:
            rule = f"labels must lie in [0, {len(self.class_names)})"
            raise ListingError(f"{rule}. Found {wrong[0]}")


def listing_of(names: Sequence[str], classes: Sequence[str]) -> Listing:
    """A listing whose classes are numbered in the order in which they first appear.

    Raises:
        ListingError: a name comes twice.
    """
    numbers: dict[str, int] = {}
    labels = [numbers.setdefault(name, len(numbers)) for name in classes]
    return Listing(tuple(names), tuple(labels), tuple(numbers))


def encode_listing(listing: Listing) -> str:
    """The content of ``<split>.csv``: a header, then one line per image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, label in zip(listing.names, listing.labels, strict=True):
        writer.writerow((name, label, listing.class_names[label]))
    return text.getvalue()


def decode_listing(content: str) -> Listing:
    """The listing in the content of ``<split>.csv``.

    Raises:
        ListingError: the header, a line or the numbering of the classes is not as expected.
    """
    lines = csv.reader(io.StringIO(content))
    if tuple(next(lines, ())) != COLUMNS:
        raise ListingError(f"the first line must be {','.join(COLUMNS)}")
    names, labels = [], []
    classes: dict[int, str] = {}
    for number, line in enumerate(lines, start=2):
        if len(line) != len(COLUMNS) or not line[1].isdigit():
            raise ListingError(f"line {number} must hold {','.join(COLUMNS)}. Found {line}")
        label = int(line[1])
        if classes.setdefault(label, line[2]) != line[2]:
            raise ListingError(f"line {number} gives class {label} a second name, {line[2]!r}")
        names.append(line[0])
        labels.append(label)
    if sorted(classes) != list(range(len(classes))):
        raise ListingError("the classes must be numbered from 0 without a gap")
    class_names = tuple(classes[label] for label in range(len(classes)))
    return Listing(tuple(names), tuple(labels), class_names)


def read_listing(path: Path, facts: FileFacts, data_set: str) -> Listing:
    """The listing in a file that has the given size and SHA-256.

    Raises:
        DataError: the file is missing, cut short, altered, or no listing.
    """
    content = read_verified(path, facts, data_set).tobytes()
    try:
        return decode_listing(content.decode("utf-8"))
    except ValueError as error:
        raise data_error(data_set, f"Data file {path} is not as expected: {error}.") from error


def map_images(path: Path, facts: FileFacts, data_set: str) -> NDArray[np.uint8]:
    """The images in a file, mapped: what is changed in memory never reaches the file.

    Size and SHA-256 are compared first, in pieces, so that memory holds no copy.

    Returns:
        uint8 (n, 3, height, width).

    Raises:
        DataError: the file is missing, unreadable, cut short, altered, or no array of images.
    """
    try:
        size = path.stat().st_size
        if size != facts.size:
            found = f"it has {size} bytes and should have {facts.size}"
            raise data_error(data_set, f"Data file {path} is damaged: {found}.")
        digest = sha256(path)
        if digest != facts.sha256:
            found = f"its SHA-256 is {digest} and should be {facts.sha256}"
            raise data_error(data_set, f"Data file {path} is altered: {found}.")
        images_shape(path)
        # "c": pages are copied when they are written to.
        return cast("NDArray[np.uint8]", np.load(path, mmap_mode="c", allow_pickle=False))
    except FileNotFoundError:
        raise data_error(data_set, f"Data file {path} is missing.") from None
    except (OSError, ValueError) as error:
        raise data_error(data_set, f"Data file {path} cannot be read: {error}.") from error


def images_shape(path: Path) -> tuple[int, int, int, int]:
    """The shape that the header of an array of photographs names, if the file has its size.

    Raises:
        ValueError: the file holds anything but uint8 of shape (n, 3, height, width), or has
            another length than its header says.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("it must be a NumPy file of version 1.0")
        shape, fortran, kind = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
    if kind != np.uint8 or fortran or len(shape) != 4 or shape[1] != 3:
        raise ValueError(f"it must hold uint8 of shape (n, 3, h, w). Found {kind} of {shape}")
    size = path.stat().st_size
    expected = start + int(np.prod(shape, dtype=np.int64))
    if size != expected:
        raise ValueError(f"it has {size} bytes instead of {expected}")
    return shape


def write_images(path: Path, images: Iterable[NDArray[np.uint8]], number: int, side: int) -> None:
    """Write ``number`` images (3, side, side) one after the other, as ``np.load`` reads them.

    Written and not mapped: on a full disk a map would kill the process without a word.

    Raises:
        ValueError: another number of images or another shape comes.
        OSError: the disk is full or cannot be written.
    """
    shape = (number, 3, side, side)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    written = 0
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for image in images:
            if image.dtype != np.uint8 or image.shape != shape[1:]:
                found = f"{image.dtype} of shape {image.shape}"
                raise ValueError(f"an image must be uint8 of shape {shape[1:]}. Found {found}.")
            file.write(np.ascontiguousarray(image).data)
            written += 1
    if written != number:
        raise ValueError(f"there must be {number} images. Found {written}.")


def decode_photograph(
    file: Path | IO[bytes], side: int, resize: int | tuple[int, int]
) -> NDArray[np.uint8]:
    """Decode a photograph, resize it bilinearly, and cut out its centre.

    Gives what torchvision's ``Resize(resize)`` and ``CenterCrop(side)`` give, except that a
    photograph of the right size is taken as it is.

    Args:
        file: A JPEG file, or another that Pillow can read; grey ones become colour.
        side: Height and width of the result in pixels.
        resize: The shorter side after resizing, keeping the proportions; or height and width.

    Returns:
        uint8 (3, side, side).

    Raises:
        ValueError: the picture cannot be decoded, or is smaller than ``side`` after resizing.
    """
    try:
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"it cannot be decoded ({error})") from error
    if picture.size != (side, side):
        height, width = _resized(picture.height, picture.width, resize)
        if min(height, width) < side:
            raise ValueError(f"resize must give at least {side} pixels. Found {height}x{width}")
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        top, left = round((height - side) / 2), round((width - side) / 2)
        picture = picture.crop((left, top, left + side, top + side))
    return np.ascontiguousarray(np.asarray(picture, dtype=np.uint8).transpose(2, 0, 1))


def _resized(height: int, width: int, resize: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width after resizing; torchvision cuts the longer side down to an integer."""
    if not isinstance(resize, int):
        return resize
    if height <= width:
        return resize, int(resize * width / height)
    return int(resize * height / width), resize
