"""One set of running statistics beside those of each task: as if the network had kept it."""

import pickle

import pytest
import torch
from torch import nn

from experiments.models.resnet import resnet18_features
from experiments.mtl.network import MultiTaskNetwork
from experiments.mtl.statistics import MixedStatistics
from ktlib.mtl import split

LAYERS = ["layer2.1.conv2", "layer3.0.conv1", "layer4.1.bn2"]
TASKS = ["digit", "item", "colour"]


def network(*, own_statistics, layers=LAYERS):
    torch.manual_seed(0)
    trunk = split(resnet18_features(1, 2), layers, TASKS, own_statistics=own_statistics)
    return MultiTaskNetwork(trunk, {task: nn.Linear(16, 3) for task in TASKS})


def trained(steps=4, **options):
    """Some steps of joint training, followed by a MixedStatistics."""
    made = network(**options)
    optimizer, mixed = torch.optim.SGD(made.parameters(), lr=0.1), MixedStatistics(made)
    torch.manual_seed(1)
    for _ in range(steps):
        outputs = made(torch.randn(6, 1, 16, 16))
        mixed.update()
        optimizer.zero_grad()
        losses = [(i + 1) * out.square().mean() for i, out in enumerate(outputs.values())]
        torch.stack(losses).sum().backward()
        optimizer.step()
    return made.eval(), mixed


@pytest.fixture
def images():
    torch.manual_seed(2)
    return torch.randn(4, 1, 16, 16)


def test_it_is_the_set_that_the_published_network_keeps(images):
    """Trained apart: the same weights, and inside the block the same outputs."""
    (published, nothing), (own, mixed) = trained(own_statistics=False), trained(own_statistics=True)
    assert not nothing.norms
    # Behind layer2.1.conv2: its own norm, two in each of the blocks after it but the split one,
    # two projections.
    assert len(mixed.norms) == 1 + 2 * 4 - 1 + 2
    expected, before = published(images), own(images)
    with mixed.applied():
        within = own(images)
    after = own(images)
    for task in TASKS:
        torch.testing.assert_close(within[task], expected[task], rtol=1e-4, atol=1e-5)
        assert torch.equal(before[task], after[task])
    assert (before["item"] - expected["item"]).abs().max() > 1e-3


def test_own_statistics_come_back_after_an_error(images):
    own, mixed = trained(own_statistics=True)
    before = own(images)["digit"]
    with pytest.raises(KeyError), mixed.applied():
        raise KeyError
    assert torch.equal(own(images)["digit"], before)


def test_it_survives_being_pickled_with_its_network(images):
    both = trained(own_statistics=True)
    own, mixed = pickle.loads(pickle.dumps(both))  # noqa: S301
    with both[1].applied():
        expected = both[0](images)["item"]
    with mixed.applied():
        assert torch.equal(own(images)["item"], expected)


def test_without_a_split_there_is_nothing_to_mix(images):
    whole, mixed = trained(own_statistics=True, layers=[])
    with mixed.applied():
        within = whole(images)["item"]
    assert torch.equal(whole(images)["item"], within)
    assert mixed.norms == []
