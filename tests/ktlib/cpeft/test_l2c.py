"""L2C: selector and experts, what each knows, how new experts start, and their agreement."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from experiments.cpeft.expert_outputs import ExpertOutputs
from ktlib.cpeft.l2c import L2C, L2CSettings
from ktlib.cpeft.mixing import mixed_adapters
from ktlib.cpeft.tasks import class_tasks, learn_tasks, predict, predict_with_task_id
from ktlib.cpeft.training import LoraTraining

SETTINGS = {
    "layers": ["query", "key", "value"],
    "rank": 2,
    "epochs": 2,
    "batch_size": 16,
    "lr": 0.01,
    "seed": 0,
    "selector_lr": 0.001,
    "align_steps": 20,
    "align_lr": 0.02,
    "align_per_class": 8,
}
TRAINING = ("layers", "rank", "epochs", "batch_size", "lr", "seed")


def make(backbone, **changes):
    given = SETTINGS | changes
    training = LoraTraining(**{name: given.pop(name) for name in TRAINING})
    return L2C(backbone, training, L2CSettings(**given))


@pytest.fixture
def tasks(tiny_data):
    return class_tasks(
        tiny_data.labels, classes=range(6), tasks=3, images=None, class_seed=0, seed=0
    )


@pytest.fixture
def learned(tiny_vit, tiny_data, tasks):
    """Make a learner and lead it through the tasks, or the first of them."""

    def learn(count=3, **changes):
        learner = make(tiny_vit, **changes)
        for task in tasks[:count]:
            learner.learn(task, tiny_data.images, tiny_data.labels)
        return learner

    return learn


@pytest.fixture
def noisy(tiny_data):
    """Test images on which selector and experts err, and their classes."""
    noise = torch.randn(tiny_data.test_images.shape, generator=torch.Generator().manual_seed(1))
    return tiny_data.test_images + 2 * noise, tiny_data.test_labels


# Mixing ----------------------------------------------------------------------------------------


def random_adapters(seed, rank=2):
    stream = torch.Generator().manual_seed(seed)
    return {
        "a.down": torch.randn(rank, 5, generator=stream),
        "a.up": torch.randn(6, rank, generator=stream),
        "b.c.down": torch.randn(rank, 4, generator=stream),
        "b.c.up": torch.randn(4, rank, generator=stream),
    }


def test_mixed_adapters_are_the_best_approximation_of_the_mean_update():
    experts, weights = [random_adapters(seed) for seed in range(3)], torch.tensor([0.5, 0.2, 0.3])
    mixed = mixed_adapters(experts, weights)
    for layer in ("a", "b.c"):
        wanted = sum(
            w * (one[f"{layer}.up"] @ one[f"{layer}.down"])
            for w, one in zip(weights, experts, strict=True)
        )
        u, s, vt = torch.linalg.svd(wanted, full_matrices=False)
        update = mixed[f"{layer}.up"] @ mixed[f"{layer}.down"]
        torch.testing.assert_close(update, (u[:, :2] * s[:2]) @ vt[:2], atol=1e-5, rtol=1e-5)
        error = float((update - wanted).norm())
        assert error == pytest.approx(float(s[2:].norm()), rel=1e-4)
        # What it is not: B and A mixed each for itself.
        factors = [
            sum(w * one[f"{layer}.{part}"] for w, one in zip(weights, experts, strict=True))
            for part in ("up", "down")
        ]
        assert float((factors[0] @ factors[1] - wanted).norm()) > 1.1 * error


def test_one_expert_alone_is_kept():
    experts = [random_adapters(0), random_adapters(1)]
    mixed = mixed_adapters(experts, torch.tensor([0.0, 1.0]))
    for layer in ("a", "b.c"):
        torch.testing.assert_close(
            mixed[f"{layer}.up"] @ mixed[f"{layer}.down"],
            experts[1][f"{layer}.up"] @ experts[1][f"{layer}.down"],
            atol=1e-5,
            rtol=1e-5,
        )


def test_directions_that_no_expert_uses_can_still_be_learned():
    """Where B A has a lower rank, A keeps rows of LoRA's length: both zero would never move."""
    experts = [random_adapters(0), random_adapters(1)]
    for adapters in experts:
        adapters["a.up"].zero_()
    mixed = mixed_adapters(experts, torch.tensor([0.5, 0.5]))
    assert not bool(mixed["a.up"].any())
    torch.testing.assert_close(mixed["a.down"].norm(dim=1), torch.full((2,), 1 / math.sqrt(3)))


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(ValueError, match="weights must be 1 numbers >= 0"):
        mixed_adapters([random_adapters(0)], torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match="weights must be 1 numbers >= 0"):
        mixed_adapters([random_adapters(0)], torch.tensor([-1.0]))
    with pytest.raises(ValueError, match="Found \\[\\]"):
        mixed_adapters([], torch.tensor([]))
    with pytest.raises(ValueError, match="rank must be at most 5, the size of a.*Found rank=6"):
        mixed_adapters([random_adapters(0, rank=6)], torch.tensor([1.0]))


