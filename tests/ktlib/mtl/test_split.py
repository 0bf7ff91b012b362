"""Splitting a trunk: which layers are whose, the two extremes, statistics, copies and states."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2

from experiments.models.mtan import MTAN
from experiments.models.resnet import resnet18_features
from experiments.models.segnet import SegNet
from ktlib.mtl import layers_of, parameter_megabytes, split
from tests.ktlib.mtl.conftest import OwnModule
from tests.ktlib.mtl.trunks import (
    LEFT_RIGHT,
    assert_same,
    by_hand,
    loss_of,
    names,
    numbers,
    perturb,
    small_resnet,
    summed,
)

# A trunk, the shape of its images and some layers that are not its first ones.
SMALL = {
    "resnet": (small_resnet, (1, 6, 6), ["layer1.conv2", "layer2.downsample.0", "layer2.bn1"]),
    "own": (OwnModule, (1, 6, 6), ["left.1", ""]),
}
# Those of the book: at 32 pixels SegNet and MTAN are left with one pixel in the middle.
BACKBONES = {
    "resnet18": (lambda: resnet18_features(1, 2), (1, 16, 16), ["layer1.1.conv2", "layer3.0.bn1"]),
    "mobilenet": (
        lambda: mobilenet_v2(width_mult=0.1).features,
        (3, 32, 32),
        ["3.conv.1.0", "3.conv.3", "17.conv.2"],
    ),
    "segnet": (lambda: SegNet(1, 1), (1, 32, 32), ["encoder.4.2.conv", "decoder.1.0.bn"]),
    "mtan": (lambda: MTAN(1, 1), (1, 32, 32), ["segnet.decoder.3.0.conv", "encoder_passes.1.bn"]),
}


def made(kind, device, batch=4):
    make, shape, layers = (SMALL | BACKBONES)[kind]
    torch.manual_seed(0)
    trunk = make().to(device)
    return trunk, torch.randn(batch, *shape).to(device), layers


@pytest.fixture(params=SMALL)
def case(request, device):
    return made(request.param, device)


@pytest.fixture
def residual(device):
    return made("resnet", device)


# The two extremes.


def test_no_layers_is_the_shared_network_to_the_bit(case):
    network, images, _ = case
    trunk = split(network, [], names(3))
    features = trunk(images)
    summed(features).backward()
    shared = network(images)
    sum(loss_of(shared, i) for i in range(3)).backward()
    assert all(torch.equal(value, shared) for value in features.values())
    expected = {name: p.grad for name, p in network.named_parameters()}
    assert_same({n: p.grad for n, p in trunk.shared.named_parameters()}, expected)
    assert_same(numbers(trunk.shared), numbers(network))
    assert all(trunk.task_parameters(task) == [] for task in trunk.tasks)


def test_all_layers_are_independent_networks(case):
    network, images, _ = case
    trunk = split(network, layers_of(network), names(3))
    alone = [copy.deepcopy(network) for _ in trunk.tasks]
    ours = torch.optim.SGD(trunk.parameters(), lr=0.01)
    theirs = [torch.optim.SGD(one.parameters(), lr=0.01) for one in alone]
    for _ in range(2):
        ours.zero_grad()
        summed(trunk(images)).backward()
        ours.step()
        for i, (one, optimiser) in enumerate(zip(alone, theirs, strict=True)):
            optimiser.zero_grad()
            loss_of(one(images), i).backward()
            optimiser.step()
    for task, one in zip(trunk.tasks, alone, strict=True):
        assert_same(trunk.trunk_of(task).state_dict(), one.state_dict())
    assert trunk.shared_parameters() == []


# In between: equal to running every task's whole trunk.


@pytest.mark.parametrize(
    ("kind", "own_statistics"),
    [(kind, False) for kind in (*SMALL, *BACKBONES)] + [(kind, True) for kind in SMALL],
)
def test_the_prefix_computed_once_changes_nothing(kind, own_statistics, device):
    """Values, statistics and gradients are those of running every task's whole trunk."""
    network, images, layers = made(kind, device)
    network, images = network.double(), images.double()
    trunk = split(network, layers, names(3), own_statistics=own_statistics)
    assert trunk.shares_prefix
    perturb(trunk, trunk.tasks)
    views = {task: copy.deepcopy(trunk.trunk_of(task)) for task in trunk.tasks}
    features = trunk(images)
    summed(features).backward()
    for i, (task, view) in enumerate(views.items()):
        alone = view(images)
        torch.testing.assert_close(features[task], alone, rtol=1e-12, atol=1e-12)
        loss_of(alone, i).backward()
    for kind, _ in network.named_parameters():
        theirs = [view.get_parameter(kind).grad for view in views.values()]
        ours = [trunk.trunk_of(task).get_parameter(kind).grad for task in trunk.tasks]
        shared = kind.rpartition(".")[0] not in layers
        expected = [sum(theirs)] * len(ours) if shared else theirs
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10, msg=kind)
    first, *others = features.values()
    assert not any(torch.equal(first, other) for other in others)
    if own_statistics:  # also in evaluation mode, as every task has its own running statistics
        for task, view in views.items():
            assert_same(trunk.trunk_of(task).state_dict(), view.state_dict(), 1e-12)


