"""DomainNet, 586,575 images of 345 classes in six domains: ``python -m data_prep.domainnet``.

Nothing is downloaded: the six archives take some 20 GB, and their authors print no checksums. A
person places the folder. It is recognised by its lists (how many images of how many classes, none
in both splits) and by every image being there and whole. The arrays made of them (88 GB) are
recorded in the manifest with their SHA-256, which the loader compares.
"""

from __future__ import annotations

import sys
from pathlib import Path

from data_prep.chain import prepare_files
from data_prep.command import run_command
from data_prep.photographs import PhotographSet, checks, folder_source
from data_prep.reading import domainnet as form
from data_prep.reading.root import data_root

NAME = "domainnet"
# The two arrays.
SPACE = 88_400_000_000

DOMAINNET = PhotographSet(
    folder=form.FOLDER,
    texts=form.TEXTS,
    images=".",
    parse=form.parse_lists,
    numbers=form.NUMBER,
    classes=form.CLASSES,
    per_class=None,
    side=form.SIDE,
    resize=form.RESIZE,
)


def prepare(root: Path | None = None) -> Path:
    """Make ``<root>/domainnet`` complete; ``root`` None stands for the data root.

    Raises:
        PrepareError: with what was tried, or why nothing can be written.
    """
    return prepare_domainnet(root or data_root(), DOMAINNET, SPACE)


def prepare_domainnet(root: Path, data: PhotographSet, space: int) -> Path:
    """Make ``<root>/domainnet`` hold the arrays of ``data``.

    Errors as for :func:`data_prep.chain.prepare_files`.
    """
    return prepare_files(
        NAME,
        root,
        checks(data, root / NAME),
        lambda folder: [
            folder_source(data, folder),
            folder_source(data, folder / data.folder),
            folder_source(data, folder.parent / data.folder),
        ],
        lambda folder: _by_hand(folder, data),
        space,
    )


def _by_hand(folder: Path, data: PhotographSet) -> str:
    """How a person can provide the files."""
    return (
        f"This set is not downloaded. To place it by hand, get the six archives of the cleaned "
        f"version and the twelve lists through ai.bu.edu/M3SDA, put the lists into "
        f"{folder / data.folder} and unpack the archives there, so that it holds "
        f"{data.texts[0]} and so on beside the folders {', '.join(form.DOMAINS)}, and run python "
        f"-m data_prep.{NAME} again. It must contain {data.numbers['train']} images for training "
        f"and {data.numbers['test']} for testing, of {data.classes} classes."
    )


if __name__ == "__main__":
    sys.exit(run_command(NAME, prepare))
