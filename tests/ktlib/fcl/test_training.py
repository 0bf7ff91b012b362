import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18

from experiments.models.resnet import resnet18_features
from ktlib.fcl import BaseTraining, random_crop, train_base

OPTIONS = {"epochs": 2, "batch_size": 4, "lr": 0.1, "padding": 1}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def train(seed=0, **changes):
    torch.manual_seed(0)
    network, head = nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), nn.Linear(4, 3)
    images, labels = torch.randn(9, 1, 4, 4), torch.arange(9) % 3
    seen = []

    def loss(x, y):
        seen.append(x)
        return F.cross_entropy(head(network(x)), y)

    settings = BaseTraining(**OPTIONS | changes)
    history = train_base(network, head, images, labels, loss, settings, generator=generator(seed))
    return history, network, seen


def test_two_runs_with_one_seed_are_identical():
    (first, a, seen_a), (second, b, seen_b) = train(), train()
    assert first == second
    assert torch.equal(a[1].weight, b[1].weight)
    assert all(torch.equal(x, y) for x, y in zip(seen_a, seen_b, strict=True))


def test_another_seed_gives_other_batches():
    assert not torch.equal(train(0)[2][0], train(1)[2][0])


@pytest.mark.parametrize("sam_radius", [0.0, 0.05])
def test_the_classifier_can_have_a_rate_of_its_own(sam_radius):
    """One step of plain SGD: the network moves as before, the classifier ten times as far."""
    one = {"epochs": 1, "batch_size": 9, "weight_decay": 0.0, "sam_radius": sam_radius}
    heads = {}
    for rate in (None, 0.1, 1.0):
        torch.manual_seed(0)
        head, network = nn.Linear(4, 3), nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
        before = head.weight.detach().clone()
        images, labels = torch.randn(9, 1, 4, 4), torch.arange(9) % 3
        loss = lambda x, y, f=network, h=head: F.cross_entropy(h(f(x)), y)  # noqa: E731
        settings = BaseTraining(**OPTIONS | one | {"classifier_lr": rate})
        train_base(network, head, images, labels, loss, settings, generator=generator())
        heads[rate] = head.weight.detach() - before, network[1].weight.detach()
    assert torch.equal(heads[None][0], heads[0.1][0])
    torch.testing.assert_close(heads[1.0][0], 10 * heads[0.1][0])
    assert torch.equal(heads[1.0][1], heads[0.1][1])


@pytest.mark.parametrize(("size", "seen"), [(4, [4, 4]), (1, [1] * 9)])
def test_a_last_batch_of_one_is_left_out_unless_all_are(size, seen):
    assert [len(x) for x in train(padding=0, batch_size=size)[2]] == seen * 2


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(0, 1, 4, 4), [], "number of images must be at least 1"),
        (torch.zeros(9, 1, 4, 4), [0] * 8, "labels must be 9, one for each image. Found 8"),
        (torch.full((9, 1, 4, 4), torch.nan), [0] * 9, "epoch 1 of 2: not all images are finite"),
    ],
)
def test_data_that_nothing_can_be_learned_from(images, labels, message):
    network, head = nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), nn.Linear(4, 3)
    loss = lambda x, y: F.cross_entropy(head(network(x)), y)  # noqa: E731
    given = network, head, images, labels, loss, BaseTraining(**OPTIONS)
    with pytest.raises((ValueError, FloatingPointError), match=message):
        train_base(*given, generator=generator())


def test_labels_may_be_lists_and_narrow_or_wide():
    network, head = nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), nn.Linear(4, 3)
    seen = []

    def loss(x, y):
        seen.append(y)
        return head(network(x)).sum()

    for labels in ([0, 1, 2], torch.zeros(3, dtype=torch.int32), torch.zeros(3, 2), np.zeros(3)):
        given = network, head, np.ones((3, 1, 4, 4), "float32"), labels, loss
        train_base(*given, BaseTraining(**OPTIONS), generator=generator())
    assert [tuple(y.shape[1:]) for y in seen[::2]] == [(), (), (2,), ()]
    assert [y.dtype for y in seen[:4]] == [torch.int64] * 4


def test_it_learns_and_ends_in_eval_mode():
    history, network, _ = train(epochs=200, padding=0)
    assert history[-1] < history[0] / 2
    assert not network.training


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"lr": 0.0}, "lr must be above 0. Found lr=0.0"),
        ({"classifier_lr": 0.0}, "classifier_lr must be above 0. Found classifier_lr=0.0"),
    ],
)
def test_wrong_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        train(**wrong)


def test_divergence_is_named_at_once():
    with pytest.raises(
        FloatingPointError, match=r"the loss is (nan|inf) in epoch \d+ of 50: lower lr"
    ):
        train(epochs=50, lr=1e30)


def test_crop_shifts_and_pads_with_zeros():
    images = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3).repeat(200, 1, 1, 1)
    cropped = random_crop(images, 1, generator())
    padded = F.pad(images[0, 0], [1] * 4)
    windows = {
        tuple(padded[r : r + 3, c : c + 3].flatten().tolist()) for r in range(3) for c in range(3)
    }
    assert {tuple(x.flatten().tolist()) for x in cropped} == windows


def test_crop_keeps_channels_apart():
    images = torch.stack([torch.full((5, 5), float(c)) for c in range(3)])[None]
    cropped = random_crop(images, 2, generator())
    assert all(set(cropped[0, c].unique().tolist()) <= {0.0, float(c)} for c in range(3))


def test_padding_zero_changes_nothing():
    images = torch.randn(3, 1, 4, 4)
    assert torch.equal(random_crop(images, 0, generator()), images)


def test_flip_mirrors_about_half():
    images = torch.arange(4.0).reshape(1, 1, 1, 4).repeat(400, 1, 1, 1)
    mirrored = random_crop(images, 0, generator(), flip=True)[:, 0, 0, 0] == 3
    assert 150 < int(mirrored.sum()) < 250


def test_full_width_backbone_has_the_parameters_of_torchvisions():
    ours = sum(p.numel() for p in resnet18_features(3, 64).parameters())
    theirs = resnet18(weights=None)
    expected = sum(p.numel() for n, p in theirs.named_parameters() if not n.startswith("fc"))
    assert ours == expected - 64 * 3 * (7 * 7 - 3 * 3)  # the stem is 3x3 instead of 7x7


@pytest.mark.parametrize("stem_stride", [1, 2, 3])
def test_backbone_gives_one_vector_an_image(stem_stride):
    network = resnet18_features(2, 4, stem_stride)
    assert network(torch.randn(3, 2, 20, 20)).shape == (3, network.feature_dim) == (3, 32)


@pytest.mark.parametrize("wrong", [{"in_channels": 0}, {"width": 0}, {"stem_stride": 0}])
def test_wrong_backbone(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least 1"):
        resnet18_features(**wrong)
