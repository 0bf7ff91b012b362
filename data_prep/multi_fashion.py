"""Multi-Fashion, two labels for each image: ``python -m data_prep.multi_fashion``.

Each image shows one article of Fashion-MNIST top left and another one bottom right. The task is to
name both. It is to :mod:`data_prep.multi_mnist` what Fashion-MNIST is to MNIST; Lin et al. (Pareto
multi-task learning, NeurIPS 2019) have such a set beside MultiMNIST and Multi-Fashion+MNIST. How
the images are made, how many and in which order is described in :mod:`data_prep.common.overlaid`.
"""

from __future__ import annotations

from data_prep import fashion_mnist
from data_prep.common.command import main
from data_prep.common.files import FileFacts
from data_prep.common.multi_task import Task
from data_prep.common.overlaid import OverlaidSet

DATA = OverlaidSet(
    name="multi_fashion",
    files={
        "train-images-idx3-ubyte": FileFacts(
            155_520_016, "9fff8f9a1e75ce7a80561dd6754426e1b51a9d44a76baaeeb42da9298eeaa883"
        ),
        "train-labels-idx2-ubyte": FileFacts(
            240_012, "b8aa2efebfc317389141ec84c62c842e8bed1648691cc35c0fb5b09318c42e5b"
        ),
        "t10k-images-idx3-ubyte": FileFacts(
            25_920_016, "04e1f84360227865718ce2664a093a0b76bb2554d626c6f7315f7448cca9c9eb"
        ),
        "t10k-labels-idx2-ubyte": FileFacts(
            40_012, "bd1c78c2cd10dd93444a43beb3bb0bf218c319b9ed21a608c2bcb9db36f85ff2"
        ),
    },
    originals=(fashion_mnist.DATA,),
    tasks=(
        Task("top_left", "classes", fashion_mnist.DATA.class_names),
        Task("bottom_right", "classes", fashion_mnist.DATA.class_names),
    ),
)
prepare, load = DATA.prepare, DATA.load


if __name__ == "__main__":
    main(DATA)
