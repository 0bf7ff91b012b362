import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from experiments.fcl.baselines import run_learner
from experiments.fcl.baselines.session_training import (
    SessionTrainer,
    class_balanced_weights,
    extend_linear,
    new_linear,
)
from experiments.fcl.baselines.upper_bounds import ClassifierRetraining, Joint
from ktlib.fcl import embed
from ktlib.testing import assert_gradient_flow, assert_step_updates

SETTINGS = {"epochs": 4, "lr": 0.01, "batch_size": 8}


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_class_balanced_weights_by_hand():
    sampling_weights = class_balanced_weights(torch.tensor([4, 4, 4, 9]))
    torch.testing.assert_close(sampling_weights, torch.tensor([1 / 6, 1 / 6, 1 / 6, 1 / 2]))


def test_rows_are_drawn_as_often_as_asked(split, rng):
    trainer = SessionTrainer(split, **SETTINGS, generator=rng())
    labels = (torch.arange(600) >= 594).long()  # 594 images of class 0, 6 of class 1
    seen = []
    trainer.minimise(
        lambda rows: seen.append(rows) or trainer.parameters[0].sum(),
        len(labels), trainer.parameters[:1], epochs=10,
        sampling_weights=class_balanced_weights(labels),
    )  # fmt: skip
    assert 0.47 < labels[torch.cat(seen)].float().mean() < 0.53
    seen.clear()
    trainer.minimise(
        lambda rows: seen.append(rows) or trainer.parameters[0].sum(),
        len(labels), trainer.parameters[:1], epochs=1,
    )  # fmt: skip
    assert torch.cat(seen).sort().values.tolist() == list(range(600))
    assert {len(rows) for rows in seen} == {8}


@pytest.mark.parametrize("bias", [True, False])
def test_a_longer_classifier_scores_old_classes_as_before(bias, rng):
    old = nn.Linear(5, 3, bias=bias)
    kept = copy.deepcopy(old)
    longer = extend_linear(old, 2, rng())
    x = torch.randn(4, 5)
    assert longer(x).shape == (4, 5)
    torch.testing.assert_close(longer(x)[:, :3], old(x))
    assert all(torch.equal(a, b) for a, b in zip(old.parameters(), kept.parameters(), strict=True))
    assert longer.weight[3:].abs().max() <= 5**-0.5
    assert longer.weight[3:].std() > 0.1


def test_fresh_rows_come_from_the_generator_alone(rng):
    layers = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        layers.append(new_linear(nn.utils.skip_init(nn.Linear, 5, 3), 4, rng()))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(layers[0].weight, layers[1].weight)


def test_tail_and_full_network_have_the_same_gradient(trained, problem, rng):
    """The prefix features are an exact shortcut."""
    split, classifier, _ = trained
    split.network.double(), classifier.double()
    images = problem[1][:6].double()
    targets = torch.arange(6, device=images.device) % 3
    found = []
    for train in ("tail", "all"):
        trainer = SessionTrainer(split, **SETTINGS, generator=rng(), train=train)
        scores = classifier(trainer.trained(trainer.inputs(images)))
        found.append(
            torch.autograd.grad(F.cross_entropy(scores, targets), list(split.tuned.values()))
        )
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", [False, True])
@pytest.mark.parametrize("train", ["tail", "all"])
def test_features_and_embeddings_leave_the_network_in_its_mode(trained, problem, rng, train, mode):
    split, *_ = trained
    split.network.train(mode)
    trainer = SessionTrainer(split, **SETTINGS, generator=rng(), train=train)
    trainer.embed(trainer.inputs(problem[1][:2]))
    assert {module.training for module in split.network.modules()} == {mode}


@pytest.mark.parametrize("method", [Joint, ClassifierRetraining])
@pytest.mark.parametrize("train", ["tail", "all"])
def test_it_learns_the_new_classes_and_keeps_the_base(trained, problem, method, train, rng):
    """Chance is 14 percent of 7 classes; new classes have 3 images each."""
    learner = method(*trained, epochs=20, lr=0.01, batch_size=8, generator=rng(), train=train)
    rows = run_learner(learner, *problem).rows
    assert rows[0]["accuracy"] >= 90
    assert rows[2]["new_accuracy"] >= 60
    assert rows[2]["base_accuracy"] >= 80


@pytest.mark.parametrize("method", [Joint, ClassifierRetraining])
def test_session_1_is_the_network_as_trained(trained, problem, method, rng, images_of):
    split, classifier, classes = trained
    images = problem[3]
    expected = classes.to(images.device)[classifier(embed(split.network, images)).argmax(dim=1)]
    learner = method(*trained, **SETTINGS, generator=rng())
    learner.start(*images_of(1))
    assert torch.equal(learner.predict(images), expected)


@pytest.mark.parametrize("method", [Joint, ClassifierRetraining])
def test_equal_seeds_give_equal_results(trained, problem, method, rng):
    found = []
    for seed in (0, 0, 1):
        learner = method(*copy.deepcopy(trained), **SETTINGS, generator=rng(seed))
        torch.rand(seed + 3)  # the global generator plays no part
        run_learner(learner, *problem)
        found.append(learner.scores(embed(learner.trainer.split.network, problem[3])))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("train", ["tail", "all"])
