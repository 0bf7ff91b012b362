"""CityScapes with 7 classes and inverse depth, as prepared by Liu et al. (MTAN, CVPR 2019).

``python -m data_prep.cityscapes``. Nothing is downloaded: CityScapes asks for a registration and
forbids handing it on. A person places the folder; here it is checked file by file.
"""

from __future__ import annotations

from data_prep.common.command import main
from data_prep.common.file_sets import numpy_set
from data_prep.common.multi_task import Task

# The seven categories of CityScapes in the order of their numbers there; its "void" is -1. The
# files come without a list: that they keep this order is assumed. No loss or score depends on it.
CLASSES = ("flat", "construction", "object", "nature", "sky", "human", "vehicle")

# The version of 128x256; depth is inverse depth.
DATA = numpy_set(
    "cityscapes",
    (Task("segmentation", "segmentation", CLASSES), Task("depth", "depth")),
    {"segmentation": "label_7", "depth": "depth"},
    {"train": 2975, "test": 500},
    (128, 256),
    by_hand=(
        "To place it by hand, get the version of 128x256 (651 MB) through the README of "
        "github.com/lorenmt/mtan and unpack it so that {folder} holds train (2,975 images) and val "
        "(500), each with image/0.npy (128, 256, 3), label_7/0.npy (128, 256) and depth/0.npy "
        "(128, 256, 1), and so on. LibMTL's copy calls label_7 just label: rename that folder. No "
        "checksums are published, so any copy in this form will do."
    ),
)
prepare, load = DATA.prepare, DATA.load


if __name__ == "__main__":
    main(DATA)
