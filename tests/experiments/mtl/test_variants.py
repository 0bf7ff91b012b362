"""Variants of split networks: what is changed, for which tasks, and nothing else."""

import pickle

import pytest
import torch
from torch import nn

from experiments.models.resnet import resnet18_features
from experiments.mtl.network import MultiTaskNetwork
from experiments.mtl.variants import (
    BlockWithoutSkip,
    block_losing_skips,
    lose_skips,
)
from ktlib.mtl import layers_of, split

LAYERS = ["layer2.1.conv2", "layer3.0.conv1", "layer4.1.bn2"]


@pytest.fixture
def network(device):
    torch.manual_seed(0)
    trunk = split(resnet18_features(1, 2), LAYERS, ["digit", "item"], own_statistics=True)
    heads = {task: nn.Linear(trunk.trunk_of(task).feature_dim, 3) for task in trunk.tasks}
    return MultiTaskNetwork(trunk, heads).to(device)


@pytest.fixture
def images(device):
    torch.manual_seed(1)
    return torch.randn(4, 1, 16, 16).to(device)


@pytest.mark.parametrize(
    ("layers", "block"),
    [
        ([], None),
        (["conv1", "layer1.0.conv1"], None),  # in front of all blocks: everything is a task's own
        (["bn1", "layer4.1.conv2"], None),
        (["layer1.0.bn2"], "layer1.0"),
        (LAYERS, "layer2.1"),
        (["layer4.1.conv1", "layer2.0.conv1"], None),  # the first block has a projection
        (["layer3.0.downsample.0"], None),
        (["layer4.1.bn2"], "layer4.1"),
    ],
)
def test_the_first_split_layer_decides_which_block_loses_its_skip(layers, block):
    assert block_losing_skips(resnet18_features(1, 2), layers) == block


def test_the_last_25_layers_of_the_thesis_lose_one_and_the_first_25_none():
    trunk = resnet18_features(1, 2, embedding=5)
    names = list(layers_of(trunk))
    assert len(names) == 41
    assert block_losing_skips(trunk, names[-25:]) == "layer2.1"
    assert block_losing_skips(trunk, names[:25]) is None


def test_only_the_other_tasks_lose_it(network, images):
    network.eval()
    changed = lose_skips(network, "digit").eval()
    before, after = network(images), changed(images)
    torch.testing.assert_close(after["digit"], before["digit"])
    assert not torch.allclose(after["item"], before["item"], atol=1e-3)
    block = changed.trunk.trunk_of("item").layer2[1]
    assert type(changed.trunk.trunk_of("digit").layer2[1]) is type(
        network.trunk.trunk_of("item").layer2[1]
    )
    features = torch.rand(2, 4, 5, 5).to(images)
    whole = network.trunk.trunk_of("item").layer2[1]
    skipped = whole.bn2(whole.conv2(whole.relu(whole.bn1(whole.conv1(features)))))
    torch.testing.assert_close(block(features), skipped.relu())
    torch.testing.assert_close(whole(features), (skipped + features).relu())


def test_weights_sharing_and_layers_stay_as_they_were(network, images):
    changed = lose_skips(network, "digit")
    assert changed.trunk.layers == network.trunk.layers
    before, after = network.state_dict(), changed.state_dict()
    for name in before.keys() & after.keys():
        assert torch.equal(before[name], after[name])
    # Statistics in front of the split become a task's own, as each computes its whole trunk.
    assert all("running" in name or "batches" in name for name in before.keys() ^ after.keys())
    assert not set(changed.trunk.parameters()) & set(network.trunk.parameters())
    first, second = (changed.trunk.trunk_of(task) for task in ("digit", "item"))
    assert first.layer2[1].conv1 is second.layer2[1].conv1
    assert first.layer2[1].conv2 is not second.layer2[1].conv2
    again = pickle.loads(pickle.dumps(changed)).eval()  # noqa: S301
    assert isinstance(again.trunk.trunk_of("item").layer2[1], BlockWithoutSkip)
    torch.testing.assert_close(again(images)["item"], changed.eval()(images)["item"])


def test_bad_input_is_named(network):
    with pytest.raises(ValueError, match=r"keeps must be one of \['digit', 'item'\]. Found 'x'"):
        lose_skips(network, "x")
    whole = MultiTaskNetwork(resnet18_features(1, 2), {"digit": nn.Linear(16, 3)})
    with pytest.raises(ValueError, match="must have a trunk with task-specific layers"):
        lose_skips(whole, "digit")
    trunk = split(resnet18_features(1, 2), ["bn1"], ["digit", "item"])
    stem = MultiTaskNetwork(trunk, {task: nn.Linear(16, 3) for task in trunk.tasks})
    with pytest.raises(ValueError, match=r"must begin in a residual block .* Found 'bn1'"):
        lose_skips(stem, "digit")
