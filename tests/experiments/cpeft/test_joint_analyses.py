import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from experiments.cpeft.joint_analyses import (
    GradientBatches,
    correlate_conflict_with_occupancy,
    noise_sensitivity,
    rank_for_task,
    rankings_over_tasks,
    shared_input_groups,
    task_conflicts,
    task_heads,
)
from ktlib.cpeft.adapters import LoraBackbone
from ktlib.cpeft.inflora import InfLora
from ktlib.cpeft.tasks import ClassTask
from ktlib.cpeft.training import LoraTraining
from ktlib.fcl.noise import draw_noise
from ktlib.ila.agreement import jaccard
from ktlib.ila.ranking import LayerRanking
from ktlib.seeding import generator


class TwoLayers(nn.Module):
    """Numbers ``(n, 1, 1, 4)`` through ``first`` and ``second``; three features."""

    dim = 3

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)
        self.noise = nn.Dropout(0.5)

    def forward(self, images):
        return self.second(self.noise(self.first(images.flatten(1)).tanh()))


@pytest.fixture
def network(device):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return TwoLayers().to(device)


@pytest.fixture
def head(device):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return nn.Linear(3, 2).to(device)


@pytest.fixture
def pool():
    """Forty images of four classes; tasks 1 and 2 have two classes each."""
    stream = torch.Generator().manual_seed(3)
    labels = torch.arange(4).repeat_interleave(10)
    images = torch.randn(40, 1, 1, 4, generator=stream) + labels[:, None, None, None] / 2
    none = torch.zeros(0, dtype=torch.int64)
    tasks = [
        ClassTask(1, torch.tensor([1, 0]), torch.arange(20), none),
        ClassTask(2, torch.tensor([2, 3]), torch.arange(20, 40), none),
    ]
    return images, labels, tasks


def state(network):
    modes = [module.training for module in network.modules()]
    flags = [parameter.requires_grad for parameter in network.parameters()]
    return copy.deepcopy(network.state_dict()), modes, flags


def assert_unchanged(network, before):
    after = state(network)
    assert all(torch.equal(after[0][name], value) for name, value in before[0].items())
    assert after[1:] == before[1:]
    assert all(parameter.grad is None for parameter in network.parameters())


# How much the loss rises


def test_the_rise_is_that_of_the_cross_entropy_at_every_draw(network, head, pool, device):
    images, labels = pool[0][:20], pool[1][:20]
    network.train()
    before = state(network)
    found = noise_sensitivity(network, head, images, labels, noise_bound=0.5, draws=4, seed=7)
    assert_unchanged(network, before)
    quiet = copy.deepcopy(network).eval()
    labels = labels.to(device)

    def loss(first, second):
        with torch.no_grad():
            hidden = F.linear(images.flatten(1).to(device), first, quiet.first.bias).tanh()
            return float(F.cross_entropy(head(F.linear(hidden, second, quiet.second.bias)), labels))

    first, second = quiet.first.weight, quiet.second.weight
    plain = loss(first, second)
    assert found.loss == pytest.approx(plain, rel=1e-5)
    stream, rises = generator(7, "noise around an encoder"), []
    for _ in range(4):
        noise = draw_noise({"first": first, "second": second}, 0.5, stream)
        rises.append(loss(first + noise["first"], second + noise["second"]) - plain)
    rises = torch.tensor(rises)
    assert found.mean == pytest.approx(float(rises.mean()), abs=1e-5)
    assert found.highest == pytest.approx(float(rises.max()), abs=1e-5)
    assert found.standard_error == pytest.approx(float(rises.std()) / 2, abs=1e-5)
    assert found.flatness.indicator == pytest.approx(float(rises.square().mean()), abs=1e-5)
    weights = torch.cat([first.flatten(), second.flatten()])
    assert found.weight_rms == pytest.approx(weights.detach().square().mean().sqrt().item())