def test_what_a_session_changes(trained, train, rng, images_of):
    split, classifier, _ = trained
    learner = Joint(*trained, **SETTINGS, generator=rng(), train=train)
    learner.start(*images_of(1))
    split.network.zero_grad()
    every = dict(split.network.named_parameters())
    moved = split.tuned if train == "tail" else every
    rest = {name: value for name, value in every.items() if name not in moved}
    assert_step_updates(
        lambda: learner.learn(*images_of(2)),
        moved,
        {**rest, **dict(split.network.named_buffers()), "classifier": classifier.weight},
    )
    assert not torch.equal(learner.classifier.weight[:3], classifier.weight)
    assert all(parameter.grad is None for parameter in every.values())


def test_the_loss_reaches_what_is_trained(trained, problem, rng):
    split, classifier, _ = trained
    trainer = SessionTrainer(split, **SETTINGS, generator=rng())
    inputs = trainer.inputs(problem[1][:6])
    targets = torch.arange(6, device=inputs.device) % 3
    heads = {f"classifier.{name}": value for name, value in classifier.named_parameters()}
    assert_gradient_flow(
        lambda: {"ce": F.cross_entropy(classifier(trainer.trained(inputs)), targets)},
        {**split.tuned, **heads},
        {f"prefix.{name}": value for name, value in split.prefix.named_parameters()},
    )


def test_retraining_leaves_the_joint_training_as_it_is(trained, problem, rng):
    split, *_ = trained
    learner = ClassifierRetraining(*trained, **SETTINGS, generator=rng())
    run_learner(learner, *problem)
    before, joint = state_of(split.network), state_of(learner.classifier)
    learner.retrain()
    assert all(torch.equal(value, before[n]) for n, value in split.network.state_dict().items())
    assert all(torch.equal(value, joint[n]) for n, value in learner.classifier.state_dict().items())
    assert not torch.equal(learner.balanced.weight, learner.classifier.weight)


def test_retraining_knows_no_frequent_class(trained, problem, monkeypatch, rng, images_of):
    """Embeddings that tell nothing leave the bias: as likely as a class is rng, 1 / 7.

    Drawn as often as they have images, base classes would have 1 / 5 and new ones 1 / 10.
    """
    learner = ClassifierRetraining(
        *trained, **SETTINGS, generator=rng(), classifier_epochs=60, classifier_lr=0.1
    )
    learner.start(*images_of(1))
    learner.inputs, counts = learner.inputs[:1].expand(30, -1, -1, -1), [6, 6, 6, 3, 3, 3, 3]
    learner.classes = torch.arange(7).to(learner.labels)
    learner.labels = learner.classes.repeat_interleave(torch.tensor(counts).to(learner.labels))
    monkeypatch.setattr(learner.trainer, "embed", lambda inputs: inputs.new_zeros(30, 32))
    learner.retrain()
    found = learner.balanced.bias.detach().softmax(dim=0)
    torch.testing.assert_close(found, torch.full_like(found, 1 / 7), atol=0.03, rtol=0)


def test_everything_seen_is_kept(trained, problem, rng):
    sessions, *_ = problem
    learner = Joint(*trained, **SETTINGS, generator=rng())
    run_learner(learner, *problem)
    assert learner.sees_all_data
    assert len(learner.inputs) == len(learner.labels) == sum(len(s.train) for s in sessions)
    assert learner.classes.tolist()[:3] == sessions[0].classes.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1. Found epochs=0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"lr": 0.0}, "lr must be above 0. Found lr=0.0"),
        ({"train": "head"}, "train must be 'tail' or 'all'. Found train='head'"),
        ({"classifier_lr": -1.0}, "classifier_lr must be above 0. Found classifier_lr=-1.0"),
        ({"classifier_epochs": 0}, "classifier_epochs must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(split, classifier, change, message, rng):
    with pytest.raises(ValueError, match=message):
        ClassifierRetraining(
            split, classifier, torch.arange(3), **{**SETTINGS, "generator": rng(), **change}
        )


def test_classes_that_do_not_fit_the_classifier_are_refused(split, classifier, batch, rng):
    options = {**SETTINGS, "generator": rng()}
    with pytest.raises(ValueError, match="each of the 3 rows of the classifier. Found 2"):
        Joint(split, classifier, torch.arange(2), **options)
    with pytest.raises(ValueError, match=r"Found \[7\] without images, \[1\] without a row"):
        Joint(split, classifier, torch.tensor([0, 2, 7]), **options).start(*batch)


def test_a_loss_that_explodes_is_named(trained, problem, rng):
    learner = Joint(*trained, epochs=9, lr=1e30, batch_size=8, generator=rng())
    with pytest.raises(FloatingPointError, match=r"method 'joint', session 2: .* step \d+"):
        run_learner(learner, *problem)
