"""A tiny few-shot problem that a tiny network can solve: bars at different places."""

import copy

import pytest
import torch
from torch.nn import functional as F

from ktlib.fcl import few_shot_sessions, positions_of, train_base

CLASSES = 7  # 3 base classes, then 2 sessions of 2
TRAINED = {}  # the base session runs once for each kind of classifier; every test gets a copy


@pytest.fixture
def problem(device):
    """Sessions, images and labels; each class has one bright row of its own, and noise."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(CLASSES * 12) % CLASSES
    images = 0.3 * torch.randn(len(labels), 1, 12, 12, generator=generator)
    images[torch.arange(len(labels)), :, labels] += 2.0
    tested = torch.arange(len(labels)) >= CLASSES * 8
    sizes = {"base_classes": 3, "sessions": 2, "ways": 2, "shots": 3, "base_images": 6}
    sessions = few_shot_sessions(labels[~tested], class_seed=1, seed=2, **sizes)
    images, labels = images.to(device), labels.to(device)
    return sessions, images[~tested], labels[~tested], images[tested], labels[tested]


@pytest.fixture
def shown_in(problem):
    """Training images and labels of the session of this number."""
    sessions, images, labels, *_ = problem
    return lambda number: (
        images[sessions[number - 1].train],
        labels[sessions[number - 1].train],
    )


@pytest.fixture
def drawn():
    """A source of random numbers that starts at the seed given, or at 0."""
    return lambda seed=0: torch.Generator().manual_seed(seed)


@pytest.fixture
def after_base(problem, split, shown_in, drawn):
    """Function that trains the network with a classifier on the base session.

    It returns copies: the network, the classifier and the class of each of its rows.
    """

    def train(classifier):
        if type(classifier) not in TRAINED:
            (images, labels), classes = shown_in(1), problem[0][0].classes
            train_base(
                split.network, classifier, images, positions_of(labels, classes),
                lambda x, y: F.cross_entropy(classifier(split.network(x)), y),
                epochs=15, batch_size=9, lr=0.05, padding=0, generator=drawn(),
            )  # fmt: skip
            TRAINED[type(classifier)] = split, classifier, classes
        return copy.deepcopy(TRAINED[type(classifier)])

    return train


@pytest.fixture
def trained(after_base, classifier):
    """Network, linear classifier and its classes after a short base session."""
    return after_base(classifier)
