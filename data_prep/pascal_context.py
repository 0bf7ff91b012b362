"""PASCAL-Context for five tasks in the form of the released multi-task packages.

``python -m data_prep.pascal_context``. Nothing is downloaded: it is handed out for research only,
and its address has moved. A person places the folder; here it is checked file by file.

The folder ``PASCAL_MT`` that Maninis et al. (Attentive single-tasking of multiple tasks, CVPR 2019)
put together and Vandenhende et al. (2020) use as well. For each name in
``ImageSets/Context/{train,val}.txt`` it holds

* ``JPEGImages/<name>.jpg``, the photograph;
* ``semseg/VOC12/<name>.png`` or ``semseg/pascal-context/<name>.png``, classes 0 to 20, 255 for none;
* ``human_parts/<name>.mat``, the objects and their parts (Chen et al., 2014);
* ``pascal-context/trainval/<name>.mat``, the map ``LabelMap`` of 459 classes (Mottaghi et al., 2014);
* ``normals_distill/<name>.png`` and ``sal_distill/<name>.png``, predicted by other networks.

As in the packages, persons have six parts and an image without any has no value for this task;
normals count only on classes that NYUv2 knows too, since a network trained there predicted them;
salient is what is above one half; an edge is where the Laplacian of the label map is not 0, thinned.
Unlike there, maps of another size than the photograph are refused instead of stretched. Normals are
as their files have them, of length about 1.
"""  # noqa: E501 - paths

from __future__ import annotations

import io
from collections.abc import Container, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.common.command import main
from data_prep.common.file_sets import Contents, Decoded, FileSet, FormatError, class_map
from data_prep.common.multi_task import IGNORE, Task

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
NO_CLASS = 255
PERSON = 15
PARTS = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")
PART_OF = {
    **dict.fromkeys(("head", "hair", "lear", "rear", "lebrow", "rebrow", "leye", "reye"), 1),
    **dict.fromkeys(("mouth", "nose"), 1),
    **dict.fromkeys(("torso", "neck"), 2),
    **dict.fromkeys(("luarm", "ruarm"), 3),
    **dict.fromkeys(("llarm", "rlarm", "lhand", "rhand"), 4),
    **dict.fromkeys(("luleg", "ruleg"), 5),
    **dict.fromkeys(("llleg", "rlleg", "lfoot", "rfoot"), 6),
}
# Numbers in LabelMap of the classes whose names NYUv2 has too, and of "tvmonitor" (427): what the
# lists of names in Vandenhende's package have in common.
WITH_NORMALS = (
    3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49, 50,
    51, 53, 55, 56, 59, 61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101, 104,
    105, 107, 111, 113, 115, 122, 124, 135, 141, 142, 143, 146, 150, 154, 157, 158, 159, 165, 172,
    174, 181, 183, 184, 191, 193, 195, 197, 199, 202, 213, 215, 216, 219, 220, 223, 225, 228, 230,
    232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261, 263, 269, 272, 273, 275, 281,
    283, 284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309, 310, 314, 315, 319, 323,
    329, 330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357, 368, 370, 371, 374, 379, 380, 383,
    384, 397, 401, 403, 405, 407, 408, 411, 412, 413, 414, 417, 419, 421, 423, 427, 429, 430, 432,
    440, 441, 442, 443, 444, 446, 454, 457,
)  # fmt: skip

SEGMENTATION = Task("segmentation", "segmentation", CLASSES)
HUMAN_PARTS = Task("human_parts", "segmentation", PARTS)
TASKS = (
    SEGMENTATION,
    HUMAN_PARTS,
    Task("saliency", "saliency"),
    Task("normals", "normals"),
    Task("edges", "edges"),
)


