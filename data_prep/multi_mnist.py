"""MultiMNIST, two labels for each image: ``python -m data_prep.multi_mnist``.

Each image shows one digit of MNIST top left and another one bottom right. The task is to name both.
Sabour et al. (Dynamic routing between capsules, NeurIPS 2017) laid two digits of different classes
over each other, each moved at random. Sener and Koltun (Multi-task learning as multi-objective
optimization, NeurIPS 2018) made two tasks of it, one for each corner, with any second digit; they
shrank the images to 28x28, which is not done here. How the images are made, how many and in which
order is told in :mod:`data_prep.overlaid`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from data_prep.command import run_command
from data_prep.overlaid import prepare_overlaid

NAME = "multi_mnist"


def prepare(root: Path | None = None) -> Path:
    """Make ``<root>/multi_mnist`` complete, and MNIST if needed.

    Raises:
        PrepareError: MNIST could not be fetched, nothing can be written, or what is built here is
            not what every other machine gets.
    """
    return prepare_overlaid(NAME, "mnist", "mnist", root)


if __name__ == "__main__":
    sys.exit(run_command(NAME, prepare))