# Answers ---------------------------------------------------------------------------------------


def test_weights_are_the_softmax_over_the_largest_logits(learned, tiny_data):
    learner = learned(temperature=2.0)
    images = tiny_data.test_images
    learner._network.load_adapters(learner._selector)
    with torch.no_grad():
        logits = learner._selector_head(learner._network(images))
    largest = torch.stack([logits[:, 2 * k : 2 * k + 2].max(dim=1).values for k in range(3)], 1)
    torch.testing.assert_close(learner.expert_outputs(images)[0], largest)
    expected = torch.softmax(largest / 2.0, dim=1)
    torch.testing.assert_close(learner.task_probabilities(images), expected)


@pytest.mark.parametrize("expert_classes", ["own", "seen"])
def test_experts_know_the_classes_that_they_should(learned, tiny_data, expert_classes):
    learner = learned(expert_classes=expert_classes)
    f = learner.expert_probabilities(tiny_data.test_images)
    assert f.shape == (48, 3, 6)
    torch.testing.assert_close(f.sum(dim=2), torch.ones(48, 3))
    expert, task = torch.arange(1, 4)[:, None], learner.task_of[None]
    knows = task == expert if expert_classes == "own" else task >= expert
    assert bool((f > 0).eq(knows).all())


def test_scores_are_the_aggregated_probabilities(learned, noisy):
    learner = learned(temperature=3.0)
    images, labels = noisy
    g, f = learner.task_probabilities(images), learner.expert_probabilities(images)
    torch.testing.assert_close(learner.scores(images).exp(), (g[:, :, None] * f).sum(dim=1))
    outputs = ExpertOutputs.of(learner, images, labels, batch_size=20)
    for top_k in (1, 2, 3):
        learner.settings = replace(learner.settings, top_k=top_k)
        expected = outputs.aggregate(top_k, 3.0)
        torch.testing.assert_close(learner.scores(images).exp(), expected, atol=1e-6, rtol=1e-4)
        correct = (predict(learner, images) == labels).double().mean()
        assert 100 * float(correct) == pytest.approx(outputs.accuracy(top_k, 3.0))


def test_more_experts_than_there_are_means_all(learned, tiny_data):
    few, everyone = learned(2, top_k=3), learned(2)
    images = tiny_data.test_images
    assert torch.equal(few.scores(images), everyone.scores(images))


def test_with_the_task_given_its_expert_answers(learned, noisy):
    """Also where K = 1 chose another expert, which knows none of the classes."""
    learner = learned(expert_classes="own", top_k=1)
    images, labels = noisy
    outputs = ExpertOutputs.of(learner, images, labels)
    assert sum(outputs.routing_error) > 0
    correct = 0
    for task in (1, 2, 3):
        classes = learner.classes[learner.task_of == task]
        within = predict_with_task_id(learner, images, classes)
        assert torch.equal(learner.predict_with_task_id(images, task), within)
        own = torch.isin(labels, classes)
        correct += int((within[own] == labels[own]).sum())
    assert outputs.task_il_accuracy == pytest.approx(100 * correct / len(labels))


