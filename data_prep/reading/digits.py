"""The 8x8 digits that scikit-learn brings along: real images with no download at all."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits as sklearn_digits

from data_prep.reading.files import data_error

TEST_PER_CLASS = 40
SEED = 0
# Of the uint8 images and the int64 labels together, as scikit-learn orders them.
SHA256 = "0b7e9c3202d7bcd255d6a19a238d3743bf5e320ba74812a6679958a017c55382"


def digits_split(split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (n, 1, 8, 8) and labels (n,) of one split of the digits.

    scikit-learn's values 0 to 16 are scaled to 0 to 255 and rounded. The split is stratified: of
    each class 40 images, drawn with a fixed seed, are the test split (400 in all); the other 1397
    are the train split. Both keep scikit-learn's order.

    Raises:
        DataError: the installed scikit-learn brings other images than the ones expected.
    """
    images, labels = _verified_digits()
    in_test = np.zeros(len(labels), dtype=np.bool_)
    # RandomState, as its streams are frozen for ever; those of numpy's Generator are not.
    random = np.random.RandomState(SEED)
    for label in range(10):
        in_test[random.permutation(np.flatnonzero(labels == label))[:TEST_PER_CLASS]] = True
    chosen = in_test if split == "test" else ~in_test
    return images[chosen], labels[chosen]


def _verified_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images, labels = _read_digits()
    found = _sha256(images, labels)
    if found != SHA256:
        problem = f"scikit-learn's digits are not the expected ones: SHA-256 {found}, not {SHA256}."
        raise data_error("digits", problem)
    return images, labels


def _read_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    values, labels = sklearn_digits(return_X_y=True)
    images = np.rint(values * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return images, labels.astype(np.int64)


def _sha256(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> str:
    # Little-endian labels, so that the number is the same on every machine.
    return hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
