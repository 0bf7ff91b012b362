import copy
import math

import pytest
import torch
from torch.nn import functional as F

from experiments.fcl.baselines import NearestMean, run_learner
from experiments.fcl.baselines.fsll import (
    FSLL,
    FsllSettings,
    cosine_cross_entropy,
    move_back,
    separation_loss,
    small_layers,
    smallest_weights,
    triplet_loss,
)
from ktlib.fcl import class_means
from ktlib.testing import assert_gradient_flow

STEPS = {"epochs": 3, "lr": 0.05}
SETTINGS = {"penalty_weight": 0.1, "margin": 1.0}


def learner(split, **settings):
    return FSLL(split, **STEPS, settings=FsllSettings(**SETTINGS | settings))


def test_smallest_weights_by_hand():
    weights = {
        "a": torch.tensor([[0.5, -0.1], [0.2, -3.0]]),
        "b": torch.tensor([100.0, -101.0, 102.0, 100.0]),
    }
    half = smallest_weights(weights, 0.5)
    assert half["a"].tolist() == [[False, True], [True, False]]
    # Each layer is ranked on its own: large weights are chosen where all are large.
    assert half["b"].tolist() == [True, False, False, True]
    # Rounded down; of equal values the first.
    assert smallest_weights(weights, 0.49)["b"].tolist() == [True, False, False, False]
    assert not smallest_weights(weights, 0.0)["a"].any()
    assert smallest_weights(weights, 1.0)["a"].all()


def test_triplets_by_hand():
    """On a line: class 0 at 0 and 3, class 1 at 4.

    Anchor 0: 3 - 4 = -1; anchor 3: 3 - 1 = 2; class 1 has no pair. With margin 2: 1 and 4.
    """
    embeddings, labels = torch.tensor([[0.0], [3.0], [4.0]]), torch.tensor([0, 0, 1])
    assert triplet_loss(embeddings, labels).item() == 1.0
    assert triplet_loss(embeddings, labels, margin=2.0).item() == 2.5


def test_no_triplet_gives_no_loss_and_no_nan():
    embeddings = torch.tensor([[0.0], [3.0]], requires_grad=True)
    loss = triplet_loss(embeddings, torch.tensor([0, 1]), margin=1.0)
    loss.backward()
    assert loss.item() == 0.0
    assert embeddings.grad.tolist() == [[0.0], [0.0]]


def test_separation_by_hand():
    """Cosines of (2, 0) with (0, 5), (-1, 0) and (1, 1): 0, -1 and 1/sqrt(2)."""
    old = torch.tensor([[0.0, 5.0], [-1.0, 0.0], [1.0, 1.0]])
    found = separation_loss(torch.tensor([[2.0, 0.0]]), old)
    assert found.item() == pytest.approx((math.sqrt(0.5) - 1) / 3)


def test_small_layers_by_hand():
    weights = {"a": torch.tensor([[0.1, -0.4]]), "b": torch.tensor([0.0, 0.0, -0.41])}
    found = small_layers(weights, 0.4)
    assert found["a"].tolist() == [[True, True]]
    assert found["b"].tolist() == [False, False, False]


def test_cosine_cross_entropy_by_hand():
    """Cosines 1 and 0: log(1 + 1/e); the length of neither counts."""
    embeddings, prototypes = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 2.0], [9.0, 0.0]])
    found = cosine_cross_entropy(embeddings, torch.tensor([1]), prototypes)
    assert found.item() == pytest.approx(math.log(1 + math.exp(-1)))


def test_moving_back_by_hand():
    """By 0.5 towards the start, and no further: shifts 2, -2 and 0.3 become 1.5, -1.5 and 0."""
    weights = {"a": torch.tensor([3.0, -1.0]), "b": torch.tensor([5.3])}
    start = {"a": torch.tensor([1.0, 1.0]), "b": torch.tensor([5.0])}
    length = move_back(weights, start, 0.5)
    assert weights["a"].tolist() == [2.5, -0.5]
    assert weights["b"].tolist() == [5.0]
    assert length == pytest.approx(math.sqrt(0.25 + 0.25 + 0.09), rel=1e-5)
    kept = weights["a"].clone()
    assert move_back(weights, start, 0.0) == 0.0
    assert torch.equal(weights["a"], kept)


