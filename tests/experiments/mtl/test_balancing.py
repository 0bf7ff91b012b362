"""Weights of the losses: at the start 1 each, then what the papers say."""

import math

import pytest
import torch

from experiments.mtl.balancing import balancer
from ktlib.mtl.gradients import TaskGradients

CPU = torch.device("cpu")


def made(name, tasks=2, **options):
    return balancer(name, tasks, lr=0.1, device=CPU, **options)


def gradients(*rows):
    return TaskGradients(tasks=("a", "b"), parameters=(), matrix=torch.tensor(rows))


@pytest.mark.parametrize("name", ["uw", "gradnorm", "famo"])
def test_equal_tasks_have_the_weight_1(name):
    found = made(name, 3).weights(torch.tensor([2.0, 2.0, 2.0]))
    assert found.tolist() == pytest.approx([1.0, 1.0, 1.0], abs=1e-5)


def test_uncertainty_weighting_descends_on_its_loss():
    """exp(-s) L + s has the gradient 1 - exp(-s) L in s; momentum plays no part in one step."""
    balance = made("uw")
    balance.weights(torch.tensor([3.0, 0.5]))
    second = balance.weights(torch.tensor([3.0, 0.5]))
    expected = [math.exp(-0.1 * (3.0 - 1)), math.exp(-0.1 * (0.5 - 1))]
    assert second.tolist() == pytest.approx(expected)


def test_gradnorm_lengthens_what_is_short():
    balance = made("gradnorm", alpha=0.0)
    for _ in range(40):
        weights = balance.weights(torch.tensor([1.0, 1.0]))
        balance.learn(gradients([4.0 * weights[0], 0.0], [0.0, weights[1]]))
    weights = balance.weights(torch.tensor([1.0, 1.0]))
    assert float(weights.sum()) == pytest.approx(2.0)
    assert 4 * float(weights[0]) == pytest.approx(float(weights[1]), rel=0.1)  # lengths are equal


def test_gradnorm_favours_the_task_whose_loss_has_fallen_less():
    balance = made("gradnorm", alpha=1.0)
    balance.weights(torch.tensor([1.0, 1.0]))
    weights = balance.weights(torch.tensor([0.9, 0.1]))  # the first has hardly fallen
    balance.learn(gradients([1.0, 0.0], [0.0, 1.0]))
    weights = balance.weights(torch.tensor([0.9, 0.1]))
    assert weights[0] > 1 > weights[1]


def test_famo_weights_by_one_over_the_loss_and_turns_to_what_falls_least():
    balance = made("famo")
    first = balance.weights(torch.tensor([4.0, 1.0]))
    assert first.tolist() == pytest.approx([2 * 0.2, 2 * 0.8], rel=1e-4)
    assert balance.looks_back
    balance.after_step(torch.tensor([4.0, 0.2]))  # the second has fallen, the first has not
    second = balance.weights(torch.tensor([4.0, 1.0]))
    assert second[0] > first[0]
    assert float(second.sum()) == pytest.approx(2.0)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"must be one of \('uw', 'gradnorm', 'famo'\). Found 'x'"):
        made("x")
