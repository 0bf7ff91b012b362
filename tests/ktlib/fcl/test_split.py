import copy

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2

from experiments.models.resnet import resnet18_features
from ktlib.fcl import last_convolutions, split_network


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 16, 17])
def test_prefix_and_tail_are_the_network(count):
    network = resnet18_features(1, 4).eval()
    split = split_network(network, last_convolutions(network, count))
    images = torch.randn(3, 1, 12, 12)
    assert torch.equal(split.tail_forward(split.prefix(images)), network(images))
    assert len(split.tuned) == count


def test_a_later_cut_leaves_less_in_the_tail():
    network = resnet18_features(1, 4)
    tails = [split_network(network, last_convolutions(network, n)).tail for n in (4, 8, 16)]
    sizes = [sum(p.numel() for p in tail.parameters()) for tail in tails]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[1] < sizes[2]


def test_no_tuned_weight_is_used_in_the_prefix(split, batch):
    images, _ = batch
    split.network.eval()
    before = split.prefix(images)
    with torch.no_grad():
        for weight in split.tuned.values():
            weight.zero_()
    assert torch.equal(split.prefix(images), before)


def test_cuts_a_network_of_another_library():
    network = mobilenet_v2(weights=None).eval()
    split = split_network(network, ["features.17.conv.1.0"])
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(split.tail_forward(split.prefix(images)), network(images))
    assert sum(1 for _ in split.prefix.parameters()) > 100


class Undecided(nn.Module):
    """Cannot be traced: what it does depends on the values."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.second(self.first(x)) if x.sum() > 0 else self.second(x)


def test_a_network_that_cannot_be_traced_is_kept_whole_with_a_warning():
    network = Undecided()
    with pytest.warns(UserWarning, match="Undecided cannot be traced"):
        split = split_network(network, ["second"])
    x = torch.randn(5, 4)
    assert torch.equal(split.tail_forward(split.prefix(x)), network(x))


class Scale(nn.Module):
    """A layer of one's own, without children."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x * self.weight


def test_a_layer_of_ones_own_can_be_tuned():
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), Scale())
    split, x = split_network(network, ["2"]), torch.randn(5, 3)
    assert torch.equal(split.tail_forward(split.prefix(x)), network(x))
    assert len(list(split.prefix.parameters())) == 2


def test_noise_moves_the_output_and_leaves_the_weights(split, batch):
    split.network.eval()
    features = split.prefix(batch[0])
    before = {name: p.detach().clone() for name, p in split.tuned.items()}
    still = split.tail_forward(features)
    moved = split.tail_forward(features, {n: torch.full_like(p, 0.1) for n, p in before.items()})
    assert not torch.allclose(still, moved)
    assert all(torch.equal(split.tuned[name], value) for name, value in before.items())
    with torch.no_grad():
        for p in split.tuned.values():
            p.add_(0.1)
    assert torch.equal(split.tail_forward(features), moved)


def test_a_copy_shares_nothing(split, batch):
    split.network.eval()
    other = copy.deepcopy(split)
    before = split.network(batch[0])
    with torch.no_grad():
        for weight in other.tuned.values():
            weight.zero_()
    assert torch.equal(split.network(batch[0]), before)
    tail_of_copy = other.tail_forward(other.prefix(batch[0]))
    assert torch.equal(other.network(batch[0]), tail_of_copy)
    assert not torch.equal(tail_of_copy, before)


def test_shortcut_convolutions_are_left_out():
    names = last_convolutions(resnet18_features(1, 4), 17)
    assert len(names) == 17
    assert not any("downsample" in name for name in names)


@pytest.mark.parametrize("count", [0, 18])
def test_wrong_number_of_convolutions(count):
    with pytest.raises(ValueError, match=f"count must be between 1 and 17.*count={count}"):
        last_convolutions(resnet18_features(1, 4), count)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "at least one layer"),
        (["layer9"], "must name modules of Sequential. Found 'layer9'"),
        (["relu"], "must have a weight to tune. Found 'relu'"),
    ],
)
def test_wrong_layers(layers, message):
    with pytest.raises(ValueError, match=message):
        split_network(resnet18_features(1, 4), layers)
