import copy
import math

import pytest
import torch
from torch.nn import functional as F

from experiments.fcl.baselines import run_learner
from experiments.fcl.baselines.topic import (
    TOPIC,
    NeuralGas,
    TopicSettings,
    anchor_loss,
    grow_gas,
    min_max_loss,
)
from ktlib.fcl import class_means
from ktlib.fcl.evaluation import embed
from ktlib.testing import assert_gradient_flow, assert_step_updates


@pytest.fixture
def learner(problem, split, classifier):
    def make(epochs=3, lr=1e-3, **settings):
        generator = torch.Generator().manual_seed(6)
        return TOPIC(
            copy.deepcopy(split), classifier, problem[0][0].classes, generator=generator,
            epochs=epochs, lr=lr, settings=TopicSettings(**{"nodes": 9} | settings),
        )  # fmt: skip

    return make


def edges(gas):
    rows, columns = (gas.ages >= 0).nonzero(as_tuple=True)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return {(i, j): int(gas.ages[i, j]) for i, j in pairs if i < j}


def test_edges_join_the_nearest_two_and_age():
    gas = NeuralGas(torch.tensor([[0.0], [4.0], [10.0], [-3.0]]), max_age=1)
    assert gas.connect(torch.tensor([1.0])).tolist() == [0, 1, 3, 2]
    assert edges(gas) == {(0, 1): 0}
    gas.connect(torch.tensor([9.0]))  # nearest 2, then 1: edges of node 0 do not age
    assert edges(gas) == {(0, 1): 0, (1, 2): 0}
    gas.connect(torch.tensor([-1.0]))  # nearest 0, then 3
    assert edges(gas) == {(0, 1): 1, (1, 2): 0, (0, 3): 0}
    gas.connect(torch.tensor([-1.0]))  # the edge to 1 is now 2 > 1 old and goes
    assert edges(gas) == {(1, 2): 0, (0, 3): 0}
    assert gas.neighbours(1).tolist() == [2]
    assert torch.equal(gas.ages, gas.ages.T)
    assert gas.centroids[:, 0].tolist() == [0.0, 4.0, 10.0, -3.0]


def test_nodes_move_by_rank():
    """Input 2 is nearest to node 1, then 0, then 2."""
    gas = NeuralGas(torch.tensor([[0.0], [3.0], [12.0]]))
    gas.adapt(torch.tensor([2.0]), step=0.5, decay=1.0)
    e = math.exp(-1)
    expected = [0.5 * e * 2, 3 - 0.5, 12 - 0.5 * e**2 * 10]
    assert gas.centroids[:, 0].tolist() == pytest.approx(expected)


def test_nodes_are_described_by_what_they_win():
    """Node 0 wins 1 and 3 (variance 1), node 1 wins 8 only: it gets a tenth of the mean, 1/2."""
    gas = NeuralGas(torch.tensor([[0.0], [10.0]]))
    gas.describe(torch.tensor([[3.0], [1.0], [8.0]]), torch.tensor([5, 7, 9]))
    assert gas.wins.tolist() == [2, 1]
    assert gas.images.tolist() == [1, 2]
    assert gas.labels.tolist() == [7, 9]
    assert gas.variances[:, 0].tolist() == pytest.approx([1.0, 0.05])
    assert gas.insert(torch.tensor([4.0]), 3) == 2
    assert gas.labels.tolist() == [7, 9, 3]
    assert gas.variances[2].item() == pytest.approx(0.525)
    assert gas.neighbours(2).tolist() == []
    assert gas.diameter() == 10.0


def test_a_gas_finds_the_clusters():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    points = 10.0 * F.one_hot(labels, 3) + 0.1 * torch.randn(300, 3, generator=generator)
    gas = grow_gas(points, labels, nodes=12, generator=generator, step=0.2, decay=1.0)
    assert gas.wins.sum() == 300
    assert set(gas.labels.tolist()) == {0, 1, 2}
    own = (points[gas.images] - gas.centroids).norm(dim=1)
    assert (own[gas.wins > 0] < 1).all()
    # Most edges stay within a cluster.
    joined = [gas.labels[i] == gas.labels[j] for i, j in edges(gas)]
    assert sum(joined) > 0.8 * len(joined)