def test_a_sharper_minimum_has_a_higher_rise_under_the_same_draws(network, head, pool):
    images, labels = pool[0][:20], pool[1][:20]
    sharp = copy.deepcopy(head)
    with torch.no_grad():
        for parameter in sharp.parameters():
            parameter.mul_(4)
    asked = {"noise_bound": 0.1, "draws": 5, "seed": 0}
    flat, rise = (noise_sensitivity(network, h, images, labels, **asked) for h in (head, sharp))
    assert rise.flatness.indicator > 4 * flat.flatness.indicator
    still = noise_sensitivity(network, head, images, labels, noise_bound=0.0, draws=1, seed=0)
    assert (still.mean, still.highest) == (0, 0)
    assert math.isnan(still.standard_error)


def test_the_noise_of_chosen_layers_lies_beneath_the_adapters(tiny_vit, tiny_data, device):
    head = nn.Linear(16, 6).to(device)
    layers = [name for name, _ in tiny_vit.named_modules() if name.endswith(("q_proj", "query"))]
    asked = {"noise_bound": 0.2, "draws": 2, "seed": 1}
    data = tiny_data.images[:12], tiny_data.labels[:12]
    plain = noise_sensitivity(tiny_vit, head, *data, layers=layers, **asked)
    adapted = LoraBackbone(tiny_vit, layers=["key", "value"], rank=2)
    with pytest.raises(ValueError, match="name must be one of the adapted layers"):
        noise_sensitivity(adapted, head, *data, layers=layers, **asked)
    adapted = LoraBackbone(tiny_vit, layers=["query", "value"], rank=2)
    same = noise_sensitivity(adapted, head, *data, layers=layers, **asked)
    torch.testing.assert_close(same.flatness.losses, plain.flatness.losses, rtol=1e-5, atol=1e-6)
    everything = noise_sensitivity(adapted, head, *data, **asked)
    every = noise_sensitivity(tiny_vit, head, *data, **asked)
    assert everything.weight_rms == pytest.approx(every.weight_rms)  # and so none of the adapters
    assert plain.weight_rms != pytest.approx(every.weight_rms)


def test_bad_arguments_of_the_rise_are_told(network, head, pool):
    asked = {"noise_bound": 0.1, "draws": 1, "seed": 0}
    images, labels = pool[0][:20], pool[1][:20]
    for change, message in (
        ({"draws": 0}, "draws must be at least 1. Found draws=0"),
        ({"noise_bound": -1.0}, "bound must be a finite number >= 0"),
        ({"layers": ["third"]}, r"linear layers: \['first', 'second'\]. Found 'third'"),
        ({"layers": []}, "layers must name at least one layer"),
    ):
        with pytest.raises(ValueError, match=message):
            noise_sensitivity(network, head, images, labels, **asked | change)
    with pytest.raises(ValueError, match="Found 19 labels for 20 images"):
        noise_sensitivity(network, head, images, labels[1:], **asked)


# Conflicts between tasks, and full memories


def test_heads_of_tasks_solve_their_problem(network, pool):
    images, labels, tasks = pool
    network.eval()
    before = state(network)
    heads = task_heads(network, tasks, images, labels, penalty=0.1, batch_size=7)
    assert_unchanged(network, before)
    assert list(heads) == [1, 2]
    for task in tasks:
        fitted = copy.deepcopy(heads[task.number]).requires_grad_(True)
        with torch.no_grad():
            features = network(images[task.train].to(fitted.weight.device))
        columns = [task.classes.tolist().index(label) for label in labels[task.train].tolist()]
        targets = torch.tensor(columns).to(features.device)
        loss = F.cross_entropy(fitted(features), targets) + 0.05 * fitted.weight.square().sum()
        loss.backward()
        assert all(float(p.grad.abs().max()) < 1e-4 for p in fitted.parameters())
    with pytest.raises(ValueError, match="penalty must be above 0"):
        task_heads(network, tasks, images, labels, penalty=0.0)


