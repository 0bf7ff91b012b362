"""miniImageNet as the literature on few-shot class-incremental learning keeps it.

A folder ``miniimagenet`` with ``images/*.jpg`` and ``split/{train,test}.csv``, as Zhang et al.
(CEC, CVPR 2021, github.com/icoz69/CEC-CVPR2021) hand it out: 100 classes, each with 500 images in
the train and 100 in the test split. This is not the split of classes into 64, 16 and 20 of the
few-shot literature: every class is in both splits.
"""

from __future__ import annotations

import csv
import io

from data_prep.reading.photographs import Listing, ListingError, listing_of

FOLDER = "miniimagenet"
SPLIT_CSV = {"train": "split/train.csv", "test": "split/test.csv"}
IMAGES = "images"
COLUMNS = ("filename", "label")
CLASSES = 100
PER_CLASS = {"train": 500, "test": 100}
# CEC's own handling of test images: to 92x92 whatever the proportions, then the middle 84x84.
SIDE = 84
RESIZE = (92, 92)


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
