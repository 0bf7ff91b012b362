import copy
import math

import pytest
import torch

from experiments.fcl.baselines import NearestMean, run_learner
from experiments.fcl.baselines.fsll import (
    FSLL,
    FsllSettings,
    separation_loss,
    shift_penalty,
    smallest_weights,
    triplet_loss,
)
from ktlib.fcl import class_means
from ktlib.testing import assert_gradient_flow

STEPS = {"epochs": 3, "lr": 0.05}
SETTINGS = {"penalty_weight": 0.01, "margin": 1.0}


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


def test_penalty_by_hand():
    """|1 - 3| + |5 - 4.5| where selected; the last shift is not."""
    now = {"a": torch.tensor([1.0, 5.0, 7.0], requires_grad=True)}
    before, mask = {"a": torch.tensor([3.0, 4.5, 0.0])}, {"a": torch.tensor([True, True, False])}
    penalty = shift_penalty(now, before, mask)
    assert penalty.item() == 2.5
    assert torch.autograd.grad(penalty, now["a"])[0].tolist() == [-1.0, 1.0, 0.0]


def test_each_term_reaches_the_tuned_weights_only(batch, split):
    split.network.eval()
    before = {name: p.detach() - 0.01 for name, p in split.tuned.items()}
    masks = smallest_weights(split.tuned, 0.1)
    old = torch.ones(2, 32, device=batch[0].device)
    with torch.no_grad():
        features = split.prefix(batch[0])

    def terms():
        embeddings = split.tail_forward(features)
        return {
            "triplet": triplet_loss(embeddings, batch[1], margin=1.0),
            "separation": separation_loss(class_means(embeddings, batch[1]), old),
            "penalty": shift_penalty(split.tuned, before, masks),
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


def test_the_penalty_holds_the_weights(problem, split):
    before = {name: p.detach().clone() for name, p in split.tuned.items()}

    def shift(weight):
        settings = FsllSettings(fraction=0.5, penalty_weight=weight, margin=1)
        method = FSLL(copy.deepcopy(split), epochs=20, lr=0.05, settings=settings)
        run_learner(method, *problem)
        pairs = [(p.detach(), before[name]) for name, p in method.split.tuned.items()]
        return sum(float((now - then).abs().sum()) for now, then in pairs)

    assert shift(0.003) < 0.9 * shift(0.0)


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
        ({"separation_weight": -1.0}, "separation_weight must be at least 0"),
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