def test_a_selector_that_is_always_right_makes_it_the_oracle(learned, noisy, monkeypatch):
    learner = learned(expert_classes="own", top_k=1)
    images, labels = noisy
    outputs = ExpertOutputs.of(learner, images, labels)
    assert outputs.accuracy(1, 1.0) < outputs.task_il_accuracy < 100
    position = (labels[:, None] == learner.classes).int().argmax(dim=1)
    right = F.one_hot(learner.task_of[position] - 1, 3).float()
    monkeypatch.setattr(learner, "_task_logits", lambda features: right)
    correct = (predict(learner, images) == labels).double().mean()
    assert 100 * float(correct) == pytest.approx(outputs.task_il_accuracy)


# Learning --------------------------------------------------------------------------------------


def test_it_learns(tiny_vit, tiny_data, tasks):
    learner = make(tiny_vit, epochs=15, align_steps=60)
    rows = learn_tasks(
        learner,
        tasks,
        tiny_data.images,
        tiny_data.labels,
        tiny_data.test_images,
        tiny_data.test_labels,
    )
    last = [row for row in rows if row["after"] == 3]
    assert sum(row["accuracy"] for row in last) / 3 > 60  # 17 by chance
    assert min(row["task_il_accuracy"] for row in last) > 80
    for losses in (learner.selector_losses, learner.expert_losses):
        assert list(losses) == [1, 2, 3]
        assert all(len(each) == 15 and each[-1] < each[0] for each in losses.values())


def test_the_pre_trained_model_is_left_and_old_experts_stay(learned, tiny_vit, tiny_data, tasks):
    before = copy.deepcopy(tiny_vit.state_dict())
    learner = learned(1)
    first = {name: value.clone() for name, value in learner._experts[0].items()}
    selector = learner._selector
    old = learner.predict_with_task_id(tiny_data.test_images, 1)
    for task in tasks[1:]:
        learner.learn(task, tiny_data.images, tiny_data.labels)
    assert all(torch.equal(learner._experts[0][name], value) for name, value in first.items())
    assert any(not torch.equal(learner._selector[name], selector[name]) for name in selector)
    assert all(torch.equal(value, before[name]) for name, value in tiny_vit.state_dict().items())
    base = learner._network.backbone.state_dict()
    plain = {name.replace(".base_layer", ""): v for name, v in base.items() if "lora" not in name}
    assert all(torch.equal(value, before[name]) for name, value in plain.items())
    own = learned(expert_classes="own")
    assert torch.equal(own.predict_with_task_id(tiny_data.test_images, 1), old)


def test_the_same_seed_gives_the_same_learner(learned, tiny_data):
    images = tiny_data.test_images
    first, second = learned(2, consistency=0.5), learned(2, consistency=0.5)
    torch.manual_seed(99)
    assert torch.equal(first.scores(images), second.scores(images))
    assert not torch.equal(first.scores(images), learned(2, consistency=0.5, seed=1).scores(images))


def test_a_new_expert_starts_from_the_old_ones(learned):
    """With a rate of next to nothing, a new expert stays where it starts."""
    learner = learned(3, lr=1e-12)
    assert list(learner.start_weights) == [2, 3]
    assert learner.start_weights[2] == [1.0]
    weights = torch.tensor(learner.start_weights[3])
    assert float(weights.sum()) == pytest.approx(1)
    start = mixed_adapters(learner._experts[:2], weights)
    for name, value in learner._experts[2].items():
        torch.testing.assert_close(value, start[name], atol=1e-6, rtol=0)
    anew = learned(2, start_from_old=False)
    assert anew.start_weights == {}


