"""Learners that others are compared with: each does what it says, on tiny images."""

import pytest
import torch
from torch import nn

from experiments.models.images import NormalisedImages
from ktlib.cpeft.comparisons import JointLora, LoraOracle, NearestMean, SequentialLora
from ktlib.cpeft.metrics import final_accuracy, forgetting
from ktlib.cpeft.tasks import class_tasks, learn_tasks, predict, predict_with_task_id
from ktlib.cpeft.training import LoraTraining

SETTINGS = {"layers": ["key", "value"], "rank": 2, "epochs": 6, "batch_size": 16, "lr": 0.02}
LORA = [SequentialLora, LoraOracle, JointLora]


def make(kind, backbone, seed=0, **changes):
    if kind is NearestMean:
        return NearestMean(backbone)
    return kind(backbone, LoraTraining(seed=seed, **(SETTINGS | changes)))


@pytest.fixture
def tasks(tiny_data):
    return class_tasks(
        tiny_data.labels, classes=range(6), tasks=3, images=None, class_seed=0, seed=0
    )


@pytest.fixture
def run(tiny_data, tasks):
    def go(learner, **settings):
        d = tiny_data
        return learn_tasks(
            learner, tasks, d.images, d.labels, d.test_images, d.test_labels, **settings
        )

    return go


def within(rows):
    return [row["task_il_accuracy"] for row in rows]


@pytest.mark.parametrize("kind", [*LORA, NearestMean])
def test_what_all_learners_have_in_common(kind, tiny_vit, tiny_data, tasks, run, device):
    before = {name: value.clone() for name, value in tiny_vit.state_dict().items()}
    learner = make(kind, tiny_vit)
    assert len(learner.classes) == 0
    rows = run(learner)
    assert learner.classes.tolist() == torch.cat([task.classes for task in tasks]).tolist()
    scores = learner.scores(tiny_data.test_images)
    assert scores.shape == (48, 6)
    assert scores.device.type == device.type
    assert not scores.requires_grad
    assert run(make(kind, tiny_vit)) == rows  # the backbone is a copy, and the seed decides
    assert all(torch.equal(before[name], v) for name, v in tiny_vit.state_dict().items())
    assert all(parameter.requires_grad for parameter in tiny_vit.parameters())


@pytest.mark.parametrize("kind", LORA)
def test_the_seed_changes_what_is_learned(kind, tiny_vit, tiny_data, tasks):
    one, other = make(kind, tiny_vit, epochs=1), make(kind, tiny_vit, seed=1, epochs=1)
    for learner in (one, other):
        learner.learn(tasks[0], tiny_data.images, tiny_data.labels)
    images = tiny_data.test_images
    assert not torch.allclose(one.scores(images), other.scores(images))
    assert one.losses[1] != other.losses[1]


def test_tuning_in_sequence_forgets_and_joint_training_does_not(tiny_vit, run):
    sequential, joint = run(make(SequentialLora, tiny_vit)), run(make(JointLora, tiny_vit))
    assert final_accuracy(joint) > 90
    assert final_accuracy(sequential) < final_accuracy(joint) - 10
    assert forgetting(sequential) > 20 > forgetting(joint)


def test_a_sequence_goes_on_with_one_adapter(tiny_vit, tiny_data, tasks):
    learner = make(SequentialLora, tiny_vit)
    adapters, heads = [learner.backbone.adapters()], []
    for task in tasks[:2]:
        learner.learn(task, tiny_data.images, tiny_data.labels)
        adapters.append(learner.backbone.adapters())
        heads.append(learner.head.head(1).weight.clone())
    first, second, third = ([*values.values()] for values in adapters)
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    # The second task starts where the first ended, not at zero.
    assert all((b - c).norm() < b.norm() + c.norm() for b, c in zip(second, third, strict=True))
    assert torch.equal(*heads)  # the head of the first task is not trained again


def test_an_oracle_with_the_task_given_forgets_nothing(tiny_vit, run):
    rows = run(make(LoraOracle, tiny_vit))
    last = [row for row in rows if row["after"] == 3]
    first = [row for row in rows if row["after"] == row["task"]]
    assert within(last) == within(first)
    assert min(within(last)) > 90


