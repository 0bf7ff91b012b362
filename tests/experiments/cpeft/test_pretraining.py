"""The small pre-trained model: it learns, repeats itself, and is kept under the right name."""

import pytest
import torch
from torch import nn

from experiments.cpeft.pretraining import Pretraining, pretrain


def new_head(device):
    torch.manual_seed(0)
    return nn.Linear(16, 6).to(device)


def trained(network, data, device, **changes):
    settings = {"epochs": 6, "batch_size": 32, "lr": 0.01, "seed": 0} | changes
    head = new_head(device)
    images, labels = data.images.to(device), data.labels.to(device)
    return head, pretrain(network, head, images, labels, Pretraining(**settings))


def test_it_learns_and_ends_in_eval_mode(tiny_vit, tiny_data, device):
    head, losses = trained(tiny_vit, tiny_data, device)
    assert losses[-1] < 0.5 * losses[0]
    assert not tiny_vit.training
    right = head(tiny_vit(tiny_data.test_images.to(device))).argmax(1).cpu()
    assert (right == tiny_data.test_labels).double().mean() > 0.8


def test_equal_seeds_give_equal_weights(tiny_vit, tiny_data, device):
    import copy

    other = copy.deepcopy(tiny_vit)
    trained(tiny_vit, tiny_data, device, epochs=1)
    trained(other, tiny_data, device, epochs=1)
    for one, two in zip(tiny_vit.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_sam_takes_another_way(tiny_vit, tiny_data, device):
    import copy

    flat = copy.deepcopy(tiny_vit)
    _, plain_losses = trained(tiny_vit, tiny_data, device, epochs=2)
    _, flat_losses = trained(flat, tiny_data, device, epochs=2, sam_radius=0.1)
    assert plain_losses[1] != flat_losses[1]
    assert flat_losses[1] < flat_losses[0]


def test_a_rate_that_is_too_large_is_named(tiny_vit, tiny_data, device):
    with pytest.raises(FloatingPointError, match=r"pre-training is nan in epoch \d; lr=1e\+30"):
        trained(tiny_vit, tiny_data, device, lr=1e30)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"epochs": 0}, "epochs"), ({"lr": 0.0}, "lr"), ({"sam_radius": -1.0}, "sam_radius")],
)
def test_bad_arguments(tiny_vit, tiny_data, device, changes, words):
    with pytest.raises(ValueError, match=words):
        trained(tiny_vit, tiny_data, device, **changes)
