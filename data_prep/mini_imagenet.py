"""miniImageNet for few-shot class-incremental learning: ``python -m data_prep.mini_imagenet``.

A folder ``miniimagenet`` with ``images/*.jpg`` and ``split/{train,test}.csv``, as Zhang et al.
(CEC, CVPR 2021, github.com/icoz69/CEC-CVPR2021) hand it out: 100 classes, named by their WordNet
numbers, each with 500 images of 84x84 in the train and 100 in the test split. This is not the split
of classes into 64, 16 and 20 of the few-shot literature: every class is in both splits.

The photographs come from ImageNet, whose terms forbid handing them on, so no package registry has
them and nothing is downloaded here: a person places the archive or the folder. Neither has a
published checksum. They are recognised by their lists and by every photograph being there and
whole. What is made of them, one array per split, is recorded in the manifest with its SHA-256.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from data_prep.common.command import main
from data_prep.common.photograph_sets import PhotographSet
from data_prep.common.photographs import Listing, ListingError, listing_of

SPLIT_CSV = {"train": "split/train.csv", "test": "split/test.csv"}
COLUMNS = ("filename", "label")


def parse(contents: Mapping[str, str], _: Sequence[str]) -> dict[str, Listing]:
    """The listing of each split, from the contents of the two files in ``split``."""
    return {split: parse_split(contents[file]) for split, file in SPLIT_CSV.items()}


def parse_split(content: str) -> Listing:
    """The images of one split, from the content of ``split/train.csv`` or ``split/test.csv``.

    A line is ``n0153282900000005.jpg,n01532829``: a file in ``images`` and its WordNet number.
    Classes are numbered in the order in which they appear, as in CEC.

    Raises:
        ListingError: the header or a line is not as expected, or a file is listed twice.
    """
    lines = csv.reader(io.StringIO(content))
    if tuple(next(lines, ())) != COLUMNS:
        raise ListingError(f"its first line must be {','.join(COLUMNS)}")
    names, classes = [], []
    for number, line in enumerate(lines, start=2):
        if len(line) != len(COLUMNS) or not all(line) or "/" in line[0] or "\\" in line[0]:
            rule = "must hold the name of a file and a class"
            raise ListingError(f"its line {number} {rule}. Found {','.join(line)!r}")
        names.append(line[0])
        classes.append(line[1])
    return listing_of(names, classes)


DATA = PhotographSet(
    name="mini_imagenet",
    folder="miniimagenet",
    texts=tuple(SPLIT_CSV.values()),
    images="images",
    parse=parse,
    numbers={"train": 50_000, "test": 10_000},
    classes=100,
    per_class={"train": 500, "test": 100},
    # CEC's own handling of test images: to 92x92 whatever the proportions, then the middle 84x84.
    side=84,
    resize=(92, 92),
    # The two arrays; what an archive unpacks to comes on top of it for a while.
    space=1_400_000_000,
    archives=("miniimagenet.tar", "miniimagenet.tar.gz"),
    way="get {data.archives[0]} through the link in the README of github.com/icoz69/CEC-CVPR2021 "
    "(the folder that it unpacks to holds {data.texts[0]}, {data.texts[1]} and "
    "{data.images}/*.jpg)",
)
prepare, load = DATA.prepare, DATA.load


if __name__ == "__main__":
    main(DATA)
