"""NYUv2 with 13 classes, depth and normals, as prepared by Liu et al. (MTAN, CVPR 2019).

``python -m data_prep.nyuv2``. Nothing is downloaded: the address that papers name has ceased to
answer more than once. A person places the folder; here it is checked file by file.
"""

from __future__ import annotations

from data_prep.common.command import main
from data_prep.common.file_sets import numpy_set
from data_prep.common.multi_task import Task

# The 13 classes of Handa et al. (SceneNet); what they call unknown is -1.
CLASSES = (
    "bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa", "table",
    "television", "wall", "window",
)  # fmt: skip

DATA = numpy_set(
    "nyuv2",
    (
        Task("segmentation", "segmentation", CLASSES),
        Task("depth", "depth"),
        Task("normals", "normals"),
    ),
    {"segmentation": "label", "depth": "depth", "normals": "normal"},
    {"train": 795, "test": 654},
    (288, 384),
    by_hand=(
        "To place it by hand, get the prepared NYUv2 (8.5 GB) through the README of "
        "github.com/lorenmt/mtan, or of examples/nyu in github.com/median-research-group/LibMTL, "
        "and unpack it so that {folder} holds train (795 images) and val (654), each with "
        "image/0.npy (288, 384, 3), label/0.npy (288, 384), depth/0.npy (288, 384, 1) and "
        "normal/0.npy (288, 384, 3), and so on. No checksums are published, so any copy in "
        "this form will do."
    ),
)
prepare, load = DATA.prepare, DATA.load


if __name__ == "__main__":
    main(DATA)
