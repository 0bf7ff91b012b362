"""BMTAS: what the supergraph draws, what its tree costs, and which tree it is."""

import itertools
import math
import random

import pytest
import torch
from torch import nn

from experiments.models.resnet import resnet18_features
from experiments.mtl.architectures import BMTAS, BranchedNetwork


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
    network = search(
        "ab",
        lambda: resnet18_features(1, 2),
        blocks=["layer1", "layer2.0", "layer4"],
        example=torch.randn(2, 1, 8, 8),
    )
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


def test_a_block_that_works_in_place_does_not_reach_the_other_copies():
    def make():
        return nn.Sequential(nn.Linear(2, 2), nn.Threshold(0.0, 7.0, inplace=True), nn.Linear(2, 2))

    network = search("ab", make, blocks=["1"], example=torch.ones(1, 2))
    batch = torch.randn(4, 2)
    with torch.no_grad():
        outputs = network(batch)
        for i, task in enumerate("ab"):
            assert torch.equal(outputs[task], path(network, [i], batch))
        network.copies[0][0][0] = nn.Threshold(0.0, 3.0, inplace=True)
        assert torch.equal(network(batch)["b"], outputs["b"])
