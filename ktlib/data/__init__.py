"""Data sets as tensors: ``load(name, split)``. Preparing them is the business of ``data_prep``."""

from ktlib.data.files import DataError
from ktlib.data.labelled import LabelledImages, normalised
from ktlib.data.loaders import (
    checksums,
    image_names,
    load,
    load_cifar100,
    load_cub200,
    load_digits,
    load_fashion_mnist,
    load_mini_imagenet,
    load_mnist,
    load_pairs,
)
from ktlib.data.root import data_root
from ktlib.data.topic import TopicLists, TopicProtocol, read_topic_lists, topic_keys, topic_lists

__all__ = [
    "DataError",
    "LabelledImages",
    "TopicLists",
    "TopicProtocol",
    "checksums",
    "data_root",
    "image_names",
    "load",
    "load_cifar100",
    "load_cub200",
    "load_digits",
    "load_fashion_mnist",
    "load_mini_imagenet",
    "load_mnist",
    "load_pairs",
    "normalised",
    "read_topic_lists",
    "topic_keys",
    "topic_lists",
]
