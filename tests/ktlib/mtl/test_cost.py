"""Size and operations of networks, shared and split."""

import time

import pytest
import torch
from torch import nn

from ktlib.mtl import forward_flops, parameter_megabytes, split
from ktlib.mtl.cost import forward_milliseconds
from tests.ktlib.mtl.trunks import LEFT_RIGHT, assert_same, by_hand, names, numbers


def test_megabytes_by_hand():
    """Parameters only, in float32 whatever they are: statistics are not counted."""
    network = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    assert parameter_megabytes(network) == (4 * 2 + 2 + 2 + 2) * 4 / 2**20
    assert parameter_megabytes(network.half()) == 14 * 4 / 2**20
    assert parameter_megabytes(split(by_hand(), ["2"], LEFT_RIGHT)) == 3 * 4 / 2**20


def test_flops_by_hand():
    # A 3x3 convolution at 4x4 pixels, 1 to 2 channels: 2 * 16 * 9 * 2 operations; one of 1x1 from 2
    # to 3 channels: 2 * 16 * 2 * 3; two images.
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1))
    images = torch.randn(2, 1, 4, 4)
    first, second = 2 * 2 * 16 * 9 * 2, 2 * 2 * 16 * 2 * 3
    assert forward_flops(network, images) == first + second
    assert forward_flops(split(network, [], names(3)), images) == first + second
    assert forward_flops(split(network, ["2"], names(3)), images) == first + 3 * second
    assert forward_flops(split(network, ["1"], names(3)), images) == first + 3 * second
    assert forward_flops(split(network, ["0"], names(3)), images) == 3 * (first + second)
    whole = split(network, ["2"], names(3), share_prefix=False)
    assert forward_flops(whole, images) == 3 * (first + second)


def test_counting_flops_leaves_the_network_as_it_is():
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 3))
    trunk = split(network, ["3"], LEFT_RIGHT)
    images = torch.randn(2, 3)
    before, state = numbers(trunk), torch.get_rng_state()
    assert (
        forward_flops(trunk, images) == 3 * 2 * 2 * 3 * 3
    )  # the first layer once, two of the last
    assert_same(numbers(trunk), before)
    assert trunk.training
    assert torch.equal(torch.get_rng_state(), state)


class Slow(nn.Module):
    """Sleeps for the times given, one after the other, and notes in which mode it was."""

    def __init__(self, *seconds):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.seconds, self.modes = list(seconds), []

    def forward(self, images):
        time.sleep(self.seconds.pop(0))
        self.modes.append(self.training)
        return self.norm(images)


def test_time_of_a_forward_pass_is_the_shortest_after_one_to_warm_up():
    network = Slow(0.0, 0.2, 0.05, 0.2)
    assert 50 <= forward_milliseconds(network, torch.randn(3, 2), repeats=3) < 150
    assert network.modes == [False] * 4
    assert network.training, "the mode is given back"
    assert network.norm.num_batches_tracked == 0


def test_timing_needs_a_pass():
    with pytest.raises(ValueError, match="repeats must be at least 1. Found repeats=0"):
        forward_milliseconds(Slow(), torch.randn(3, 2), repeats=0)
