"""A trunk cut into blocks, and the network of a tree of blocks."""

import pytest
import torch
from torch import nn

from experiments.models.resnet import resnet18_features
from experiments.mtl.architectures import BranchedNetwork
from experiments.mtl.architectures.branched import split_into_blocks
from experiments.mtl.network import MultiTaskNetwork
from ktlib.mtl import layers_of, split

BLOCKS = ["layer1", "layer2.0", "layer4"]


def resnet():
    return resnet18_features(1, 2)


def line():
    """Four blocks of 2, 2, 6 and 3 parameters; the first linear layer is in front of them."""
    return nn.Sequential(
        nn.Linear(1, 1), nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1), nn.Linear(1, 3),
        nn.Linear(3, 1, bias=False),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# Cutting a trunk.


def test_a_trunk_is_cut_into_parts_that_compute_it_under_its_names():
    trunk = resnet().eval()
    stem, blocks = split_into_blocks(trunk, BLOCKS)
    assert list(blocks) == BLOCKS
    assert list(layers_of(stem)) == ["conv1", "bn1"]
    assert [name for part in (stem, *blocks.values()) for name in layers_of(part)] == list(
        layers_of(trunk)
    )
    assert "layer2.1.conv1" in layers_of(blocks["layer2.0"])
    assert "layer3.1.bn2" in layers_of(blocks["layer2.0"])
    batch = torch.randn(2, 1, 8, 8)
    value = stem(batch)
    for part in blocks.values():
        value = part(value)
    assert torch.equal(value, trunk(batch))


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (["layer9"], r"modules of the trunk, such as \['conv1', .* Found 'layer9'"),
        (["layer2", "layer1"], "in the order of the trunk"),
        (["layer2", "layer2.0"], "begin at different modules"),
        ([], r"at least one.* Found \[\]"),
    ],
)
def test_cuts_are_refused(blocks, message):
    with pytest.raises(ValueError, match=message):
        split_into_blocks(resnet(), blocks)


def test_only_a_chain_is_split_into_blocks():
    with pytest.raises(TypeError, match="must be an nn.Sequential. Found a Linear"):
        split_into_blocks(nn.Linear(1, 1), ["x"])


# The network of a tree.


def step(network, batch):
    outputs = network(batch)
    sum((i + 1) * o.square().sum() for i, o in enumerate(outputs.values())).backward()
    return outputs


@pytest.mark.parametrize("part_at", range(4))
def test_of_two_tasks_it_is_the_split_behind_the_branching(part_at):
    trunk = resnet().double()
    tasks = ["left", "right"]
    tree = {
        block: [tasks] if i < part_at else [[task] for task in tasks]
        for i, block in enumerate(BLOCKS)
    }
    heads = {task: nn.Linear(16, 2).double() for task in tasks}
    behind = [
        name for b in BLOCKS[part_at:] for name in layers_of(split_into_blocks(trunk, BLOCKS)[1][b])
    ]
    other = MultiTaskNetwork(split(trunk, behind, tasks), heads)
    branched = BranchedNetwork(trunk, tree, heads)
    batch = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    outputs, expected = step(branched, batch), step(other, batch)
    for task in tasks:
        assert torch.equal(outputs[task], expected[task])
        mine, theirs = branched.own_parameters()[task], other.own_parameters()[task]
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a.grad, b.grad)
    shared = {name.partition(".")[2]: own for name, own in branched.shared_layers().items()}
    assert shared.keys() == other.shared_layers().keys()
    for name, own in other.shared_layers().items():
        for a, b in zip(shared[name], own, strict=True):
            torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_groups_part_one_after_the_other():
    tree = {"1": ["abc"], "3": ["ac", "b"], "5": ["a", "b", "c"]}
    heads = {task: nn.Identity() for task in "abc"}
    network = BranchedNetwork(line(), tree, heads)
    calls = []
    for name, part in network.named_modules():
        if isinstance(part, nn.Linear):
            part.register_forward_hook(lambda *_, name=name: calls.append(name))
    network(torch.ones(2, 1))
    assert sorted(calls) == [
        "parts.0.a+b+c.0",
        "parts.1.a+b+c.1",
        *("parts.2.a+c.3", "parts.2.a+c.4", "parts.2.b.3", "parts.2.b.4"),
        *("parts.3.a.5", "parts.3.b.5", "parts.3.c.5"),
    ]
    assert list(network.shared_layers()) == ["a+b+c.0", "a+b+c.1", "a+c.3", "a+c.4"]
    sizes = {task: sum(p.numel() for p in own) for task, own in network.own_parameters().items()}
    assert sizes == {"a": 3, "b": 2 + 6 + 3, "c": 3}


def test_own_layers_in_a_shared_block_are_trained_by_their_task_alone():
    tasks = ["left", "right"]
    heads = {task: nn.Identity() for task in tasks}
    tree = {"1": [tasks], "4": [tasks], "5": [["left"], ["right"]]}
    network = BranchedNetwork(line(), tree, heads, layers=["1"])
    plain = BranchedNetwork(line(), tree, heads)
    plain.load_state_dict({
        name: network.state_dict()[name.replace("1.left+right.1.", "1.left+right.own.left.1.")
            .replace("1.left+right.3.", "1.left+right.shared.3.")]
        for name in plain.state_dict()
    })  # fmt: skip
    batch = torch.randn(3, 1)
    assert torch.equal(network(batch)["right"], plain(batch)["right"])
    assert list(network.shared_layers()) == [f"left+right.{i}" for i in (0, 3, 4)]
    network(batch)["left"].sum().backward()
    left, right = (network.own_parameters()[task] for task in tasks)
    assert all(p.grad is not None for p in left)
    assert all(p.grad is None for p in right)


def test_a_block_that_works_in_place_does_not_reach_the_other_branch():
    trunk = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True), nn.Linear(2, 2))
    tree = {"1": [["a"], ["b"]]}
    network = BranchedNetwork(trunk, tree, {task: nn.Identity() for task in "ab"})
    with torch.no_grad():
        network.parts[1]["a"][0] = nn.Threshold(10.0, 7.0, inplace=True)
        batch = torch.randn(3, 2)
        assert torch.equal(network(batch)["b"], trunk(batch))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"1": [["a"]]},
            r"block '1' must be of each of the tasks \['a', 'b'\] once. Found \[\['a'",
        ),
        ({"1": [["a", "b"], ["b"]]}, "once"),
        ({"1": [["a"], ["b"]], "3": [["a", "b"]]}, r"parted. Found \['a', 'b'\] at block '3'"),
        ({"9": [["a", "b"]]}, "Found '9'"),
        ({}, "at least one"),
    ],
)
def test_trees_are_refused(tree, message):
    with pytest.raises(ValueError, match=message):
        BranchedNetwork(line(), tree, {task: nn.Identity() for task in "ab"})


def test_a_task_whose_name_could_be_a_groups_is_refused():
    with pytest.raises(ValueError, match=r"without a '\+'. Found 'a\+b'"):
        BranchedNetwork(line(), {}, {"a+b": nn.Identity()})