def test_cosines_are_those_of_the_gradients_of_the_tasks_losses(network, pool, device):
    images, labels, tasks = pool
    network.train()
    before = state(network)
    sampling = GradientBatches(2, 50, seed=4)  # all images of a task in each batch
    found = task_conflicts(network, ["second", "first"], tasks, images, labels, sampling)
    assert_unchanged(network, before)
    quiet = copy.deepcopy(network).eval()
    heads = task_heads(quiet, tasks, images, labels)
    gradients = []
    for task in tasks:
        columns = [task.classes.tolist().index(label) for label in labels[task.train].tolist()]
        scores = heads[task.number](quiet(images[task.train].to(device)))
        loss = F.cross_entropy(scores, torch.tensor(columns).to(device))
        gradients.append(torch.autograd.grad(loss, [quiet.second.weight, quiet.first.weight]))
    expected = [
        float(F.cosine_similarity(one.flatten(), other.flatten(), 0))
        for one, other in zip(*gradients, strict=True)
    ]
    assert found.pairs == ((1, 2),)
    assert found.cosines.shape == (2, 2, 1)
    for batch in found.cosines:
        assert batch[:, 0].tolist() == pytest.approx(expected, abs=1e-4)
    for severity in (0.0, -0.1):
        shares = [float(value < severity) for value in expected]
        assert found.scores(severity) == dict(zip(("second", "first"), shares, strict=True))
    rows = found.rows()
    assert [row["layer"] for row in rows] == ["second", "first"]
    assert [row["cosine"] for row in rows] == pytest.approx(expected, abs=1e-4)
    assert [row["counted"] for row in rows] == [2, 2]


def test_scores_are_shares_of_batches_and_pairs(network, pool):
    images, labels, tasks = pool
    tasks = [*tasks, ClassTask(5, torch.tensor([0, 3]), tasks[0].train[:10], tasks[0].validation)]
    sampling = GradientBatches(6, 3, seed=0)
    found = task_conflicts(network, ["first", "second"], tasks, images, labels, sampling)
    assert found.pairs == ((1, 2), (1, 5), (2, 5))
    for place, name in enumerate(found.layers):
        values = found.cosines[:, place].flatten()
        share = float((values < -0.02).double().mean())
        assert found.scores(-0.02)[name] == pytest.approx(share)
    assert not torch.equal(found.cosines[0], found.cosines[1])  # other images
    again = task_conflicts(network, ["first", "second"], tasks, images, labels, sampling)
    assert torch.equal(found.cosines, again.cosines)
    other = task_conflicts(
        network, ["first", "second"], tasks, images, labels, GradientBatches(6, 3, seed=1)
    )
    assert not torch.equal(found.cosines, other.cosines)


def test_opposite_and_equal_tasks_have_cosines_of_one(network, pool):
    """Two tasks of one set of images: the same labels, or labels exchanged with the head fixed."""
    images, labels, tasks = pool
    same = ClassTask(2, tasks[0].classes, tasks[0].train, tasks[0].validation)
    opposite = ClassTask(2, tasks[0].classes.flip(0), tasks[0].train, tasks[0].validation)
    fixed = nn.Linear(3, 2).to(next(network.parameters()).device)
    nn.init.zeros_(fixed.bias)
    with torch.no_grad():
        fixed.weight.mul_(1e-6)  # probabilities of one half: exchanged labels turn the gradient
    heads = {1: fixed, 2: fixed}
    for other, cosine, score in ((same, 1, 0), (opposite, -1, 1)):
        pair = [tasks[0], other]
        found = task_conflicts(
            network, ["first", "second"], pair, images, labels,
            GradientBatches(1, 20, seed=0), heads=heads,
        )  # fmt: skip
        assert found.cosines.flatten().tolist() == pytest.approx([cosine] * 2, abs=1e-3)
        assert list(found.scores(-0.15).values()) == [score] * 2
    with pytest.raises(ValueError, match=r"heads must have one of each task. Found none of \[2\]"):
        task_conflicts(
            network, ["first"], tasks, images, labels,
            GradientBatches(1, 20, seed=0), heads={1: fixed},
        )  # fmt: skip


def test_a_layer_without_gradient_is_not_counted(network, pool):
    images, labels, tasks = pool
    dead = {task.number: nn.Linear(3, 2).to(next(network.parameters()).device) for task in tasks}
    for head in dead.values():
        nn.init.zeros_(head.weight)
    found = task_conflicts(
        network, ["first"], tasks, images, labels, GradientBatches(1, 5, seed=0), heads=dead
    )
    assert math.isnan(found.scores()["first"])
    assert math.isnan(found.rows()[0]["cosine"])


