import copy
import math

import pytest
import torch
from torch.nn import functional as F

from experiments.fcl.baselines import run_learner
from experiments.fcl.baselines.lucir import (
    LUCIR,
    CosineClassifier,
    LucirSettings,
    imprinted_rows,
    less_forget_loss,
    less_forget_weight,
    margin_ranking_loss,
)
from ktlib.fcl import embed
from ktlib.testing import assert_gradient_flow, assert_step_updates

SETTINGS = {"epochs": 8, "lr": 0.02, "batch_size": 8}


@pytest.fixture
def trained(after_base, device, rng):
    """Network, cosine classifier and its classes after a short base session."""
    return after_base(CosineClassifier(32, 3, generator=rng()).to(device))


def test_cosine_classifier_by_hand(rng):
    classifier = CosineClassifier(2, 2, generator=rng(), scale=10.0)
    with torch.no_grad():
        classifier.weight.copy_(torch.tensor([[2.0, 0.0], [1.0, 1.0]]))
    found = classifier(torch.tensor([[0.0, 5.0], [3.0, 0.0]]))
    half = 10 * math.sqrt(0.5)
    torch.testing.assert_close(found, torch.tensor([[0.0, half], [10.0, half]]))


def test_cosine_scores_know_no_lengths(rng):
    classifier = CosineClassifier(6, 4, generator=rng())
    x = torch.randn(5, 6, generator=rng(1))
    before = classifier(x)
    with torch.no_grad():
        classifier.weight *= torch.tensor([0.5, 2.0, 3.0, 4.0])[:, None]
    torch.testing.assert_close(classifier(7 * x), before)
    assert before.abs().max() <= 1


def test_base_training_moves_the_scale_too(trained):
    _, classifier, _ = trained
    assert classifier.scale > 1.2


def test_less_forget_loss_by_hand():
    """Cosines 0, 1 and -1."""
    before = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    now = torch.tensor([[0.0, 3.0], [5.0, 5.0], [0.0, -1.0]])
    torch.testing.assert_close(less_forget_loss(now, before), torch.tensor(1.0))
    assert less_forget_loss(4 * before, before).abs() < 1e-6


def test_less_forget_weight_by_hand():
    assert less_forget_weight(5.0, 60, 15) == 10.0
    assert less_forget_weight(5.0, 80, 5) == 20.0


def test_margin_ranking_loss_by_hand():
    """Old classes 0 and 1, new classes 2, 3, 4; the last image is of a new class and left out."""
    scores = torch.tensor(
        [
            [0.9, 0.0, 0.5, 0.2, 0.1],  # 0.5 - 0.9 + 0.5 = 0.1, then nothing
            [0.0, 0.3, 0.1, 0.4, 0.2],  # 0.5 - 0.3 + 0.4 = 0.6, then 0.5 - 0.3 + 0.2 = 0.4
            [0.9, 0.9, 0.0, 0.9, 0.9],
        ]
    )
    found = margin_ranking_loss(scores, torch.tensor([0, 1, 2]), 2)
    torch.testing.assert_close(found, torch.tensor((0.1 + 0.0 + 0.6 + 0.4) / 4))
    alone = margin_ranking_loss(scores, torch.tensor([0, 1, 2]), 2, nearest=1, margin=0.3)
    torch.testing.assert_close(alone, torch.tensor((0.0 + 0.4) / 2))


def test_margin_ranking_is_pytorchs(rng):
    scores, targets = torch.randn(7, 6, generator=rng()), torch.tensor([0, 1, 2, 3, 0, 1, 5])
    old = targets < 3
    own = scores[old, targets[old]].repeat_interleave(2)
    others = scores[old, 3:].topk(2, dim=1).values.flatten()
    expected = F.margin_ranking_loss(own, others, torch.ones_like(own), margin=0.5)
    torch.testing.assert_close(margin_ranking_loss(scores, targets, 3), expected)


def test_no_old_image_no_ranking_and_few_new_classes(rng):
    scores = torch.randn(4, 3, generator=rng())
    assert margin_ranking_loss(scores, torch.full((4,), 2), 2) == 0
    one = margin_ranking_loss(scores, torch.zeros(4, dtype=torch.long), 2)
    assert one == (0.5 - scores[:, 0] + scores[:, 2]).clamp(min=0).mean()


def test_imprinted_rows_by_hand():
    """Lengths of embeddings do not matter; old rows have norms 1 and 3."""
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 9.0], [0.0, 4.0]])
    rows = imprinted_rows(
        embeddings, torch.tensor([8, 8, 5]), torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    )
    diagonal = math.sqrt(2)
    torch.testing.assert_close(rows, torch.tensor([[0.0, 2.0], [diagonal, diagonal]]))


def test_all_terms_reach_what_is_trained(trained, images_of, rng):
    split, classifier, classes = trained
    learner = LUCIR(split, classifier, classes, **SETTINGS, generator=rng())
    learner.start(*images_of(1))
    images = torch.cat([images_of(1)[0][:6], images_of(2)[0]])
    inputs = learner.trainer.inputs(images)
    targets = torch.arange(len(images), device=inputs.device) % 5
    before = torch.rand(len(images), 32, generator=rng()).to(inputs).requires_grad_()
    new_rows = torch.rand(2, 32, generator=rng(1)).to(inputs).requires_grad_()
    assert_gradient_flow(
        lambda: learner.loss_terms(inputs, targets, before, new_rows),
        {**split.tuned, "new rows": new_rows, "scale": learner.scale},
        {
            "before": before,
            "old rows": learner.weight,
            **dict(split.prefix.named_parameters(prefix="prefix")),
        },
    )


