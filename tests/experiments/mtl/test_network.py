"""The interface of every multi-task network, and the plain one: a trunk and heads."""

import copy

import pytest
import torch
from torch import nn

from experiments.mtl.network import MultiTaskModule, MultiTaskNetwork, make_trunks
from ktlib.mtl import ConflictMeter, aggregator, apply_gradients, layers_of, split

TASKS = ("left", "right")


def trunk():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 4))


def heads(tasks=TASKS):
    return {task: nn.Linear(4, 2) for task in tasks}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def losses_of(outputs):
    return {task: (output - i).square().mean() for i, (task, output) in enumerate(outputs.items())}


def test_values_by_hand():
    """Trunk 2x, heads 3z and 5z + 1."""
    network = MultiTaskNetwork(
        nn.Linear(1, 1, bias=False), {"a": nn.Linear(1, 1, bias=False), "b": nn.Linear(1, 1)}
    )
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), (3.0, 5.0, 1.0, 2.0), strict=True):
            parameter.fill_(value)
    outputs = network(torch.tensor([[1.0]]))
    assert {task: output.item() for task, output in outputs.items()} == {"a": 6.0, "b": 11.0}
    assert list(network.shared_layers()) == [""]
    assert {task: len(own) for task, own in network.own_parameters().items()} == {"a": 1, "b": 2}


def test_an_unsplit_split_is_the_plain_network_to_the_bit():
    plain = MultiTaskNetwork(trunk(), heads())
    other = MultiTaskNetwork(split(plain.trunk, [], TASKS), copy.deepcopy(dict(plain.heads)))
    images = torch.randn(5, 3)
    for network in (plain, other):
        sum(losses_of(network(images)).values()).backward()
    for task, output in plain(images).items():
        assert torch.equal(output, other(images)[task])
    pairs = zip(plain.shared_layers().values(), other.shared_layers().values(), strict=True)
    for mine, theirs in pairs:
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("layers", [[], ["3"], ["0", "1", "3"]])
def test_every_parameter_is_shared_or_a_tasks_own(layers):
    network = MultiTaskNetwork(split(trunk(), layers, TASKS), heads())
    shared = [p for layer in network.shared_layers().values() for p in layer]
    own = [p for mine in network.own_parameters().values() for p in mine]
    listed = [id(p) for p in (*shared, *own)]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in network.parameters()}
    assert set(network.shared_layers()) == {"0", "1", "3"} - set(layers)
    assert "1" not in network.shared_layers(batch_norm=False)


@pytest.mark.parametrize("layers", [[], ["0"]])
def test_a_step_of_joint_training_by_meter_and_aggregator_is_backward_of_the_sum(layers):
    network = MultiTaskNetwork(split(trunk(), layers, TASKS), heads()).double()
    images = torch.randn(6, 3, dtype=torch.float64)
    sum(losses_of(network(images)).values()).backward()
    expected = {name: p.grad.clone() for name, p in network.named_parameters()}
    network.zero_grad()
    layers = network.shared_layers()
    meter = ConflictMeter(layers)
    gradients = meter.observe(losses_of(network(images)), task_parameters=network.own_parameters())
    apply_gradients(layers, gradients, aggregator("joint"))
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


def test_state_dict_goes_round():
    network = MultiTaskNetwork(split(trunk(), ["3"], TASKS), heads())
    other = MultiTaskNetwork(split(trunk(), ["3"], TASKS), heads())
    images = torch.randn(5, 3)
    network(images)  # running statistics
    other.load_state_dict(network.state_dict())
    for task, output in network.eval()(images).items():
        assert torch.equal(output, other.eval()(images)[task])


def test_one_task_is_a_single_task_network():
    network = MultiTaskNetwork(trunk(), heads(["only"]))
    images = torch.randn(4, 3)
    expected = network.heads["only"](network.trunk(images))
    assert torch.equal(network(images)["only"], expected)
    assert network.shared_layers().keys() == layers_of(network.trunk).keys()


def test_a_head_that_works_in_place_does_not_reach_the_next_one():
    mine = {task: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2)) for task in TASKS}
    mine["right"] = nn.Linear(4, 2)
    network = MultiTaskNetwork(trunk(), mine).eval()
    images = torch.randn(5, 3)
    expected = mine["right"](network.trunk(images))
    assert torch.equal(network(images)["right"], expected)


def one_for_two():
    head = nn.Linear(4, 2)
    return {"left": head, "right": nn.Sequential(head)}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (dict, ValueError, "at least one task. Found none"),
        (lambda: {"a.b": nn.Linear(4, 2)}, ValueError, "without dots .* Found 'a.b'"),
        (lambda: {"keys": nn.Linear(4, 2)}, ValueError, "Found 'keys'"),
        (lambda: {"training": nn.Linear(4, 2)}, ValueError, "Found 'training'"),
        (lambda: {"a": len}, TypeError, "head of task 'a' must be a module. Found builtin"),
        (one_for_two, ValueError, "one in those of 'left' and 'right': give each task a copy"),
        (lambda: heads(["left", "top"]), ValueError, r"trunk's tasks \['left', 'right'\]"),
    ],
)
def test_heads_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        MultiTaskNetwork(split(trunk(), ["0"], TASKS), make())


def test_a_head_inside_of_the_trunk_is_refused():
    shared = trunk()
    with pytest.raises(ValueError, match="head of task 'left' must not hold a part of the trunk"):
        MultiTaskNetwork(shared, {"left": shared[3]})


def test_the_interface_itself_is_no_network():
    with pytest.raises(TypeError, match="abstract"):
        MultiTaskModule(heads())


def test_trunks_of_a_factory_differ_and_a_factory_of_one_object_is_refused():
    first, second = make_trunks(trunk, 2)
    assert not torch.equal(first[0].weight, second[0].weight)
    same = trunk()
    with pytest.raises(ValueError, match="a new module at each call"):
        make_trunks(lambda: same, 2)
    sizes = iter((3, 4))
    with pytest.raises(ValueError, match="one architecture"):
        make_trunks(lambda: nn.Linear(next(sizes), 1), 2)
    with pytest.raises(TypeError, match="make_trunk must return a module. Found int"):
        make_trunks(lambda: 1, 2)
