"""CelebA (Liu et al., ICCV 2015) in the form of its publishers, as torchvision keeps it.

``list_attr_celeba.txt``: the number of images, the names of the 40 attributes, then one line for
each image with its file and 40 times 1 or -1. ``list_eval_partition.txt``: for each image its file
and 0 (train), 1 (valid) or 2 (test). ``img_align_celeba/*.jpg``: faces of 178x218 pixels, with the
eyes at the same place. They are kept as 64x64, the middle of the face: the shorter side is resized
to 64 pixels, then the middle is cut out. Sener and Koltun (NeurIPS 2018), whose size this is,
squeeze the whole picture instead.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ATTRIBUTES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs",
    "Big_Lips", "Big_Nose", "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows",
    "Chubby", "Double_Chin", "Eyeglasses", "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones",
    "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin",
    "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns", "Smiling", "Straight_Hair",
    "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace",
    "Wearing_Necktie", "Young",
)  # fmt: skip
SIDE = 64
SPLITS = ("train", "valid", "test")
NUMBER = {"train": 162_770, "valid": 19_867, "test": 19_962}
ATTRIBUTE_LIST = "list_attr_celeba.txt"
PARTITION_LIST = "list_eval_partition.txt"
IMAGES = "img_align_celeba"
FILES = {split: (f"{split}-images.npy", f"{split}-attributes-idx2-ubyte") for split in SPLITS}


def parse_lists(attributes: str, partition: str) -> dict[str, tuple[list[str], NDArray[np.uint8]]]:
    """From split to the names of its photographs and their attributes (n, 40), 1 or 0.

    Args:
        attributes: The content of ``list_attr_celeba.txt``.
        partition: The content of ``list_eval_partition.txt``.

    Raises:
        ValueError: a line is not as expected, or the two do not list the same photographs.
    """
    head, *lines = attributes.splitlines() or [""]
    if not lines or tuple(lines[0].split()) != ATTRIBUTES or not head.strip().isdigit():
        rule = f"{ATTRIBUTE_LIST} must begin with a number and the names of {len(ATTRIBUTES)}"
        raise ValueError(f"{rule} attributes. Found {head[:40]!r}")
    values = {}
    for number, line in enumerate(lines[1:], start=3):
        name, *row = line.split() or [""]
        if len(row) != len(ATTRIBUTES) or not set(row) <= {"1", "-1"} or "/" in name:
            rule = f"must hold a file and {len(ATTRIBUTES)} times 1 or -1"
            raise ValueError(f"line {number} of {ATTRIBUTE_LIST} {rule}. Found {line[:60]!r}")
        values[name] = [value == "1" for value in row]
    if len(values) != int(head) or len(values) != len(lines) - 1:
        found = f"{len(values)} different ones in {len(lines) - 1} lines"
        raise ValueError(f"{ATTRIBUTE_LIST} must list {int(head)} photographs. Found {found}")
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    for number, line in enumerate(partition.splitlines(), start=1):
        name, _, part = line.strip().partition(" ")
        if name not in values or part not in ("0", "1", "2"):
            rule = f"must hold a photograph of {ATTRIBUTE_LIST} and 0, 1 or 2"
            raise ValueError(f"line {number} of {PARTITION_LIST} {rule}. Found {line[:60]!r}")
        names[SPLITS[int(part)]].append(name)
    listed = [name for split in SPLITS for name in names[split]]
    if sorted(listed) != sorted(values):
        rule = f"must list each photograph of {ATTRIBUTE_LIST} once"
        raise ValueError(f"{PARTITION_LIST} {rule}. Found {len(listed)} for {len(values)}")
    return {
        split: (
            own,
            np.array([values[name] for name in own], dtype=np.uint8).reshape(-1, len(ATTRIBUTES)),
        )
        for split, own in names.items()
    }
