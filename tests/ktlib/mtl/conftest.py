"""Small networks for the multi-task tests; ``KTLIB_TEST_DEVICE=cuda`` runs them on a GPU."""

import os

import pytest
import torch
from torch import nn


@pytest.fixture
def device():
    return torch.device(os.environ.get("KTLIB_TEST_DEVICE", "cpu"))


class OwnModule(nn.Module):
    """A network as a reader may write it: two branches, a parameter of its own, work in place."""

    def __init__(self, width=4):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, width).view(width, 1, 1))
        self.register_buffer("shift", torch.full((width, 1, 1), 0.25))
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.left = nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, width, 1))
        self.right = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.last = nn.Linear(width, 3)

    def forward(self, images):
        x = self.stem(images) * self.scale + self.shift
        y = self.right(x)
        same = y
        y += self.left(x)
        y = torch.nn.functional.leaky_relu(self.norm(y + same), 0.1, inplace=True)
        return self.last(y.mean(dim=(2, 3)))


@pytest.fixture
def own_module(device):
    torch.manual_seed(0)
    return OwnModule().to(device)
