"""MultiMNIST, two labels for each image: ``python -m data_prep.multi_mnist``.

Each image shows one digit of MNIST top left and another one bottom right. The task is to name both.
Sabour et al. (Dynamic routing between capsules, NeurIPS 2017) laid two digits of different classes
over each other, each moved at random. Sener and Koltun (Multi-task learning as multi-objective
optimization, NeurIPS 2018) made two tasks of it, one for each corner, with any second digit; they
shrank the images to 28x28, which is not done here. How the images are made, how many and in which
order is described in :mod:`data_prep.common.overlaid`.
"""

from __future__ import annotations

from data_prep import mnist
from data_prep.common.command import main
from data_prep.common.files import FileFacts
from data_prep.common.multi_task import Task
from data_prep.common.overlaid import OverlaidSet

DATA = OverlaidSet(
    name="multi_mnist",
    files={
        "train-images-idx3-ubyte": FileFacts(
            155_520_016, "96ee9384d31d970e5e68d845ba9fab2fc6883e9852b82fa26961d0e496018b1e"
        ),
        "train-labels-idx2-ubyte": FileFacts(
            240_012, "0c5930f6cb11326a627d6e99ee91e88aa5ce83d4dc8a09850246d12a3e406954"
        ),
        "t10k-images-idx3-ubyte": FileFacts(
            25_920_016, "95e763bb8346c2829036159927623c40a44259a4d0115ece0ac91df68108100b"
        ),
        "t10k-labels-idx2-ubyte": FileFacts(
            40_012, "fd0d08d06635d76d3a98600bb8f5c74c952cb984facd10be3a7219c5fb50910f"
        ),
    },
    originals=(mnist.DATA,),
    tasks=(
        Task("top_left", "classes", mnist.DATA.class_names),
        Task("bottom_right", "classes", mnist.DATA.class_names),
    ),
)
prepare, load = DATA.prepare, DATA.load


if __name__ == "__main__":
    main(DATA)