def rows_of(split: str, listed: str, there: Container[str]) -> list[dict[str, str]]:  # noqa: ARG001
    """The files of every image in the content of ``ImageSets/Context/<split>.txt``."""
    rows = []
    for name in listed.split():
        if "/" in name or "\\" in name:
            raise FormatError("list", f"it must hold names. Found {name!r}")
        places = [f"semseg/{folder}/{name}.png" for folder in ("VOC12", "pascal-context")]
        rows.append(
            {
                "image": f"JPEGImages/{name}.jpg",
                "segmentation": next((path for path in places if path in there), places[1]),
                "human_parts": f"human_parts/{name}.mat",
                "labels": f"pascal-context/trainval/{name}.mat",
                "normals": f"normals_distill/{name}.png",
                "saliency": f"sal_distill/{name}.png",
            }
        )
    return rows


def decode(contents: Contents) -> Decoded:
    """The photograph, uint8 (3, h, w), and the five targets of one image.

    Raises:
        FormatError: a file cannot be decoded, or does not fit the photograph.
    """
    image = _picture("image", contents, "RGB")
    size = image.shape[:2]
    segmentation = _picture("segmentation", contents, None).astype(np.int64)
    labels = _label_map(contents)
    normals = _picture("normals", contents, "RGB").astype(np.float32) * 2 / 255 - 1
    saliency = _picture("saliency", contents, "L")
    parts = _human_parts(contents, size)
    for role, values in (("segmentation", segmentation), ("labels", labels),
                         ("normals", normals), ("saliency", saliency)):  # fmt: skip
        if values.shape[:2] != size or values.ndim != (3 if role == "normals" else 2):
            rule = f"it must have the photograph's size {size}"
            raise FormatError(role, f"{rule}. Found the shape {values.shape}")
    segmentation[segmentation == NO_CLASS] = IGNORE
    normals[~np.isin(labels, WITH_NORMALS)] = 0
    return np.ascontiguousarray(image.transpose(2, 0, 1)), {
        "segmentation": class_map(SEGMENTATION, segmentation),
        "human_parts": class_map(HUMAN_PARTS, parts),
        "saliency": (saliency > NO_CLASS / 2).astype(np.float32)[None],
        "normals": np.ascontiguousarray(normals.transpose(2, 0, 1)),
        "edges": _edges(labels)[None],
    }


def _picture(role: str, contents: Contents, mode: str | None) -> NDArray[np.uint8]:
    """A decoded picture; mode None keeps the numbers of a palette."""
    try:
        with Image.open(io.BytesIO(contents[role])) as opened:
            picture = opened.convert(mode) if mode else opened
            return np.array(picture, dtype=np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FormatError(role, f"it cannot be decoded ({error})") from error


def _mat(role: str, contents: Contents, key: str) -> Any:
    """One variable of a MATLAB file."""
    from scipy.io import loadmat  # half a second to import

    file: Any = io.BytesIO(contents[role])  # allowed, but not in SciPy's types
    try:
        return loadmat(file, simplify_cells=True)[key]
    except KeyError:
        raise FormatError(role, f"it has no variable {key}") from None
    except Exception as error:  # a damaged file can fail in any way
        raise FormatError(role, f"it is no MATLAB file ({error})") from error


def _label_map(contents: Contents) -> NDArray[np.int64]:
    labels = np.asarray(_mat("labels", contents, "LabelMap"))
    if labels.ndim != 2 or labels.dtype.kind not in "iuf":
        raise FormatError("labels", f"LabelMap must be a map of numbers. Found {labels.shape}")
    return labels.astype(np.int64)


def _edges(labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """1 where the Laplacian of the map is not 0, in lines of one pixel."""
    from scipy.ndimage import laplace

    return thinned(laplace(labels, mode="mirror") != 0).astype(np.float32)


def _removable() -> NDArray[np.bool_]:
    """Whether a pixel goes, in the first and the second half of a round (2, 256).

    The second number has a bit for each neighbour that is set, from the east one on against the
    clock. The rules G1 to G3 are those of Guo and Hall (1989) as the documentation of MATLAB's
    ``bwmorph`` states them; scikit-image's ``thin``, which the packages use, has the same.
    """
    bit = (np.arange(256)[:, None] >> np.arange(8)) & 1 == 1
    x = [bit[:, k % 8] for k in range(10)]  # x[0] is the east neighbour, x[2] the northern one
    crossings = sum((~x[i] & (x[i + 1] | x[i + 2])).astype(int) for i in (0, 2, 4, 6))
    one = sum((x[k] | x[k - 1]).astype(int) for k in (1, 3, 5, 7))
    other = sum((x[k] | x[k + 1]).astype(int) for k in (1, 3, 5, 7))
    fewer = np.minimum(one, other)
    both = (crossings == 1) & (fewer >= 2) & (fewer <= 3)
    first = both & ~((x[1] | x[2] | ~x[7]) & x[0])
    second = both & ~((x[5] | x[6] | ~x[3]) & x[4])
    return np.stack((first, second))


_REMOVABLE = _removable()
# Rows and columns by which the neighbours lie apart, in the order of the bits.
_NEIGHBOURS = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))


