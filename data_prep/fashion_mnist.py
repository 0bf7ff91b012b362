"""Fashion-MNIST: ``python -m data_prep.fashion_mnist``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_prep.archives import gunzip
from data_prep.chain import Source
from data_prep.command import run_command
from data_prep.idx_sets import local_source, mirror_sources, package_source, prepare_idx_set
from data_prep.packages import debian_package
from data_prep.reading.facts import FASHION_MNIST_FILES
from data_prep.reading.root import data_root

NAME = "fashion_mnist"
PACKAGE = "dataset-fashion-mnist"
# Where the Debian package puts the files, which are packed with gzip.
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
LARGEST = max(known.size for known in FASHION_MNIST_FILES.values())


def prepare(root: Path | None = None) -> Path:
    """Make ``<root>/fashion_mnist`` complete; ``root`` None stands for the data root.

    Raises:
        PrepareError: with what was tried, or why nothing can be written.
    """
    return prepare_idx_set(NAME, root or data_root(), FASHION_MNIST_FILES, sources)


def sources(folder: Path) -> Iterator[Source]:
    """Where the files may come from, in order."""
    here = [folder, folder.parent / "FashionMNIST" / "raw", INSTALLED]
    yield local_source(here, FASHION_MNIST_FILES)

    from torchvision.datasets import FashionMNIST  # takes seconds, so only where it is needed

    archives = [archive for archive, _ in FashionMNIST.resources]
    yield from mirror_sources(FashionMNIST.mirrors, archives, FASHION_MNIST_FILES)
    yield package_source(f"Debian package {PACKAGE}", _take, _member)


def _member(file: str) -> str:
    """The name inside the package."""
    return str(INSTALLED.relative_to("/") / f"{file}.gz")


def _take(members: Mapping[str, Path], incoming: Path) -> None:
    """Take the packed files out of the package, and each file out of its packing."""
    packed = {member: incoming / Path(member).name for member in members}
    debian_package(PACKAGE, packed, LARGEST, incoming)
    for member, target in members.items():
        if packed[member].is_file():
            gunzip(packed[member], target, LARGEST)


if __name__ == "__main__":
    sys.exit(run_command(NAME, prepare))
