"""What is known about each data set: its files with their checksums, and its classes."""

from __future__ import annotations

from data_prep.reading.files import FileFacts

DATA_SETS = (
    "mnist",
    "fashion_mnist",
    "pairs",
    "digits",
    "cifar100",
    "mini_imagenet",
    "cub200",
    "multi_fashion_mnist",
    "multi_mnist",
    "multi_fashion",
    "celeba",
    "cityscapes",
    "nyuv2",
    "pascal_context",
)
# Several targets for each image: data_prep.reading.multi_task loads them.
MULTI_TASK = (
    "multi_fashion_mnist",
    "multi_mnist",
    "multi_fashion",
    "celeba",
    "cityscapes",
    "nyuv2",
    "pascal_context",
)
SPLITS = ("train", "test")

# idx file names begin with these words; "t10k" is the ten thousand images of the test split.
IDX_PREFIX = {"train": "train", "test": "t10k"}

MNIST_FILES = {
    "train-images-idx3-ubyte": FileFacts(
        47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
    ),
    "train-labels-idx1-ubyte": FileFacts(
        60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
    ),
    "t10k-images-idx3-ubyte": FileFacts(
        7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
    ),
    "t10k-labels-idx1-ubyte": FileFacts(
        10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
    ),
}

FASHION_MNIST_FILES = {
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
}

# Built by data_prep.pairs from the two sets above; the construction is described there.
PAIRS_FILES = {
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
}

# Built by data_prep.overlaid from the same two; labels are (item, digit).
MULTI_FASHION_MNIST_FILES = {
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
}

# Built by data_prep.overlaid from one of the two; labels are (top left, bottom right).
MULTI_MNIST_FILES = {
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
}
MULTI_FASHION_FILES = {
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
}

IDX_FILES = {
    "mnist": MNIST_FILES,
    "fashion_mnist": FASHION_MNIST_FILES,
    "pairs": PAIRS_FILES,
    "multi_fashion_mnist": MULTI_FASHION_MNIST_FILES,
    "multi_mnist": MULTI_MNIST_FILES,
    "multi_fashion": MULTI_FASHION_FILES,
}

DIGIT_NAMES = tuple(str(digit) for digit in range(10))
FASHION_NAMES = (
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
)
# Class 10 * item + digit, so that "Sneaker 7" is class 77.
PAIR_NAMES = tuple(f"{item} {digit}" for item in FASHION_NAMES for digit in DIGIT_NAMES)

CLASS_NAMES = {"mnist": DIGIT_NAMES, "fashion_mnist": FASHION_NAMES, "pairs": PAIR_NAMES}

# Sets of photographs: data_prep leaves an array and a list of its rows for each split.
PHOTOGRAPHS = ("mini_imagenet", "cub200")
PHOTOGRAPH_SPLITS = {split: (f"{split}-images.npy", f"{split}.csv") for split in SPLITS}
PHOTOGRAPH_FILES = tuple(file for files in PHOTOGRAPH_SPLITS.values() for file in files)