def test_weights_of_the_old_are_those_of_the_selector_before_the_new_task(
    learned, tiny_data, tasks
):
    learner = learned(2)
    images = tiny_data.images[tasks[2].train]
    expected = learner.task_probabilities(images).mean(dim=0)
    learner.learn(tasks[2], tiny_data.images, tiny_data.labels)
    torch.testing.assert_close(torch.tensor(learner.start_weights[3]), expected)


def test_starting_from_the_old_changes_the_new_expert_only(learned):
    with_old, without = learned(2), learned(2, start_from_old=False)
    assert torch.equal(*(one._selector_head.head(2).weight for one in (with_old, without)))
    name = next(name for name in with_old._experts[0] if name.endswith("up"))
    assert torch.equal(with_old._experts[0][name], without._experts[0][name])
    assert not torch.equal(with_old._experts[1][name], without._experts[1][name])


def test_the_selector_learns_slowly(learned):
    still, fast = learned(2, selector_lr=1e-12), learned(2, selector_lr=0.01)
    for name, value in still._selector.items():
        if name.endswith("up"):
            assert float(value.abs().max()) < 1e-9
            assert float(fast._selector[name].abs().max()) > 1e-3
    assert still.selector_losses[2][-1] < still.selector_losses[2][0]  # its head learns at `lr`


def test_alignment_changes_the_heads_of_the_selector(learned):
    aligned, plain = learned(2), learned(2, aligned=False)
    assert aligned.selector_losses == plain.selector_losses
    assert not torch.equal(*(one._selector_head.head(1).weight for one in (aligned, plain)))
    name = next(iter(aligned._experts[1]))
    assert torch.equal(aligned._selector[name], plain._selector[name])
    steps = learned(2, align_steps=0)
    assert torch.equal(*(one._selector_head.head(1).weight for one in (steps, plain)))


def test_alignment_takes_the_bias_to_the_last_task_away(learned, tiny_data):
    """The heads of old tasks stay as they are while a last one is trained to shout."""
    images, labels = tiny_data.test_images, tiny_data.test_labels
    outputs = []
    for aligned in (False, True):
        learner = learned(2, aligned=aligned, align_steps=100)
        known = torch.isin(labels, learner.classes)
        with torch.no_grad():
            learner._selector_head.head(2).bias += 5.0
        if aligned:
            learner._align(learner._selector_head, learner._selector_statistics, "again", 2)
        outputs.append(ExpertOutputs.of(learner, images[known], labels[known]))
    assert outputs[0].routing_error[0] > 90
    assert outputs[1].routing_error[0] < 50


def test_later_classes_are_known_by_the_first_expert(learned, tiny_data):
    """It never saw an image of the second task while it was trained."""
    learner = learned(2, epochs=10, align_steps=100)
    later = torch.isin(tiny_data.test_labels, learner.classes[learner.task_of == 2])
    first = learner.expert_probabilities(tiny_data.test_images[later])[:, 0]
    best = learner.classes[first.argmax(dim=1)]
    assert float((best == tiny_data.test_labels[later]).double().mean()) > 0.5  # 0.25 by chance


# Consistency -----------------------------------------------------------------------------------