def test_each_term_reaches_the_tuned_weights_only(batch, split):
    split.network.eval()
    old = torch.ones(2, 32, device=batch[0].device)
    with torch.no_grad():
        features = split.prefix(batch[0])

    def terms():
        embeddings = split.tail_forward(features)
        return {
            "triplet": triplet_loss(embeddings, batch[1], margin=1.0),
            "separation": separation_loss(class_means(embeddings, batch[1]), old),
            "cosine": cosine_cross_entropy(embeddings, batch[1], class_means(embeddings, batch[1])),
        }

    assert_gradient_flow(terms, split.tuned, dict(split.prefix.named_parameters()))


def test_only_selected_weights_move_and_they_are_selected_anew(problem, split):
    sessions, images, labels, *_ = problem
    method = learner(split, fraction=0.2)
    method.start(images[sessions[0].train], labels[sessions[0].train])
    masks = []
    for session in sessions[1:]:
        state = copy.deepcopy(split.network.state_dict())
        expected = smallest_weights(split.tuned, 0.2)
        method.learn(images[session.train], labels[session.train])
        for name, tensor in split.network.state_dict().items():
            if name in split.tuned:
                assert torch.equal(method.selected[name], expected[name])
                frozen = ~method.selected[name]
                assert torch.equal(tensor[frozen], state[name][frozen])
                assert not torch.equal(tensor, state[name])
            else:
                assert torch.equal(tensor, state[name])
        masks.append(method.selected)
    assert any(not torch.equal(masks[0][name], masks[1][name]) for name in split.tuned)


def test_without_trainable_weights_it_is_the_frozen_network(problem, split):
    frozen = run_learner(NearestMean(copy.deepcopy(split)), *problem)
    assert run_learner(learner(split, fraction=0.0), *problem) == frozen


def shifts_of(split, problem, settings, **steps):
    """A run from session 2 on, and how far it carried each weight that it could change."""
    before = {name: p.detach().clone() for name, p in split.tuned.items()}
    method = FSLL(copy.deepcopy(split), **STEPS | steps, settings=settings)
    run_learner(method, problem[0][:2], *problem[1:])
    shifts = [
        (p.detach() - before[name])[method.selected[name]] for name, p in method.split.tuned.items()
    ]
    return method, torch.cat(shifts)


def test_the_penalty_holds_the_weights_without_shaking_them(problem, split):
    """More of it leaves more weights exactly where they were; none jumps back and forth."""
    found = []
    for weight in (0.0, 0.1, 1.0, 3.0):
        settings = FsllSettings(fraction=0.5, penalty_weight=weight, margin=1)
        found.append(shifts_of(split, problem, settings, epochs=10)[1])
    totals = [float(shifts.abs().sum()) for shifts in found]
    still = [int((shifts == 0).sum()) for shifts in found]
    assert totals == sorted(totals, reverse=True)
    assert totals[3] < 0.5 * totals[0]
    assert still == sorted(still)
    assert still[3] > 0.5 * len(found[3])


def test_a_strong_penalty_is_the_frozen_network(problem, split):
    """To the last bit, at any rate: a gradient step on it would shake every weight."""
    frozen = run_learner(NearestMean(copy.deepcopy(split)), *problem)
    method = FSLL(copy.deepcopy(split), epochs=9, lr=1.0, settings=FsllSettings(penalty_weight=1e3))
    assert run_learner(method, *problem) == frozen
    for name, parameter in method.split.tuned.items():
        assert torch.equal(parameter, split.tuned[name])
    for norms in method.gradients:
        assert norms["data"] > 0
        assert norms["penalty"] == pytest.approx(norms["data"], rel=1e-3)


