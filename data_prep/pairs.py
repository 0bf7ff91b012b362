"""Fashion x MNIST pairs, 100 classes: ``python -m data_prep.pairs``.

Each image shows one article of Fashion-MNIST and one digit of MNIST on a canvas of 36x36: the
article (28x28) in the top left corner, the digit (28x28) in the bottom right one. They overlap in
the middle 20x20, where the brighter of the two values is kept (the pixelwise maximum, the rule of
the MultiMNIST family of data sets). The class is ``10 * item + digit``.

The train split has 500 images per class and is made from the train files only; the test split has
100 per class, made from the t10k files only. Within an item and within a digit, source images are
dealt out to the ten classes in a shuffled order without return. So each source image is used at
most once in the train split; in the test split that holds for the articles, while of the five
digits with fewer than 1,000 test images up to 108 serve a second time, in another class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_prep import fashion_mnist, mnist
from data_prep.common.command import main
from data_prep.common.files import FileFacts
from data_prep.common.idx_sets import SIZE, Arrays, BuiltIdxSet, IdxSet, overlay

KINDS = 10
SEED = {"train": 0, "test": 1}


@dataclass(frozen=True, kw_only=True)
class PairsSet(BuiltIdxSet, IdxSet):
    """Pairs of an article and a digit.

    Attributes:
        per_class: Images per class and split.
    """

    per_class: Mapping[str, int]

    def build(self, split: str, originals: Sequence[Arrays]) -> Arrays:
        """Images and labels; see :func:`build_pairs`."""
        articles, digits = originals
        return build_pairs(articles, digits, self.per_class[split], SEED[split])


def build_pairs(
    articles: tuple[NDArray[np.uint8], NDArray[np.uint8]],
    digits: tuple[NDArray[np.uint8], NDArray[np.uint8]],
    per_class: int,
    seed: int,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pair articles with digits.

    Args:
        articles: Images (n, 28, 28) and labels (n,) of Fashion-MNIST.
        digits: Images (m, 28, 28) and labels (m,) of MNIST.
        per_class: Images per class; at least so many of each article and of each digit are needed.
        seed: Of the stream that shuffles the source images.

    Returns:
        Images (100 * per_class, 36, 36) and labels (100 * per_class,), ordered by class.

    Raises:
        ValueError: too few source images of some kind.
    """
    # RandomState, as its streams are frozen for ever; those of numpy's Generator are not.
    random = np.random.RandomState(seed)
    article_of = [_dealt(articles[1], kind, per_class, random) for kind in range(KINDS)]
    digit_of = [_dealt(digits[1], kind, per_class, random) for kind in range(KINDS)]
    images = np.empty((KINDS * KINDS * per_class, SIZE, SIZE), dtype=np.uint8)
    for label in tqdm(range(KINDS * KINDS), desc="pairing", total=KINDS * KINDS, leave=False):
        item, digit = divmod(label, KINDS)
        part = images[label * per_class : (label + 1) * per_class]
        overlay(articles[0][article_of[item][digit]], digits[0][digit_of[digit][item]], out=part)
    labels = np.repeat(np.arange(KINDS * KINDS, dtype=np.uint8), per_class)
    return images, labels


def _dealt(
    labels: NDArray[np.uint8], kind: int, per_class: int, random: np.random.RandomState
) -> NDArray[np.int64]:
    """Indices of the images of one kind, dealt out to its ten classes: shape (10, per_class).

    Where there are too few for all ten classes, the shuffled order begins anew; a class never
    gets an image twice.
    """
    own = np.flatnonzero(labels == kind)
    if len(own) < per_class:
        rule = f"there must be at least per_class={per_class} images of each kind"
        raise ValueError(f"{rule}. Found {len(own)} of kind {kind}.")
    shuffled = random.permutation(own)
    return np.resize(shuffled, (KINDS, per_class)).astype(np.int64)


DATA = PairsSet(
    name="pairs",
    files={
        "train-images-idx3-ubyte": FileFacts(
            64_800_016, "0846d4d9d6bd86e0bf724b7ae282cf3e7e9dfca265d78522d1ac8a7838008809"
        ),
        "train-labels-idx1-ubyte": FileFacts(
            50_008, "3660b9a805abd379928b38bec4dddbe512484994df0207c9ec66d3261f8c122b"
        ),
        "t10k-images-idx3-ubyte": FileFacts(
            12_960_016, "cf1756b8f95029d2e791878d0fc0a8a68bae508df18ce8a779c019944f75e9cf"
        ),
        "t10k-labels-idx1-ubyte": FileFacts(
            10_008, "bf19a97f04222ef0ad8f0544e22fd2f34232d9f68d72b7e8ec6dfcd803c23fd6"
        ),
    },
    originals=(fashion_mnist.DATA, mnist.DATA),
    # Class 10 * item + digit, so that "Sneaker 7" is class 77.
    class_names=tuple(
        f"{item} {digit}"
        for item in fashion_mnist.DATA.class_names
        for digit in mnist.DATA.class_names
    ),
    per_class={"train": 500, "test": 100},
)
prepare, load = DATA.prepare, DATA.load


if __name__ == "__main__":
    main(DATA)
