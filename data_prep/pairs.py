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

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_prep import fashion_mnist, mnist
from data_prep.chain import is_complete
from data_prep.checks import sha256_check
from data_prep.command import run_command
from data_prep.errors import PrepareError
from data_prep.reading.facts import FASHION_MNIST_FILES, IDX_PREFIX, MNIST_FILES, PAIRS_FILES
from data_prep.reading.files import FileFacts, read_verified
from data_prep.reading.idx import decode_idx, encode_idx
from data_prep.reading.root import data_root
from data_prep.storage import (
    exclusive,
    incoming,
    place,
    require_space,
    say,
    sha256,
    storage_errors,
    write_manifest,
)

NAME = "pairs"
SIZE = 36
KINDS = 10
PER_CLASS = {"train": 500, "test": 100}
SEED = {"train": 0, "test": 1}


def prepare(root: Path | None = None) -> Path:
    """Make ``<root>/pairs`` complete, and the two sets that it is built from where needed.

    Raises:
        PrepareError: one of the two could not be fetched, or nothing can be written.
    """
    root = root or data_root()
    checks = {file: sha256_check(known) for file, known in PAIRS_FILES.items()}
    if is_complete(NAME, root, checks):
        say(f"{NAME}: complete in {root / NAME}")
        return root / NAME
    mnist.prepare(root)
    fashion_mnist.prepare(root)
    with storage_errors(root), exclusive(root, NAME) as folder:
        if not is_complete(NAME, root, checks):
            require_space(root, sum(known.size for known in PAIRS_FILES.values()))
            for split in PER_CLASS:
                _write_split(root, folder, split)
            write_manifest(folder, list(PAIRS_FILES))
    say(f"{NAME}: ready in {root / NAME}")
    return root / NAME


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


def overlay(articles: NDArray[np.uint8], digits: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Write articles (n, h, w) top left and digits (n, h, w) bottom right into ``out`` (n, H, W).

    Where they overlap the larger value is kept.
    """
    height, width = articles.shape[1:]
    out[:] = 0
    out[:, :height, :width] = articles
    corner = out[:, out.shape[1] - digits.shape[1] :, out.shape[2] - digits.shape[2] :]
    np.maximum(corner, digits, out=corner)


def _write_split(root: Path, folder: Path, split: str) -> None:
    """Build one split, verify it, and move it to its names."""
    images, labels = build_pairs(
        _read(root, "fashion_mnist", FASHION_MNIST_FILES, split),
        _read(root, "mnist", MNIST_FILES, split),
        PER_CLASS[split],
        SEED[split],
    )
    prefix = IDX_PREFIX[split]
    built = {f"{prefix}-images-idx3-ubyte": images, f"{prefix}-labels-idx1-ubyte": labels}
    with incoming(folder) as temporary:
        for file, values in built.items():
            (temporary / file).write_bytes(encode_idx(values))
            _require_pinned(temporary / file)
        for file in built:
            place(temporary / file, folder / file)


def _read(
    root: Path, name: str, files: Mapping[str, FileFacts], split: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images and labels of one split of a source set."""
    prefix = IDX_PREFIX[split]
    images, labels = (
        decode_idx(read_verified(root / name / file, files[file], name))
        for file in (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    )
    return images, labels


def _require_pinned(path: Path) -> None:
    """Refuse a result that is not the one every other machine gets."""
    expected = PAIRS_FILES[path.name].sha256
    found = sha256(path)
    if found != expected:
        raise PrepareError(
            f"The pairs built here are not the ones expected: {path.name} has SHA-256 {found}, "
            f"not {expected}. Please report this with your version of numpy ({np.__version__})."
        )


if __name__ == "__main__":
    sys.exit(run_command(NAME, prepare))