def thinned(lines: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Lines in a picture (h, w) thinned to one pixel, without breaking what hangs together.

    Both halves of a round take away from the rim at once, until nothing goes (Guo and Hall,
    "Parallel thinning with two-subiteration algorithms", 1989). Outside of the picture nothing is
    set.
    """
    height, width = lines.shape
    padded = np.zeros((height + 2, width + 2), dtype=bool)
    inner = padded[1:-1, 1:-1]
    inner[:] = lines
    before = -1
    while (left := int(inner.sum())) != before:
        before = left
        for rule in _REMOVABLE:
            number = np.zeros((height, width), dtype=np.uint8)
            for k, (down, right) in enumerate(_NEIGHBOURS):
                there = padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]
                number |= there.astype(np.uint8) << np.uint8(k)
            inner[rule[number]] = False
    return inner.copy()


def _human_parts(contents: Contents, size: tuple[int, ...]) -> NDArray[np.int64]:
    """The parts of all persons in the image; -1 everywhere where no part of a person is marked."""
    target = np.zeros(size, dtype=np.int64)
    try:
        anno = _mat("human_parts", contents, "anno")
        for thing in _listed(anno["objects"]):
            if int(thing["class_ind"]) != PERSON:
                continue
            for part in _listed(thing["parts"]):
                mask = np.asarray(part["mask"]).astype(bool)
                if mask.shape != size:
                    rule = f"its masks must have the photograph's size {size}"
                    raise FormatError("human_parts", f"{rule}. Found {mask.shape}")
                target[mask] = PART_OF[part["part_name"]]
    except (KeyError, TypeError, IndexError) as error:
        raise FormatError("human_parts", f"it is not as expected (no {error})") from error
    return target if target.any() else np.full(size, IGNORE)


def _listed(values: Any) -> Iterable[Any]:
    """MATLAB's array of structures as a list: one alone comes without a list around it."""
    return [values] if isinstance(values, dict) else values


DATA = FileSet(
    "pascal_context",
    TASKS,
    {"train": 4998, "test": 5105},
    {"train": "ImageSets/Context/train.txt", "test": "ImageSets/Context/val.txt"},
    rows_of,
    decode,
    (
        "To place it by hand, get PASCAL_MT.tgz, which github.com/SimonVandenhende/"
        "Multi-Task-Learning-PyTorch names in data/pascal_context.py, and unpack it so that "
        "{folder} is the folder PASCAL_MT: it holds ImageSets/Context/train.txt (4,998 names) and "
        "val.txt (5,105), and the folders JPEGImages, semseg, human_parts, "
        "pascal-context/trainval, normals_distill and sal_distill. No checksum is "
        "published, so any copy in this form will do."
    ),
)
prepare = DATA.prepare


if __name__ == "__main__":
    main(DATA)
