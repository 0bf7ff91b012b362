"""The search for a tree, and the network of a tree."""

import itertools
import math
import random

import pytest
import torch
from torch import nn

from ktlib.models import resnet18_features
from ktlib.mtl import layers_of, split
from ktlib.mtl.architectures import BMTAS, BranchedNetwork
from ktlib.mtl.architectures.branched import cut
from ktlib.mtl.network import MultiTaskNetwork

BLOCKS = ["layer1", "layer2.0", "layer4"]


def resnet():
    return resnet18_features(1, 2)


def line():
    """Four blocks of 2, 2, 6 and 3 parameters; the first linear layer is in front of them."""
    return nn.Sequential(
        nn.Linear(1, 1), nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1), nn.Linear(1, 3),
        nn.Linear(3, 1, bias=False),
    )  # fmt: skip


def search(tasks, make=line, **options):
    heads = {task: nn.Identity() for task in tasks}
    options = {"blocks": ["1", "3", "4", "5"], "example": torch.ones(1, 1)} | options
    return BMTAS(make, heads, generator=torch.Generator().manual_seed(0), **options)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# Cutting a trunk.


def test_a_trunk_is_cut_into_parts_that_compute_it_under_its_names():
    trunk = resnet().eval()
    stem, blocks = cut(trunk, BLOCKS)
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
        cut(resnet(), blocks)


def test_only_a_chain_is_cut():
    with pytest.raises(TypeError, match="must be an nn.Sequential. Found a Linear"):
        cut(nn.Linear(1, 1), ["x"])


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
    behind = [name for b in BLOCKS[part_at:] for name in layers_of(cut(trunk, BLOCKS)[1][b])]
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


# The supergraph.


def test_temperature_falls_linearly_after_a_warm_up():
    network = search("ab")
    seen = []
    for epoch in range(1, 41):
        network.anneal(epoch, 40)
        seen.append(network.temperature)
    assert seen[:2] == [None, None]
    assert seen[2] == 5.0
    assert seen[-1] == pytest.approx(0.1)
    falls = {round(a - b, 9) for a, b in itertools.pairwise(seen[2:])}
    assert falls == {round(4.9 / 37, 9)}
    network.anneal(1, 1)
    assert network.temperature == 5.0
    with pytest.raises(ValueError, match="epoch must lie in 1 to 3. Found epoch=0"):
        network.anneal(0, 3)


def path(network, choices, value):
    """A task's features by hand: the copies of its choices."""
    value = network.stem(value)
    for operations, choice in zip(network.copies, choices, strict=True):
        value = operations[choice](value)
    return value


def test_warm_up_and_evaluation_follow_one_path_and_draw_nothing():
    network = search("ab")
    state, batch = network.generator.get_state(), torch.randn(3, 1)
    torch.testing.assert_close(network(batch)["b"], path(network, [1] * 4, batch))
    network.anneal(1, 2)
    with torch.no_grad():
        network.logits[2, 1, 1] = 1.0
        network.logits[0, 0, 1] = 1.0
    outputs = network.eval()(batch)
    torch.testing.assert_close(outputs["a"], path(network, [1, 0, 0, 0], batch))
    torch.testing.assert_close(outputs["b"], path(network, [0, 0, 1, 0], batch))
    assert torch.equal(network.generator.get_state(), state)


def test_sure_and_cold_choices_follow_the_path_of_evaluation():
    network = search("abc")
    network.anneal(2, 2)
    nn.init.normal_(network.logits)
    with torch.no_grad():
        network.logits.mul_(1e4)
    batch = torch.randn(3, 1)
    outputs, expected = network(batch), network.eval()(batch)
    for task in "abc":
        torch.testing.assert_close(outputs[task], expected[task])


def test_choices_are_drawn_in_proportion_to_the_softmax():
    """The largest of logits plus Gumbel noise is each copy with its softmax probability."""
    network = search("ab")
    network.anneal(2, 2)
    with torch.no_grad():
        network.logits[0] = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
        drawn = torch.stack([torch.stack([torch.stack(r) for r in network._weights(0)])
                             for _ in range(2000)])  # fmt: skip
    torch.testing.assert_close(drawn.sum(dim=-1), torch.ones(2000, 2))
    shares = (drawn.argmax(dim=-1) == 0).double().mean(dim=0)
    assert shares[0].item() == pytest.approx(0.75, abs=0.04)
    assert shares[1].item() == pytest.approx(0.5, abs=0.045)


def test_noise_comes_from_the_generator_alone():
    batch = torch.randn(3, 1)
    first = search("ab")
    torch.manual_seed(0)
    second = search("ab")
    second.load_state_dict(first.state_dict())
    for network in (first, second):
        network.anneal(1, 1)
    before = torch.get_rng_state()
    values = [first(batch)["a"], first(batch)["a"]]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert torch.equal(second(batch)["a"], values[0])
    assert not torch.equal(*values)


def by_enumeration(network):
    """Expected branches of every block, over all choices of all tasks."""
    tasks, blocks = len(network.tasks), len(network.blocks)
    probabilities = network.logits.detach().double().softmax(dim=-1)
    expected = torch.zeros(blocks, dtype=torch.float64)
    options = list(itertools.product(range(tasks), repeat=tasks))
    for choices in itertools.product(options, repeat=blocks):
        chance = math.prod(
            probabilities[b, t, choice].item()
            for b, row in enumerate(choices)
            for t, choice in enumerate(row)
        )
        for b in range(blocks):
            paths = {tuple(row[t] for row in choices[: b + 1]) for t in range(tasks)}
            expected[b] += chance * len(paths)
    return expected