@pytest.mark.parametrize("train", ["tail", "all"])
def test_what_a_session_changes(trained, train, images_of, rng):
    split, classifier, _ = trained
    learner = LUCIR(*trained, **SETTINGS, generator=rng(), train=train)
    learner.start(*images_of(1))
    every = dict(split.network.named_parameters())
    moved = split.tuned if train == "tail" else every
    rest = {name: value for name, value in every.items() if name not in moved}
    heads = dict(classifier.named_parameters(prefix="classifier"))
    assert_step_updates(
        lambda: learner.learn(*images_of(2)),
        {**moved, "scale": learner.scale},
        {**rest, **dict(split.network.named_buffers()), **heads, "old rows": learner.weight},
    )
    assert torch.equal(learner.weight[:3], classifier.weight)
    assert learner.weight.shape == (5, 32)


def test_session_1_is_the_network_as_trained(trained, problem, images_of, rng):
    split, classifier, classes = trained
    learner = LUCIR(*trained, **SETTINGS, generator=rng())
    learner.start(*images_of(1))
    expected = classifier(embed(split.network, problem[3])).argmax(dim=1)
    assert torch.equal(learner.predict(problem[3]), classes.to(expected)[expected])


def test_with_a_vanishing_step_new_classes_are_their_imprinted_rows(trained, images_of, rng):
    split, classifier, _ = trained
    images, labels = images_of(2)
    expected = imprinted_rows(embed(split.network, images), labels, classifier.weight)
    learner = LUCIR(*trained, epochs=1, lr=1e-12, batch_size=8, generator=rng())
    learner.start(*images_of(1))
    learner.learn(images, labels)
    torch.testing.assert_close(learner.weight[3:], expected)


def test_it_learns_new_classes_and_keeps_the_base(trained, problem, rng):
    """Chance is 14 percent of 7 classes."""
    rows = run_learner(LUCIR(*trained, **SETTINGS, generator=rng()), *problem).rows
    assert rows[0]["accuracy"] >= 90
    assert rows[2]["new_accuracy"] >= 45
    assert rows[2]["base_accuracy"] >= 60


def test_a_heavy_less_forget_loss_holds_the_embeddings(trained, problem, rng):
    drift = {}
    before = embed(trained[0].network, problem[3])
    for less_forget in (0.0, 20.0):
        split, classifier, classes = copy.deepcopy(trained)
        settings = LucirSettings(less_forget=less_forget)
        learner = LUCIR(split, classifier, classes, **SETTINGS, generator=rng(), settings=settings)
        run_learner(learner, *problem)
        drift[less_forget] = float(less_forget_loss(embed(split.network, problem[3]), before))
    assert drift[20.0] < 0.7 * drift[0.0]


def test_the_budget_is_used_and_held(trained, problem, rng):
    learner = LUCIR(*trained, **SETTINGS, generator=rng())
    run_learner(learner, *problem)
    counts = [int((learner.kept.all()[1] == label).sum()) for label in learner.classes]
    assert counts == [2] * 7


def test_equal_seeds_give_equal_results(trained, problem, rng):
    rows = []
    for seed in (0, 0, 1):
        learner = LUCIR(*copy.deepcopy(trained), **SETTINGS, generator=rng(seed))
        torch.rand(seed + 3)  # the global generator plays no part
        run_learner(learner, *problem)
        rows.append(learner.weight)
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_wrong_settings_are_refused(split, rng):
    classifier = CosineClassifier(32, 3, generator=rng())
    options = {**SETTINGS, "generator": rng()}
    for change, message in (
        ({"less_forget": -1.0}, "less_forget must be a finite number >= 0"),
        ({"ranking": math.inf}, "ranking must be a finite number >= 0"),
        ({"nearest": 0}, "nearest must be at least 1. Found nearest=0"),
    ):
        with pytest.raises(ValueError, match=message):
            LucirSettings(**change)
    with pytest.raises(ValueError, match="per_base_class must be at least 0"):
        LUCIR(split, classifier, torch.arange(3), **options, base_exemplars=-1)
    with pytest.raises(ValueError, match="3 rows of the classifier. Found 4"):
        LUCIR(split, classifier, torch.arange(4), **options)
    with pytest.raises(ValueError, match="scale must be above 0. Found scale=0"):
        CosineClassifier(4, 3, generator=rng(), scale=0)
    with pytest.raises(ValueError, match="classes must be at least 1"):
        CosineClassifier(4, 0, generator=rng())


def test_a_loss_that_explodes_is_named(trained, problem, rng):
    learner = LUCIR(*trained, epochs=9, lr=1e30, batch_size=8, generator=rng())
    with pytest.raises(FloatingPointError, match=r"method 'lucir', session 2: .* step \d+"):
        run_learner(learner, *problem)
