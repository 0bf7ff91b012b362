"""Answers of experts put together: any K and temperature, limits, the selector's errors."""

import math

import pytest
import torch

from experiments.cpeft.expert_outputs import ExpertOutputs
from ktlib.cpeft.mixing import log_mixture, log_task_weights

TASK_OF = torch.tensor([1, 1, 2, 2, 3])
CLASSES = torch.tensor([40, 10, 30, 20, 50])


def random_answers(*, images=40, own=False, seed=0):
    """Three tasks, five classes. With ``own``, experts know the classes of their task only."""
    stream = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, 3, 5, generator=stream)
    if own:
        logits[:, torch.arange(1, 4)[:, None] != TASK_OF] = -math.inf
    labels = CLASSES[torch.randint(5, (images,), generator=stream)]
    task_logits = torch.randn(images, 3, generator=stream)
    return ExpertOutputs(task_logits, logits.log_softmax(dim=2), labels, CLASSES, TASK_OF)


@pytest.fixture(params=[False, True], ids=["seen", "own"])
def answers(request):
    return random_answers(own=request.param)


def test_one_expert_is_the_most_probable_alone_exactly(answers):
    best = answers.task_logits.argmax(dim=1)
    alone = answers.log_probabilities[torch.arange(40), best]
    for top, temperature in ((1, 1.0), (1, 5.0), (1, math.inf), (3, 0.0), (2, 0.0)):
        assert torch.equal(answers.log_aggregate(top, temperature), alone)
        assert torch.equal(answers.aggregate(top, temperature), alone.exp())


def test_all_experts_at_infinite_temperature_are_the_plain_mean(answers):
    mean = answers.log_probabilities.exp().mean(dim=1)
    torch.testing.assert_close(answers.aggregate(3, math.inf), mean, rtol=1e-6, atol=0)
    assert torch.equal(answers.aggregate(3, math.inf), answers.aggregate(None, math.inf))


def test_the_limits_are_limits(answers):
    for value, limit in ((1e-6, 0.0), (1e9, math.inf)):
        torch.testing.assert_close(
            answers.aggregate(3, value), answers.aggregate(3, limit), rtol=1e-5, atol=0
        )
        assert answers.accuracy(3, value) == answers.accuracy(3, limit)


def test_all_experts_at_temperature_one_are_the_formula(answers):
    for row in range(40):
        weights = [math.exp(float(logit)) for logit in answers.task_logits[row]]
        for column in range(5):
            f = [float(value) for value in answers.log_probabilities[row, :, column].exp()]
            y = sum(w * p for w, p in zip(weights, f, strict=True)) / sum(weights)
            assert float(answers.aggregate(3, 1.0)[row, column]) == pytest.approx(y, rel=1e-5)


def test_two_experts_are_the_two_most_probable(answers):
    together = answers.aggregate(2, 2.0)
    for row in range(40):
        first, second = answers.task_logits[row].argsort(descending=True)[:2]
        gap = float(answers.task_logits[row, first] - answers.task_logits[row, second]) / 2.0
        g = 1 / (1 + math.exp(-gap))
        f = answers.log_probabilities[row].exp()
        torch.testing.assert_close(together[row], g * f[first] + (1 - g) * f[second])


def test_aggregated_answers_are_distributions(answers):
    for top in (1, 2, 3):
        for temperature in (0.0, 0.1, 1.0, 10.0, math.inf):
            total = answers.aggregate(top, temperature).sum(dim=1)
            torch.testing.assert_close(total, torch.ones(40))


def test_tasks_that_tie_are_taken_in_their_order():
    weights = log_task_weights(torch.tensor([[1.0, 1.0, 0.0]]), top_k=1).exp()
    assert weights.tolist() == [[1.0, 0.0, 0.0]]
    shared = log_task_weights(torch.tensor([[1.0, 1.0, 0.0]]), temperature=0.0).exp()
    assert shared.tolist() == [[0.5, 0.5, 0.0]]


def test_tiny_temperatures_and_large_logits_give_no_nan():
    logits = torch.tensor([[1e4, -1e4, 1e4 - 1], [0.0, 0.0, 0.0]])
    for temperature in (1e-30, 1e-3, 1e30):
        assert bool(torch.isfinite(log_task_weights(logits, temperature=temperature).exp()).all())


def test_the_grid_has_a_row_for_each_pair(answers):
    rows = answers.grid([1, 3], [0.5, 1.0, math.inf])
    assert [(row["top"], row["temperature"]) for row in rows] == [
        (1, 0.5),
        (1, 1.0),
        (1, math.inf),
        (3, 0.5),
        (3, 1.0),
        (3, math.inf),
    ]
    for row in rows:
        best = answers.aggregate(row["top"], row["temperature"]).argmax(dim=1)
        correct = int((CLASSES[best] == answers.labels).sum())
        assert row["accuracy"] == pytest.approx(100 * correct / 40)


