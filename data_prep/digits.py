"""The 8x8 digits that scikit-learn brings along: real images with no download at all.

``python -m data_prep.digits`` only verifies that they are as expected.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.common.command import main
from data_prep.common.files import check_split, data_error, is_unchanged
from data_prep.common.labelled import LabelledImages, labelled_images
from data_prep.common.root import data_root
from data_prep.common.storage import exclusive, log, storage_errors, write_manifest

TEST_PER_CLASS = 40
SEED = 0
# Of the uint8 images and the int64 labels together, as scikit-learn orders them.
SHA256 = "0b7e9c3202d7bcd255d6a19a238d3743bf5e320ba74812a6679958a017c55382"


@dataclass(frozen=True)
class Digits:
    """1,397 train and 400 test images of 10 classes.

    Attributes:
        name: Of the set and its folder.
        sha256: Of the images and labels together that scikit-learn must bring along.
    """

    name: str = "digits"
    sha256: str = SHA256

    def prepare(self, root: Path | None = None) -> Path:
        """Verify the digits, and leave a manifest without files for the pipeline.

        Raises:
            PrepareError: nothing can be written.
            DataError: the installed scikit-learn brings other images.
        """
        folder = (root or data_root()) / self.name
        self._verified()
        if not is_unchanged(folder):
            with storage_errors(folder.parent), exclusive(folder.parent, self.name):
                write_manifest(folder, [])
        log(f"{self.name}: verified, they come with scikit-learn")
        return folder

    def load(self, split: str, root: Path | None = None) -> LabelledImages:  # noqa: ARG002
        """One split; ``root`` is not looked at.

        scikit-learn's values 0 to 16 are scaled to 0 to 255 and rounded. The split is stratified:
        of each class 40 images, drawn with a fixed seed, are the test split; the others are the
        train split. Both keep scikit-learn's order.

        Raises:
            ValueError: an unknown split.
            DataError: the installed scikit-learn brings other images than the ones expected.
        """
        check_split(split)
        images, labels = self._verified()
        in_test = np.zeros(len(labels), dtype=np.bool_)
        # RandomState, as its streams are frozen for ever; those of numpy's Generator are not.
        random = np.random.RandomState(SEED)
        for label in range(10):
            in_test[random.permutation(np.flatnonzero(labels == label))[:TEST_PER_CLASS]] = True
        chosen = in_test if split == "test" else ~in_test
        names = tuple(str(digit) for digit in range(10))
        return labelled_images(images[chosen], labels[chosen], names)

    def checksums(self, root: Path | None = None) -> dict[str, str]:  # noqa: ARG002
        """The checksum of the arrays that scikit-learn brings along."""
        return {"scikit-learn digits": self.sha256}

    def _verified(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images (n, 1, 8, 8) and labels (n,)."""
        from sklearn.datasets import load_digits  # takes a second to import

        values, targets = load_digits(return_X_y=True)
        images = np.rint(values * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
        labels = targets.astype(np.int64)
        # Little-endian labels, so that the number is the same on every machine.
        content = images.tobytes() + labels.astype("<i8").tobytes()
        found = hashlib.sha256(content).hexdigest()
        if found != self.sha256:
            problem = f"scikit-learn's digits are not the expected ones: SHA-256 {found}, not"
            raise data_error(self.name, f"{problem} {self.sha256}.")
        return images, labels


DATA = Digits()
prepare, load = DATA.prepare, DATA.load


if __name__ == "__main__":
    main(DATA)