def test_bad_arguments_of_conflicts_are_told(network, pool):
    images, labels, tasks = pool
    sampling = GradientBatches(1, 5, seed=0)
    with pytest.raises(ValueError, match="number of tasks must be at least 2"):
        task_conflicts(network, ["first"], tasks[:1], images, labels, sampling)
    with pytest.raises(ValueError, match=r"linear layers: \['first', 'second'\]. Found 'third'"):
        task_conflicts(network, ["third"], tasks, images, labels, sampling)
    with pytest.raises(ValueError, match="trunk must have layers"):
        task_conflicts(network, [], tasks, images, labels, sampling)
    for name in ("batches", "batch_size"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            replace(sampling, **{name: 0})
    with pytest.raises(ValueError, match="severity must be one of"):
        task_conflicts(
            network, ["first"], tasks, images, labels, sampling, severities=(0.0,)
        ).scores(-0.1)


def test_query_key_and_value_of_a_block_are_one_group(tiny_vit, tiny_data):
    adapted = LoraBackbone(tiny_vit, layers=["query", "key", "value"], rank=2).train()
    before = state(adapted)
    groups = shared_input_groups(adapted, adapted.layers, tiny_data.images[:3])
    assert_unchanged(adapted, before)
    assert len(adapted.layers) == 6
    assert groups == [adapted.layers[:3], adapted.layers[3:]]
    linear = [name for name, module in tiny_vit.named_modules() if isinstance(module, nn.Linear)]
    everything = shared_input_groups(tiny_vit, linear, tiny_data.images[:3])
    assert sorted(map(len, everything)) == [1] * 6 + [3] * 2
    assert [name for group in everything for name in group] == linear


def test_a_layer_that_is_not_used_is_told(network, pool):
    network.idle = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"used by the network. These were not: \['idle'\]"):
        shared_input_groups(network, ["first", "idle"], pool[0][:2])


GROUPS = [("q0", "v0"), ("q1", "v1"), ("q2", "v2"), ("q3", "v3")]


def by_layer(groups, values):
    return {name: value for group, value in zip(groups, values, strict=True) for name in group}


def test_the_correlation_is_over_groups_and_its_p_value_exact():
    occupancy = by_layer(GROUPS, [0.1, 0.2, 0.4, 0.3])
    conflicts = by_layer(GROUPS, [0.5, 0.6, 0.9, 0.7])
    conflicts["q0"], conflicts["v0"] = 0.9, 0.1  # only their mean counts
    found = correlate_conflict_with_occupancy(conflicts, occupancy, GROUPS, seed=0)
    assert found.correlation == pytest.approx(1)
    assert found.p_value == pytest.approx(2 / 24)  # this order and its reverse
    assert (found.groups, found.layers, found.exact) == (4, 8, True)
    conflicts = by_layer(GROUPS, [0.7, 0.7, 0.5, 0.1])
    found = correlate_conflict_with_occupancy(conflicts, occupancy, GROUPS, seed=0)
    values = [0.7, 0.7, 0.5, 0.1], [0.1, 0.2, 0.4, 0.3]
    assert found.correlation == pytest.approx(stats.spearmanr(*values).statistic)
    alike = [
        abs(stats.spearmanr(values[0], order).statistic) >= abs(found.correlation) - 1e-9
        for order in itertools.permutations(values[1])
    ]
    assert found.p_value == pytest.approx(sum(alike) / 24)