def by_hand():
    """Five images: labels 40, 10, 30, 20, 50; the selector sends the second and the last to 2."""
    task_logits = torch.tensor(
        [[3.0, 0, 0], [1.0, 2, 0], [0.0, 5, 0], [0.0, 1, 0.5], [0.0, 1.0, 0.9]]
    )
    f = torch.zeros(5, 3, 5)
    for image, votes in enumerate([(0, 2, 4), (1, 3, 4), (0, 3, 4), (1, 3, 4), (0, 2, 4)]):
        for expert, column in enumerate(votes):
            f[image, expert, column] = 1.0
    return ExpertOutputs(task_logits, f.log(), CLASSES, CLASSES, TASK_OF)


def test_misallocated_images_are_counted():
    answers = by_hand()
    assert answers.tasks.tolist() == [1, 1, 2, 2, 3]
    assert answers.selected.tolist() == [1, 2, 2, 2, 2]
    assert answers.confusion().tolist() == [[1, 1, 0], [0, 2, 0], [0, 1, 0]]
    assert answers.routing_error == [50.0, 0.0, 100.0]
    # Own experts err on the third image only (3 is 20, not 30).
    assert answers.task_il_accuracy == pytest.approx(80)
    assert answers.accuracy(1, 1.0) == pytest.approx(40)
    fewer = ExpertOutputs(
        answers.task_logits[:2], answers.log_probabilities[:2], CLASSES[:2], CLASSES, TASK_OF
    )
    assert math.isnan(fewer.routing_error[2])


def test_a_selector_that_is_always_right_is_the_oracle():
    answers = random_answers(own=True)
    right = torch.zeros(40, 3)
    right[torch.arange(40), answers.tasks - 1] = 1.0
    sure = ExpertOutputs(right, answers.log_probabilities, answers.labels, CLASSES, TASK_OF)
    assert sure.accuracy(1, 1.0) == sure.task_il_accuracy
    assert sure.task_il_accuracy == answers.task_il_accuracy  # the selector does not enter it
    assert sure.routing_error == [0.0, 0.0, 0.0]
    own = answers.log_probabilities[torch.arange(40), answers.tasks - 1]
    assert torch.equal(sure.log_aggregate(3, 0.0), own)


def test_with_the_task_given_only_its_own_classes_count():
    """The expert of the task may know more: here it prefers a class of another."""
    f = torch.tensor([[[0.1, 0.2, 0.7, 0.0, 0.0]] * 3])
    labels = torch.tensor([10])
    answers = ExpertOutputs(torch.zeros(1, 3), f.log(), labels, CLASSES, TASK_OF)
    assert answers.task_il_accuracy == 100.0
    assert answers.accuracy(1, 1.0) == 0.0


class OfPixels:
    """A learner whose answers are in the images."""

    classes, task_of = CLASSES, TASK_OF

    def expert_outputs(self, images):
        return images[:, :3], images[:, 3:].reshape(-1, 3, 5)


def test_a_learner_is_asked_batch_by_batch(answers):
    pixels = torch.cat([answers.task_logits, answers.log_probabilities.flatten(1)], dim=1)
    found = ExpertOutputs.of(OfPixels(), pixels, answers.labels, batch_size=7)
    assert torch.equal(found.log_probabilities, answers.log_probabilities)
    assert torch.equal(found.task_logits, answers.task_logits)
    assert found.task_il_accuracy == answers.task_il_accuracy
    with pytest.raises(ValueError, match="the number of images must be at least 1"):
        ExpertOutputs.of(OfPixels(), pixels, answers.labels[:0])
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        ExpertOutputs.of(OfPixels(), pixels, answers.labels, batch_size=0)


def test_what_is_out_of_range_is_refused(answers):
    for top in (0, 4, True, 1.0):
        with pytest.raises(ValueError, match=f"top_k must be an integer from 1 to 3.*Found {top}"):
            answers.grid([top], [1.0])
    for temperature in (-1.0, math.nan):
        with pytest.raises(ValueError, match="temperature must be at least 0, infinity included"):
            answers.aggregate(1, temperature)
    parts = {name: getattr(answers, name) for name in answers.__dataclass_fields__}
    with pytest.raises(ValueError, match=r"labels must be of classes that were learned.*\[60\]"):
        ExpertOutputs(**(parts | {"labels": torch.full((40,), 60)}))
    with pytest.raises(ValueError, match="task_logits.*40 images, 3 tasks, 5 classes"):
        ExpertOutputs(**(parts | {"task_logits": torch.zeros(40, 2)}))


def test_nothing_known_stays_minus_infinity():
    f = torch.tensor([[[0.0, -math.inf], [-math.inf, 0.0]]])
    mixed = log_mixture(torch.tensor([[0.0, -math.inf]]), f)
    assert mixed.tolist() == [[0.0, -math.inf]]
