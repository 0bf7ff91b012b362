"""Sets whose images show two source images laid over each other, and name both.

One source image (28x28) lies in the top left corner of a canvas of 36x36, the other in the bottom
right one, and where they overlap the brighter value is kept, as :mod:`data_prep.pairs` does it. The
task is to name both.

A split has two images for each source image and corner. The train split is made from the train
files of MNIST and Fashion-MNIST only, the test split from the t10k files only: 120,000 and 20,000
images. Sources are shuffled once, without a look at their labels. So the label of one corner says
nothing about the other, and both may be of the same class.

- Two different sets: both are shuffled, and image ``i`` in the top left corner meets the images
  ``i`` and ``i + 1`` (the last one meets the first).
- One set in both corners: it is shuffled, and image ``i`` in the top left corner meets the images
  ``i + 1`` and ``i + 2`` of the same order (the last ones meet the first ones). So no image meets
  itself, and no two meet twice.

The two images with the same source in the top left corner are neighbours. So two blocks of rows
that each begin at an even row have at most two source images in common, those at their ends, or
four where one set serves both corners: a validation split can be cut off the end of the train
split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_prep import fashion_mnist, mnist
from data_prep.chain import Source, prepare_files
from data_prep.checks import sha256_check
from data_prep.pairs import SIZE, overlay
from data_prep.reading import load
from data_prep.reading.facts import IDX_FILES, IDX_PREFIX
from data_prep.reading.idx import encode_idx
from data_prep.reading.root import data_root

TIMES = 2
SEED = {"train": 0, "test": 1}
BLOCK = 10_000
SOURCES: dict[str, tuple[str, Callable[[Path | None], Path]]] = {
    "mnist": ("MNIST", mnist.prepare),
    "fashion_mnist": ("Fashion-MNIST", fashion_mnist.prepare),
}

Labelled = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def prepare_overlaid(name: str, top_left: str, bottom_right: str, root: Path | None = None) -> Path:
    """Make ``<root>/<name>`` complete, and the sets it is built from if needed.

    Args:
        name: The set; its four files are listed in :mod:`data_prep.reading.facts`.
        top_left: The source set of the top left corner, "mnist" or "fashion_mnist".
        bottom_right: That of the bottom right corner; it may be the same.
        root: The data root.

    Raises:
        PrepareError: a source could not be fetched, nothing can be written, or what is built here
            is not what every other machine gets.
    """
    root = root or data_root()
    sources = dict.fromkeys((top_left, bottom_right))
    files = IDX_FILES[name]

    def build(temporary: Path, missing: Sequence[str]) -> None:
        for source in sources:
            SOURCES[source][1](root)
        for split in SEED:
            prefix = IDX_PREFIX[split]
            names = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx2-ubyte"
            if not set(names) & set(missing):
                continue
            read = [_read(source, split, root) for source in sources]
            built = build_images(read[0], read[1] if len(read) > 1 else None, SEED[split])
            for file, values in zip(names, built, strict=True):
                if file in missing:
                    (temporary / file).write_bytes(encode_idx(values))

    return prepare_files(
        name,
        root,
        {file: sha256_check(known) for file, known in files.items()},
        lambda _: [Source(f"the files of {' and '.join(SOURCES[s][0] for s in sources)}", build)],
        lambda _: (
            "Building is deterministic. If another SHA-256 comes out, please report it with your "
            f"version of numpy ({np.__version__})."
        ),
        space=2 * sum(known.size for known in files.values()),
    )


def build_images(top_left: Labelled, bottom_right: Labelled | None, seed: int) -> Labelled:
    """Lay every source image into two images in each corner.

    Args:
        top_left: Images (n, 28, 28) and labels (n,) of the top left corner.
        bottom_right: As many images and labels, n, of the bottom right corner. None stands for the
            images of ``top_left``, none of which then meets itself.
        seed: Of the stream that shuffles.

    Returns:
        Images (2n, 36, 36) and labels (2n, 2): that of the top left corner first.

    Raises:
        ValueError: not as many for one corner as for the other, fewer than two, or fewer than five
            where they have to serve in both corners.
    """
    number = len(top_left[1])
    least = TIMES if bottom_right is not None else 2 * TIMES + 1
    others = number if bottom_right is None else len(bottom_right[1])
    if number < least or number != others:
        rule = f"top left and bottom right must be equally many, and at least {least}"
        raise ValueError(f"{rule}. Found {number} and {others}.")
    # RandomState, as its streams are frozen for ever; those of numpy's Generator are not.
    random = np.random.RandomState(seed)
    first = random.permutation(number)
    second, start = (first, 1) if bottom_right is None else (random.permutation(number), 0)
    partners = top_left if bottom_right is None else bottom_right
    left = np.repeat(first, TIMES)
    right = np.stack([np.roll(second, -start - k) for k in range(TIMES)], axis=1).ravel()
    images = np.empty((TIMES * number, SIZE, SIZE), dtype=np.uint8)
    starts = range(0, len(images), BLOCK)
    for begin in tqdm(starts, desc="laying over", total=len(starts), leave=False):
        rows = slice(begin, begin + BLOCK)
        overlay(top_left[0][left[rows]], partners[0][right[rows]], out=images[rows])
    return images, np.stack([top_left[1][left], partners[1][right]], axis=1)


def _read(name: str, split: str, root: Path) -> Labelled:
    """Images (n, 28, 28) and labels (n,) of one split of a source set."""
    source = load(name, split, root)
    return source.images[:, 0].numpy(), source.labels.numpy().astype(np.uint8)
