"""DomainNet, 586,575 images of 345 classes in six domains: ``python -m data_prep.domainnet``.

Peng et al. (ICCV 2019) hand out one folder a domain, ``<domain>/<class>/*``, beside their lists
``<domain>_train.txt`` and ``<domain>_test.txt``. A line of a list is a path and a label::

    clipart/aircraft_carrier/clipart_001_000001.jpg 0

What is known about the classes, their names and numbers, is taken from the lists. The images per
split are those of the "cleaned version"; of its 345 classes a domain may lack one in a split.

Nothing is downloaded: the six archives take some 20 GB, and their authors print no checksums. A
person places the folder. It is recognised by its lists (how many images of how many classes, none
in both splits) and by every image being there and whole. The arrays made of them (88 GB) are
recorded in the manifest with their SHA-256, which the loader compares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from data_prep.common.command import main
from data_prep.common.labelled import LabelledImages
from data_prep.common.photograph_sets import PhotographSet
from data_prep.common.photographs import Listing, ListingError

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
SPLIT_TEXTS = {
    split: tuple(f"{domain}_{split}.txt" for domain in DOMAINS) for split in ("train", "test")
}
TEXTS = tuple(text for texts in SPLIT_TEXTS.values() for text in texts)


def parse_lists(contents: Mapping[str, str], _: Sequence[str] = ()) -> dict[str, Listing]:
    """The images of both splits, domain by domain in the order of :data:`DOMAINS` and the lists.

    Args:
        contents: From each name in :data:`TEXTS` to the content of that file.

    Returns:
        From "train" and "test" to their images, named by their paths, such as
        ``clipart/aircraft_carrier/clipart_001_000001.jpg``.

    Raises:
        ListingError: a line is not as expected, the lists number the classes differently or with
            a gap, or one image is listed twice.
    """
    classes: dict[int, str] = {}
    rows: dict[str, tuple[list[str], list[int]]] = {}
    for split, texts in SPLIT_TEXTS.items():
        names, labels = rows[split] = ([], [])
        for domain, text in zip(DOMAINS, texts, strict=True):
            for number, line in enumerate(contents[text].splitlines(), start=1):
                path, label = _entry(line, domain, f"line {number} of {text}")
                found = path.split("/")[1]
                if classes.setdefault(label, found) != found:
                    other = f"class {label} a second name, {found!r} beside {classes[label]!r}"
                    raise ListingError(f"line {number} of {text} gives {other}")
                names.append(path)
                labels.append(label)
    if sorted(classes) != list(range(len(classes))) or len(set(classes.values())) != len(classes):
        raise ListingError("the lists must number the classes from 0 without a gap, each once")
    class_names = tuple(classes[label] for label in range(len(classes)))
    return {
        split: Listing(tuple(names), tuple(labels), class_names)
        for split, (names, labels) in rows.items()
    }


def rows_of_domain(names: tuple[str, ...], domain: str) -> slice:
    """The rows of a split that hold a domain; they are neighbours.

    Args:
        names: Of the images of the split, in order.
        domain: One of :data:`DOMAINS`.

    Raises:
        ValueError: an unknown domain.
    """
    if domain not in DOMAINS:
        raise ValueError(f"domain must be one of {', '.join(DOMAINS)}. Found domain={domain!r}.")
    inside = [row for row, name in enumerate(names) if name.startswith(f"{domain}/")]
    return slice(inside[0], inside[-1] + 1) if inside else slice(0, 0)


def _entry(line: str, domain: str, where: str) -> tuple[str, int]:
    """Path and label in a line of the list of a domain."""
    path, _, label = line.strip().rpartition(" ")
    parts = path.split("/")
    if len(parts) != 3 or parts[0] != domain or not all(parts) or not label.isdecimal():
        raise ListingError(f"{where} must be '{domain}/<class>/<file> <label>'. Found {line!r}")
    if ".." in parts or "\\" in path:
        raise ListingError(f"{where} leads out of its folder with {path!r}")
    return path, int(label)


DATA = PhotographSet(
    name="domainnet",
    folder="DomainNet",
    texts=TEXTS,
    parse=parse_lists,
    numbers={"train": 409_832, "test": 176_743},
    classes=345,
    # The usual handling: the shorter side to 256 pixels, then the middle 224x224.
    side=224,
    resize=256,
    # The two arrays.
    space=88_400_000_000,
    flat=True,
    way="get the six archives of the cleaned version and the twelve lists through "
    "ai.bu.edu/M3SDA, put the lists into {place}/{data.folder} and unpack the archives there, so "
    "that it holds {data.texts[0]} and so on beside the folders " + ", ".join(DOMAINS),
)
prepare = DATA.prepare


def load(split: str, root: Path | None = None, domain: str | None = None) -> LabelledImages:
    """One split; arguments and errors as for :func:`data_prep.load`.

    The array of the train split has 62 GB, all of which is read to compare its SHA-256.

    Args:
        split: "train" or "test".
        root: The data root.
        domain: One of :data:`DOMAINS`; None for all of them, one after the other. The classes are
            the same for each.
    """
    if domain is None:
        return DATA.load(split, root)
    rows = rows_of_domain(DATA.listing(split, root).names, domain)
    whole = DATA.load(split, root)
    return LabelledImages(whole.images[rows], whole.labels[rows], whole.class_names)


if __name__ == "__main__":
    main(DATA)
