"""Fashion-MNIST, articles of clothing: ``python -m data_prep.fashion_mnist``.

28x28, 60,000 train and 10,000 test images, 10 classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from data_prep.common.archives import gunzip
from data_prep.common.command import main
from data_prep.common.files import FileFacts
from data_prep.common.idx_sets import FetchedIdxSet
from data_prep.common.packages import debian_package

PACKAGE = "dataset-fashion-mnist"
# Where the Debian package puts the files, which are packed with gzip.
INSTALLED = Path("/usr/share/datasets/fashion-mnist")


def _take(members: Mapping[str, Path], limit: int, incoming: Path) -> None:
    """Take the packed files out of the package, and each file out of its packing."""
    packed = {member: incoming / Path(member).name for member in members}
    # Packing makes a file without patterns a little larger.
    debian_package(PACKAGE, packed, 2 * limit, incoming)
    for member, target in members.items():
        if packed[member].is_file():
            gunzip(packed[member], target, limit)


DATA = FetchedIdxSet(
    name="fashion_mnist",
    files={
        "train-images-idx3-ubyte": FileFacts(
            47_040_016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
        ),
        "train-labels-idx1-ubyte": FileFacts(
            60_008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
        ),
        "t10k-images-idx3-ubyte": FileFacts(
            7_840_016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
        ),
        "t10k-labels-idx1-ubyte": FileFacts(
            10_008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
        ),
    },
    class_names=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    torchvision="FashionMNIST",
    package=f"Debian package {PACKAGE}",
    member=f"{INSTALLED.relative_to('/')}/{{file}}.gz",
    take=_take,
    installed=INSTALLED,
)
prepare, load = DATA.prepare, DATA.load


if __name__ == "__main__":
    main(DATA)
