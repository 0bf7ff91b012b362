import copy
import types
import warnings

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2, resnet50

from experiments.models.resnet import resnet18_features
from ktlib.fcl import flatness, last_convolutions, split_network
from tests.ktlib.mtl.trunks import EXACT, MATRIX, REFUSED


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


# The same trunks as those of several tasks: exact, or whole with the reason.
ROWS = [row for row in MATRIX if row.outcome != REFUSED and len(row.inputs) == 1 and not row.slow]


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_network_is_split_exactly_or_kept_whole_with_the_reason(row):
    network, (x,) = row.made()
    layers = [name for name in row.layers if name not in ("", "cell")] or ["c"]
    state, before = torch.get_rng_state(), copy.deepcopy(network.state_dict())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        split = split_network(network, layers, example=x)
    told = [str(w.message) for w in told if issubclass(w.category, UserWarning)]
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    # No fault here: a view written across the split, as the draws share one value alone, and
    # whatever stands behind the first of the layers where nothing is in front of it.
    nothing = isinstance(split.prefix, nn.Identity)
    assert split.shares_prefix == (row.outcome == EXACT) or "view" in row.says or nothing
    for mode in (False, True):  # made in one mode, used in another
        network.train(mode)
        torch.manual_seed(3)
        whole = copy.deepcopy(network)
        expected = whole(x.clone())
        expected.square().sum().backward()
        network.zero_grad()
        torch.manual_seed(3)
        features = split.prefix(x)
        noise = {name: torch.zeros_like(p) for name, p in split.tuned.items()}
        found = split.tail_forward(features, noise)
        torch.testing.assert_close(found, expected)
        if not row.random or not mode:
            assert torch.equal(split.tail_forward(features, noise), found)
        found.square().sum().backward()
        for (name, p), other in zip(network.named_parameters(), whole.parameters(), strict=True):
            if not row.random or not mode:
                torch.testing.assert_close(p.grad, other.grad, msg=name)


@pytest.mark.parametrize(
    "row", [row for row in ROWS if "place" in row.name or "dropout" in row.name],
    ids=lambda row: row.name,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Trunk cannot be traced")
def test_a_box_of_width_zero_is_flat(row):
    network, (x,) = row.made()
    split = split_network(network, ["c"])
    found = flatness(
        split, nn.Linear(6, 3).double(), x, torch.arange(len(x)) % 3, bound=0.0, draws=5,
        generator=torch.Generator(),
    )  # fmt: skip
    assert found.indicator == 0


class Leaky(nn.Module):
    """Works in place, behind the cut, on the value that is handed on."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        x = self.a(x)
        y = nn.functional.leaky_relu(x, 0.2, inplace=True)
        return self.c(self.b(y) + x)


def test_work_in_place_behind_the_cut_spoils_no_features_of_the_next_draw():
    network, x = Leaky(), torch.randn(5, 6)
    split = split_network(network, ["b"])
    features = split.prefix(x)
    assert len(list(split.prefix.parameters())) == 2
    for _ in range(2):
        torch.testing.assert_close(split.tail_forward(features), network(x))


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


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.shortcut, self.two = (nn.Conv2d(2, 2, k) for k in (1, 1, 3))

    def forward(self, x):
        return self.one(x) if x.sum() > 0 else self.two(x)


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (resnet50, 49),
        (mobilenet_v2, 52),
        (lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3)), 2),
        (Untraceable, 2),
    ],
)
def test_only_shortcuts_are_left_out_of_the_narrow_convolutions(make, count):
    network = make()
    names = last_convolutions(network, count)
    every = [name for name, part in network.named_modules() if isinstance(part, nn.Conv2d)]
    assert names == [n for n in every if "downsample" not in n and "shortcut" not in n]
    with pytest.raises(ValueError, match=f"between 1 and {count}"):
        last_convolutions(network, count + 1)


def test_a_layer_that_is_not_used_is_refused():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network.spare = nn.Linear(2, 2)
    network.forward = types.MethodType(lambda self, x: self[1](self[0](x)), network)
    with pytest.raises(ValueError, match="Found 'spare', unused"):
        split_network(network, ["spare"])


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