def test_random_permutations_come_near_the_exact_p_value():
    groups = [(f"layer{number}",) for number in range(6)]
    occupancy = by_layer(groups, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    conflicts = by_layer(groups, [2.0, 1.0, 3.0, 5.0, 4.0, 6.0])
    exact, drawn = (
        correlate_conflict_with_occupancy(conflicts, occupancy, groups, seed=0, permutations=number)
        for number in (720, 700)
    )
    assert (exact.exact, drawn.exact) == (True, False)
    assert drawn.correlation == exact.correlation
    assert drawn.p_value == pytest.approx(exact.p_value, abs=0.03)
    # The order that was found counts as one of 701.
    assert drawn.p_value * 701 == pytest.approx(round(drawn.p_value * 701), rel=1e-9)
    again = correlate_conflict_with_occupancy(
        conflicts, occupancy, groups, seed=0, permutations=700
    )
    assert again == drawn


def test_an_occupancy_that_is_the_same_everywhere_says_nothing():
    conflicts = by_layer(GROUPS, [0.1, 0.2, 0.3, 0.4])
    found = correlate_conflict_with_occupancy(
        conflicts, by_layer(GROUPS, [1.0] * 4), GROUPS, seed=0
    )
    assert math.isnan(found.correlation)
    assert math.isnan(found.p_value)


def test_bad_groups_are_told():
    values = by_layer(GROUPS, [0.1, 0.2, 0.3, 0.4])
    for conflicts, occupancy, groups, message in (
        (values, values, GROUPS[:2], "number of groups must be at least 3"),
        (values, values, GROUPS[:3], r"conflicts and groups .* Found \['q3', 'v3'\]"),
        (values, {**values, "q4": 1.0}, GROUPS, r"occupancy and groups .* Found \['q4'\]"),
        (values, values, [*GROUPS, ("q0",)], "a layer twice in groups"),
        ({**values, "q0": math.nan}, values, GROUPS, "conflicts must be finite. Found {'q0': nan}"),
        (values, {**values, "q0": 0.5}, GROUPS, "must have one occupancy. Found {'q0': 0.5, 'v0'"),
    ):
        with pytest.raises(ValueError, match=message):
            correlate_conflict_with_occupancy(conflicts, occupancy, groups, seed=0)


def tasks_of(labels, tasks, classes):
    none = torch.zeros(0, dtype=torch.int64)
    for number in range(1, tasks + 1):
        own = torch.arange(classes) + classes * (number - 1)
        yield ClassTask(number, own, torch.isin(labels, own).nonzero()[:, 0], none)


def test_inflora_and_conflicts_fit_together(tiny_vit, tiny_data):
    """The groups of InfLoRA's layers have one occupancy each, as the correlation asks for."""
    tasks = list(tasks_of(tiny_data.labels, 3, 2))
    training = LoraTraining(
        layers=["key", "value"], rank=2, epochs=1, batch_size=32, lr=1e-3, seed=0
    )
    learner = InfLora(tiny_vit, training, tasks=3, first_threshold=0.5, last_threshold=0.7)
    for task in tasks:
        learner.learn(task, tiny_data.images, tiny_data.labels)
    layers = learner.backbone.layers
    last = {row["layer"]: row["occupied"] for row in learner.history if row["task"] == 3}
    groups = shared_input_groups(learner.backbone, layers, tiny_data.images[:4])
    assert [len(group) for group in groups] == [2, 2]
    assert all(len({last[name] for name in group}) == 1 for group in groups)
    found = task_conflicts(
        learner.backbone, layers, tasks, tiny_data.images, tiny_data.labels,
        GradientBatches(2, 8, seed=0),
    )  # fmt: skip
    assert found.layers == layers
    assert found.cosines.isfinite().all()
    with pytest.raises(ValueError, match="number of groups must be at least 3"):
        correlate_conflict_with_occupancy(found.scores(), last, groups, seed=0)


# Rankings of layers over tasks


@pytest.fixture
def adapted(network):
    """Adapters on both layers; only that of ``second`` has an update."""
    made = LoraBackbone(network, layers=["first", "second"], rank=2, seed=0)
    with torch.no_grad():
        made.up("second").normal_(generator=torch.Generator().manual_seed(5))
    return made


def test_a_score_falls_where_the_update_hurts_the_task(adapted, head, pool):
    """One step of AdamW moves a score by the step size, against the slope of the loss."""
    images, labels, tasks = pool
    with torch.no_grad():
        adapted.up("first").normal_(generator=torch.Generator().manual_seed(6)).mul_(0.5)
    before = state(adapted)
    ranking = rank_for_task(
        adapted, head, tasks[0], images, labels, batch_size=20, initial_score=2.0, lr=0.25
    )
    assert_unchanged(adapted, before)
    assert all(parameter.grad is None for parameter in head.parameters())
    assert set(ranking.scores) == {"first", "second"}
    columns = torch.tensor([1 - int(label) for label in labels[tasks[0].train]])  # classes 1, 0

    def loss(factors):
        moved = copy.deepcopy(adapted)
        with torch.no_grad():
            for name, score in factors.items():
                moved.up(name).mul_(torch.sigmoid(torch.tensor(score)).item())
            features = moved(images[tasks[0].train].to(head.weight.device))
            return float(F.cross_entropy(head(features), columns.to(features.device)))

    same = {"first": 2.0, "second": 2.0}
    for name in same:
        slope = loss(same | {name: 2.05}) - loss(same | {name: 1.95})
        expected = 2 - math.copysign(0.25, slope)
        assert ranking.scores[name] == pytest.approx(expected, abs=0.01), name
    assert ranking.provenance["data"] == "task 1, classes [1, 0]"
    assert ranking.settings["batches"] == 1


@pytest.mark.filterwarnings("ignore:ranked last", "ignore:.*below the start")
def test_batches_are_all_images_of_the_task_in_random_order(adapted, head, pool):
    images, labels, tasks = pool

    class Asked:
        def __init__(self):
            self.rows = []

        def __getitem__(self, rows):
            self.rows.append(rows.tolist())
            return images[rows]

    asked = Asked()
    rank_for_task(adapted, head, tasks[1], asked, labels, batch_size=8, seed=1)
    assert sorted(map(len, asked.rows)) == [4, 8, 8]
    seen = [row for rows in asked.rows for row in rows]
    assert sorted(seen) == tasks[1].train.tolist()
    assert seen != sorted(seen)
    longer = Asked()
    rank_for_task(adapted, head, tasks[1], longer, labels, batch_size=8, seed=1, steps=5)
    assert longer.rows[:3] == asked.rows
    assert len(longer.rows) == 5


@pytest.mark.filterwarnings("ignore:ranked last", "ignore:.*below the start")
def test_any_network_with_adapters_of_peft_is_ranked(adapted, head, pool):
    images, labels, tasks = pool
    asked = {"batch_size": 10, "steps": 3}
    inner = rank_for_task(adapted.backbone, head, tasks[0], images, labels, **asked)
    whole = rank_for_task(adapted, head, tasks[0], images, labels, **asked)
    assert inner.scores == whole.scores


def test_adapters_that_do_nothing_cannot_be_ranked(adapted, network, head, pool):
    images, labels, tasks = pool
    adapted.merge()
    with pytest.raises(ValueError, match="trained and not merged"):
        rank_for_task(adapted, head, tasks[0], images, labels, batch_size=8)
    with pytest.raises(ValueError, match="must have LoRA adapters"):
        rank_for_task(network, head, tasks[0], images, labels, batch_size=8)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        rank_for_task(adapted, head, tasks[0], images, labels, batch_size=0)


def test_all_pairs_of_tasks_are_compared():
    layers = [f"blocks.{number}.{kind}" for number in range(4) for kind in ("key", "value")]

    def ranking(order):
        places = zip(layers, order, strict=True)
        return LayerRanking(scores={name: float(-place) for name, place in places})

    rankings = {
        3: ranking([7, 6, 5, 4, 3, 2, 1, 0]),
        1: ranking([0, 1, 2, 3, 4, 5, 6, 7]),
        2: ranking([1, 0, 2, 3, 4, 5, 6, 7]),
    }
    rows = rankings_over_tasks(rankings, [0.25, 0.5])
    assert [(row["a"], row["b"], row["gap"], row["top"]) for row in rows] == [
        (a, b, b - a, top) for top in (0.25, 0.5) for a, b in ((1, 2), (1, 3), (2, 3))
    ]
    assert [row["value"] for row in rows] == [1, 0, 0, 1, 0, 0]
    for row in rows:
        expected = jaccard(rankings[row["a"]], rankings[row["b"]], row["top"])
        for column in ("chance", "p_value", "rank_correlation"):
            assert row[column] == pytest.approx(getattr(expected, column))
    with pytest.raises(ValueError, match="rankings must be at least two"):
        rankings_over_tasks({1: rankings[1]})
