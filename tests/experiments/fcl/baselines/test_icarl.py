import copy
import math

import pytest
import torch
from torch.nn import functional as F

from experiments.fcl.baselines import Exemplars, herding, run_learner
from experiments.fcl.baselines.icarl import ICaRL, classification_loss, distillation_loss
from ktlib.fcl import class_means, embed, nearest_class_mean, positions_of
from ktlib.testing import assert_gradient_flow, assert_step_updates

SETTINGS = {"epochs": 8, "lr": 0.02, "batch_size": 8}


def test_classification_loss_by_hand():
    """Scores 0 cost log 2 each; log 3 is a chance of 3/4."""
    scores = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    found = classification_loss(scores, torch.tensor([1, -1]))  # the second image: neither class
    expected = (3 * math.log(2) + math.log(4 / 3)) / 2
    torch.testing.assert_close(found, torch.tensor(expected))


def test_distillation_loss_by_hand():
    """Old chance 3/4, new chance 1/2: the cross-entropy is log 2 whatever the old one."""
    old = torch.tensor([[math.log(3)]])
    torch.testing.assert_close(distillation_loss(torch.zeros(1, 1), old), torch.tensor(math.log(2)))
    entropy = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    torch.testing.assert_close(distillation_loss(old, old), torch.tensor(entropy))


def test_distillation_is_smallest_where_both_agree(rng):
    old = torch.randn(6, 4, generator=rng())
    scores = old.clone().requires_grad_()
    gradient = torch.autograd.grad(distillation_loss(scores, old), scores)[0]
    assert gradient.abs().max() < 1e-7
    for seed in range(5):
        other = old + 0.1 * torch.randn(6, 4, generator=rng(seed))
        assert distillation_loss(other, old) > distillation_loss(old, old)


def test_hard_old_outputs_make_distillation_a_classification(rng):
    """An old network that is sure of everything is a label."""
    scores, targets = torch.randn(5, 3, generator=rng()), torch.tensor([0, 2, 1, 1, 0])
    sure = 200 * F.one_hot(targets, 3).float() - 100
    torch.testing.assert_close(
        distillation_loss(scores, sure), classification_loss(scores, targets)
    )


def test_both_terms_are_one_cross_entropy_of_mixed_targets(trained, images_of, rng):
    """As in the authors' code: labels, with the columns of old classes overwritten."""
    split, classifier, classes = trained
    learner = ICaRL(split, classifier, classes, **SETTINGS, generator=rng())
    learner.start(*images_of(1))
    learner.learn(*images_of(2))
    images = torch.cat([images_of(1)[0][:2], images_of(2)[0][:2]])
    targets = torch.tensor([0, 2, 3, 4], device=images.device)
    old_scores = torch.randn(4, 3, generator=rng()).to(images)
    wanted = F.one_hot(targets, 5).to(images)
    wanted[:, :3] = old_scores.sigmoid()
    scores = learner.classifier(split.network(images))
    expected = F.binary_cross_entropy_with_logits(scores, wanted) * 5
    terms = learner.loss_terms(learner.trainer.inputs(images), targets, old_scores)
    torch.testing.assert_close(terms["classification"] + terms["distillation"], expected)


def test_both_terms_reach_what_is_trained(trained, images_of, rng):
    split, classifier, classes = trained
    learner = ICaRL(split, classifier, classes, **SETTINGS, generator=rng())
    learner.start(*images_of(1))
    learner.learn(*images_of(2))  # the classifier has 5 rows now
    images, labels = images_of(2)
    inputs = learner.trainer.inputs(images)
    targets = positions_of(labels, learner.classes)
    old_scores = torch.randn(len(labels), 3, generator=rng()).to(inputs).requires_grad_()
    heads = {f"classifier.{name}": value for name, value in learner.classifier.named_parameters()}
    assert_gradient_flow(
        lambda: learner.loss_terms(inputs, targets, old_scores),
        {**split.tuned, **heads},
        {"old scores": old_scores, **dict(split.prefix.named_parameters(prefix="prefix"))},
    )


@pytest.mark.parametrize("train", ["tail", "all"])
def test_what_a_session_changes(trained, train, images_of, rng):
    split, classifier, _ = trained
    learner = ICaRL(*trained, **SETTINGS, generator=rng(), train=train)
    learner.start(*images_of(1))
    every = dict(split.network.named_parameters())
    moved = split.tuned if train == "tail" else every
    rest = {name: value for name, value in every.items() if name not in moved}
    assert_step_updates(
        lambda: learner.learn(*images_of(2)),
        moved,
        {**rest, **dict(split.network.named_buffers()), "classifier": classifier.weight},
    )


