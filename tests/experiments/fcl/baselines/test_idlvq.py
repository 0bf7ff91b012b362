import copy
import math

import pytest
import torch

from experiments.fcl.baselines import NearestMean, run_learner
from experiments.fcl.baselines.idlvq import (
    IDLVQC,
    IdlvqSettings,
    assignment_loss,
    calibration_shift,
    forgetting_loss,
    margin_loss,
    mixture_width,
    spread_loss,
)
from ktlib.fcl import class_means
from ktlib.fcl.evaluation import embed
from ktlib.testing import assert_gradient_flow, assert_step_updates

STEPS = {"epochs": 3, "lr": 1e-4}
LINE = torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1]), torch.tensor([[0.0], [4.0], [9.0]])


def test_soft_assignment_by_hand():
    """Squared distances over 4: image 1 has 1/4, 9/4, 16; image 3 has 9/4, 1/4, 9."""
    rows = ([0.25, 2.25, 16.0], [0.25, 2.25, 9.0])
    expected = [d[0] + math.log(sum(math.exp(-v) for v in d)) for d in rows]
    assert assignment_loss(*LINE, 4.0).item() == pytest.approx(sum(expected) / 2)


def test_margin_by_hand():
    """Log-odds are 9/4 - 1/4 = 2 for both images."""
    assert margin_loss(*LINE, 4.0, margin=2.0).item() == 0.0
    assert margin_loss(*LINE, 4.0, margin=2.5).item() == 0.5
    wrong = torch.tensor([1, 1])  # image 1: own 9/4, nearest other 1/4
    assert margin_loss(LINE[0], wrong, LINE[2], 4.0, margin=2.5).item() == (4.5 + 0.5) / 2


def test_margin_is_the_log_odds_of_two_classes():
    embeddings, targets, references = LINE
    two = references[:2]
    odds = (-torch.cdist(embeddings, two).square() / 4.0).log_softmax(dim=1)
    expected = (5.0 - (odds[:, 0] - odds[:, 1]) * torch.tensor([1.0, -1.0])).mean()
    assert torch.allclose(margin_loss(embeddings, targets, two, 4.0, margin=5.0), expected)


def test_spread_and_forgetting_by_hand():
    assert spread_loss(*LINE, 4.0).item() == 0.25
    before = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    now = torch.tensor([[3.0, 4.0], [1.0, 1.0]])
    assert forgetting_loss(now, before, 5.0).item() == 2.5
    assert forgetting_loss(before, before, 5.0).item() == 0.0


def test_width_by_hand():
    """Squared shifts 1, 1, 9 and 1 over 4 entries: variance 3, width 6."""
    embeddings = torch.tensor([[1.0, 1.0], [7.0, 3.0]])
    references = torch.tensor([[0.0, 0.0], [4.0, 4.0]])
    assert mixture_width(embeddings, torch.tensor([0, 1]), references) == 6.0
    with pytest.raises(ValueError, match="must vary within a class"):
        mixture_width(references, torch.tensor([0, 1]), references)


def test_width_is_the_most_likely_one():
    generator = torch.Generator().manual_seed(0)
    references = torch.tensor([[0.0, 0.0, 0.0], [5.0, 5.0, 5.0]])
    targets = torch.arange(40) % 2
    points = references[targets] + torch.randn(40, 3, generator=generator)
    found = mixture_width(points, targets, references)

    def likelihood(gamma):
        spread = math.sqrt(gamma / 2)
        return torch.distributions.Normal(references[targets], spread).log_prob(points).sum()

    assert likelihood(found) > likelihood(0.99 * found)
    assert likelihood(found) > likelihood(1.01 * found)


def test_calibration_by_hand():
    """Reference 0 is as far from both shots: their mean drift; 100 follows the second."""
    before, after = torch.tensor([[-5.0], [5.0]]), torch.tensor([[-4.0], [8.0]])
    shift = calibration_shift(before, after, torch.tensor([[0.0], [100.0]]), 4.0)
    assert torch.allclose(shift, torch.tensor([[2.0], [3.0]]))
    assert not calibration_shift(before, before, torch.tensor([[0.0]]), 4.0).any()


def test_calibration_follows_a_translation_exactly():
    before = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    shift = calibration_shift(before, before + 0.5, torch.zeros(2, 3), 1.0)
    assert torch.allclose(shift, torch.full((2, 3), 0.5))