def test_the_weight_of_the_penalty_is_the_norm_of_its_gradient(problem, split):
    """While it is small against the data's gradient, it takes this back from what moves at all."""
    reached = 1.0
    for weight in (0.0, 1e-3):
        settings = FsllSettings(fraction=1.0, penalty_weight=weight, margin=1)
        method, shifts = shifts_of(split, problem, settings, epochs=1)
        (norms,) = method.gradients
        assert norms["penalty"] == pytest.approx(weight * reached, rel=0.1)
        assert float(shifts.norm()) / STEPS["lr"] == pytest.approx(norms["data"], rel=1e-2)
        # Weights of kernels that see the border only do not move.
        reached = math.sqrt(float((shifts != 0).float().mean()))


def test_released_settings(problem, split):
    """Whole layers, momentum and weight decay as in torch, a cosine softmax, no penalty."""
    largest = {name: float(p.detach().abs().max()) for name, p in split.tuned.items()}
    threshold = sorted(largest.values())[1]
    assert FsllSettings.released().layer_threshold == 0.4
    settings = FsllSettings.released(threshold)
    method = FSLL(copy.deepcopy(split), epochs=4, lr=0.1, settings=settings, normalise=False)
    sessions, images, labels, *_ = problem
    base, new = sessions[0].train, sessions[1].train
    method.start(images[base], labels[base])
    method.learn(images[new], labels[new])
    split.network.eval()
    moved = [p for name, p in split.tuned.items() if largest[name] <= threshold]
    assert len(moved) == 2
    optimizer = torch.optim.SGD(moved, lr=0.1, momentum=0.9, weight_decay=5e-4)
    prototypes = class_means(split.network(images[base]), labels[base]).detach()
    classes, targets = labels[new].unique(return_inverse=True)
    for _ in range(4):
        embeddings = split.network(images[new])
        candidates = torch.cat([class_means(embeddings, labels[new], classes), prototypes])
        cosines = torch.cosine_similarity(embeddings[:, None], candidates[None], dim=2)
        loss = triplet_loss(embeddings, labels[new]) + F.cross_entropy(cosines, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, parameter in split.tuned.items():
        torch.testing.assert_close(method.split.tuned[name], parameter, rtol=1e-5, atol=1e-7)
    assert method.gradients[0]["penalty"] == 0
    assert method.gradients[0]["data"] > 0


def test_old_prototypes_and_base_images_are_not_touched(problem, split):
    method = learner(split)
    sessions, _, labels, *_ = problem
    run_learner(method, *problem)
    assert torch.equal(method.prototypes[:3], method.base_prototypes)
    kept, kept_labels = method.kept.all()
    assert not torch.isin(kept_labels, sessions[0].classes.to(labels.device)).any()
    assert len(kept) == 12


def test_equal_runs(problem, split):
    results = [run_learner(learner(copy.deepcopy(split)), *problem) for _ in range(2)]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fraction": 1.5}, "fraction must be between 0 and 1. Found fraction=1.5."),
        ({"fraction": float("nan")}, "fraction must be between 0 and 1"),
        ({"margin": -1.0}, "margin must be at least 0"),
        ({"penalty_weight": -1.0}, "penalty_weight must be at least 0"),
        ({"prototype_weight": -1.0}, "prototype_weight must be at least 0"),
        ({"layer_threshold": -1.0}, "layer_threshold must be at least 0"),
        ({"momentum": -1.0}, "momentum must be at least 0"),
        ({"prototype_term": "norm"}, "prototype_term must be 'similarity' or 'cross-entropy'"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        FsllSettings(**wrong)


@pytest.mark.parametrize(("name", "value"), [("epochs", 0), ("lr", 0.0)])
def test_wrong_steps_are_refused(split, name, value):
    with pytest.raises(ValueError, match=name):
        FSLL(split, **STEPS | {name: value})


def test_a_loss_that_is_not_finite_is_reported(problem, split):
    with pytest.raises(FloatingPointError, match="method 'fsll', session 2: .* lower the lr"):
        run_learner(learner(split, margin=float("inf")), *problem)
