"""Splitting a trunk: which layers are whose, what is computed once, and the two extremes."""

import copy
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import mobilenet_v2

from ktlib.models import resnet18_features
from ktlib.models.mtan import MTAN
from ktlib.models.segnet import SegNet
from ktlib.mtl import forward_flops, layers_of, parameter_megabytes, split
from tests.mtl.conftest import OwnModule

LEFT_RIGHT = ["left", "right"]


def names(count):
    return [f"task {i}" for i in range(count)]


TRUNKS = {
    "resnet18": (
        lambda: resnet18_features(1, 4),
        (1, 16, 16),
        ["layer1.1.conv2", "layer2.0.downsample.0", "layer3.0.bn1"],
    ),
    "mobilenet": (
        lambda: mobilenet_v2(width_mult=0.25).features,
        (3, 32, 32),
        ["3.conv.1.0", "3.conv.3", "17.conv.2"],
    ),
    "segnet": (lambda: SegNet(1, 2), (1, 32, 32), ["encoder.4.2.conv", "decoder.1.0.bn"]),
    "mtan": (lambda: MTAN(1, 2), (1, 32, 32), ["segnet.decoder.3.0.conv", "encoder_passes.1.bn"]),
    "own": (OwnModule, (1, 6, 6), ["left.1", ""]),
}


@pytest.fixture(params=TRUNKS)
def case(request, device):
    """A trunk, a batch for it and some layers that are not its first ones."""
    make, shape, layers = TRUNKS[request.param]
    torch.manual_seed(0)
    trunk = make().to(device)
    return trunk, torch.randn(6, *shape).to(device), layers


def loss_of(features, i):
    """A loss for task ``i``, different for every task."""
    flat = features.flatten(1)
    target = torch.linspace(-1 - i, 1 + 2 * i, flat.shape[1], device=flat.device)
    return (i + 1) * (flat - target).square().mean()


def summed(features):
    return sum(loss_of(value, i) for i, value in enumerate(features.values()))


def assert_same(ours, theirs, tolerance=0.0):
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=tolerance, atol=tolerance, msg=key)