def test_each_term_reaches_weights_and_references_only(batch, split):
    split.network.eval()
    with torch.no_grad():
        features = split.prefix(batch[0])
        start = class_means(split.tail_forward(features), batch[1])
    references = (start + 0.01).requires_grad_()

    def terms():
        embeddings = split.tail_forward(features)
        arguments = embeddings, batch[1], references, 1.0
        return {
            "assignment": assignment_loss(*arguments),
            "margin": margin_loss(*arguments, margin=5.0),
            "spread": spread_loss(*arguments),
            "forgetting": forgetting_loss(references, start, 1.0),
        }

    trained = {**split.tuned, "references": references}
    assert_gradient_flow(terms, trained, dict(split.prefix.named_parameters()))


def test_a_session_moves_tuned_weights_and_old_references_only(problem, split):
    sessions, images, labels, *_ = problem
    method = IDLVQC(split, **STEPS)
    base, new = sessions[0].train, sessions[1].train
    method.start(images[base], labels[base])
    old = method.references
    state = split.network.state_dict(keep_vars=True)
    assert_step_updates(
        lambda: method.learn(images[new], labels[new]),
        split.tuned,
        {name: tensor for name, tensor in state.items() if name not in split.tuned},
    )
    assert method.references.shape == (5, 32)
    assert not method.references.requires_grad
    assert not torch.equal(method.references[:3], old)


def test_with_a_vanishing_lr_it_is_the_frozen_nearest_mean(problem, split):
    frozen = run_learner(NearestMean(copy.deepcopy(split), normalise=False), *problem)
    method = IDLVQC(split, epochs=3, lr=1e-30, settings=IdlvqSettings(reference_lr=1e-30))
    assert run_learner(method, *problem) == frozen


def test_less_forgetting_holds_the_old_references(problem, split):
    """Without calibration, which moves them by design."""

    def shift(weight):
        settings = IdlvqSettings(forgetting_weight=weight, calibrate=False)
        method = IDLVQC(copy.deepcopy(split), **STEPS, settings=settings)
        sessions, images, labels, *_ = problem
        method.start(images[sessions[0].train], labels[sessions[0].train])
        old = method.references
        method.learn(images[sessions[1].train], labels[sessions[1].train])
        return float((method.references[:3] - old).norm())

    assert 0 < shift(5.0) < 0.9 * shift(0.0)


def test_old_references_follow_the_embedding(problem, split):
    sessions, images, labels, *_ = problem
    base, new = sessions[0].train, sessions[1].train
    settings = [IdlvqSettings(calibrate=on) for on in (True, False)]
    methods = [IDLVQC(copy.deepcopy(split), **STEPS, settings=s) for s in settings]
    for method in methods:
        method.start(images[base], labels[base])
        old = method.references
        method.learn(images[new], labels[new])
    calibrated, plain = methods
    drift = [embed(s.network, images[new]) for s in (split, plain.split)]
    shift = calibration_shift(*drift, old, plain.width)
    assert torch.allclose(calibrated.references[:3], plain.references[:3] + shift, atol=1e-6)
    assert torch.equal(calibrated.references[3:], plain.references[3:])
    assert float(shift.abs().max()) > 1e-4


def test_no_base_image_is_kept(problem, split):
    method = IDLVQC(split, **STEPS, new_exemplars=2)
    run_learner(method, *problem)
    kept, kept_labels = method.kept.all()
    assert len(kept) == 8
    assert not torch.isin(kept_labels, problem[0][0].classes.to(kept_labels.device)).any()


def test_equal_runs(problem, split):
    results = [run_learner(IDLVQC(copy.deepcopy(split), **STEPS), *problem) for _ in range(2)]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gamma": 0.0}, "gamma must be above 0. Found gamma=0.0."),
        ({"margin": -1.0}, "margin must be at least 0"),
        ({"spread_weight": -1.0}, "spread_weight must be at least 0"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        IdlvqSettings(**wrong)


@pytest.mark.parametrize(("name", "value"), [("epochs", 0), ("lr", -1.0)])
def test_wrong_steps_are_refused(split, name, value):
    with pytest.raises(ValueError, match=name):
        IDLVQC(split, **STEPS | {name: value})


def test_a_loss_that_is_not_finite_is_reported(problem, split):
    with pytest.raises(FloatingPointError, match="method 'idlvq', session 2: .* lower the lr"):
        run_learner(IDLVQC(split, epochs=50, lr=1e6), *problem)
