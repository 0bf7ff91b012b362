"""Multi-Fashion+MNIST, two labels for each image: ``python -m data_prep.multi_fashion_mnist``.

Each image shows one article of Fashion-MNIST, top left, and one digit of MNIST, bottom right. The
task is to name both. This is the design of Lin et al. (Pareto multi-task learning, NeurIPS 2019);
their own draw of partners was handed out as a file only, so the images here are others of the same
kind. How they are made, how many and in which order is told in :mod:`data_prep.overlaid`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from data_prep.command import run_command
from data_prep.overlaid import prepare_overlaid

NAME = "multi_fashion_mnist"


def prepare(root: Path | None = None) -> Path:
    """Make ``<root>/multi_fashion_mnist`` complete, and the two sets it is built from if needed.

    Raises:
        PrepareError: one of the two could not be fetched, nothing can be written, or what is built
            here is not what every other machine gets.
    """
    return prepare_overlaid(NAME, "fashion_mnist", "mnist", root)


if __name__ == "__main__":
    sys.exit(run_command(NAME, prepare))