def test_every_class_has_a_node_at_first_and_none_is_made_up():
    points, labels = torch.arange(10.0)[:, None], torch.tensor([0] * 9 + [1])
    generator = torch.Generator().manual_seed(0)
    gas = grow_gas(points, labels, nodes=2, generator=generator, passes=0)
    assert set(gas.labels.tolist()) == {0, 1}
    gas = grow_gas(points, labels, nodes=400, generator=generator, passes=0)
    assert sorted(gas.centroids[:, 0].tolist()) == list(range(10))


def test_anchor_loss_by_hand():
    """Shift (3, 4) over variances (9, 4): mean of 1 and 4; the other node did not move."""
    before, now = torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert anchor_loss(now, before, torch.tensor([[9.0, 4.0], [1.0, 1.0]])).item() == 1.25
    assert anchor_loss(now[:0], before[:0], before[:0]).item() == 0.0


def test_min_max_loss_by_hand():
    """Pull: distances 5 and 1. Push: pairs at distances 2 and 9, margin 6."""
    embeddings, own = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.zeros(2, 2)
    nodes, others = torch.zeros(2, 2), torch.tensor([[2.0, 0.0], [0.0, 9.0]])
    assert min_max_loss(embeddings, own, nodes, others, 6.0).item() == 3.0 + 2.0
    assert min_max_loss(embeddings, own, nodes[:0], others[:0], 6.0).item() == 3.0


def test_one_shot_per_class_gives_no_nan():
    embeddings = torch.ones(2, 3, requires_grad=True)
    min_max_loss(embeddings, embeddings.detach(), embeddings, embeddings.detach(), 1.0).backward()
    assert torch.isfinite(embeddings.grad).all()


def test_each_term_reaches_the_weights_it_should(batch, split, classifier):
    split.network.eval()
    with torch.no_grad():
        features = split.prefix(batch[0])
        before = split.tail_forward(features) + 0.1

    def terms():
        embeddings = split.tail_forward(features)
        means = class_means(embeddings, batch[1])
        return {
            "cross_entropy": F.cross_entropy(classifier(embeddings), batch[1]),
            "anchor": anchor_loss(embeddings, before, torch.ones_like(before)),
            "min_max": min_max_loss(embeddings, means[batch[1]], means, means.roll(1, 0), 1e3),
        }

    trained = {**split.tuned, **dict(classifier.named_parameters())}
    assert_gradient_flow(terms, trained, dict(split.prefix.named_parameters()))


def test_after_the_base_session_it_is_the_given_classifier(problem, learner, classifier):
    sessions, images, labels, tests, _ = problem
    method = learner()
    base = sessions[0].train
    method.start(images[base], labels[base])
    with torch.no_grad():
        rows = classifier(embed(method.split.network, tests)).argmax(dim=1)
    assert torch.equal(method.predict(tests), sessions[0].classes.to(rows.device)[rows])


def test_a_session_moves_tuned_weights_and_classifier_only(problem, learner):
    sessions, images, labels, *_ = problem
    method = learner()
    base, new = sessions[0].train, sessions[1].train
    method.start(images[base], labels[base])
    nodes, rows = len(method.gas.centroids), method.weight.clone()
    old = method.gas.centroids.clone()
    state = method.split.network.state_dict(keep_vars=True)
    assert_step_updates(
        lambda: method.learn(images[new], labels[new]),
        method.split.tuned,
        {name: tensor for name, tensor in state.items() if name not in method.split.tuned},
    )
    assert method.weight.shape == (5, 32)
    assert not torch.equal(method.weight[:3], rows)
    assert len(method.gas.centroids) == nodes + 2
    assert torch.equal(method.gas.centroids[:nodes], old)
    assert torch.isin(method.gas.labels[nodes:], sessions[1].classes.to(labels.device)).all()


def test_anchors_are_kept_images_at_their_old_places(problem, learner):
    """With a vanishing lr the embedding of each anchor's image is where the anchor is."""
    method = learner(lr=1e-30)
    run_learner(method, *problem)
    images, labels = method.kept.all()
    now = embed(method.split.network, images)[method.anchor_rows]
    assert torch.allclose(now, method.anchors, atol=1e-6)
    assert torch.equal(labels[method.anchor_rows], method.gas.labels[method.anchor_nodes])
    base = torch.isin(labels, method.base_classes)
    assert 3 <= int(base.sum()) <= 6  # at most 2 of each of 3 classes
    assert int((~base).sum()) == 12  # all 3 shots of 4 classes
    assert len(method.anchor_rows) == int(base.sum()) + 4


