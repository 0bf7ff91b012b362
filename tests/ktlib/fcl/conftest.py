"""Small networks and data for the few-shot tests; ``KTLIB_TEST_DEVICE=cuda`` runs them on a GPU."""

import os

import pytest
import torch
from torch import nn

from experiments.models.resnet import resnet18_features
from ktlib.fcl import last_convolutions, split_network


@pytest.fixture
def device():
    return torch.device(os.environ.get("KTLIB_TEST_DEVICE", "cpu"))


@pytest.fixture
def noise(device):
    return torch.Generator(device=device).manual_seed(3)


@pytest.fixture
def split(device):
    """A narrow ResNet18 cut in front of its last four convolutions."""
    torch.manual_seed(0)
    network = resnet18_features(in_channels=1, width=4, stem_stride=2).to(device)
    return split_network(network, last_convolutions(network, 4))


@pytest.fixture
def classifier(device, split):
    torch.manual_seed(1)
    return nn.Linear(32, 3).to(device)


@pytest.fixture
def batch(device):
    torch.manual_seed(2)
    return torch.randn(12, 1, 12, 12).to(device), torch.arange(12).to(device) % 3
