"""What all architectures promise, and MMoE and Cross-Stitch in particular."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from experiments.models.resnet import resnet18_features
from experiments.models.segnet import SegNet
from experiments.mtl.architectures import BMTAS, BranchedNetwork, CrossStitch, MMoE, stops_of_segnet
from experiments.mtl.network import MultiTaskModule, MultiTaskNetwork
from ktlib.mtl import ConflictMeter, aggregator, apply_gradients, forward_flops

TASKS = ("left", "right")
BLOCKS = ["layer1", "layer2.0", "layer4"]
TREE = {
    "layer1": [["left", "right"]],
    "layer2.0": [["left", "right"]],
    "layer4": [["left"], ["right"]],
}
STAGES = ["layer1", "layer2", "layer3"]


def resnet():
    return resnet18_features(1, 2)


def heads(tasks=TASKS, width=16, classes=3):
    return {task: nn.Linear(width, classes) for task in tasks}


def images(count=4):
    return torch.randn(count, 1, 8, 8)


def searching():
    network = BMTAS(
        resnet,
        heads(),
        blocks=BLOCKS,
        example=images(1),
        generator=torch.Generator().manual_seed(0),
    )
    network.anneal(10, 10)
    return network


ARCHITECTURES = {
    "mmoe": lambda: MMoE(resnet, heads()),
    "mmoe with recon": lambda: MMoE(resnet, heads(), layers=["conv1", "layer2.0.bn1"]),
    "cross-stitch": lambda: CrossStitch(resnet, heads(), stages=STAGES, example=images(1)),
    "bmtas": searching,
    "branched": lambda: BranchedNetwork(resnet(), TREE, heads()),
    "branched with recon": lambda: BranchedNetwork(
        resnet(), TREE, heads(), layers=["layer1.0.conv1", "layer4.0.bn1"]
    ),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=ARCHITECTURES)
def network(request):
    return ARCHITECTURES[request.param]()


def losses_of(outputs):
    labels = torch.tensor([0, 1, 2, 0])
    return {
        task: F.cross_entropy(output, (labels + i) % 3)
        for i, (task, output) in enumerate(outputs.items())
    }


# All of them.


def test_outputs_are_of_all_tasks_and_parameters_are_listed_once(network):
    assert isinstance(network, MultiTaskModule)
    assert {task: tuple(o.shape) for task, o in network(images()).items()} == {
        "left": (4, 3),
        "right": (4, 3),
    }
    shared = [p for layer in network.shared_layers().values() for p in layer]
    own = [p for mine in network.own_parameters().values() for p in mine]
    listed = [id(p) for p in (*shared, *own)]
    assert len(listed) == len(set(listed))
    architecture = {id(network.logits)} if isinstance(network, BMTAS) else set()
    assert set(listed) == {id(p) for p in network.parameters()} - architecture
    norms = network.shared_layers().keys() - network.shared_layers(batch_norm=False).keys()
    assert norms
    assert all("bn" in name or "downsample.1" in name for name in norms)


def test_every_parameter_gets_a_gradient_and_own_ones_from_their_task_alone(network):
    sum(losses_of(network(images())).values()).backward()
    assert all(p.grad is not None for p in network.parameters())
    network.zero_grad()
    losses_of(network(images()))["left"].backward()
    assert all(p.grad is None or not p.grad.any() for p in network.own_parameters()["right"])
    assert any(p.grad is not None and p.grad.any() for p in network.own_parameters()["left"])


def test_the_meter_and_an_aggregator_train_it(network):
    layers = network.shared_layers()
    meter = ConflictMeter(layers)
    if isinstance(network, BMTAS):  # which trains them on other images, with another optimiser
        network.logits.requires_grad_(False)
    batch = images()
    states = [copy.deepcopy(network)]  # the same noise in BMTAS
    sum(losses_of(states[0](batch)).values()).backward()
    gradients = meter.observe(losses_of(network(batch)), task_parameters=network.own_parameters())
    apply_gradients(layers, gradients, aggregator("joint"))
    expected = dict(states[0].named_parameters())
    for name, p in network.named_parameters():
        torch.testing.assert_close(p.grad, expected[name].grad, msg=name)
    assert meter.layers == tuple(layers)


def test_state_dict_goes_round(network, request):
    network(images())
    other = ARCHITECTURES[request.node.callspec.params["network"]]()
    other.load_state_dict(network.state_dict())
    batch = images()
    assert torch.equal(other(batch)["right"], network(batch)["right"])  # also the noise
    assert torch.equal(other.eval()(batch)["left"], network.eval()(batch)["left"])


def test_it_is_reproducible_from_its_seed(request, network):
    torch.manual_seed(0)
    again = ARCHITECTURES[request.node.callspec.params["network"]]()
    batch = images()
    assert torch.equal(again(batch)["left"], network(batch)["left"])
    assert forward_flops(network, batch) == forward_flops(again, batch) > 0


@pytest.mark.parametrize("kind", ["mmoe", "cross-stitch"])
def test_a_trunk_that_works_in_place_on_images_does_not_reach_the_next(kind):
    values = iter((3.0, 7.0, 3.0, 7.0))

    def make(inplace=True):
        first = nn.Threshold(0.0, next(values), inplace=inplace)
        return nn.Sequential(first, nn.Flatten(), nn.Linear(64, 16))

    batch, networks = images(), []
    for inplace in (True, False):
        torch.manual_seed(0)
        if kind == "mmoe":
            networks.append(MMoE(lambda inplace=inplace: make(inplace), heads()))
        else:
            networks.append(
                CrossStitch(
                    lambda inplace=inplace: make(inplace),
                    heads(),
                    stages=["2"],
                    example=images(1),
                )
            )
    before = batch.clone()
    one, other = (network(batch) for network in networks)
    assert torch.equal(batch, before)
    assert all(torch.equal(one[task], other[task]) for task in TASKS)


# MMoE.


def test_one_expert_is_the_shared_network():
    network = MMoE(resnet, heads(), experts=1)
    plain = MultiTaskNetwork(network.experts[0], dict(network.heads))
    batch = images()
    for task, output in plain(batch).items():
        assert torch.equal(output, network(batch)[task])
    assert network.gate_entropy(batch) == {"left": 1.0, "right": 1.0}


def test_gates_by_hand():
    """Experts x and 10 x; gates (1/2, 1/2) and (3/4, 1/4) for an image of ones."""
    factors = iter((1.0, 10.0))

    def expert():
        made = nn.Sequential(nn.Flatten(), nn.Linear(1, 1, bias=False))
        nn.init.constant_(made[1].weight, next(factors))
        return made

    mine = {task: nn.Identity() for task in TASKS}
    network = MMoE(expert, mine, grid=1)
    with torch.no_grad():
        network.gates_of["left"].weight.zero_()
        network.gates_of["right"].weight.copy_(torch.tensor([[math.log(3)], [0.0]]))
    ones = torch.ones(2, 1, 1, 1)
    outputs = network(ones)
    torch.testing.assert_close(outputs["left"], torch.full((2, 1), 5.5))
    torch.testing.assert_close(outputs["right"], torch.full((2, 1), 0.75 + 2.5))
    entropy = network.gate_entropy(ones)
    assert entropy["left"] == pytest.approx(1.0)
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    assert entropy["right"] == pytest.approx(expected)
    nn.init.constant_(network.gates_of["right"].weight[:1].detach(), 100.0)
    assert network.gate_entropy(ones)["right"] == pytest.approx(0.0, abs=1e-6)


def test_experts_that_differ_by_image_are_no_collapse():
    network = MMoE(nn.Flatten, {task: nn.Identity() for task in TASKS}, grid=1)
    with torch.no_grad():
        network.gates_of["left"].weight.copy_(torch.tensor([[50.0], [-50.0]]))
    signs = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    assert network.gate_entropy(signs)["left"] == pytest.approx(1.0)


def test_dense_features_are_mixed_at_every_pixel():
    network = MMoE(
        lambda: nn.Conv2d(2, 3, 1), {task: nn.Conv2d(3, 1, 1) for task in TASKS},
        experts=3, channels=2, grid=2,
    )  # fmt: skip
    batch = torch.randn(2, 2, 5, 6)
    gate = network.gates(batch)["left"]
    expected = sum(gate[:, e, None, None, None] * network.experts[e](batch) for e in range(3))
    torch.testing.assert_close(network.features(batch)["left"], expected)


def test_all_layers_split_leaves_nothing_shared_in_the_experts():
    network = MMoE(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16)), heads(), layers="1")
    assert network.shared_layers() == {}
    assert len(network.own_parameters()["left"]) == 2 * 2 + 1 + 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 0}, "experts must be at least 1. Found experts=0"),
        ({"grid": 0}, "grid must be at least 1"),
        ({"channels": 0}, "channels must be at least 1"),
        ({"layers": ["conv2"]}, "did you mean"),
    ],
)
def test_mmoe_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        MMoE(resnet, heads(), **options)


def test_mmoe_refuses_other_images():
    with pytest.raises(ValueError, match=r"shape \(batch, 1, height, width\). Found \(2, 3, 8, 8"):
        MMoE(resnet, heads())(torch.randn(2, 3, 8, 8))


# Cross-Stitch.


@pytest.mark.parametrize("tasks", [2, 3])
def test_identity_units_leave_independent_networks(tasks):
    names = [f"task {i}" for i in range(tasks)]
    network = CrossStitch(resnet, heads(names), stages=STAGES, example=images(1), keep=1.0)
    alone = {
        task: MultiTaskNetwork(copy.deepcopy(network.trunks[task]), {task: network.heads[task]})
        for task in names
    }
    batch = images()
    outputs = network(batch)
    for task in names:
        assert torch.equal(outputs[task], alone[task](batch)[task])
    sum(outputs[task].square().sum() for task in names).backward()
    for task in names:
        mine = [p.grad.clone() for p in network.trunks[task].parameters()]
        network.heads[task].zero_grad()
        alone[task](batch)[task].square().sum().backward()
        theirs = [p.grad for p in alone[task].trunk.parameters()]
        torch.testing.assert_close(mine, theirs)


def test_units_by_hand():
    """x + 1 and 10 x behind the first stage, mixed 0.9 to 0.1; the second stage doubles."""

    def make():
        return nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.Linear(1, 1, bias=False))

    mine = {task: nn.Identity() for task in TASKS}
    network = CrossStitch(make, mine, stages=["1"], example=torch.ones(1, 1))
    with torch.no_grad():
        for task, (weight, bias) in zip(TASKS, ((1.0, 1.0), (10.0, 0.0)), strict=True):
            network.trunks[task][1].weight.fill_(weight)
            network.trunks[task][1].bias.fill_(bias)
            network.trunks[task][2].weight.fill_(2.0)
    outputs = network(torch.ones(1, 1))
    assert outputs["left"].item() == pytest.approx(2 * (0.9 * 2 + 0.1 * 10))
    assert outputs["right"].item() == pytest.approx(2 * (0.1 * 2 + 0.9 * 10))
    outputs["left"].sum().backward()
    left = network.units[0]["left"].grad.flatten()
    torch.testing.assert_close(left, torch.tensor([2 * 2.0, 2 * 10.0]))
    assert network.units[0]["right"].grad is None
    assert network.trunks["right"][1].bias.grad.item() == pytest.approx(2 * 0.1)


def test_initial_weights_add_up_to_one_for_three_tasks():
    network = CrossStitch(resnet, heads("abc"), stages=STAGES, example=images(1))
    assert [tuple(u["a"].shape) for u in network.units] == [(3, 2), (3, 4), (3, 8)]
    torch.testing.assert_close(network.units[1]["b"][:, 0], torch.tensor([0.05, 0.9, 0.05]))


def test_parameter_groups_hold_everything_once():
    network = CrossStitch(resnet, heads(), stages=STAGES, example=images(1))
    groups = network.parameter_groups(lr=0.1, unit_lr=10.0)
    assert [group["lr"] for group in groups] == [0.1, 10.0]
    assert groups[1]["weight_decay"] == 0.0
    together = [id(p) for group in groups for p in group["params"]]
    assert len(together) == len(set(together)) == len(list(network.parameters()))
    assert len(groups[1]["params"]) == 2 * len(STAGES)
    torch.optim.SGD(groups, lr=0.1)


def test_segnet_stops_between_its_stages_and_computes_what_it_computes():
    mine = {task: nn.Conv2d(2, 1, 1) for task in TASKS}
    example = torch.randn(1, 1, 32, 32)
    network = CrossStitch(
        lambda: SegNet(1, 2), mine, stages=stops_of_segnet, example=example, keep=1.0
    )
    batch = torch.randn(2, 1, 32, 40)
    assert [unit["left"].shape[1] for unit in network.units] == [2, 4, 8, 16, 16, 16, 8, 4, 2]
    for task, features in network.features(batch).items():
        assert torch.equal(features, network.trunks[task](batch))


def walk_without_stop(trunk, batch):
    return trunk(batch)
    yield


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (resnet, {"stages": ["layer9"]}, ValueError, r"children of the trunk, .* \['layer9'\]"),
        (resnet, {"stages": []}, ValueError, r"Found \[\]"),
        (resnet, {"stages": ["layer1.0"]}, ValueError, "must name children"),
        (resnet, {"stages": STAGES, "keep": 1.5}, ValueError, r"in \[0, 1\]. Found keep=1.5"),
        (lambda: SegNet(1, 2), {"stages": STAGES}, TypeError, "names for a SegNet"),
        (resnet, {"stages": walk_without_stop}, ValueError, "without a stop"),
    ],
)
def test_cross_stitch_refuses(make, options, error, message):
    with pytest.raises(error, match=message):
        CrossStitch(make, heads(), example=images(1), **options)


def test_cross_stitch_refuses_one_task():
    with pytest.raises(ValueError, match=r"at least 2 tasks. Found \['only'\]"):
        CrossStitch(resnet, heads(["only"]), stages=STAGES, example=images(1))