def numbers(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def perturb(trunk, tasks):
    """Make every task's own layers differ from each other's."""
    with torch.no_grad():
        for i, task in enumerate(tasks):
            for p in trunk.task_parameters(task):
                p.mul_(1 + 0.1 * i).add_(0.01 * i)


# The two extremes.


@pytest.mark.parametrize("tasks", [2, 5])
def test_no_layers_is_the_shared_network_to_the_bit(case, tasks):
    network, images, _ = case
    trunk = split(network, [], names(tasks))
    features = trunk(images)
    summed(features).backward()
    shared = network(images)
    sum(loss_of(shared, i) for i in range(tasks)).backward()
    assert all(torch.equal(value, shared) for value in features.values())
    expected = {name: p.grad for name, p in network.named_parameters()}
    assert_same({n: p.grad for n, p in trunk.shared.named_parameters()}, expected)
    assert_same(numbers(trunk.shared), numbers(network))
    assert all(trunk.task_parameters(task) == [] for task in trunk.tasks)


@pytest.mark.parametrize("tasks", [2, 5])
def test_all_layers_are_independent_networks(case, tasks):
    network, images, _ = case
    trunk = split(network, layers_of(network), names(tasks))
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
        own = trunk.trunk_of(task).state_dict()
        # A buffer of a block without parameters stays shared.
        assert_same(own, one.state_dict())
    assert trunk.shared_parameters() == []


# In between: equal to running every task's whole trunk.


@pytest.mark.parametrize("own_statistics", [False, True])
def test_the_prefix_computed_once_changes_nothing(case, own_statistics):
    network, images, layers = case
    network.double()
    trunk = split(network, layers, names(3), own_statistics=own_statistics)
    assert trunk.shares_prefix
    perturb(trunk, trunk.tasks)
    views = {task: copy.deepcopy(trunk.trunk_of(task)) for task in trunk.tasks}
    for mode in (False, True):
        features = trunk.train(mode)(images.double())
        for task, view in views.items():
            alone = view.train(mode)(images.double())
            torch.testing.assert_close(features[task], alone, rtol=1e-12, atol=1e-12)
    summed(features).backward()
    expected = {}
    for i, view in enumerate(views.values()):
        view.zero_grad()
        loss_of(view(images.double()), i).backward()
    for name, own in layers_of(network).items():
        for kind in (n for n, p in network.named_parameters() if n.rpartition(".")[0] == name):
            gradients = [view.get_parameter(kind).grad for view in views.values()]
            ours = [trunk.trunk_of(task).get_parameter(kind).grad for task in trunk.tasks]
            expected = gradients if name in layers else [sum(gradients)] * len(ours)
            for mine, theirs in zip(ours, expected, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10, msg=kind)
        assert own


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


@pytest.mark.parametrize("tasks", [2, 3, 4, 5])
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


def by_hand():
    """y = 2 * relu(3 x), with both layers of one weight."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        network[0].weight.fill_(3.0)
        network[2].weight.fill_(2.0)
    return network


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


def test_counting_flops_leaves_the_network_as_it_is(case):
    network, images, layers = case
    trunk = split(network, layers, LEFT_RIGHT)
    before, state = numbers(trunk), torch.get_rng_state()
    assert forward_flops(trunk, images) > 0
    assert_same(numbers(trunk), before)
    assert trunk.training
    assert torch.equal(torch.get_rng_state(), state)


# Skip connections. In the released code only the first task received one.


def test_skip_connections_reach_every_task():
    network = resnet18_features(1, 4).eval()
    trunk = split(network, ["layer1.0.conv1"], names(3)).eval()
    for task in trunk.tasks:  # without its branch, the block is its skip connection
        nn.init.zeros_(trunk.trunk_of(task).layer1[0].conv1.weight)
    images = torch.randn(2, 1, 16, 16)
    nn.init.zeros_(network.layer1[0].conv1.weight)
    expected = network(images)
    assert expected.abs().sum() > 0
    assert_same(trunk(images), dict.fromkeys(trunk.tasks, expected))


def test_an_own_shortcut_does_not_change_what_the_next_task_adds_it_to():
    # `out += identity`, with `out` computed once: the tasks must not add to the same tensor.
    network = resnet18_features(1, 4).eval()
    trunk = split(network, ["layer2.0.downsample.1"], names(3)).eval()
    images = torch.randn(2, 1, 16, 16)
    assert_same(trunk(images), dict.fromkeys(trunk.tasks, network(images)))


class InPlace(nn.Module):
    """Every way of writing to a value that comes from before the split."""

    def __init__(self, write):
        super().__init__()
        self.first, self.own, self.write = nn.Linear(3, 3), nn.Linear(3, 3), write

    def forward(self, x):
        x = self.first(x)
        return self.write(x, self.own(x))


def _iadd(x, y):
    other = x
    x += y
    return x * other


@pytest.mark.parametrize(
    "write",
    [
        _iadd,
        lambda x, y: x.add_(y) * x,
        lambda x, y: F.leaky_relu(x, 0.1, inplace=True) + y,
        lambda x, y: F.elu(x.view(-1, 3), 1.0, True) + y,
        lambda x, y: torch.add(x, y, out=x.detach()) * x,
        nn.Hardswish(inplace=True).forward,
        lambda x, y: x,
    ],
)  # fmt: skip
def test_work_in_place_does_not_reach_the_next_task(write):
    torch.manual_seed(0)
    network = InPlace(write if not hasattr(write, "__self__") else lambda x, y: write(x) + y)
    with torch.no_grad():
        trunk = split(network, ["own"], names(3))
        x = torch.randn(4, 3)
        expected = network(x)
        features = trunk(x)
        assert_same(features, dict.fromkeys(trunk.tasks, expected))
        features["task 0"].zero_()
        assert torch.equal(features["task 1"], expected)


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
    x = torch.tensor([[1.0], [3.0]]).repeat(500, 1)
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


# Trunks that cannot be traced.


class Undecided(nn.Module):
    """What it does depends on the values."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.second(self.first(x)) if x.sum() > 0 else self.second(x)


class ByMode(Undecided):
    def forward(self, x):
        x = F.dropout(self.first(x), 0.5, training=self.training)
        return self.second(x)


class Noisy(Undecided):
    def forward(self, x):
        return self.second(self.first(x) + torch.randn(4))


class Plain(Undecided):
    def __init__(self):
        super().__init__()
        self.constant = torch.ones(4)

    def forward(self, x):
        return self.second(self.first(x) * self.constant)


@pytest.mark.parametrize("kind", [Undecided, ByMode, Noisy, Plain])
def test_what_cannot_be_traced_is_computed_whole_with_a_warning(kind):
    torch.manual_seed(0)
    network = kind()
    with pytest.warns(
        UserWarning, match=f"{kind.__name__} cannot be traced .*; every task"
    ) as told:
        trunk = split(network, ["second"], names(3))
    assert told[0].filename == __file__
    assert not trunk.shares_prefix
    x = torch.randn(5, 4)
    views = {task: copy.deepcopy(trunk.trunk_of(task)) for task in trunk.tasks}
    for mode in (False, True):
        torch.manual_seed(3)
        features = trunk.train(mode)(x)
        torch.manual_seed(3)
        assert_same(features, {task: view.train(mode)(x) for task, view in views.items()})
    duplicate = copy.deepcopy(trunk).eval()
    torch.manual_seed(4)
    expected = trunk.eval()(x)
    torch.manual_seed(4)
    assert_same(duplicate(x), expected)


def test_nothing_is_traced_where_nothing_is_split():
    trunk = split(Undecided(), [], LEFT_RIGHT)
    assert trunk(torch.randn(5, 4)).keys() == set(LEFT_RIGHT)


def test_the_trunk_can_be_computed_whole_on_request(case):
    network, images, layers = case
    trunk = split(network, layers, names(3), share_prefix=False)
    assert not trunk.shares_prefix
    once = split(network, layers, names(3))
    assert trunk.state_dict().keys() == once.state_dict().keys()
    assert forward_flops(trunk, images) == 3 * forward_flops(network, images)
    assert (
        forward_flops(network, images) < forward_flops(once, images) < forward_flops(trunk, images)
    )


class DropPath(nn.Module):
    """A layer of one's own without children, which no tracer has to understand."""

    def forward(self, x):
        return x * (torch.rand(()) < 0.5) if self.training else x


def test_modules_without_children_are_not_looked_into():
    network = nn.Sequential(nn.Linear(2, 2), DropPath(), nn.Linear(2, 2, bias=False))
    trunk = split(network, ["2"], LEFT_RIGHT)
    assert trunk.shares_prefix
    x = torch.ones(1, 2)
    results = [trunk(x) for _ in range(20)]
    assert {bool(value["left"].any()) for value in results} == {True, False}
    assert all(torch.equal(value["left"], value["right"]) for value in results)


def test_a_layer_inside_a_module_of_torch():
    torch.manual_seed(0)
    network = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    network = nn.Sequential(nn.Linear(4, 4), network, nn.Linear(4, 2))
    trunk = split(network, ["1.linear1", "1.self_attn"], LEFT_RIGHT)
    assert trunk.shares_prefix
    x = torch.randn(2, 3, 4)
    assert_same(trunk(x), dict.fromkeys(LEFT_RIGHT, network(x)))
    with torch.no_grad():
        trunk.own.get_submodule("right.1.linear1").weight.mul_(2)
    features = trunk(x)
    assert not torch.allclose(features["left"], features["right"])
    assert torch.equal(features["right"], trunk.trunk_of("right")(x))


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
