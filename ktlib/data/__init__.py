"""Data sets as tensors: ``load(name, split)``. Preparing them is the business of ``data_prep``."""

from ktlib.data.files import DataError
from ktlib.data.labelled import LabelledImages, normalised
from ktlib.data.loaders import (
    checksums,
    load,
    load_cifar100,
    load_digits,
    load_fashion_mnist,
    load_mnist,
    load_pairs,
)
from ktlib.data.root import data_root

__all__ = [
    "DataError",
    "LabelledImages",
    "checksums",
    "data_root",
    "load",
    "load_cifar100",
    "load_digits",
    "load_fashion_mnist",
    "load_mnist",
    "load_pairs",
    "normalised",
]
