"""Heads of several tasks, joined."""

import pytest
import torch
from torch import nn

from ktlib.cpeft.encoders import feature_dim
from ktlib.cpeft.heads import JoinedHead


@pytest.fixture
def head(device):
    joined = JoinedHead(4).to(device)
    assert joined.add(torch.tensor([7, 2]), seed=0) == 1
    assert joined.add(torch.tensor([5, 9, 0]), seed=0) == 2
    return joined


def test_columns_stand_in_the_order_in_which_classes_came(head, device):
    assert head.classes.tolist() == [7, 2, 5, 9, 0]
    assert head.task_of.tolist() == [1, 1, 2, 2, 2]
    features = torch.randn(3, 4, device=device)
    scores = head(features)
    assert scores.shape == (3, 5)
    assert torch.equal(scores[:, :2], head.of_task(1, features))
    assert torch.equal(scores[:, 2:], head.of_task(2, features))
    assert torch.equal(head.of_task(2, features), head.head(2)(features))
    assert scores.device.type == device.type


def test_the_seed_decides_the_weights_and_the_global_generator_stays(head, device):
    state = torch.get_rng_state()
    same, other = JoinedHead(4).to(device), JoinedHead(4).to(device)
    same.add(torch.tensor([1, 2]), seed=0)
    other.add(torch.tensor([1, 2]), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(same.head(1).weight, head.head(1).weight)
    assert not torch.equal(other.head(1).weight, head.head(1).weight)
    assert not torch.equal(head.head(1).weight, head.head(2).weight[:2])
    assert head.head(2).weight.abs().max() <= 0.5


def test_an_older_head_is_not_changed_by_training_another(head, device):
    features = torch.randn(3, 4, device=device)
    head.of_task(2, features).sum().backward()
    assert head.head(1).weight.grad is None
    assert head.head(2).weight.grad is not None


@pytest.mark.parametrize("classes", [[], [3, 3], [3, 9]])
def test_classes_must_be_new(head, classes):
    with pytest.raises(ValueError, match="classes must be new.* Found .*: .7, 2, 5, 9, 0."):
        head.add(torch.tensor(classes, dtype=torch.int64), seed=0)
    assert len(head.heads) == 2


@pytest.mark.parametrize("number", [0, 3, -1])
def test_unknown_tasks_are_told(head, number):
    with pytest.raises(ValueError, match=f"1 to 2, the tasks so far. Found number={number}"):
        head.of_task(number, torch.zeros(1, 4))


def test_an_encoder_says_its_number_of_features(tiny_vit):
    assert feature_dim(tiny_vit) == 16
    with pytest.raises(ValueError, match="attribute `dim`. Linear has dim=None"):
        feature_dim(nn.Linear(2, 2))
