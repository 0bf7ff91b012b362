"""What is computed once for all tasks, and trunks of which that cannot be told."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ktlib.mtl import split
from tests.ktlib.mtl.trunks import (
    EXACT,
    LEFT_RIGHT,
    MATRIX,
    REFUSED,
    assert_same,
    loss_of,
    names,
    perturb,
    summed,
)

ROWS = [
    pytest.param(row, id=row.name, marks=[pytest.mark.slow] if row.slow else []) for row in MATRIX
]


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("checked", [False, True], ids=["", "example"])
@pytest.mark.parametrize("row", ROWS)
def test_every_trunk_is_split_exactly_or_kept_whole_with_the_reason(row, checked):
    if row.example_only and not checked:
        pytest.skip("what tracing cannot tell")
    outcome, says = row.split(checked)
    assert outcome == row.outcome
    assert re.search(row.says, says)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("row", ROWS)
def test_gradients_of_every_trunk_are_exact_or_refused(row):
    outcome, says = row.observe()
    assert outcome == (REFUSED if row.meter else EXACT)
    assert re.search(row.meter, says)


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


class WritesToItsInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.own = nn.Linear(3, 3)

    def forward(self, x):
        return self.own(x.mul_(2))


@pytest.mark.parametrize("share_prefix", [False, True])
def test_work_in_place_on_the_input_does_not_reach_the_next_task(share_prefix):
    network, x = WritesToItsInput(), torch.randn(4, 3)
    trunk = split(network, ["own"], names(3), share_prefix=share_prefix)
    expected = network(x.clone())
    assert_same(trunk(x), dict.fromkeys(trunk.tasks, expected))


class CalledTwice(nn.Module):
    """Its layers ``a`` and ``b`` are each called twice: a, b, a, b."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.last = (nn.Linear(3, 3) for _ in range(3))

    def forward(self, x):
        for _ in range(2):
            x = self.b(self.a(x).tanh()).tanh()
        return self.last(x)


@pytest.mark.parametrize("layers", [["a"], ["b"], ["b", "last"]])
def test_a_layer_that_is_called_twice_is_one_layer_in_both_places(layers):
    """A task's copy stands in both places; a shared one serves in front of the split and behind."""
    torch.manual_seed(0)
    network, x = CalledTwice().double(), torch.randn(4, 3, dtype=torch.float64)
    trunk = split(network, layers, names(3))
    assert trunk.shares_prefix
    perturb(trunk, trunk.tasks)
    views = [copy.deepcopy(trunk.trunk_of(task)) for task in trunk.tasks]
    features = trunk(x)
    summed(features).backward()
    for i, (view, value) in enumerate(zip(views, features.values(), strict=True)):
        torch.testing.assert_close(value, view(x))
        loss_of(view(x), i).backward()
    for name in "ab":
        theirs = [view.get_submodule(name).weight.grad for view in views]
        ours = [trunk.trunk_of(task).get_submodule(name).weight.grad for task in trunk.tasks]
        expected = theirs if name in layers else [sum(theirs)] * 3
        torch.testing.assert_close(ours, expected)
    assert len(trunk.task_parameters("task 0")) == 2 * len(layers)


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


def test_the_trunk_can_be_computed_whole_on_request():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    trunk = split(network, ["1"], names(3), share_prefix=False)
    once = split(network, ["1"], names(3))
    assert (trunk.shares_prefix, once.shares_prefix) == (False, True)
    assert trunk.state_dict().keys() == once.state_dict().keys()
    x = torch.randn(4, 2)
    assert_same(trunk(x), once(x), 1e-6)


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
