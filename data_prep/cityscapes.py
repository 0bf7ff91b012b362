"""CityScapes with 7 classes and inverse depth, as prepared by Liu et al. (MTAN, CVPR 2019).

``python -m data_prep.cityscapes``. Nothing is downloaded: CityScapes asks for a registration and
forbids handing it on. A person places the folder; here it is checked file by file.
"""

from __future__ import annotations

import sys
from pathlib import Path

from data_prep.command import run_command
from data_prep.file_sets import prepare_in_place
from data_prep.reading.file_sets import CITYSCAPES
from data_prep.reading.root import data_root

BY_HAND = (
    "To place it by hand, get the version of 128x256 (651 MB) through the README of "
    "github.com/lorenmt/mtan and unpack it so that {folder} holds train (2,975 images) and val "
    "(500), each with image/0.npy (128, 256, 3), label_7/0.npy (128, 256) and depth/0.npy "
    "(128, 256, 1), and so on. LibMTL's copy calls label_7 just label: rename that folder. No "
    "checksums are published, so any copy in this form will do."
)


def prepare(root: Path | None = None) -> Path:
    """Check ``<root>/cityscapes`` and record it; ``root`` None stands for the data root.

    Raises:
        PrepareError: with the first files that are wrong, and where to get them.
    """
    return prepare_in_place(CITYSCAPES, root or data_root(), BY_HAND)


if __name__ == "__main__":
    sys.exit(run_command(CITYSCAPES.name, prepare))