@pytest.mark.parametrize(("tasks", "blocks"), [("ab", ["1", "3", "4"]), ("abc", ["1", "4"])])
def test_expected_branches_are_those_of_all_choices(tasks, blocks):
    network = search(tasks, blocks=blocks)
    nn.init.normal_(network.logits, std=2.0)
    torch.testing.assert_close(network.expected_branches().double(), by_enumeration(network),
                               rtol=1e-5, atol=1e-5)  # fmt: skip


def test_resource_loss_by_hand():
    """Two tasks: they agree on a block with 3/4 * 1/2 + 1/4 * 1/2 = 1/2, on the others surely."""
    network = search("ab", cost="parameters")
    torch.testing.assert_close(network.costs, torch.tensor([2.0, 2.0, 6.0, 3.0]) / 13)
    with torch.no_grad():
        network.logits[:, :, 0] = 100.0
        network.logits[2] = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    assert network.expected_branches().tolist() == pytest.approx([1.0, 1.0, 1.5, 1.5])
    assert network.resource_loss().item() == pytest.approx((2 + 2 + 1.5 * 9) / 13)


@pytest.mark.parametrize("tasks", ["ab", "abcd"])
def test_resource_loss_is_one_trunk_if_all_is_shared_and_all_if_nothing_is(tasks):
    network = search(tasks)
    with torch.no_grad():
        network.logits[:, :, 0] = 100.0
        assert network.resource_loss().item() == pytest.approx(1.0)
        network.logits.zero_()[0] = 100.0 * torch.eye(len(tasks))
    assert network.resource_loss().item() == pytest.approx(len(tasks))


def test_the_resource_loss_alone_leads_to_one_branch():
    network = search("abc")
    nn.init.normal_(network.logits)
    optimiser = torch.optim.Adam([network.logits], lr=0.3)
    for _ in range(150):
        optimiser.zero_grad()
        network.resource_loss().backward()
        optimiser.step()
    assert all(groups == (("a", "b", "c"),) for groups in network.branches().values())
    assert network.resource_loss().item() < 1.05


def test_costs_are_shares_of_flops():
    network = search("ab", resnet, blocks=BLOCKS, example=torch.randn(2, 1, 8, 8))
    # 3x3 convolutions at 8x8 pixels, four from 2 to 2 channels, cost 4 * 64 * 2 * 2 * 9 units.
    units = 4 * 64 * 4 * 9
    units_2 = 16 * (2 * 4 * 9 + 3 * 4 * 4 * 9 + 2 * 4)
    units_3 = 4 * (4 * 8 * 9 + 3 * 8 * 8 * 9 + 4 * 8)
    units_4 = 1 * (8 * 16 * 9 + 3 * 16 * 16 * 9 + 8 * 16)
    expected = torch.tensor([units, units_2 + units_3, units_4], dtype=torch.float32)
    torch.testing.assert_close(network.costs, expected / expected.sum())


def test_the_tree_follows_the_largest_logits():
    network = search("abc")
    assert set(network.branches().values()) == {(("a", "b", "c"),)}
    with torch.no_grad():
        network.logits[1, 1, 2] = 1.0  # b parts
        network.logits[2, 2, 1] = 1.0  # a and c part, and c chooses what b does not
    assert network.branches() == {
        "1": (("a", "b", "c"),),
        "3": (("a", "c"), ("b",)),
        "4": (("a",), ("b",), ("c",)),
        "5": (("a",), ("b",), ("c",)),
    }
    BranchedNetwork(line(), network.branches(), {task: nn.Identity() for task in "abc"})


def test_every_tree_of_random_logits_is_one():
    drawn = random.Random(0)
    network = search("abcd")
    heads = {task: nn.Identity() for task in "abcd"}
    for _ in range(20):
        with torch.no_grad():
            network.logits.copy_(torch.tensor([[[drawn.random() for _ in range(4)]
                for _ in range(4)] for _ in range(4)]))  # fmt: skip
        assert BranchedNetwork(line(), network.branches(), heads).tree == network.branches()


def test_losses_reach_all_copies_and_the_logits():
    network = search("ab")
    network.anneal(1, 1)
    sum(o.square().sum() for o in network(torch.randn(3, 1)).values()).backward()
    assert all(p.grad.any() for p in network.weight_parameters())
    assert network.logits.grad.flatten(1).any(dim=1).all()
    together = {id(p) for p in network.weight_parameters()} | {id(network.logits)}
    assert together == {id(p) for p in network.parameters()}


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        ("a", {}, "2 to 6 tasks. Found 1"),
        ("abcdefg", {}, "2 to 6 tasks. Found 7"),
        ("ab", {"cost": "time"}, "cost must be 'flops' or 'parameters'. Found cost='time'"),
        ("ab", {"blocks": ["7"]}, "Found '7'"),
    ],
)
def test_searches_are_refused(tasks, options, message):
    with pytest.raises(ValueError, match=message):
        search(tasks, **options)


def test_blocks_without_a_cost_are_refused():
    with pytest.raises(ValueError, match="must have a cost. Found none in parameters"):
        search("ab", lambda: nn.Sequential(nn.Linear(1, 1), nn.Tanh()), blocks=["1"],
               cost="parameters")  # fmt: skip