def test_what_comes_before_is_computed_once_and_the_rest_once_per_task(case):
    network, images, layers = case
    trunk = split(network, layers, names(4))
    calls = dict.fromkeys(layers_of(network), 0)

    def count(name):
        def hook(*_):
            calls[name] += 1

        return hook

    seen = set()
    for task in trunk.tasks:
        for name, part in trunk.trunk_of(task).named_modules():
            if name in calls and part not in seen:
                part.register_forward_hook(count(name))
                seen.add(part)
    trunk(images)
    calls.pop("", None)  # the block itself is not called, its steps are
    order = [name for name in calls if name not in layers]
    assert set(calls.values()) == {1, 4}
    assert all(calls[name] == 4 for name in layers if name)
    assert calls[order[0]] == 1


def test_shared_layers_are_the_same_objects_and_own_ones_are_not(case):
    network, _, layers = case
    trunk = split(network, layers, names(3))
    views = [trunk.trunk_of(task) for task in trunk.tasks]
    for name in filter(None, layers_of(network)):
        objects = {id(view.get_submodule(name)) for view in views}
        assert len(objects) == (3 if name in layers else 1), name
        for kind, p in network.get_submodule(name).named_parameters(recurse=False):
            copies = [getattr(view.get_submodule(name), kind) for view in views]
            assert all(torch.equal(own, p) and own is not p for own in copies)
            assert len({id(own) for own in copies}) == len(objects)
    assert all(type(view) is type(network) for view in views)


@pytest.mark.parametrize("tasks", [2, 5])
def test_every_parameter_is_listed_once_and_belongs_to_one(case, tasks):
    network, _, layers = case
    trunk = split(network, layers, names(tasks))
    sizes = {name: sum(p.numel() for p in own) for name, own in layers_of(network).items()}
    own = sum(sizes[name] for name in layers)
    total = sum(sizes.values()) + (tasks - 1) * own
    assert sum(p.numel() for p in trunk.parameters()) == total
    groups = [trunk.shared_parameters(), *(trunk.task_parameters(t) for t in trunk.tasks)]
    together = [id(p) for group in groups for p in group]
    assert len(together) == len(set(together))
    assert set(together) == {id(p) for p in trunk.parameters()}
    assert all(sum(p.numel() for p in group) == own for group in groups[1:])
    assert trunk.shared_layers().keys() == sizes.keys() - set(layers)
    assert parameter_megabytes(trunk) == total * 4 / 2**20


# By hand.


def test_values_and_gradients_by_hand():
    trunk = split(by_hand(), ["2"], LEFT_RIGHT)
    with torch.no_grad():
        trunk.task_parameters("right")[0].fill_(5.0)
    features = trunk(torch.tensor([[1.0]]))
    assert {task: value.item() for task, value in features.items()} == {"left": 6, "right": 15}
    (features["left"] + 10 * features["right"]).sum().backward()
    assert trunk.shared_parameters()[0].grad.item() == 2 + 10 * 5
    assert trunk.task_parameters("left")[0].grad.item() == 3
    assert trunk.task_parameters("right")[0].grad.item() == 30
    assert list(trunk.state_dict()) == [
        "shared.0.weight",
        "own.left.2.weight",
        "own.right.2.weight",
    ]
    assert parameter_megabytes(trunk) == 3 * 4 / 2**20


# Skip connections. In the released code only the first task received one.


def test_skip_connections_reach_every_task(residual):
    """Without its branch a block is its skip connection: here those of all tasks lack it."""
    network, images, _ = residual
    trunk = split(network.eval(), ["layer1.conv1"], names(3)).eval()
    for task in trunk.tasks:
        nn.init.zeros_(trunk.trunk_of(task).layer1.conv1.weight)
    nn.init.zeros_(network.layer1.conv1.weight)
    expected = network(images)
    assert expected.abs().sum() > 0
    assert_same(trunk(images), dict.fromkeys(trunk.tasks, expected))


