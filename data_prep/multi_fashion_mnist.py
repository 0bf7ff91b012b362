"""Multi-Fashion+MNIST, two labels for each image: ``python -m data_prep.multi_fashion_mnist``.

Each image shows one article of Fashion-MNIST, top left, and one digit of MNIST, bottom right. The
task is to name both. This is the design of Lin et al. (Pareto multi-task learning, NeurIPS 2019);
their own draw of partners was handed out as a file only, so the images here are others of the same
kind. How they are made, how many and in which order is described in
:mod:`data_prep.common.overlaid`.
"""

from __future__ import annotations

from data_prep import fashion_mnist, mnist
from data_prep.common.command import main
from data_prep.common.files import FileFacts
from data_prep.common.multi_task import Task
from data_prep.common.overlaid import OverlaidSet

DATA = OverlaidSet(
    name="multi_fashion_mnist",
    files={
        "train-images-idx3-ubyte": FileFacts(
            155_520_016, "85b5a99a46522cbc8269a9e3176113be1e730a82d17e1589ee45a7270f6aea76"
        ),
        "train-labels-idx2-ubyte": FileFacts(
            240_012, "c5c85b71564ca28689fe986b08dcdee48936a3c8f7697ac58f144b30e0c5544c"
        ),
        "t10k-images-idx3-ubyte": FileFacts(
            25_920_016, "6702071861eedcf70d79241dd325c8620e4e7fc735ede8eaefd23e2bf9d918c1"
        ),
        "t10k-labels-idx2-ubyte": FileFacts(
            40_012, "c25a237a9a104fd8a4ec51e2a3cdf32b58123c5b64cc13ef23360b37831a2bae"
        ),
    },
    originals=(fashion_mnist.DATA, mnist.DATA),
    tasks=(
        Task("item", "classes", fashion_mnist.DATA.class_names),
        Task("digit", "classes", mnist.DATA.class_names),
    ),
)
prepare, load = DATA.prepare, DATA.load


if __name__ == "__main__":
    main(DATA)
