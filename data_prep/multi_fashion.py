"""Multi-Fashion, two labels for each image: ``python -m data_prep.multi_fashion``.

Each image shows one article of Fashion-MNIST top left and another one bottom right. The task is to
name both. It is to :mod:`data_prep.multi_mnist` what Fashion-MNIST is to MNIST; Lin et al. (Pareto
multi-task learning, NeurIPS 2019) have such a set beside MultiMNIST and Multi-Fashion+MNIST. How
the images are made, how many and in which order is told in :mod:`data_prep.overlaid`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from data_prep.command import run_command
from data_prep.overlaid import prepare_overlaid

NAME = "multi_fashion"


def prepare(root: Path | None = None) -> Path:
    """Make ``<root>/multi_fashion`` complete, and Fashion-MNIST if needed.

    Raises:
        PrepareError: Fashion-MNIST could not be fetched, nothing can be written, or what is built
            here is not what every other machine gets.
    """
    return prepare_overlaid(NAME, "fashion_mnist", "fashion_mnist", root)


if __name__ == "__main__":
    sys.exit(run_command(NAME, prepare))
