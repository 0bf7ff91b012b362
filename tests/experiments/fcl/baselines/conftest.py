"""A tiny few-shot problem that a tiny network can solve: bars at different places."""

import copy

import pytest
import torch
from torch.nn import functional as F

from ktlib.fcl import BaseTraining, few_shot_sessions, positions_of, train_base

CLASSES = 7  # 3 base classes, then 2 sessions of 2
TRAINED = {}  # the base session runs once for each kind of classifier; every test gets a copy


@pytest.fixture
def problem(device):
    """Sessions, images and labels; each class has one bright row of its own, and noise."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(CLASSES * 12) % CLASSES
    images = 0.3 * torch.randn(len(labels), 1, 12, 12, generator=generator)
    images[torch.arange(len(labels)), :, labels] += 2.0
    is_test = torch.arange(len(labels)) >= CLASSES * 8
    sizes = {"base_classes": 3, "sessions": 2, "ways": 2, "shots": 3, "base_images": 6}
    sessions = few_shot_sessions(labels[~is_test], class_seed=1, seed=2, **sizes)
    images, labels = images.to(device), labels.to(device)
    return sessions, images[~is_test], labels[~is_test], images[is_test], labels[is_test]


@pytest.fixture
def images_of(problem):
    """Training images and labels of the session of this number."""
    sessions, images, labels, *_ = problem
    return lambda number: (
        images[sessions[number - 1].train],
        labels[sessions[number - 1].train],
    )


@pytest.fixture
def rng():
    """Function from a seed, 0 by default, to a generator."""
    return lambda seed=0: torch.Generator().manual_seed(seed)


@pytest.fixture
def after_base(problem, split, images_of, rng):
    """Function that trains the network with a classifier on the base session.

    It returns copies: the network, the classifier and the class of each of its rows.
    """

    def train(classifier):
        if type(classifier) not in TRAINED:
            (images, labels), classes = images_of(1), problem[0][0].classes
            train_base(
                split.network, classifier, images, positions_of(labels, classes),
                lambda x, y: F.cross_entropy(classifier(split.network(x)), y),
                BaseTraining(epochs=15, batch_size=9, lr=0.05, padding=0), generator=rng(),
            )  # fmt: skip
            TRAINED[type(classifier)] = split, classifier, classes
        return copy.deepcopy(TRAINED[type(classifier)])

    return train


@pytest.fixture
def trained(after_base, classifier):
    """Network, linear classifier and its classes after a short base session."""
    return after_base(classifier)
