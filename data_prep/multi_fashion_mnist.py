"""Multi-Fashion+MNIST, two labels for each image: ``python -m data_prep.multi_fashion_mnist``.

Each image shows one article of Fashion-MNIST and one digit of MNIST on a canvas of 36x36, laid over
each other as :mod:`data_prep.pairs` does: the article top left, the digit bottom right, and where
they overlap the brighter value. The task is to name both. This is the design of Lin et al. (Pareto
multi-task learning, NeurIPS 2019); their own draw of partners was handed out as a file only, so the
images here are others of the same kind.

The train split has 120,000 images from the train files only, the test split 20,000 from the t10k
files only. Every source image is in two of them, each time with another partner: articles and
digits are shuffled once, without a look at their labels, and article ``i`` meets the digits ``i``
and ``i + 1`` (the last one meets the first). The two images of an article are neighbours. So two
blocks of rows that each begin at an even row have no article in common and at most two digits,
those at their ends: a validation split can be cut off the end of the train split.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep import fashion_mnist, mnist
from data_prep.chain import Source, prepare_files
from data_prep.checks import sha256_check
from data_prep.command import run_command
from data_prep.pairs import SIZE, overlay
from ktlib.data import load_fashion_mnist, load_mnist
from ktlib.data.facts import IDX_PREFIX, MULTI_FASHION_MNIST_FILES
from ktlib.data.idx import encode_idx
from ktlib.data.root import data_root
from ktlib.progress import progress

NAME = "multi_fashion_mnist"
TIMES = 2
SEED = {"train": 0, "test": 1}
BLOCK = 10_000

Labelled = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def prepare(root: Path | None = None) -> Path:
    """Make ``<root>/multi_fashion_mnist`` complete, and the two sets it is built from if needed.

    Raises:
        PrepareError: one of the two could not be fetched, nothing can be written, or what is built
            here is not what every other machine gets.
    """
    root = root or data_root()

    def build(temporary: Path, missing: Sequence[str]) -> None:
        mnist.prepare(root)
        fashion_mnist.prepare(root)
        for split in SEED:
            _write_split(root, temporary, missing, split)

    return prepare_files(
        NAME,
        root,
        {file: sha256_check(known) for file, known in MULTI_FASHION_MNIST_FILES.items()},
        lambda _: [Source("the files of MNIST and Fashion-MNIST", build)],
        lambda _: (
            "Building is deterministic. If another SHA-256 comes out, please report it with your "
            f"version of numpy ({np.__version__})."
        ),
        space=2 * sum(known.size for known in MULTI_FASHION_MNIST_FILES.values()),
    )


def build_images(articles: Labelled, digits: Labelled, seed: int) -> Labelled:
    """Lay every article and every digit into two images.

    Args:
        articles: Images (n, 28, 28) and labels (n,) of Fashion-MNIST.
        digits: As many images and labels of MNIST; at least two.
        seed: Of the stream that shuffles both.

    Returns:
        Images (2n, 36, 36) and labels (2n, 2): the article's, then the digit's.

    Raises:
        ValueError: fewer than two, or not as many articles as digits.
    """
    number = len(articles[1])
    if number < TIMES or number != len(digits[1]):
        rule = f"articles and digits must be equally many, and at least {TIMES}"
        raise ValueError(f"{rule}. Found {number} and {len(digits[1])}.")
    # RandomState, as its streams are frozen for ever; those of numpy's Generator are not.
    random = np.random.RandomState(seed)
    article_order, digit_order = random.permutation(number), random.permutation(number)
    article = np.repeat(article_order, TIMES)
    digit = np.stack([np.roll(digit_order, -k) for k in range(TIMES)], axis=1).ravel()
    images = np.empty((TIMES * number, SIZE, SIZE), dtype=np.uint8)
    starts = range(0, len(images), BLOCK)
    for start in progress(starts, "laying over", total=len(starts)):
        rows = slice(start, start + BLOCK)
        overlay(articles[0][article[rows]], digits[0][digit[rows]], out=images[rows])
    return images, np.stack([articles[1][article], digits[1][digit]], axis=1)


def _write_split(root: Path, temporary: Path, missing: Sequence[str], split: str) -> None:
    """Write those files of a split that are missing."""
    prefix = IDX_PREFIX[split]
    names = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx2-ubyte"
    if not set(names) & set(missing):
        return
    articles, digits = (
        (source.images[:, 0].numpy(), source.labels.numpy().astype(np.uint8))
        for source in (load_fashion_mnist(split, root), load_mnist(split, root))
    )
    for name, values in zip(names, build_images(articles, digits, SEED[split]), strict=True):
        if name in missing:
            (temporary / name).write_bytes(encode_idx(values))


if __name__ == "__main__":
    sys.exit(run_command(NAME, prepare))
