"""Data sets as tensors: ``load(name, split)`` and, for several targets, ``load_tasks``.

Preparing them is the business of ``data_prep``.
"""

from data_prep.reading.files import DataError
from data_prep.reading.labelled import LabelledImages, normalised
from data_prep.reading.loaders import (
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
from data_prep.reading.multi_task import (
    MultiTaskFiles,
    MultiTaskImages,
    Task,
    load_celeba,
    load_multi_fashion,
    load_multi_fashion_mnist,
    load_multi_mnist,
    load_tasks,
    open_tasks,
)
from data_prep.reading.root import data_root
from data_prep.reading.topic import (
    TopicLists,
    TopicProtocol,
    read_topic_lists,
    topic_keys,
    topic_lists,
)

__all__ = [
    "DataError",
    "LabelledImages",
    "MultiTaskFiles",
    "MultiTaskImages",
    "Task",
    "TopicLists",
    "TopicProtocol",
    "checksums",
    "data_root",
    "image_names",
    "load",
    "load_celeba",
    "load_cifar100",
    "load_cub200",
    "load_digits",
    "load_fashion_mnist",
    "load_mini_imagenet",
    "load_mnist",
    "load_multi_fashion",
    "load_multi_fashion_mnist",
    "load_multi_mnist",
    "load_pairs",
    "load_tasks",
    "normalised",
    "open_tasks",
    "read_topic_lists",
    "topic_keys",
    "topic_lists",
]