def test_the_consistency_term_is_the_divergence_from_the_answer_of_all(
    learned, tiny_data, tasks, monkeypatch
):
    learner = learned(2, consistency=0.7, temperature=2.0)
    noted = {}

    def stop(head_scores, groups, task, images, labels, batches, loss_extra=None):
        noted["term"] = loss_extra
        raise KeyboardInterrupt

    learner._learn_selector(tasks[2], tiny_data.images, tiny_data.labels)
    old = [
        learner._update_old_expert(k, tasks[2], tiny_data.images, tiny_data.labels) for k in (1, 2)
    ]
    monkeypatch.setattr(learner, "_train", stop)
    with pytest.raises(KeyboardInterrupt):
        learner._learn_expert(tasks[2], tiny_data.images, tiny_data.labels, None, old)
    rows = tasks[2].train[torch.tensor([5, 0, 20])]
    images = tiny_data.images[rows]
    scores = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    value = noted["term"](rows, scores)

    g, single = learner.task_probabilities(images), scores.softmax(dim=1)
    together = g[:, 2:] * single.detach()
    for expert, head in enumerate(learner._heads):
        features = learner._features(learner._experts[expert], images)
        f = head(features).softmax(dim=1)
        assert torch.equal(head.classes[-2:], tasks[2].classes)
        together = together + g[:, expert, None] * f[:, -2:]
    together = (together / together.sum(dim=1, keepdim=True)).detach()
    expected = 0.7 * (together * (together / single).log()).sum(dim=1).mean()
    torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-4)
    # No gradient goes through the answer of all: what is left is that of a cross-entropy.
    value.backward()
    torch.testing.assert_close(
        scores.grad, 0.7 * (single - together).detach() / 3, atol=1e-6, rtol=1e-4
    )


def test_consistency_changes_new_experts_only(learned):
    with_term, without = learned(2, consistency=1.0), learned(2)
    name = next(name for name in without._experts[0] if name.endswith("up"))
    assert torch.equal(with_term._experts[0][name], without._experts[0][name])
    assert torch.equal(with_term._selector[name], without._selector[name])
    assert not torch.equal(with_term._experts[1][name], without._experts[1][name])
    assert with_term.expert_losses[1] == without.expert_losses[1]


# Errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"selector_lr": -1.0}, "selector_lr must be above 0"),
        ({"align_lr": 0.0}, "align_lr must be above 0"),
        ({"align_steps": -1}, "align_steps must be at least 0"),
        ({"align_per_class": 0}, "align_per_class must be at least 1"),
        ({"top_k": 0}, "top_k must be an integer of at least 1, or None. Found 0"),
        ({"top_k": 1.5}, "top_k must be an integer.*Found 1.5"),
        ({"rank": 17}, "rank must be at most 16.*with start_from_old=True. Found rank=17"),
        ({"temperature": -0.5}, "temperature must be at least 0"),
        ({"consistency": -1.0}, "consistency must be at least 0"),
        ({"expert_classes": "all"}, "expert_classes must be one of.*Found 'all'"),
        ({"expert_classes": "own", "consistency": 1.0}, "consistency must be 0 with"),
        ({"layers": ["gate"]}, "gate"),
    ],
)
def test_settings_out_of_range_are_refused(tiny_vit, changes, message):
    with pytest.raises(ValueError, match=message):
        make(tiny_vit, **changes)


def test_what_was_not_learned_cannot_be_asked(learned, tiny_vit, tiny_data, tasks):
    fresh = make(tiny_vit)
    assert fresh.classes.tolist() == []
    with pytest.raises(ValueError, match="must have learned at least one task"):
        fresh.scores(tiny_data.test_images)
    learner = learned(1)
    for task in (0, 2):
        with pytest.raises(ValueError, match=f"task must lie in 1 to 1.*Found {task}"):
            learner.predict_with_task_id(tiny_data.test_images, task)
    with pytest.raises(ValueError, match="classes must be new"):
        learner.learn(tasks[0], tiny_data.images, tiny_data.labels)


def test_a_class_with_one_image_has_no_covariance(tiny_vit, tiny_data):
    (task,) = class_tasks(tiny_data.labels, classes=[0, 4], tasks=1, images=1, class_seed=0, seed=0)
    with pytest.raises(ValueError, match=r"task 1 must have at least two training images.*4"):
        make(tiny_vit).learn(task, tiny_data.images, tiny_data.labels)
    plain = make(tiny_vit, aligned=False, expert_classes="own")
    plain.learn(task, tiny_data.images, tiny_data.labels)
    assert plain.scores(tiny_data.test_images).shape == (48, 2)
