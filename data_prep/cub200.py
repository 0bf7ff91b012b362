"""CUB-200-2011, 11,788 photographs of 200 species of birds: ``python -m data_prep.cub200``.

The archive of Wah et al. (2011) is a folder ``CUB_200_2011``: four text files say what the
photographs in ``images`` are; each of their lines begins with the number of an image or of a class.
It is recognised by the MD5 that its publisher gives. An unpacked folder has no checksum: it is
recognised by its lists and by every photograph being there and whole. The arrays made of them
(1.8 GB) are recorded in the manifest with their SHA-256, which the loader compares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data_prep.common.command import main
from data_prep.common.photograph_sets import PhotographSet
from data_prep.common.photographs import Listing, ListingError

TEXTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
IN_SPLIT = {"1": "train", "0": "test"}


def parse_texts(contents: Mapping[str, str], _: Sequence[str] = ()) -> dict[str, Listing]:
    """The images of both splits, in the order of their numbers.

    Args:
        contents: From each name in :data:`TEXTS` to the content of that file.

    Returns:
        From "train" and "test" to their images. A name is a path below ``images``, such as
        ``001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg``; class numbers begin
        with 0, where the files begin with 1.

    Raises:
        ListingError: a line is not as expected, or the files do not name the same images.
    """
    paths, labels, splits, classes = (_numbered(contents[name], name) for name in TEXTS)
    for name, values in zip(TEXTS[1:3], (labels, splits), strict=True):
        if values.keys() != paths.keys():
            odd = min(values.keys() ^ paths.keys())
            raise ListingError(f"{name} and images.txt differ: only one of them has image {odd}")
    if sorted(classes) != list(range(1, len(classes) + 1)):
        raise ListingError("classes.txt must number the classes from 1 without a gap")
    names = tuple(classes[number] for number in sorted(classes))
    chosen: dict[str, tuple[list[str], list[int]]] = {"train": ([], []), "test": ([], [])}
    for image in sorted(paths):
        if splits[image] not in IN_SPLIT:
            raise ListingError(f"train_test_split.txt must hold 0 or 1. Found {splits[image]!r}")
        label = labels[image]
        if not label.isdigit() or int(label) not in classes:
            raise ListingError(f"image_class_labels.txt gives image {image} the class {label!r}")
        if ".." in paths[image].split("/") or paths[image].startswith("/"):
            raise ListingError(f"images.txt leads out of its folder with {paths[image]!r}")
        listed, numbers = chosen[IN_SPLIT[splits[image]]]
        listed.append(paths[image])
        numbers.append(int(label) - 1)
    return {
        split: Listing(tuple(listed), tuple(numbers), names)
        for split, (listed, numbers) in chosen.items()
    }


def _numbered(content: str, name: str) -> dict[int, str]:
    """From number to value, where each line is ``number value``."""
    values: dict[int, str] = {}
    for line_number, line in enumerate(content.splitlines(), start=1):
        number, _, value = line.partition(" ")
        if not number.isdigit() or not value.strip():
            rule = "must be a number and a value"
            raise ListingError(f"line {line_number} of {name} {rule}. Found {line!r}")
        if int(number) in values:
            raise ListingError(f"{name} has the number {number} twice")
        values[int(number)] = value.strip()
    return values


DATA = PhotographSet(
    name="cub200",
    folder="CUB_200_2011",
    texts=TEXTS,
    images="images",
    parse=parse_texts,
    numbers={"train": 5994, "test": 5794},
    classes=200,
    # The usual handling: the shorter side to 256 pixels, then the middle 224x224.
    side=224,
    resize=256,
    # The arrays (1.8 GB); the archive and what it unpacks to (1.2 GB each) are there for a while.
    space=4_300_000_000,
    archives=("CUB_200_2011.tgz",),
    url="https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
    md5="97eceeb196236b17998738112f37df78",
    way="get {data.archives[0]} (MD5 {data.md5}) from {data.url}",
)
prepare, load = DATA.prepare, DATA.load


if __name__ == "__main__":
    main(DATA)
