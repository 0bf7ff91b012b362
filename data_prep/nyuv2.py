"""NYUv2 with 13 classes, depth and normals, as prepared by Liu et al. (MTAN, CVPR 2019).

``python -m data_prep.nyuv2``. Nothing is downloaded: the address that papers name has ceased to
answer more than once. A person places the folder; here it is checked file by file.
"""

from __future__ import annotations

import sys
from pathlib import Path

from data_prep.command import run_command
from data_prep.file_sets import prepare_in_place
from data_prep.reading.file_sets import NYUV2
from data_prep.reading.root import data_root

BY_HAND = (
    "To place it by hand, get the prepared NYUv2 (8.5 GB) through the README of "
    "github.com/lorenmt/mtan, or of examples/nyu in github.com/median-research-group/LibMTL, and "
    "unpack it so that {folder} holds train (795 images) and val (654), each with image/0.npy "
    "(288, 384, 3), label/0.npy (288, 384), depth/0.npy (288, 384, 1) and normal/0.npy "
    "(288, 384, 3), and so on. No checksums are published, so any copy in this form will do."
)


def prepare(root: Path | None = None) -> Path:
    """Check ``<root>/nyuv2`` and record it; ``root`` None stands for the data root.

    Raises:
        PrepareError: with the first files that are wrong, and where to get them.
    """
    return prepare_in_place(NYUV2, root or data_root(), BY_HAND)


if __name__ == "__main__":
    sys.exit(run_command(NYUV2.name, prepare))