def test_an_own_shortcut_does_not_change_what_the_next_task_adds_it_to(residual):
    # `out += identity`, with `out` computed once: the tasks must not add to the same tensor.
    network, images, _ = residual
    trunk = split(network.eval(), ["layer2.downsample.1"], names(3)).eval()
    assert_same(trunk(images), dict.fromkeys(trunk.tasks, network(images)))


# Running statistics.


def norm_after_own():
    """An own linear layer (1 or 3 times x) in front of a shared batch norm."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    trunk = {}
    for own in (False, True):
        trunk[own] = split(network, ["0"], LEFT_RIGHT, own_statistics=own)
        for task, value in zip(LEFT_RIGHT, (1.0, 3.0), strict=True):
            nn.init.constant_(trunk[own].task_parameters(task)[0], value)
    return trunk


def test_statistics_behind_the_split_by_hand():
    x = torch.tensor([[1.0], [3.0]])  # means of the tasks: 2 and 6
    trunk = norm_after_own()
    shared, own = trunk[False], trunk[True]
    for one in (shared, own):
        one(x)
    norms = [own.trunk_of(task)[1] for task in LEFT_RIGHT]
    assert [norm.running_mean.item() for norm in norms] == pytest.approx([0.1 * 2, 0.1 * 6])
    norm = shared.trunk_of("left")[1]
    assert norm is shared.trunk_of("right")[1]
    assert norm.running_mean.item() == pytest.approx(0.9 * 0.1 * 2 + 0.1 * 6)
    assert (norm.num_batches_tracked, norms[0].num_batches_tracked) == (2, 1)
    assert norms[0].weight is norms[1].weight
    assert len(own.shared_parameters()) == len(shared.shared_parameters()) == 2
    assert list(own.shared_layers(batch_norm=False)) == []
    assert "own.left.1.running_mean" in own.state_dict()
    assert "shared.1.running_mean" in shared.state_dict()


def test_only_own_statistics_give_in_evaluation_what_training_gave():
    x = torch.tensor([[1.0], [3.0]]).repeat(100, 1)
    for own, trunk in norm_after_own().items():
        for _ in range(200):
            trained = trunk(x)
        evaluated = trunk.eval()(x)
        same = [torch.allclose(trained[t], evaluated[t], atol=1e-2) for t in LEFT_RIGHT]
        assert same == ([True, True] if own else [False, False])


def test_statistics_in_front_of_the_split_are_updated_once():
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    for own in (False, True):
        trunk = split(network, ["1"], names(3), own_statistics=own)
        trunk(torch.randn(5, 2))
        views = [trunk.trunk_of(task) for task in trunk.tasks]
        assert len({id(view[0]) for view in views}) == 1
        assert views[0][0].num_batches_tracked == 1
        assert [int(view[2].num_batches_tracked) for view in views] == ([1] * 3 if own else [3] * 3)


class NormTwice(nn.Module):
    """One batch norm in front of the split and behind it."""

    def __init__(self):
        super().__init__()
        self.first, self.own = nn.Linear(2, 2), nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x):
        return self.norm(self.own(self.norm(self.first(x))))


@pytest.mark.parametrize("share_prefix", [False, True])
def test_a_norm_on_both_sides_of_the_split_has_own_statistics_of_both_calls(share_prefix):
    torch.manual_seed(0)
    network, x = NormTwice(), torch.randn(5, 2)
    trunk = split(network, ["own"], names(3), share_prefix=share_prefix, own_statistics=True)
    perturb(trunk, trunk.tasks)
    views = {task: copy.deepcopy(trunk.trunk_of(task)) for task in trunk.tasks}
    features = trunk(x)
    assert_same(features, {task: view(x) for task, view in views.items()}, 1e-6)
    for task, view in views.items():
        assert_same(trunk.trunk_of(task).state_dict(), view.state_dict(), 1e-6)
        assert trunk.trunk_of(task).norm.num_batches_tracked == 2
    assert trunk.shared_parameters()[0] is trunk.trunk_of("task 0").first.weight
    assert len(trunk.shared_parameters()) == 4


# Modes, copies, states.


def test_modes_reach_every_part(case):
    network, images, layers = case
    trunk = split(network.eval(), layers, LEFT_RIGHT)
    assert not trunk.training
    parts = [m for task in LEFT_RIGHT for m in trunk.trunk_of(task).modules()]
    assert not any(part.training for part in parts)
    before = numbers(trunk)
    expected = network(images)
    for value in trunk(images).values():
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    assert_same(numbers(trunk), before)
    trunk.train()
    assert all(part.training for part in parts)
    trunk(images)
    assert any(not torch.equal(value, before[name]) for name, value in numbers(trunk).items())


@pytest.mark.parametrize("own_statistics", [False, True])
def test_states_load_into_a_fresh_split(case, own_statistics):
    network, images, layers = case
    trunk = split(network, layers, LEFT_RIGHT, own_statistics=own_statistics)
    perturb(trunk, LEFT_RIGHT)
    trunk(images)
    for p in trunk.shared_parameters():
        nn.init.normal_(p)
    state = numbers(trunk)
    fresh = split(network, layers, LEFT_RIGHT, own_statistics=own_statistics)
    fresh.load_state_dict(state)
    assert_same(fresh.state_dict(), state)
    assert_same(fresh.eval()(images), trunk.eval()(images))
    assigned = split(network, layers, LEFT_RIGHT, own_statistics=own_statistics).eval()
    assigned.load_state_dict(state, assign=True)
    assert_same(assigned(images), trunk(images))
    # Each tensor has one name.
    pointers = [value.data_ptr() for value in trunk.state_dict().values() if value.numel()]
    assert len(pointers) == len(set(pointers))


def through_pickle(trunk):
    return pickle.loads(pickle.dumps(trunk))  # noqa: S301 - made here


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle])
def test_a_copy_is_the_same_and_shares_nothing(case, duplicate):
    network, images, layers = case
    trunk = split(network, layers, LEFT_RIGHT, own_statistics=True)
    perturb(trunk, LEFT_RIGHT)
    other = duplicate(trunk)
    assert_same(other.eval()(images), trunk.eval()(images))
    assert len(list(other.parameters())) == len(list(trunk.parameters()))
    before = trunk(images)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert_same(trunk(images), before)
    views = [other.trunk_of(task) for task in LEFT_RIGHT]
    assert all(not p.any() for view in views for p in view.parameters())


def test_the_trunk_is_left_alone(case):
    network, images, layers = case
    before, random = numbers(network), torch.get_rng_state()
    trunk = split(network, layers, LEFT_RIGHT)
    assert torch.equal(torch.get_rng_state(), random)
    torch.optim.SGD(trunk.parameters(), lr=1.0).zero_grad()
    summed(trunk(images)).backward()
    with torch.no_grad():
        for p in trunk.parameters():
            p.zero_()
    assert_same(numbers(network), before)
    assert all(p.grad is None for p in network.parameters())


def test_conversions_reach_every_part(case):
    network, images, layers = case
    trunk = split(network, layers, LEFT_RIGHT, own_statistics=True).double().eval()
    features = trunk(images.double())
    assert all(value.dtype == torch.float64 for value in features.values())
    for task in LEFT_RIGHT:
        view = trunk.trunk_of(task)
        floats = [v for v in view.state_dict().values() if v.is_floating_point()]
        assert all(value.dtype == torch.float64 for value in floats)
        torch.testing.assert_close(view(images.double()), features[task], rtol=1e-9, atol=1e-9)


def test_frozen_parameters_stay_frozen_in_every_copy():
    network = by_hand()
    network[0].requires_grad_(False)
    network[2].bias = nn.Parameter(torch.zeros(1), requires_grad=False)
    trunk = split(network, ["2"], LEFT_RIGHT)
    assert trunk.shared_layers() == {}
    assert [p.requires_grad for p in trunk.shared_parameters()] == [False]
    for task in LEFT_RIGHT:
        assert [p.requires_grad for p in trunk.task_parameters(task)] == [True, False]
    with pytest.raises(ValueError, match="Found '0' .Linear.; all its parameters are frozen"):
        split(network, ["0"], LEFT_RIGHT)


# Errors.


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], "tasks must be a list of at least one name. Found tasks=[]."),
        ("depth", "tasks must be a list of at least one name. Found tasks='depth'."),
        (["a", "b", "a"], "tasks must have different names. Found 'a' twice."),
        (["a.b"], "names without dots that nn.Module does not use itself. Found 'a.b'."),
        ([""], "Found ''."),
        (["half"], "Found 'half'."),
        (["training"], "Found 'training'."),
        ([1], "Found 1."),
    ],
)
def test_wrong_tasks(tasks, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        split(by_hand(), ["2"], tasks)


def test_wrong_layers_and_unknown_tasks():
    with pytest.raises(
        ValueError, match="layers must name layers of Sequential. Found '3'; did you"
    ):
        split(by_hand(), ["3"], LEFT_RIGHT)
    trunk = split(by_hand(), ["2"], LEFT_RIGHT)
    for ask in (trunk.trunk_of, trunk.task_parameters):
        with pytest.raises(
            ValueError, match=re.escape("one of ['left', 'right']. Found task='up'")
        ):
            ask("up")


def test_one_module_under_two_names_is_refused():
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="one Linear under the names '0' and '2'"):
        split(nn.Sequential(layer, nn.ReLU(), layer), ["2"], LEFT_RIGHT)