def test_with_a_vanishing_lr_the_embedding_is_frozen(problem, learner, split):
    method = learner(lr=1e-30, anchor_weight=0.0)
    run_learner(method, *problem)
    assert torch.equal(embed(method.split.network, problem[3]), embed(split.network, problem[3]))


def test_anchors_hold_the_embedding(problem, learner):
    def drift(weight):
        method = learner(anchor_weight=weight, epochs=10)
        sessions, images, labels, *_ = problem
        method.start(images[sessions[0].train], labels[sessions[0].train])
        method.learn(images[sessions[1].train], labels[sessions[1].train])
        kept = method.kept.all()[0]
        count = 3
        now = embed(method.split.network, kept)[method.anchor_rows[:count]]
        return float((now - method.anchors[:count]).norm())

    assert 0 < drift(1.0) < drift(0.0)


def test_kept_base_images_serve_the_anchor_loss_alone(problem, learner):
    methods = [learner(anchor_weight=0.0, base_exemplars=count) for count in (0, 2)]
    for method in methods:
        run_learner(method, *problem)
    assert torch.allclose(methods[0].weight, methods[1].weight, atol=1e-5)
    assert torch.allclose(methods[0].bias, methods[1].bias, atol=1e-5)


def test_new_nodes_end_at_the_class_means_and_min_max_moves_them(problem, learner):
    sessions, images, labels, *_ = problem
    base, new = sessions[0].train, sessions[1].train
    centroids = []
    for weight in (0.0, 1.0):
        method = learner(min_max_weight=weight)
        method.start(images[base], labels[base])
        method.learn(images[new], labels[new])
        means = class_means(embed(method.split.network, images[new]), labels[new])
        assert torch.allclose(method.gas.centroids[-2:], means)
        centroids.append(means)
    assert not torch.allclose(*centroids)


@pytest.mark.parametrize("settings", [{"base_exemplars": 0}, {"new_exemplars": 0}])
def test_without_exemplars_there_are_no_anchors(problem, learner, settings):
    method = learner(**settings)
    run_learner(method, *problem)
    anchored = method.gas.labels[method.anchor_nodes]
    of_base = torch.isin(anchored, method.base_classes)
    assert not (of_base if "base_exemplars" in settings else ~of_base).any()


def test_equal_seeds_give_equal_runs_and_leave_the_global_state_alone(problem, learner):
    state = torch.get_rng_state()
    first, second = learner(), learner()
    assert run_learner(first, *problem) == run_learner(second, *problem)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.gas.centroids, second.gas.centroids)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"anchor_weight": -1.0}, "anchor_weight must be at least 0"),
        ({"min_max_weight": -1.0}, "min_max_weight must be at least 0"),
        ({"base_exemplars": -1}, "per_base_class must be at least 0"),
    ],
)
def test_wrong_settings_are_refused(learner, wrong, message):
    with pytest.raises(ValueError, match=message):
        learner(**wrong)


def test_a_classifier_of_another_size_or_other_classes_is_refused(split, classifier, batch, rng):
    with pytest.raises(ValueError, match="each of the 3 rows of the classifier. Found 2"):
        TOPIC(split, classifier, torch.tensor([1, 2]), generator=rng(), epochs=1, lr=0.1)
    method = TOPIC(split, classifier, torch.tensor([0, 2, 7]), generator=rng(), epochs=1, lr=0.1)
    with pytest.raises(ValueError, match=r"Found \[7\] without images, \[1\] without a row"):
        method.start(*batch)
    with pytest.raises(ValueError, match="at least 2 nodes. Found 1"):
        NeuralGas(torch.zeros(1, 3))


def test_a_loss_that_is_not_finite_is_reported(problem, learner):
    with pytest.raises(FloatingPointError, match="method 'topic', session 2: .* lower the lr"):
        run_learner(learner(margin=float("inf")), *problem)
