"""miniImageNet for few-shot class-incremental learning: ``python -m data_prep.mini_imagenet``.

The photographs come from ImageNet, whose terms forbid handing them on, so no package registry has
them and nothing is downloaded here: a person places the archive or the folder. Neither has a
published checksum. They are recognised by their lists (100 classes of 500 and 100 photographs,
no photograph in both splits) and by every photograph being there and whole. What is made of them,
one array per split, is recorded in the manifest with its SHA-256, which the loader compares.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from data_prep.chain import prepare_files
from data_prep.command import run_command
from data_prep.photographs import PhotographSet, archive_source, checks, folder_source
from data_prep.reading import mini_imagenet as form
from data_prep.reading.photographs import Listing
from data_prep.reading.root import data_root

NAME = "mini_imagenet"
ARCHIVES = ("miniimagenet.tar", "miniimagenet.tar.gz")
# The two arrays; what an archive unpacks to comes on top of it for a while.
SPACE = 1_400_000_000


def parse(contents: Mapping[str, str]) -> dict[str, Listing]:
    """The listing of each split, from the contents of the two files in ``split``."""
    return {split: form.parse_split(contents[file]) for split, file in form.SPLIT_CSV.items()}


MINI_IMAGENET = PhotographSet(
    folder=form.FOLDER,
    texts=tuple(form.SPLIT_CSV.values()),
    images=form.IMAGES,
    parse=parse,
    numbers={split: form.CLASSES * number for split, number in form.PER_CLASS.items()},
    classes=form.CLASSES,
    per_class=form.PER_CLASS,
    side=form.SIDE,
    resize=form.RESIZE,
)


def prepare(root: Path | None = None) -> Path:
    """Make ``<root>/mini_imagenet`` complete; ``root`` None stands for the data root.

    Raises:
        PrepareError: with what was tried, or why nothing can be written.
    """
    return prepare_mini_imagenet(root or data_root(), MINI_IMAGENET, SPACE)


def prepare_mini_imagenet(root: Path, data: PhotographSet, space: int) -> Path:
    """Make ``<root>/mini_imagenet`` hold the arrays of ``data``.

    Errors as for :func:`data_prep.chain.prepare_files`.
    """
    return prepare_files(
        NAME,
        root,
        checks(data, root / NAME),
        lambda folder: [
            *(archive_source(data, folder / archive) for archive in ARCHIVES),
            folder_source(data, folder / data.folder),
            folder_source(data, folder.parent / data.folder),
        ],
        lambda folder: _by_hand(folder, data),
        space,
    )


def _by_hand(folder: Path, data: PhotographSet) -> str:
    """How a person can provide the files."""
    return (
        f"This set is not downloaded. To place it by hand, get {ARCHIVES[0]} through the link in "
        f"the README of github.com/icoz69/CEC-CVPR2021 (the folder that it unpacks to holds "
        f"{', '.join(data.texts)} and {data.images}/*.jpg), put it into {folder}, or unpack it "
        f"there, and run python -m data_prep.{NAME} again. It must contain "
        f"{data.numbers['train']} photographs for training and {data.numbers['test']} for "
        f"testing, of {data.classes} classes."
    )


if __name__ == "__main__":
    sys.exit(run_command(NAME, prepare))
