"""Sets whose images show two source images laid over each other, and name both.

One source image (28x28) lies in the top left corner of a canvas of 36x36, the other in the bottom
right one, and where they overlap the brighter value is kept, as in :mod:`data_prep.pairs`. The
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

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.common.idx_sets import SIZE, Arrays, BuiltIdxSet, overlay
from data_prep.common.multi_task import MultiTaskImages, Task, class_images

TIMES = 2
SEED = {"train": 0, "test": 1}
BLOCK = 10_000


@dataclass(frozen=True, kw_only=True)
class OverlaidSet(BuiltIdxSet):
    """A set with a task for each corner.

    ``originals`` are the set of the top left corner and that of the bottom right one, or one set
    that serves both.

    Attributes:
        tasks: That of the top left corner first.
    """

    tasks: tuple[Task, ...]

    def build(self, split: str, originals: Sequence[Arrays]) -> Arrays:
        """Images and labels; see :func:`build_images`."""
        return build_images(originals[0], originals[1] if len(originals) > 1 else None, SEED[split])

    def load(self, split: str, root: Path | None = None) -> MultiTaskImages:
        """One split; arguments and errors as for :func:`data_prep.load_tasks`."""
        images, labels = self.arrays(split, root)
        return class_images(images[:, None], labels, self.tasks)


def build_images(top_left: Arrays, bottom_right: Arrays | None, seed: int) -> Arrays:
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
