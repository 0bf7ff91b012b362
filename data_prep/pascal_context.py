"""PASCAL-Context for five tasks, as prepared by Maninis et al. (CVPR 2019).

``python -m data_prep.pascal_context``. Nothing is downloaded: it is handed out for research only,
and its address has moved. A person places the folder; here it is checked file by file.
"""

from __future__ import annotations

import sys
from pathlib import Path

from data_prep.command import run_command
from data_prep.file_sets import prepare_in_place
from data_prep.reading.pascal_context import PASCAL_CONTEXT
from data_prep.reading.root import data_root

BY_HAND = (
    "To place it by hand, get PASCAL_MT.tgz, which github.com/SimonVandenhende/"
    "Multi-Task-Learning-PyTorch names in data/pascal_context.py, and unpack it so that {folder} "
    "is the folder PASCAL_MT: it holds ImageSets/Context/train.txt (4,998 names) and val.txt "
    "(5,105), and the folders JPEGImages, semseg, human_parts, pascal-context/trainval, "
    "normals_distill and sal_distill. No checksum is published, so any copy in this form will do."
)


def prepare(root: Path | None = None) -> Path:
    """Check ``<root>/pascal_context`` and record it; ``root`` None stands for the data root.

    Raises:
        PrepareError: with the first files that are wrong, and where to get them.
    """
    return prepare_in_place(PASCAL_CONTEXT, root or data_root(), BY_HAND)


if __name__ == "__main__":
    sys.exit(run_command(PASCAL_CONTEXT.name, prepare))
