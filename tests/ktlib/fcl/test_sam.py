import copy

import pytest
import torch
from pytorch_optimizer import SAM
from torch import nn
from torch.nn import functional as F

from ktlib.fcl import BaseTraining, train_base
from ktlib.fcl.sam import sam_step


def quadratic_step(weight, radius, adaptive=False):
    """One step on f(w) = (w_1^2 + 10 w_2^2) / 2."""
    curvature = torch.tensor([1.0, 10.0])
    parameter = nn.Parameter(torch.tensor(weight))
    optimizer = SAM([parameter], torch.optim.SGD, rho=radius, adaptive=adaptive, lr=0.1)

    def compute():
        return (curvature * parameter.square()).sum() / 2

    torch.autograd.backward(compute())
    sam_step(optimizer, nn.Identity(), compute)
    return parameter.detach()


def test_one_step_by_hand():
    """w = (3, 0.4): gradient (3, 4), uphill by 0.5 * (0.6, 0.8) to (3.3, 0.8), there (3.3, 8)."""
    torch.testing.assert_close(quadratic_step([3.0, 0.4], 0.5), torch.tensor([2.67, -0.4]))


def test_adaptive_step_by_hand():
    """The step is w^2 g / ||w g|| * rho, and w g = (9, 1.6) has norm 9.1411."""
    uphill = torch.tensor([9.0 * 3.0, 0.16 * 4.0]) * 0.5 / torch.tensor([9.0, 1.6]).norm()
    there = (torch.tensor([3.0, 0.4]) + uphill) * torch.tensor([1.0, 10.0])
    expected = torch.tensor([3.0, 0.4]) - 0.1 * there
    torch.testing.assert_close(quadratic_step([3.0, 0.4], 0.5, adaptive=True), expected)


def test_radius_zero_is_gradient_descent():
    torch.testing.assert_close(quadratic_step([3.0, 0.4], 0.0), torch.tensor([2.7, 0.0]))


def trained(split, classifier, batch, radius):
    split, classifier = copy.deepcopy(split), copy.deepcopy(classifier)

    def loss(images, labels):
        return F.cross_entropy(classifier(split.network(images)), labels)

    settings = BaseTraining(epochs=2, batch_size=6, lr=0.05, padding=0, sam_radius=radius)
    noise = torch.Generator().manual_seed(0)
    history = train_base(split.network, classifier, *batch, loss, settings, generator=noise)
    return history, split.network.state_dict()


def test_training_with_a_tiny_radius_is_plain_training(split, classifier, batch):
    plain, tiny = (trained(split, classifier, batch, radius) for radius in (0.0, 1e-9))
    assert plain[0] == pytest.approx(tiny[0], rel=1e-4)
    for name, value in plain[1].items():
        if "num_batches" not in name:  # counts both passes, and nothing reads it
            torch.testing.assert_close(value, tiny[1][name], rtol=1e-3, atol=1e-4)


def test_training_with_a_radius_goes_elsewhere_and_repeats(split, classifier, batch):
    plain, first, second = (trained(split, classifier, batch, r) for r in (0.0, 0.1, 0.1))
    assert first[0] == second[0]
    assert any(not torch.allclose(value, plain[1][name]) for name, value in first[1].items())


def test_statistics_move_once_a_step(batch):
    """The second pass sees other weights; its statistics must not count."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 4), nn.BatchNorm1d(4))
    images, labels = batch
    optimizer = SAM(network.parameters(), torch.optim.SGD, rho=1.0, lr=0.1)
    F.cross_entropy(network(images), labels).backward()
    after_first = network[2].running_mean.clone()
    sam_step(optimizer, network, lambda: F.cross_entropy(network(images), labels))
    assert torch.equal(network[2].running_mean, after_first)
    assert network[2].momentum == 0.1