def test_session_1_is_the_nearest_mean_of_exemplars(trained, problem, images_of, rng):
    """The same by hand, from herding on embeddings of norm 1."""
    split, _, classes = trained
    images, labels = images_of(1)
    learner = ICaRL(*trained, **SETTINGS, generator=rng())
    learner.start(images, labels)
    features = F.normalize(embed(split.network, images))
    means = []
    for label in classes.tolist():
        own = features[labels == label]
        means.append(F.normalize(own[herding(own, 2)].mean(dim=0), dim=0))
    torch.testing.assert_close(learner.means, torch.stack(means))
    tested = F.normalize(embed(split.network, problem[3]))
    expected = classes.to(labels)[nearest_class_mean(tested, torch.stack(means))]
    assert torch.equal(learner.predict(problem[3]), expected)


def test_means_have_norm_1_and_are_those_of_the_network_of_the_day(trained, images_of, rng):
    split, *_ = trained
    learner = ICaRL(*trained, **SETTINGS, generator=rng())
    learner.start(*images_of(1))
    first = learner.means
    learner.learn(*images_of(2))
    torch.testing.assert_close(learner.means.norm(dim=1), torch.ones(5).to(first))
    assert not torch.allclose(learner.means[:3], first)
    images, labels = learner.kept.all()
    features = F.normalize(embed(split.network, images))
    torch.testing.assert_close(
        learner.means, F.normalize(class_means(features, labels, learner.classes))
    )


def test_the_budget_is_used_and_held(trained, problem, rng):
    learner = ICaRL(*trained, **SETTINGS, generator=rng(), base_exemplars=3, new_exemplars=1)
    run_learner(learner, *problem)
    counts = [int((learner.kept.all()[1] == label).sum()) for label in learner.classes]
    assert counts == [3, 3, 3, 1, 1, 1, 1]


def test_the_order_of_herding_is_kept(trained, images_of, rng):
    """What a smaller budget keeps is the first part of what a larger one keeps."""
    kept = {}
    for budget in (1, 2):
        learner = ICaRL(*copy.deepcopy(trained), **SETTINGS, generator=rng(), base_exemplars=budget)
        learner.start(*images_of(1))
        kept[budget] = learner.kept.all()[0]
    assert torch.equal(kept[2][::2], kept[1])


def test_it_learns_new_classes_and_keeps_the_base(trained, problem, rng):
    """Chance is 14 percent of 7 classes."""
    rows = run_learner(ICaRL(*trained, **SETTINGS, generator=rng()), *problem).rows
    assert rows[2]["new_accuracy"] >= 45
    assert rows[2]["base_accuracy"] >= 60


def test_equal_seeds_give_equal_results(trained, problem, rng):
    means = []
    for seed in (0, 0, 1):
        learner = ICaRL(*copy.deepcopy(trained), **SETTINGS, generator=rng(seed))
        torch.rand(seed + 3)  # the global generator plays no part
        run_learner(learner, *problem)
        means.append(learner.means)
    assert torch.equal(means[0], means[1])
    assert not torch.equal(means[0], means[2])


def test_distillation_keeps_the_old_scores(trained, problem, monkeypatch, images_of, rng):
    """With the term, scores of old classes drift less than without it."""
    drift = {}
    tested = problem[3]
    before = trained[1](embed(trained[0].network, tested)).sigmoid()
    for kept in (True, False):
        split, classifier, classes = copy.deepcopy(trained)
        learner = ICaRL(split, classifier, classes, **SETTINGS, generator=rng())
        if not kept:
            terms = learner.loss_terms
            monkeypatch.setattr(
                learner, "loss_terms",
                lambda *a, terms=terms: {n: (1 - (n == "distillation")) * v
                                         for n, v in terms(*a).items()},
            )  # fmt: skip
        learner.start(*images_of(1))
        learner.learn(*images_of(2))
        after = learner.classifier(embed(split.network, tested))[:, :3].sigmoid()
        drift[kept] = (after - before).abs().mean().item()
    assert drift[True] < drift[False]


def test_no_exemplars_are_refused(split, classifier, rng):
    options = {**SETTINGS, "generator": rng()}
    for name in ("base_exemplars", "new_exemplars"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1. Found {name}=0"):
            ICaRL(split, classifier, torch.arange(3), **options, **{name: 0})
    with pytest.raises(ValueError, match="3 rows of the classifier. Found 4"):
        ICaRL(split, classifier, torch.arange(4), **options)
    assert isinstance(ICaRL(split, classifier, torch.arange(3), **options).kept, Exemplars)


def test_a_loss_that_explodes_is_named(trained, problem, rng):
    learner = ICaRL(*trained, epochs=9, lr=1e30, batch_size=8, generator=rng())
    with pytest.raises(FloatingPointError, match=r"method 'icarl', session 2: .* step \d+"):
        run_learner(learner, *problem)