def test_experts_start_from_the_pre_trained_backbone(tiny_vit, tiny_data, tasks, monkeypatch):
    """Each training begins with adapters that change nothing."""
    learner = make(LoraOracle, tiny_vit, epochs=1)
    starts = []
    train = learner._train

    def watched(*given):
        images = tiny_data.images.to(learner.device)
        starts.append(torch.equal(learner.backbone(images), tiny_vit(images)))
        return train(*given)

    monkeypatch.setattr(learner, "_train", watched)
    for task in tasks:
        learner.learn(task, tiny_data.images, tiny_data.labels)
    assert starts == [True, True, True]
    assert len(learner.experts) == 3


def test_scores_of_an_oracle_are_log_probabilities_of_each_expert(tiny_vit, tiny_data, run):
    learner = make(LoraOracle, tiny_vit)
    run(learner)
    scores = learner.scores(tiny_data.test_images)
    sums = scores.exp().reshape(48, 3, 2).sum(2)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    learner.backbone.load_adapters(learner.experts[0])
    images = tiny_data.test_images.to(learner.device)
    own = learner.head.of_task(1, learner.backbone(images)).log_softmax(1)
    torch.testing.assert_close(scores[:, :2], own)


def test_joint_training_starts_anew_on_all_images_so_far(tiny_vit, tiny_data, tasks):
    learner = make(JointLora, tiny_vit, epochs=1)
    seen = []

    class Watched:
        def __getitem__(self, rows):
            seen.extend(rows.tolist())
            return tiny_data.images[rows]

    for task in tasks[:2]:
        seen.clear()
        learner.learn(task, Watched(), tiny_data.labels)
    assert sorted(seen) == sorted(torch.cat([tasks[0].train, tasks[1].train]).tolist())
    # Alone, the classes of both as one sequence of tasks: nothing is left of the first training.
    learner.learn(tasks[2], tiny_data.images, tiny_data.labels)
    assert learner.head.task_of.tolist() == [1, 1, 2, 2, 3, 3]
    fresh = make(JointLora, tiny_vit, epochs=1)
    fresh._tasks = list(tasks[:2])
    fresh.learn(tasks[2], tiny_data.images, tiny_data.labels)
    assert fresh.losses[3] == learner.losses[3]


def test_nearest_means_are_class_means_of_frozen_features(tiny_vit, tiny_data, tasks, device):
    learner = NearestMean(tiny_vit, batch_size=7)
    for task in tasks:
        learner.learn(task, tiny_data.images, tiny_data.labels)
    features = tiny_vit(tiny_data.images.to(device)).detach()
    for column, label in enumerate(learner.classes.tolist()):
        expected = features[tiny_data.labels == label].mean(0)
        torch.testing.assert_close(learner.means[column], expected, rtol=1e-4, atol=1e-5)
    queries = tiny_vit(tiny_data.test_images.to(device)).detach()
    nearest = (queries[:, None] - learner.means).norm(dim=2).argmin(1)
    found = predict(learner, tiny_data.test_images)
    assert torch.equal(found, learner.classes[nearest])
    assert (found.cpu() == tiny_data.test_labels).float().mean() > 0.8
    within = predict_with_task_id(learner, tiny_data.test_images, tasks[0].classes)
    assert torch.isin(within.cpu(), tasks[0].classes).all()


@pytest.mark.parametrize("kind", [*LORA, NearestMean])
def test_images_may_be_made_when_they_are_asked_for(kind, tiny_vit, tiny_data, tasks):
    pixels = (tiny_data.images * 20 + 128).clamp(0, 255).to(torch.uint8)
    images = NormalisedImages(pixels, 0.5, 0.08)
    learner = make(kind, tiny_vit, epochs=1) if kind is not NearestMean else NearestMean(tiny_vit)
    learner.learn(tasks[0], images, tiny_data.labels)
    assert learner.scores(images[tasks[1].train]).shape == (32, 2)


def test_bad_settings_are_told_when_the_learner_is_made(tiny_vit):
    for change, message in (
        ({"rank": 0}, "rank must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1. Found epochs=0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"lr": -1.0}, "lr must be above 0"),
        ({"layers": ["head"]}, "names of linear layers"),
    ):
        with pytest.raises(ValueError, match=message):
            make(SequentialLora, tiny_vit, **change)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        NearestMean(tiny_vit, batch_size=0)
    with pytest.raises(ValueError, match="attribute `dim`"):
        make(SequentialLora, nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), layers=["1"])
